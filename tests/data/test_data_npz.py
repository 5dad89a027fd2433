"""FILE.npz: what is read, and every way in which a file can be wrong, with the message that says so."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sam_bench.data import load_dataset
from sam_bench.errors import InputError

RNG = np.random.RandomState(0)


def arrays(**changes: Any) -> dict[str, Any]:
    """Four right arrays (two classes, 8x8 RGB), some replaced, or left out when None."""
    whole: dict[str, Any] = {
        "x_train": RNG.randint(0, 256, (6, 8, 8, 3)).astype(np.uint8),
        "y_train": np.array([0, 1, 0, 1, 1, 0]),
        "x_test": RNG.randint(0, 256, (4, 8, 8, 3)).astype(np.uint8),
        "y_test": np.array([1, 0, 1, 1]),
    }
    whole.update(changes)
    return {key: value for key, value in whole.items() if value is not None}


def save(folder: Path, content: dict[str, Any], name: str = "mine.npz") -> Path:
    path = folder / name
    np.savez(path, **content)
    return path


def test_images_and_labels_come_out_as_they_went_in(tmp_path):
    content = arrays()
    dataset = load_dataset(str(save(tmp_path, content)))
    assert dataset.name == "mine" and dataset.classes == ("0", "1") and dataset.robustbench is None
    assert dataset.train is not None
    for split, part in ((dataset.train, "train"), (dataset.test, "test")):
        assert split.images.is_contiguous()
        np.testing.assert_array_equal(split.images.permute(0, 2, 3, 1).numpy(), content[f"x_{part}"])
        assert split.labels.tolist() == content[f"y_{part}"].tolist()


def test_grey_images_may_lack_the_channel_axis(tmp_path):
    content = arrays(x_train=np.zeros((6, 8, 8), np.uint8), x_test=np.ones((4, 8, 8, 1), np.uint8))
    dataset = load_dataset(str(save(tmp_path, content)))
    assert dataset.in_channels == 1 and dataset.image_size == 8


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_in_0_to_1_become_the_nearest_byte(tmp_path, dtype):
    content = arrays()
    floats = {key: (content[key] / 255).astype(dtype) for key in ("x_train", "x_test")}
    plain = load_dataset(str(save(tmp_path, content, "bytes.npz")))
    dataset = load_dataset(str(save(tmp_path, {**content, **floats}, "floats.npz")))
    assert torch.equal(dataset.test.images, plain.test.images)
    assert dataset.test.fingerprint == plain.test.fingerprint


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64, ">i4"])
def test_labels_may_be_integers_of_any_kind(tmp_path, dtype):
    dataset = load_dataset(str(save(tmp_path, arrays(y_test=np.array([1, 0, 1, 1], dtype=dtype)))))
    assert dataset.test.labels.dtype == torch.int64 and dataset.test.labels.tolist() == [1, 0, 1, 1]


def test_a_compressed_file_reads_the_same(tmp_path):
    content = arrays()
    np.savez_compressed(tmp_path / "small.npz", **content)
    plain = load_dataset(str(save(tmp_path, content)))
    assert load_dataset(str(tmp_path / "small.npz")).test.fingerprint == plain.test.fingerprint


def test_the_test_part_alone_needs_no_training_arrays(tmp_path):
    dataset = load_dataset(str(save(tmp_path, arrays(x_train=None, y_train=None))), test_only=True)
    assert dataset.train is None and len(dataset.test) == 4 and dataset.num_classes == 2


def test_the_training_labels_tell_the_number_of_classes_even_when_only_the_test_part_is_read(tmp_path):
    content = arrays(y_train=np.array([0, 1, 2, 3, 4, 0]))
    assert load_dataset(str(save(tmp_path, content)), test_only=True).num_classes == 5


def test_names_of_classes_and_of_the_data_set_are_honoured(tmp_path):
    content = arrays(classes=np.array(["cat", "dog", "Gürteltier"]), name=np.array("pets-2"))
    dataset = load_dataset(str(save(tmp_path, content)))
    assert dataset.classes == ("cat", "dog", "Gürteltier") and dataset.name == "pets-2"
    assert load_dataset(str(save(tmp_path, content)), name="other").name == "other"


def test_a_robustbench_data_set_of_the_same_shape_is_honoured(tmp_path):
    content = {
        "x_test": np.zeros((10, 32, 32, 3), np.uint8),
        "y_test": np.arange(10),
        "robustbench": np.array("cifar10"),
    }
    assert load_dataset(str(save(tmp_path, content, "cifar10-jpeg.npz")), test_only=True).robustbench == "cifar10"


@pytest.mark.parametrize(
    ("file", "name"),
    [("cifar10-jpeg.npz", "cifar10-jpeg"), ("my images (2).npz", "my-images-2"), ("_a.b_c.NPZ", "a.b_c")],
)
def test_the_name_is_the_files_made_legal(tmp_path, file, name):
    path = save(tmp_path, arrays())
    assert load_dataset(str(path.rename(tmp_path / file))).name == name


WRONG = {
    "missing arrays": (arrays(y_train=None, x_test=None), "lacks y_train and x_test; it must hold x_train, y_train"),
    "images of integers": (arrays(x_test=np.zeros((4, 8, 8, 3), np.int64)), "x_test is int64; images must be uint8"),
    "images of strings": (arrays(x_test=np.full((4, 8, 8, 3), "a")), "x_test is <U1; images must be uint8"),
    "flat images": (
        arrays(x_train=np.zeros((6, 192), np.uint8)),
        "x_train has shape (6, 192); images must be [N, H, W",
    ),
    "floats up to 255": (
        arrays(x_train=np.linspace(0, 255, 6 * 192).reshape(6, 8, 8, 3)),
        "x_train holds floats from 0 to 255; floats must all be in [0, 1]",
    ),
    "normalised floats": (
        arrays(x_test=np.linspace(-2, 1, 4 * 192).reshape(4, 8, 8, 3)),
        "x_test holds floats from -2 to 1;",
    ),
    "not a number": (arrays(x_test=np.full((4, 8, 8, 3), np.nan)), "x_test has NaN in it; floats must all be in"),
    "channels first": (
        arrays(x_train=np.zeros((6, 3, 8, 8), np.uint8)),
        "x_train has images of 3x8 pixels and 8 channels; images must be square; "
        "channels come last: x_train.transpose(0, 2, 3, 1)",
    ),
    "not square": (arrays(x_test=np.zeros((4, 8, 9, 3), np.uint8)), "x_test has images of 8x9 pixels and 3 channels"),
    "too small": (
        arrays(x_train=np.zeros((6, 2, 2, 3), np.uint8), x_test=np.zeros((4, 2, 2, 3), np.uint8)),
        "x_test has images of 2x2 pixels; they must be at least 4x4",
    ),
    "two sizes": (
        arrays(x_test=np.zeros((4, 16, 16, 3), np.uint8)),
        "x_test has images of 16x16x3, but x_train of 8x8x3; they must be the same",
    ),
    "grey and colour": (
        arrays(x_test=np.zeros((4, 8, 8), np.uint8)),
        "x_test has images of 8x8x1, but x_train of 8x8x3",
    ),
    "labels of floats": (arrays(y_test=np.ones(4)), "y_test is float64; labels must be integers from 0"),
    "a row of floats a label": (arrays(y_test=np.eye(4)), "(where a row has a 1 for its class, y_test.argmax(1) makes"),
    "one-hot labels": (
        arrays(y_test=np.eye(4, 2, dtype=int)),
        "y_test has shape (4, 2); labels must be one-dimensional",
    ),
    "labels in a column": (arrays(y_test=np.ones((4, 1), int)), "one-dimensional, [N] (y_test.ravel() makes it so)"),
    "a single label": (arrays(y_test=np.array(1)), "y_test has shape (); labels must be one-dimensional"),
    "negative labels": (
        arrays(y_test=np.array([0, 1, -1, 0])),
        "y_test has the label -1 (at 2); labels must be integers",
    ),
    "a test label without a class": (
        arrays(y_test=np.array([0, 1, 1, 7])),
        "y_test has the label 7 (at 3), but there are 2 classes: labels must be from 0 to 1",
    ),
    "a label beyond the named classes": (
        arrays(classes=np.array(["a", "b"]), y_train=np.array([0, 1, 2, 0, 0, 0])),
        "y_train has the label 2 (at 2), but there are 2 classes",
    ),
    "labels from 1": (
        arrays(y_train=np.array([1, 2, 1, 2, 1, 2])),
        "y_train goes up to the label 2, but never has the label 0; number the labels from 0",
    ),
    "an absurd label": (arrays(y_test=np.array([0, 1, 2**40, 1])), "y_test has the label 1099511627776 (at 2)"),
    "a label beyond int64": (arrays(y_test=np.array([2**64 - 1] * 4, np.uint64)), "y_test has the label 1844674407370"),
    "one class": (arrays(y_train=np.zeros(6, int)), "y_train has a single class; there must be at least two"),
    "fewer labels": (arrays(y_train=np.array([0, 1])), "x_train has 6 images, but y_train has 2 labels"),
    "no examples": (arrays(x_test=np.zeros((0, 8, 8, 3), np.uint8), y_test=np.zeros(0, int)), "y_test is empty"),
    "images as objects": (
        arrays(x_test=np.array([np.zeros((8, 8)), np.zeros((9, 9))], dtype=object)),
        "x_test is an object array (a pickle, which is never loaded)",
    ),
    "class names as objects": (arrays(classes=np.array(["a", None], dtype=object)), "classes is an object array"),
    "class names as bytes": (
        arrays(classes=np.array([b"a", b"b"])),
        "classes is |S1 (2,); it must be a list of strings",
    ),
    "class names twice": (arrays(classes=np.array(["a", "a"])), "classes must name at least two classes, each diff"),
    "an unusable name": (arrays(name=np.array("../up")), "name: '../up' is not usable as a data set's name"),
    "a list of names": (arrays(name=np.array(["a"])), "name is <U1 (1,); it must be a single string"),
    "an unknown RobustBench data set": (
        arrays(robustbench=np.array("mnist")),
        "robustbench is 'mnist'; it must be one of cifar10, cifar100, imagenet, or be left out",
    ),
    "a RobustBench data set of another shape": (
        arrays(robustbench=np.array("cifar10")),
        "robustbench is 'cifar10', which has 10 classes and 32x32x3 images; this file has 2 classes and 8x8x3 images",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_array_is_named_with_the_file_and_what_is_right(tmp_path, case):
    content, message = WRONG[case]
    path = save(tmp_path, content)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_dataset(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_without_a_usable_name_is_refused(tmp_path):
    path = save(tmp_path, arrays()).rename(tmp_path / "数据.npz")
    assert load_dataset(str(path), name="pets").name == "pets"
    with pytest.raises(InputError, match="no name for the data set can be made of '数据'"):
        load_dataset(str(path))


@pytest.mark.parametrize("content", [b"", b"not a zip at all", b"PK\x03\x04 only the beginning"])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "odd.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"odd.npz is not a whole .npz file"):
        load_dataset(str(path))


def test_a_single_array_in_a_npy_file_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"x.npy is not a whole .npz file"):
        load_dataset(str(tmp_path / "x.npy"))


def test_members_that_are_no_arrays_are_refused(tmp_path):
    path = tmp_path / "texts.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for array in arrays():
            archive.writestr(array, "hello")
    with pytest.raises(InputError, match=r"y_test is not an array; write the file with numpy.savez"):
        load_dataset(str(path))


@given(share=st.floats(0, 0.999))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_cut_off_anywhere_is_refused(tmp_path, share):
    whole = save(tmp_path, arrays(), "whole.npz").read_bytes()
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"cut\.npz"):
        load_dataset(str(cut))


@given(place=st.integers(0, 10**9), compressed=st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_with_an_altered_byte_gives_the_same_data_or_an_error_that_names_it(tmp_path, place, compressed):
    content = {key: value.copy() for key, value in FIXED.items()}
    path = tmp_path / "altered.npz"
    (np.savez_compressed if compressed else np.savez)(path, **content)
    damaged = bytearray(path.read_bytes())
    damaged[place % len(damaged)] ^= 0x55
    path.write_bytes(damaged)
    try:
        dataset = load_dataset(str(path))
    except InputError as error:
        assert "altered.npz" in str(error)
    else:
        np.testing.assert_array_equal(dataset.test.images.permute(0, 2, 3, 1).numpy(), content["x_test"])
        assert dataset.test.labels.tolist() == content["y_test"].tolist()


FIXED = arrays()


def test_an_encrypted_or_newer_archive_is_refused(tmp_path):
    raw = save(tmp_path, FIXED, "plain.npz").read_bytes()
    entry = raw.index(b"PK\x01\x02")
    for offset, value in ((8, 1), (6, 255)):  # the central directory's "encrypted" flag, its "version needed"
        altered = bytearray(raw)
        altered[entry + offset] = value
        (tmp_path / "odd.npz").write_bytes(altered)
        with pytest.raises(InputError, match=r"odd\.npz"):
            load_dataset(str(tmp_path / "odd.npz"))
