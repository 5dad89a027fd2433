"""`load_dataset`: names, sizes, digits, and what is said when nothing is meant by a spec."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import datasets

from sam_bench.data import Dataset, StreamedDataset, channel_stats, data_sources, known_name, load_dataset, open_dataset
from sam_bench.data.images import name_from_file, resize
from sam_bench.errors import InputError
from sam_bench.records import NAME_PATTERN

# Stored: published cards name these. A change of split, scaling or resizing shows here.
DIGITS = {
    8: (
        "c47a6bf873e3c7c6d64f8772bc6edb20a1697687780af71d70700002d7dd41e2",
        "91c4fb13bd637c55389c9f93d49c1549e4eff0c4c154591f69cd67d8011544ae",
    ),
    16: (
        "e62b318dd42cadc5a06e152524876e5818be42945b7aa252f86c82c959436bc8",
        "bd60575e380976f2fdf5b55fbd41185423eb3519ffa3e09bc3069115c19f741d",
    ),
}


@pytest.mark.parametrize(
    "asked",
    [
        {"spec": "digits"},
        {"spec": "Digits-8px"},
        {"spec": "digits", "image_size": 16},
        {"spec": "digits", "image_size": 8},
        {"spec": "digits", "name": "mine"},
    ],
)
def test_the_name_is_known_before_anything_is_loaded(asked):
    assert known_name(**asked) == load_dataset(**asked).name


def test_the_name_of_a_file_is_known_only_where_one_is_given():
    assert known_name("some.npz") is None and known_name("some.npz", name="mine") == "mine"
    with pytest.raises(InputError, match="is not usable as a data set's name"):
        known_name("digits", name="../up")


class TestDigits:
    @pytest.mark.parametrize("size", DIGITS)
    def test_the_split_and_its_pixels_never_change(self, size):
        dataset = load_dataset("digits", image_size=size)
        assert dataset.train is not None
        assert (len(dataset.train), len(dataset.test)) == (1297, 500)
        assert (dataset.train.fingerprint, dataset.test.fingerprint) == DIGITS[size]

    def test_both_parts_together_are_scikit_learns_images(self):
        dataset = load_dataset("digits", image_size=8)
        ours = torch.cat([dataset.train.images, dataset.test.images]).flatten(1).numpy()
        labels = torch.cat([dataset.train.labels, dataset.test.labels]).numpy()
        theirs = datasets.load_digits()
        expected = np.rint(theirs.data * 255 / 16).astype(np.uint8)
        assert sorted(zip(map(bytes, ours), labels, strict=True)) == sorted(
            zip(map(bytes, expected), theirs.target, strict=True)
        )
        assert ours.min() == 0 and ours.max() == 255

    def test_every_class_is_in_both_parts_about_equally(self):
        dataset = load_dataset("digits")
        for split in (dataset.train, dataset.test):
            share = torch.bincount(split.labels, minlength=10) / len(split)
            assert float(share.min()) > 0.07 and float(share.max()) < 0.13

    def test_it_is_grey_16_pixels_and_has_ten_classes(self):
        dataset = load_dataset("Digits")
        assert (dataset.name, dataset.in_channels, dataset.image_size) == ("digits", 1, 16)
        assert dataset.classes == tuple("0123456789") and dataset.robustbench is None

    def test_the_test_part_alone_is_the_same_test_part(self):
        dataset = load_dataset("digits", test_only=True)
        assert dataset.train is None and dataset.test.fingerprint == DIGITS[16][1]


class TestNames:
    def test_another_size_is_part_of_the_name_which_is_a_spec_itself(self):
        resized = load_dataset("digits", image_size=32)
        assert resized.name == "digits-32px" and resized.image_size == 32
        again = load_dataset("digits-32px")
        assert again.name == "digits-32px" and again.test.fingerprint == resized.test.fingerprint

    def test_a_resized_image_is_the_same_on_processors_that_round_differently(self):
        script = "from sam_bench.data import load_dataset; print(load_dataset('digits-28px').test.fingerprint)"
        found = {
            subprocess.run(
                [sys.executable, "-c", script],
                env={**os.environ, "ATEN_CPU_CAPABILITY": kernels},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for kernels in ("default", "avx2")
        }
        assert len(found) == 1
        with pytest.raises(
            InputError, match=r"images of 9000000x9000000 need [\d,]+ GB of memory .*give a smaller image_size"
        ):
            load_dataset("digits", image_size=9_000_000)
        with pytest.raises(InputError, match="'digits-32px' has images of 32 pixels, but image_size=16 is given"):
            load_dataset("digits-32px", image_size=16)

    def test_a_name_given_wins_and_is_checked(self):
        assert load_dataset("digits", name="mine", image_size=8).name == "mine"
        with pytest.raises(InputError, match=r"name: 'a/b' is not usable as a data set's name; use letters"):
            load_dataset("digits", name="a/b")

    def test_every_named_source_has_a_line_about_it(self):
        assert list(data_sources()) == ["cifar10", "cifar100", "svhn", "tiny-imagenet", "imagenet", "digits"]
        assert all(data_sources().values())

    def test_a_misspelt_name_gives_the_nearest_the_list_and_the_way_to_own_images(self):
        with pytest.raises(InputError) as caught:
            load_dataset("cifr10")
        message = str(caught.value)
        assert message.startswith("unknown data set 'cifr10'. Did you mean 'cifar10'")
        assert "Available: cifar10, cifar100, digits, imagenet, svhn, tiny-imagenet." in message
        assert message.endswith("The path of a FILE.npz or of a FOLDER with train/ and test/ works too.")

    @pytest.mark.parametrize("spec", ["", " ", "a" * 5000, "nul\0", "~nobody-of-this-name"])
    def test_what_cannot_be_a_path_is_an_unknown_name(self, spec):
        with pytest.raises(InputError, match="unknown data set"):
            load_dataset(spec)

    @pytest.mark.parametrize("spec", ["images.npz", "some/where", "/no/such/folder"])
    def test_a_path_that_is_not_there_is_said(self, spec, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=re.escape(f"there is no file or folder {spec};")):
            load_dataset(spec)

    def test_a_folder_of_a_data_sets_name_needs_a_path(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("digits").mkdir()
        assert len(load_dataset("digits").test) == 500
        with pytest.raises(InputError, match="digits has no folder 'train'"):
            load_dataset("./digits")

    @pytest.mark.parametrize("size", [0, 3, -1])
    def test_a_size_too_small_is_refused(self, size):
        with pytest.raises(InputError, match=f"image_size={size} is too small: at least 4 pixels"):
            load_dataset("digits", image_size=size)

    @given(st.text(max_size=150))
    @settings(max_examples=200)
    def test_a_files_name_becomes_a_legal_name_or_an_error(self, stem):
        try:
            assert re.fullmatch(NAME_PATTERN, name_from_file(stem, "here"))
        except InputError as error:
            assert str(error).startswith("here: no name")

    def test_a_resized_file_says_so_and_no_longer_shares_robustbenchs_inputs(self, tmp_path):
        content = {"x_test": np.zeros((10, 32, 32, 3), np.uint8), "y_test": np.arange(10)}
        np.savez(tmp_path / "c.npz", **content, robustbench=np.array("cifar10"))
        dataset = load_dataset(str(tmp_path / "c.npz"), image_size=16, test_only=True)
        assert (dataset.name, dataset.image_size, dataset.robustbench) == ("c-16px", 16, None)
        same = load_dataset(str(tmp_path / "c.npz"), image_size=32, test_only=True)
        assert (same.name, same.robustbench) == ("c", "cifar10")


class TestOpening:
    def test_a_folder_is_listed_and_loads_to_what_loading_gives(self, tmp_path):
        for part, name, number in itertools.product(("train", "test"), "ab", range(3)):
            path = tmp_path / "pets" / part / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 10 * number).save(path)
        for stream in (False, True):
            listed = open_dataset(str(tmp_path / "pets"), stream=stream, name="mine")
            assert isinstance(listed, StreamedDataset) and listed.name == "mine"
            loaded = load_dataset(str(tmp_path / "pets"))
            assert listed.load().train.fingerprint == loaded.train.fingerprint == listed.train.fingerprint

    def test_anything_else_is_in_memory_and_refused_where_it_must_be_streamed(self):
        assert isinstance(open_dataset("digits"), Dataset)
        with pytest.raises(InputError, match="digits is not a FOLDER of images; use random_resized_crop=False"):
            open_dataset("digits", stream=True)


class TestResize:
    @given(size=st.integers(4, 24), value=st.integers(0, 255))
    @settings(max_examples=40, deadline=None)
    def test_a_plain_image_stays_plain(self, size, value):
        images = torch.full((2, 3, 9, 9), value, dtype=torch.uint8)
        assert torch.equal(resize(images, size), torch.full((2, 3, size, size), value, dtype=torch.uint8))

    def test_doubling_weighs_neighbours_by_quarters(self):
        image = torch.tensor([[0, 100], [200, 40]], dtype=torch.uint8)[None, None]
        expected = [[0, 25, 75, 100], [50, 59, 76, 85], [150, 126, 79, 55], [200, 160, 80, 40]]
        assert resize(image, 4)[0, 0].tolist() == expected

    def test_shrinking_averages_instead_of_dropping_pixels(self):
        stripes = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
        stripes[..., ::4] = 200  # interpolation without antialiasing would see none of them
        middle = resize(stripes, 8)[..., 2:-2]
        assert int((middle.int() - 50).abs().max()) <= 1

    def test_many_images_are_resized_as_each_alone(self):
        images = torch.randint(0, 256, (1030, 1, 5, 5), dtype=torch.uint8)
        whole = resize(images, 7)
        for index in (0, 1023, 1024, 1029):
            assert torch.equal(whole[index : index + 1], resize(images[index : index + 1], 7))


def test_the_statistics_of_digits_are_what_numpy_says():
    split = load_dataset("digits").train
    values = split.images.numpy() / 255.0
    np.testing.assert_allclose(channel_stats(split), [[values.mean()], [values.std()]], rtol=1e-12)
