"""Streamed folders: the batches that memory would give, with any number of workers, from any place on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import RandomResizedCrop, functional

from sam_bench.data import Batches, channel_stats, hold_out, load_dataset, to_float
from sam_bench.data.memory import free_memory
from sam_bench.data.resized_crop import ResizedCrop
from sam_bench.data.stream_batches import StreamedBatches, make_batches
from sam_bench.data.streaming import SIDECAR, StreamedDataset, StreamedSplit, must_stream, stream_folder
from sam_bench.errors import InputError
from sam_bench.records import Augmentation
from sam_bench.seeds import generator, row_generator

SIZE = 12


def draw(path: Path, seed: int, *, size: tuple[int, int], mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, 17 training and 6 test images: JPEG and PNG, wide and high, colour and grey, nested."""
    root = tmp_path_factory.mktemp("streamed") / "pets"
    sizes = ((20, 14), (14, 20), (16, 16), (12, 12), (31, 13))
    for number in range(17):
        name = f"{number}.jpg" if number % 2 else f"deep/{number}.png"
        draw(root / "train" / ("cat", "cow", "dog")[number % 3] / name, number, size=sizes[number % 5])
    for number in range(6):
        mode = "L" if number == 0 else "RGB"
        draw(
            root / "test" / ("cat", "cow", "dog")[number % 3] / f"{number}.JPEG", 50 + number, size=(15, 13), mode=mode
        )
    return root


@pytest.fixture(scope="module")
def pets(folder: Path) -> StreamedDataset:
    return stream_folder(folder, image_size=SIZE)


def equal(ours: list[tuple[torch.Tensor, torch.Tensor]], theirs: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(ours, theirs, strict=True)
    )


def test_it_lists_what_memory_would_hold(folder: Path, pets: StreamedDataset) -> None:
    held = load_dataset(str(folder), image_size=SIZE)
    assert (pets.name, pets.classes, pets.in_channels, pets.image_size) == ("pets", held.classes, 3, SIZE)
    for streamed, split in ((pets.train, held.train), (pets.test, held.test)):
        assert streamed is not None and split is not None
        loaded = streamed.load()
        assert torch.equal(loaded.images, split.images) and torch.equal(loaded.labels, split.labels)
        assert [str(streamed.path(index)) for index in range(len(streamed))] == [
            file for file, _ in ImageFolder(str(streamed.root)).samples
        ]
        assert streamed.bytes_in_memory == split.images.numel()
    assert pets.load().test.fingerprint == held.test.fingerprint


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augmentation", [None, Augmentation(crop_padding=3)], ids=["plain", "padded crop"])
def test_batches_are_bitwise_those_of_the_same_images_in_memory(
    pets: StreamedDataset, augmentation: Augmentation | None, workers: int
) -> None:
    assert pets.train is not None
    options = {"batch_size": 4, "seed": 7, "augmentation": augmentation}
    streamed = StreamedBatches(pets.train, workers=workers, **options)
    held = Batches(pets.train.load(), **options)
    assert len(streamed) == len(held) == 4  # a remainder of one joins the batch before it
    for epoch in (0, 3):
        assert equal(list(streamed.epoch(epoch)), list(held.epoch(epoch)))


def test_any_number_of_workers_and_any_start_give_the_same_batches(pets: StreamedDataset) -> None:
    assert pets.train is not None
    options = {"batch_size": 3, "seed": 1, "augmentation": ResizedCrop()}
    alone, shared = StreamedBatches(pets.train, workers=0, **options), StreamedBatches(pets.train, workers=2, **options)
    whole = [list(alone.epoch(epoch)) for epoch in (0, 1)]
    assert not equal(whole[0], whole[1])
    # The same workers, epoch after epoch, also after an epoch that was broken off.
    for epoch, start in ((0, 0), (1, 4), (1, 0), (0, 6), (0, 2)):
        assert equal(list(shared.epoch(epoch, start=start)), whole[epoch][start:])
        broken_off = shared.epoch(1 - epoch)
        next(broken_off)
        del broken_off
    for ours, theirs in zip(shared.epoch(0), shared.epoch(1), strict=True):
        position = [torch.equal(ours[0], x) for x, _ in whole[0]].index(True)
        assert torch.equal(theirs[0], whole[1][position][0])


def test_shards_make_up_the_undivided_batch(pets: StreamedDataset) -> None:
    assert pets.train is not None
    options = {"batch_size": 8, "seed": 1, "augmentation": ResizedCrop(), "workers": 0}
    whole = list(StreamedBatches(pets.train, **options).epoch(2))
    shards = [list(StreamedBatches(pets.train, shard=(shard, 2), **options).epoch(2)) for shard in (0, 1)]
    joined = [
        tuple(torch.cat(parts) for parts in zip(one, other, strict=True)) for one, other in zip(*shards, strict=True)
    ]
    assert equal(joined, whole)


