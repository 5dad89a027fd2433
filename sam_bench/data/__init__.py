"""Data sets as tensors that stay on the device as bytes: loading, checking, splitting, batching, augmenting."""

from sam_bench.data.augment import augment, crop_and_flip
from sam_bench.data.batches import Batches, Extra, to_float
from sam_bench.data.mixing import MixedBatches
from sam_bench.data.npz import load_extra
from sam_bench.data.resized_crop import ResizedCrop
from sam_bench.data.sources import data_sources, is_named_dataset, known_name, load_dataset, name_of, open_dataset
from sam_bench.data.splits import Dataset, Split, channel_stats, first_examples, hold_out, known_stats
from sam_bench.data.stream_batches import StreamedBatches, make_batches
from sam_bench.data.streaming import StreamedDataset, StreamedSplit, must_stream, stream_folder
from sam_bench.data.suited import suited_augmentation

__all__ = [
    "Batches",
    "Dataset",
    "Extra",
    "MixedBatches",
    "ResizedCrop",
    "Split",
    "StreamedBatches",
    "StreamedDataset",
    "StreamedSplit",
    "augment",
    "channel_stats",
    "crop_and_flip",
    "data_sources",
    "first_examples",
    "hold_out",
    "is_named_dataset",
    "known_name",
    "known_stats",
    "load_dataset",
    "load_extra",
    "make_batches",
    "must_stream",
    "name_of",
    "open_dataset",
    "stream_folder",
    "suited_augmentation",
    "to_float",
]
