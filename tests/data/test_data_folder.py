"""FOLDER: what torchvision's ImageFolder reads, and every way in which a folder can be wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional

from sam_bench.data import load_dataset
from sam_bench.errors import InputError


def draw(path: Path, *, size: tuple[int, int] = (8, 8), mode: str = "RGB", seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,)}[mode]
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], *channels)).astype(np.uint8)
    Image.fromarray(pixels, mode=None).save(path)
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two classes, three training and two test images each, in several formats."""
    root = tmp_path / "pets"
    seed = 0
    for part, names in (("train", ["a.png", "b.bmp", "c.PNG"]), ("test", ["a.png", "deep/er.webp"])):
        for animal in ("dog", "cat"):
            for name in names:
                draw(root / part / animal / name, seed=seed)
                seed += 1
    return root


def test_it_reads_what_torchvisions_imagefolder_reads(pets):
    dataset = load_dataset(str(pets))
    assert dataset.name == "pets" and dataset.classes == ("cat", "dog") and dataset.robustbench is None
    assert dataset.train is not None
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        reference = ImageFolder(str(pets / part))
        assert split.labels.tolist() == reference.targets
        expected = torch.stack([functional.pil_to_tensor(image) for image, _ in reference])
        assert torch.equal(split.images, expected)


def test_one_coloured_image_makes_all_rgb_and_none_makes_all_grey(tmp_path):
    for part in ("train", "test"):
        for name in ("a", "b"):
            draw(tmp_path / part / name / "1.png", mode="L")
    draw(tmp_path / "test" / "a" / "2.png", mode="LA")
    grey = load_dataset(str(tmp_path))
    assert grey.in_channels == 1 == load_dataset(str(tmp_path), test_only=True).in_channels
    pixels = np.asarray(Image.open(tmp_path / "train" / "a" / "1.png"))
    np.testing.assert_array_equal(grey.train.images[0, 0].numpy(), pixels)
    draw(tmp_path / "test" / "b" / "2.png", mode="RGBA")
    coloured = load_dataset(str(tmp_path))
    assert coloured.in_channels == 3
    np.testing.assert_array_equal(coloured.train.images[0].numpy(), np.stack([pixels] * 3))


def test_a_coloured_training_image_decides_for_grey_test_images_loaded_alone(tmp_path):
    for part in ("train", "test"):
        for name in ("a", "b"):
            draw(tmp_path / part / name / "1.png", mode="L")
    draw(tmp_path / "train" / "b" / "2.png", mode="RGB")
    whole, alone = load_dataset(str(tmp_path)), load_dataset(str(tmp_path), test_only=True)
    assert alone.in_channels == 3 and alone.test.fingerprint == whole.test.fingerprint


def test_image_size_resizes_the_shorter_side_and_cuts_the_middle_out(pets):
    path = draw(pets / "train" / "cat" / "wide.png", size=(20, 10))
    dataset = load_dataset(str(pets), image_size=6)
    assert dataset.image_size == 6 and dataset.name == "pets"
    with Image.open(path) as image:
        expected = functional.center_crop(functional.resize(image, [6]), [6])
    position = [Path(file).name for file, _ in ImageFolder(str(pets / "train")).samples].index("wide.png")
    assert torch.equal(dataset.train.images[position], functional.pil_to_tensor(expected))


def test_a_folder_without_a_usable_name_can_be_given_one(pets):
    assert load_dataset(str(pets.rename(pets.with_name("宠物"))), name="pets").name == "pets"


def test_the_test_part_alone_needs_no_train_folder(pets):
    (pets / "train").rename(pets / "elsewhere")
    dataset = load_dataset(str(pets), test_only=True)
    assert dataset.train is None and len(dataset.test) == 4


def test_links_to_folders_are_followed_as_imagefolder_does_and_a_loop_ends(pets, tmp_path):
    draw(tmp_path / "elsewhere" / "more" / "d.png", seed=9)
    (pets / "train" / "cat" / "linked").symlink_to(tmp_path / "elsewhere")
    train = load_dataset(str(pets)).train
    reference = ImageFolder(str(pets / "train"))
    assert train is not None and len(train) == len(reference) == 7
    assert torch.equal(train.images, torch.stack([functional.pil_to_tensor(image) for image, _ in reference]))
    (tmp_path / "elsewhere" / "back").symlink_to(pets / "train" / "cat")
    again = load_dataset(str(pets)).train
    assert again is not None and torch.equal(again.images, train.images)