def test_global_random_state_neither_matters_nor_changes(pets: StreamedDataset) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = list(StreamedBatches(pets.test, batch_size=4, seed=0, augmentation=ResizedCrop(), workers=0).epoch(0))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = list(StreamedBatches(pets.test, batch_size=4, seed=0, augmentation=ResizedCrop(), workers=0).epoch(0))
    assert equal(first, again)


def test_evaluation_resizes_and_cuts_the_middle_out_as_asked(folder: Path) -> None:
    test = stream_folder(folder, image_size=8, resize_to=10).test
    ((x, y),) = StreamedBatches(test, batch_size=6, seed=0, augmentation=None, shuffle=False, workers=0).epoch(0)
    for image, label, (file, number) in zip(x, y, ImageFolder(str(folder / "test")).samples, strict=True):
        with Image.open(file) as opened:
            cut = functional.center_crop(functional.resize(opened.convert("RGB"), [10]), [8])
        assert torch.equal(image, functional.to_tensor(cut)) and label == number


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 600), height=st.integers(1, 600), low=st.floats(0.01, 1), seed=st.integers(0, 10**6))
def test_a_window_lies_inside_the_image_and_within_its_bounds(width: int, height: int, low: float, seed: int) -> None:
    crop = ResizedCrop(scale=(low, 1.0))
    for draws in crop.draw(5, generator(seed)):
        top, left, h, w = crop.box(width, height, draws)
        assert 0 <= top <= height - h and 0 <= left <= width - w and h >= 1 and w >= 1


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 40), (200, 20)])
def test_windows_are_distributed_as_torchvisions(width: int, height: int) -> None:
    crop, count = ResizedCrop(), 3000
    ours = np.array([crop.box(width, height, row) for row in crop.draw(count, generator(0))], dtype=float)
    image = torch.zeros(3, height, width)
    torch.manual_seed(0)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, list(crop.scale), list(crop.ratio)) for _ in range(count)], dtype=float
    )
    for column in range(4):
        for share in (0.1, 0.25, 0.5, 0.75, 0.9):
            # Where one has this share of its values, the other has it too, within four standard errors.
            where = np.quantile(theirs[:, column], share)
            at_most = [(values[:, column] <= where).mean() for values in (ours, theirs)]
            assert abs(at_most[0] - at_most[1]) < 4 * np.sqrt(2 * 0.25 / count), (column, share)


def test_pixels_of_a_window_are_torchvisions_and_half_are_mirrored(pets: StreamedDataset) -> None:
    assert pets.train is not None
    crop, mirrored = ResizedCrop(), 0
    draws = crop.draw(200, generator(3))
    image = pets.train.open(0)
    for row in draws:
        expected = functional.resized_crop(image, *crop.box(*image.size, row), [SIZE, SIZE])
        ours = crop.apply(image, SIZE, row)
        flipped = ours.tobytes() != expected.tobytes()
        mirrored += flipped
        assert ours.tobytes() == (functional.hflip(expected) if flipped else expected).tobytes()
    assert 70 < mirrored < 130
    assert ResizedCrop(flip=False).apply(image, SIZE, draws[0]).size == (SIZE, SIZE)
    rows = row_generator(3, first=50, total=200)
    assert torch.equal(crop.draw(20, rows), crop.draw(200, row_generator(3, first=0, total=200))[50:70])


def test_held_out_examples_are_those_held_out_in_memory(pets: StreamedDataset) -> None:
    assert pets.train is not None
    ours, theirs = hold_out(pets.train, 5, seed=3), hold_out(pets.train.load(), 5, seed=3)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.load().images, other.images) and torch.equal(one.labels, other.labels)
    assert len(pets.train.head(3)) == 3 and pets.train.head(99) is pets.train
    assert set(pets.train.sample(6).labels.tolist()) == {0, 1, 2}


def copy(folder: Path, to: Path) -> Path:
    for file in folder.rglob("*.*"):
        if file.is_file() and not file.name.startswith("."):
            target = to / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return to


def fingerprint(root: Path) -> str:
    train = stream_folder(root, image_size=SIZE).train
    assert train is not None
    return train.fingerprint


def test_a_fingerprint_is_that_of_the_same_images_in_memory(pets: StreamedDataset) -> None:
    assert pets.train is not None
    for streamed in (pets.train, pets.train.select(torch.tensor([3, 16, 4])), pets.train.head(1), pets.test):
        assert streamed.fingerprint == streamed.load().fingerprint


