"""Data sets that are unpacked by hand, on small files in their published layout; what is missing is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from sam_bench.data import is_named_dataset, known_name, load_dataset, published
from sam_bench.errors import InputError

WORDS = ["n01443537", "n01629819", "n01641577"]


def image(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Two training and one or two validation images a class; wnids.txt is not sorted, as published."""
    root = tmp_path / "tiny-imagenet-200"
    for number, name in enumerate(WORDS):
        for each in range(2):
            image(root / "train" / name / "images" / f"{name}_{each}.JPEG", (64, 64), 10 * number + each)
    lines = []
    for each, name in enumerate([WORDS[2], WORDS[0], WORDS[1], WORDS[2]]):
        image(root / "val" / "images" / f"val_{each}.JPEG", (64, 64), 100 + each)
        lines.append(f"val_{each}.JPEG\t{name}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join([WORDS[2], WORDS[0], WORDS[1]]) + "\n")
    return tmp_path


def test_tiny_imagenet_is_read_from_its_zips_layout(tiny: Path) -> None:
    data = load_dataset("tiny-imagenet", data_dir=tiny)
    assert data.train is not None and data.train.shape == (6, 3, 64, 64) and data.test.shape == (4, 3, 64, 64)
    assert data.test.labels.tolist() == [2, 0, 1, 2] and data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.classes == tuple(WORDS) and data.name == "tiny-imagenet" == known_name("Tiny-ImageNet")
    first = np.array(Image.open(tiny / "tiny-imagenet-200/val/images/val_1.JPEG"))
    assert np.array_equal(data.test.images[1].permute(1, 2, 0).numpy(), first)
    assert load_dataset("tiny-imagenet-32px", data_dir=tiny, test_only=True).test.shape == (4, 3, 32, 32)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("val/val_annotations.txt", "is not whole: it lacks val/val_annotations.txt; unpack tiny-imagenet-200.zip"),
        ("wnids.txt", "lacks wnids.txt"),
        ("val/images/val_2.JPEG", r"val_2\.JPEG is missing"),
        (f"train/{WORDS[1]}", f"{WORDS[1]}/images has no images"),
        ("", "there is no folder .*tiny-imagenet-200; unpack tiny-imagenet-200.zip there"),
    ],
)
def test_what_a_half_unpacked_tiny_imagenet_lacks_is_named(gone: str, message: str, tiny: Path) -> None:
    (tiny / "tiny-imagenet-200" / gone).rename(tiny / "gone")
    with pytest.raises(InputError, match=message):
        load_dataset("tiny-imagenet", data_dir=tiny)


@pytest.fixture
def imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images of RobustBench's list, of other sizes than 224."""
    lists = published._robustbench_lists()
    files = (lists / "imagenet_test_image_ids.txt").read_text().splitlines()
    assert len(files) == 5000
    short = tmp_path / "lists"
    short.mkdir()
    (short / "imagenet_test_image_ids.txt").write_text("\n".join(files[:4]))
    (short / "imagenet_class_to_id_map.json").write_text((lists / "imagenet_class_to_id_map.json").read_text())
    monkeypatch.setattr(published, "_robustbench_lists", lambda: short)
    for number, file in enumerate(files[:4]):
        image(tmp_path / "data" / "val" / file, (300 + number, 280), number)
    return tmp_path


def test_imagenet_is_robustbenchs_list_in_its_order_with_its_preprocessing(imagenet: Path) -> None:
    data = load_dataset("imagenet", data_dir=imagenet / "data", test_only=True)
    files = (imagenet / "lists" / "imagenet_test_image_ids.txt").read_text().splitlines()
    numbers = json.loads((imagenet / "lists" / "imagenet_class_to_id_map.json").read_text())
    prepared = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
    expected = torch.stack([prepared(Image.open(imagenet / "data" / "val" / file).convert("RGB")) for file in files])
    torch.testing.assert_close(data.test.images / 255, expected, rtol=0, atol=1e-6)
    assert data.test.labels.tolist() == [numbers[file.partition("/")[0]] for file in files]
    assert (data.num_classes, data.robustbench, data.train) == (1000, "imagenet", None)
    (imagenet / "data" / "val").rename(imagenet / "imagenet-val")
    (imagenet / "other" / "imagenet").mkdir(parents=True)
    (imagenet / "imagenet-val").rename(imagenet / "other" / "imagenet" / "val")
    assert torch.equal(load_dataset("imagenet", data_dir=imagenet / "other").test.images, data.test.images)