def test_hidden_files_and_files_that_are_no_images_are_passed_over(pets):
    before = load_dataset(str(pets)).train.fingerprint
    (pets / "train" / "cat" / "notes.txt").write_text("two cats")
    (pets / "train" / "cat" / "._a.png").write_bytes(b"not an image")
    (pets / "train" / ".cache").mkdir()
    (pets / "train" / "cat" / "manual.pdf").write_bytes(b"%PDF-1.4")
    assert load_dataset(str(pets)).train.fingerprint == before


def two_sizes(root: Path) -> str:
    path = draw(root / "test" / "dog" / "z.png", size=(9, 9))
    return f"{root / 'train' / 'cat' / 'a.png'} has 8x8 pixels but {path} 9x9; give an image_size N"


def not_square(root: Path) -> str:
    for path in root.rglob("*.*"):
        draw(path, size=(8, 6))
    return "has 8x6 pixels, which is not square; give an image_size N"


def too_small(root: Path) -> str:
    for path in root.rglob("*.*"):
        draw(path, size=(2, 2))
    return "has 2x2 pixels; images must have at least 4x4"


def cut_off(root: Path) -> str:
    path = root / "test" / "cat" / "a.png"
    path.write_bytes(path.read_bytes()[:100])
    return f"{path} cannot be read as an image ("


def no_image(root: Path) -> str:
    path = root / "train" / "dog" / "d.jpg"
    path.write_text("<html>404</html>")
    return f"{path} cannot be read as an image (not an image that Pillow knows); mend or remove it"


def link_to_nothing(root: Path) -> str:
    """As git-annex and DVC leave it where an image was not fetched."""
    (root / "test" / "cat" / "e.png").symlink_to("not-fetched.png")
    return "test/cat/e.png cannot be read as an image ([Errno 2] No such file"


def sixteen_bits(root: Path) -> str:
    path = root / "train" / "dog" / "d.png"
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(path)
    return f"{path} has more than 8 bits a pixel (mode I;16); save it with 8"


def no_train(root: Path) -> str:
    (root / "train").rename(root / "training")
    return f"{root} has no folder 'train'; a FOLDER of images holds train/<class>/* and test/<class>/*"


def no_test(root: Path) -> str:
    (root / "test").rename(root / "val")
    return f"test/<class>/*; rename {root / 'val'} to test"


def class_only_in_train(root: Path) -> str:
    draw(root / "train" / "cow" / "a.png")
    return f"{root / 'train'} has the class 'cow', which {root / 'test'} lacks"


def class_only_in_test(root: Path) -> str:
    draw(root / "test" / "cow" / "a.png")
    return f"{root / 'test'} has the class 'cow', which {root / 'train'} lacks"


def empty_class(root: Path) -> str:
    (root / "train" / "cow").mkdir()
    (root / "test" / "cow").mkdir()
    return f"the class folder {root / 'train' / 'cow'} has no images"


def one_class(root: Path) -> str:
    (root / "train" / "dog").rename(root / "dogs")
    return f"{root / 'train'} has one class folder, 'cat'; it must hold at least two"


def no_classes(root: Path) -> str:
    (root / "train" / "dog").rename(root / "dogs")
    (root / "train" / "cat").rename(root / "cats")
    return f"{root / 'train'} has no class folders; it must hold at least two: train/<class>/*"


@pytest.mark.parametrize(
    "spoil",
    [
        two_sizes,
        not_square,
        too_small,
        cut_off,
        no_image,
        link_to_nothing,
        sixteen_bits,
        no_train,
        no_test,
        class_only_in_train,
        class_only_in_test,
        empty_class,
        one_class,
        no_classes,
    ],
)
def test_what_is_wrong_is_named_with_its_file(pets, spoil: Callable[[Path], str]):
    message = spoil(pets)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_dataset(str(pets))
    assert "\n" not in str(caught.value)
