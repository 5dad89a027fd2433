"""Data sets as tensors that stay on the device as bytes: loading, checking, splitting, batching, augmenting."""

from sam_bench.data.augment import augment, crop_and_flip
from sam_bench.data.batches import Batches, to_float
from sam_bench.data.sources import data_sources, load_dataset
from sam_bench.data.splits import Dataset, Split, channel_stats, hold_out, known_stats

__all__ = [
    "Batches",
    "Dataset",
    "Split",
    "augment",
    "channel_stats",
    "crop_and_flip",
    "data_sources",
    "hold_out",
    "known_stats",
    "load_dataset",
    "to_float",
]