def test_images_of_the_list_that_are_missing_are_named(imagenet: Path) -> None:
    for file in (imagenet / "lists" / "imagenet_test_image_ids.txt").read_text().splitlines()[1:3]:
        (imagenet / "data" / "val" / file).unlink()
    with pytest.raises(InputError, match=r"val is not whole: it lacks n0\w+/ILSVRC2012_val_\d+\.JPEG, n0\w+/ILSVRC"):
        load_dataset("imagenet", data_dir=imagenet / "data")
    with pytest.raises(InputError, match="has no folder val; ImageNet's validation images must be in"):
        load_dataset("imagenet", data_dir=imagenet / "lists")


@pytest.fixture
def corrupted(tmp_path: Path) -> Path:
    """Three images at each of five severities."""
    for folder in ("CIFAR-10-C", "CIFAR-100-C"):
        (tmp_path / folder).mkdir()
        images = np.arange(5, dtype=np.uint8).repeat(3)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
        np.save(tmp_path / folder / "fog.npy", images)
        np.save(tmp_path / folder / "labels.npy", np.tile(np.array([3, 8, 5], np.uint8), 5))
    return tmp_path


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_a_corruption_is_read_at_its_severity_as_robustbench_reads_it(
    classes: int, severity: int, corrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"cifar{classes}-c-fog-{severity}"
    data = load_dataset(name.upper(), data_dir=corrupted)
    assert (data.name, data.num_classes, data.train) == (name, classes, None) and is_named_dataset(name)
    assert data.test.images.unique().tolist() == [severity - 1] and data.test.labels.tolist() == [3, 8, 5]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifar10-c", "needs a corruption and a severity, as in cifar10-c-fog-3; corruptions: gaussian_noise"),
        ("cifar10-c-fog", "needs a corruption and a severity"),
        ("cifar10-c-fogg-3", "unknown corruption of cifar10-c 'fogg'. Did you mean 'fog'"),
        ("cifar100-c-fog-6", "the severity must be from 1 to 5"),
        ("cifar10-c-snow-2", r"CIFAR-10-C is not whole: it lacks snow\.npy; unpack CIFAR-10-C\.tar again"),
    ],
)
def test_a_corruption_that_is_not_there_is_named(spec: str, message: str, corrupted: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset(spec, data_dir=corrupted)


def test_files_in_another_layout_are_refused(corrupted: Path) -> None:
    np.save(corrupted / "CIFAR-10-C" / "fog.npy", np.zeros((15, 3, 32, 32), np.uint8))
    with pytest.raises(InputError, match=re.escape("right are [5 N, 32, 32, 3] and [5 N]")):
        load_dataset("cifar10-c-fog-1", data_dir=corrupted)
    (corrupted / "CIFAR-10-C" / "fog.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match=r"fog\.npy cannot be read"):
        load_dataset("cifar10-c-fog-1", data_dir=corrupted)


@pytest.mark.parametrize("name", ["tiny-imagenet", "TinyImageNet", "cifar10-c-fog-3"])
def test_their_names_are_kept_for_them(name: str, tmp_path: Path) -> None:
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "own.npz", x_train=pixels, y_train=np.arange(4), x_test=pixels, y_test=np.arange(4))
    with pytest.raises(InputError, match="is kept for the published"):
        load_dataset(str(tmp_path / "own.npz"), name=name)