def test_a_fingerprint_follows_pixels_labels_and_order_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    one, other = copy(folder, tmp_path / "one"), copy(folder, tmp_path / "elsewhere" / "two")
    before = fingerprint(one)
    assert re.fullmatch("[0-9a-f]{64}", before) and fingerprint(other) == before
    assert stream_folder(one, image_size=8).train.fingerprint != before  # type: ignore[union-attr]
    assert stream_folder(one, image_size=SIZE, resize_to=14).train.fingerprint != before  # type: ignore[union-attr]
    file = one / "train" / "cat" / "3.jpg"
    content = file.read_bytes()
    file.rename(file.with_name("33.jpg"))
    assert fingerprint(one) == before  # the same image in the same place
    file = file.with_name("33.jpg").rename(one / "train" / "cat" / "9a.jpg")
    moved = fingerprint(one)
    file = file.rename(one / "train" / "cow" / "3.jpg")
    relabelled = fingerprint(one)
    file = file.rename(one / "train" / "cat" / "3.jpg")
    file.write_bytes(content + b"\0")
    assert fingerprint(one) == before
    draw(file, 99, size=(14, 20))
    assert len({before, moved, relabelled, fingerprint(one)}) == 4


def test_a_fingerprint_is_what_the_documentation_says(folder: Path, tmp_path: Path) -> None:
    root = copy(folder, tmp_path / "pets")
    images, labels = [], []
    for file, label in ImageFolder(str(root / "train")).samples:
        with Image.open(file) as opened:
            cut = functional.center_crop(functional.resize(opened.convert("RGB"), [SIZE]), [SIZE])
        images.append(np.asarray(cut).transpose(2, 0, 1))
        labels.append(label)
    digest = hashlib.sha256()
    digest.update(f"images uint8 17x3x{SIZE}x{SIZE}\n".encode() + np.stack(images).tobytes())
    digest.update(b"labels int64 17\n" + np.array(labels).astype("<i8").tobytes())
    assert fingerprint(root) == digest.hexdigest()


