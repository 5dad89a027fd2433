"""Names of published data sets belong to the published images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sam_bench.data import Dataset, known_name, load_dataset, open_dataset
from sam_bench.errors import InputError


def _file(folder: Path, stem: str, /, **changes: object) -> str:
    rng = np.random.RandomState(0)
    content: dict[str, object] = {
        "x_train": rng.randint(0, 256, (20, 32, 32, 3)).astype(np.uint8),
        "y_train": np.arange(20) % 10,
        "x_test": rng.randint(0, 256, (10, 32, 32, 3)).astype(np.uint8),
        "y_test": np.arange(10),
        **changes,
    }
    np.savez(folder / f"{stem}.npz", **content)  # type: ignore[arg-type]
    return str(folder / f"{stem}.npz")


@pytest.mark.parametrize("name", ["cifar10", "CIFAR-10", "cifar_100", "svhn", "digits", "digits-8px", "ImageNet"])
def test_own_images_cannot_go_by_the_name_of_published_ones(tmp_path: Path, name: str) -> None:
    refused = rf"the name '{name}' is kept for the published .*; give other images another name with dataset_name"
    file, other = _file(tmp_path, name), _file(tmp_path, "noise")
    for load in (load_dataset, open_dataset):
        with pytest.raises(InputError, match=refused):
            load(file)
        with pytest.raises(InputError, match=refused):
            load(other, name=name)
        with pytest.raises(InputError, match=refused):
            load(_file(tmp_path, "inside", name=np.array(name)))
    assert load_dataset(file, name="noise").name == "noise"


def test_a_name_that_no_file_can_prove_is_refused_before_the_file_is_read() -> None:
    with pytest.raises(InputError, match="the name 'cifar10' is kept"):
        known_name("not-there.npz", name="cifar10")
    with pytest.raises(InputError, match="the name 'cifar10' is kept"):
        known_name("digits", name="cifar10")
    assert known_name("digits", name="digits") == "digits"
    assert known_name("cifar10", name="cifar10") == "cifar10"
    with pytest.raises(InputError, match="the name 'digits' is kept"):
        known_name("digits", name="digits", image_size=8)


def test_a_file_resized_from_a_published_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the name 'cifar10-16px' is kept for the published cifar10"):
        load_dataset(_file(tmp_path, "cifar10"), image_size=16)


def test_a_name_that_only_begins_like_one_is_free(tmp_path: Path) -> None:
    dataset = load_dataset(_file(tmp_path, "cifar10-jpeg", robustbench=np.array("cifar10")))
    assert (dataset.name, dataset.robustbench) == ("cifar10-jpeg", "cifar10")


@pytest.mark.parametrize("test_only", [False, True])
def test_published_images_in_a_file_of_ones_own_keep_their_name(tmp_path: Path, test_only: bool) -> None:
    digits = load_dataset("digits")
    assert digits.train is not None
    parts = {"train": digits.train, "test": digits.test}
    arrays: dict[str, object] = {f"x_{part}": split.images[:, 0].numpy() for part, split in parts.items()}
    arrays |= {f"y_{part}": split.labels.numpy() for part, split in parts.items()}
    again = load_dataset(_file(tmp_path, "digits", **arrays), test_only=test_only)
    assert isinstance(again, Dataset) and again.test.fingerprint == digits.test.fingerprint
    labels = digits.test.labels.numpy().copy()
    labels[0] = (labels[0] + 1) % 10
    with pytest.raises(InputError, match="the name 'digits' is kept"):
        load_dataset(_file(tmp_path, "digits", **arrays | {"y_test": labels}), test_only=test_only)


def test_a_folder_cannot_go_by_the_name_of_published_images(tmp_path: Path) -> None:
    from PIL import Image

    for part in ("train", "test"):
        for label in ("a", "b"):
            folder = tmp_path / "imagenet" / part / label
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "0.png")
    for load in (load_dataset, open_dataset):
        with pytest.raises(InputError, match=r"the name 'imagenet' is kept .* gives the published images"):
            load(str(tmp_path / "imagenet"))
        assert load(str(tmp_path / "imagenet"), name="own-imagenet").name == "own-imagenet"