def test_a_fingerprint_is_not_computed_twice_and_can_do_without_its_sidecar(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copy(folder, tmp_path / "pets")
    before = fingerprint(root)
    with monkeypatch.context() as patch:
        patch.setattr(StreamedSplit, "middle", lambda *_: pytest.fail("an image was decoded again"))
        assert fingerprint(root) == before
    for content in ("{", "[]", json.dumps({"0" * 64: "1" * 64})):
        (root / SIDECAR).write_text(content)
        assert fingerprint(root) == before
    (root / SIDECAR).unlink()
    (root / SIDECAR).mkdir()  # cannot be written
    assert fingerprint(root) == before


def test_what_is_computed_from_all_images_has_a_block_of_them_in_memory_at_a_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = stream_folder(copy(folder, tmp_path / "pets"), image_size=SIZE).train
    assert train is not None
    held, sizes = train.load(), list[int]()
    decoded = StreamedSplit._decoded

    def watched(self: StreamedSplit, chosen: range) -> torch.Tensor:
        sizes.append(len(chosen))
        return decoded(self, chosen)

    monkeypatch.setattr("sam_bench.data.streaming.BLOCK", 7)
    monkeypatch.setattr(StreamedSplit, "_decoded", watched)
    monkeypatch.setattr(StreamedSplit, "load", lambda _: pytest.fail("all were loaded"))
    assert train.fingerprint == held.fingerprint and sizes == [7, 7, 3]
    assert channel_stats(train) == channel_stats(held) and sizes == [7, 7, 3] * 2


def test_decoding_in_threads_leaves_warnings_as_they_were(pets: StreamedDataset) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        for _ in range(20):
            list(pets.test.blocks())
            assert warnings.filters == before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_goes_bad_is_named_in_one_sentence(folder: Path, tmp_path: Path, workers: int) -> None:
    root = copy(folder, tmp_path / "pets")
    train = stream_folder(root, image_size=SIZE).train
    assert train is not None
    bad = train.path(5)
    bad.write_bytes(bad.read_bytes()[:60])
    batches = StreamedBatches(train, batch_size=4, seed=0, augmentation=ResizedCrop(), workers=workers)
    with pytest.raises(InputError, match=f"{re.escape(str(bad))} cannot be read as an image") as caught:
        list(batches.epoch(0))
    assert "\n" not in str(caught.value)


def test_workers_do_not_take_over_the_handlers_of_the_run(pets: StreamedDataset, tmp_path: Path) -> None:
    called = tmp_path / "called"
    before = signal.signal(signal.SIGTERM, lambda *_: called.write_text(str(os.getpid())))
    try:
        batches = StreamedBatches(pets.test, batch_size=2, seed=0, augmentation=None, workers=1)
        list(batches.epoch(0))
        ((loader, _),) = batches._idle
        (worker,) = loader._iterator._workers
        # PyTorch hears of its dead worker, too, and says so in the main thread, sooner or later.
        with suppress(RuntimeError):
            worker.terminate()
            worker.join(20)
        worker.join(20)
        assert worker.exitcode == 0 and not called.exists(), "PyTorch's own handler in a worker leaves quietly"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_folder_is_streamed_when_it_would_take_more_than_half_of_what_is_free(
    pets: StreamedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 23 * 3 * SIZE * SIZE
    assert pets.bytes_in_memory == needed
    for free, streamed in ((2 * needed, False), (2 * needed - 1, True), (None, False)):
        monkeypatch.setattr("sam_bench.data.streaming.free_memory", lambda device, free=free: free)
        assert must_stream(pets) is streamed
    # Processes of one machine share the computer's memory and have a GPU each.
    free = {"cpu": 4 * needed, "cuda": 2 * needed}
    monkeypatch.setattr("sam_bench.data.streaming.free_memory", free.get)
    assert [must_stream(pets, "cuda", copies=copies) for copies in (1, 2, 3)] == [False, False, True]


def test_free_memory_is_what_linux_and_the_control_group_leave(tmp_path: Path) -> None:
    assert free_memory("cpu", root=tmp_path) is None and free_memory("meta", root=tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:    500 kB\n")
    assert free_memory("cpu", root=tmp_path) == 500 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("300000\n")
    (group / "memory.stat").write_text("anon 100\ninactive_file 100000\n")
    for limit, free in (("max", 500 * 1024), ("400000", 200_000), ("100000", 0), ("99999999", 500 * 1024)):
        (group / "memory.max").write_text(f"{limit}\n")
        assert free_memory("cpu", root=tmp_path) == free


def test_make_batches_takes_the_kind_that_the_split_demands(pets: StreamedDataset) -> None:
    options = {"batch_size": 3, "seed": 0, "workers": 0}
    streamed = make_batches(pets.test, augmentation=Augmentation(crop_padding=1), **options)
    held = make_batches(pets.test.load(), augmentation=Augmentation(crop_padding=1), **options)
    assert isinstance(streamed, StreamedBatches) and isinstance(held, Batches)
    assert equal(list(streamed.epoch(0)), list(held.epoch(0)))
    with pytest.raises(InputError, match="random resized crops need a FOLDER"):
        make_batches(pets.test.load(), augmentation=ResizedCrop(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "number of workers must be at least 0, not -1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"augmentation": Augmentation(crop_padding=SIZE)}, f"cannot be reflected in images of {SIZE}x{SIZE}"),
    ],
)
def test_wrong_options_are_named(pets: StreamedDataset, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        StreamedBatches(pets.test, **{"batch_size": 2, "seed": 0, "augmentation": None, "workers": 0} | options)  # type: ignore[arg-type]


def test_wrong_starts_and_sizes_are_named(folder: Path, pets: StreamedDataset) -> None:
    batches = StreamedBatches(pets.test, batch_size=2, seed=0, augmentation=None, workers=0)
    with pytest.raises(InputError, match="cannot start at batch 4: an epoch has 3"):
        list(batches.epoch(0, start=4))
    with pytest.raises(InputError, match="resize_to 10 must be at least the image size, which is 12"):
        stream_folder(folder, image_size=12, resize_to=10)
    with pytest.raises(InputError, match="give an image_size N"):
        stream_folder(folder)
    with pytest.raises(InputError, match=r"6 images of 9000000x9000000 need \d+ GB of memory; give a smaller"):
        stream_folder(folder, image_size=9_000_000).test.load()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_a_gpu_equal_those_on_the_cpu(pets: StreamedDataset) -> None:
    options = {"batch_size": 3, "seed": 0, "augmentation": ResizedCrop(), "workers": 1}
    there = list(StreamedBatches(pets.test.to("cuda"), **options).epoch(0))
    assert all(x.is_cuda and y.is_cuda for x, y in there)
    assert equal([(x.cpu(), y.cpu()) for x, y in there], list(StreamedBatches(pets.test, **options).epoch(0)))


def test_values_are_those_of_to_float(pets: StreamedDataset) -> None:
    ((x, _),) = StreamedBatches(pets.test, batch_size=6, seed=0, augmentation=None, shuffle=False, workers=0).epoch(0)
    assert torch.equal(x, to_float(pets.test.load().images))
