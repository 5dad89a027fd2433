"""What is done to the images of a data set by default: digits are not mirrored, small images are cropped little."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sam_bench import api
from sam_bench.data import load_dataset, suited_augmentation
from sam_bench.progress import SilentReporter
from sam_bench.records import Augmentation
from sam_bench.training import load_recipe

RECIPE = Augmentation()


def _data(**changes: Any) -> Any:
    return SimpleNamespace(**{"name": "mine", "mirrors": None, "in_channels": 3, "image_size": 32, **changes})


def test_known_photographs_are_treated_as_the_recipe_says_without_a_word() -> None:
    assert suited_augmentation(_data(name="cifar10", mirrors=True), RECIPE, ()) == (RECIPE, "")


@pytest.mark.parametrize("digits", [{"mirrors": False}, {"mirrors": None, "in_channels": 1}])
def test_digits_and_grey_images_are_not_mirrored_unless_that_is_asked_for(digits: dict[str, Any]) -> None:
    suited, said = suited_augmentation(_data(**digits), RECIPE, ())
    assert suited == Augmentation(flip=False, crop_padding=2)
    assert said == (
        "images of mine are cropped at random after padding by 2 pixels, not mirrored; "
        "the settings flip and crop_padding change this"
    )
    assert suited_augmentation(_data(**digits), RECIPE, {"flip", "crop_padding"})[0] == RECIPE


def test_own_colour_images_are_treated_as_photographs_and_that_is_said() -> None:
    suited, said = suited_augmentation(_data(), RECIPE, ())
    assert suited == RECIPE and ", mirrored at random;" in said
    suited, said = suited_augmentation(_data(), Augmentation(flip=False, crop_padding=0), {"flip", "crop_padding"})
    assert said.startswith("images of mine are not cropped, not mirrored;")


@pytest.mark.parametrize(("size", "padding"), [(4, 0), (8, 1), (16, 2), (28, 3), (32, 4)])
def test_a_crop_is_no_wider_than_suits_the_image(size: int, padding: int) -> None:
    small = _data(image_size=size)
    assert suited_augmentation(small, RECIPE, ())[0].crop_padding == padding
    digits = _data(image_size=size, in_channels=1)
    assert suited_augmentation(digits, RECIPE, ())[0].crop_padding == padding // 2
    assert suited_augmentation(small, RECIPE, {"crop_padding"})[0].crop_padding == 4
    assert suited_augmentation(small, Augmentation(crop_padding=0), ())[0].crop_padding == 0


def test_a_random_part_of_the_image_is_left_as_it_is() -> None:
    whole = Augmentation(random_resized_crop=True)
    suited, said = suited_augmentation(_data(image_size=8), whole, ())
    assert suited == whole and "cut to a random part" in said
    assert said.endswith("the setting flip changes this"), "crop_padding does nothing here"


def test_a_resized_or_renamed_data_set_keeps_what_it_shows() -> None:
    assert load_dataset("digits-8px").mirrors is False
    assert load_dataset("digits", name="mine").mirrors is False


class _Said(SilentReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def _train(tmp_path: Path, recipe: Any, settings: dict[str, Any], reporter: SilentReporter | None = None) -> Any:
    file = tmp_path / "mine.npz"
    grey = np.random.RandomState(0).randint(0, 256, (8, 8, 8), dtype=np.uint8)
    np.savez(file, x_train=grey, y_train=np.arange(8) % 2, x_test=grey, y_test=np.arange(8) % 2)
    name = f"m{len(list(tmp_path.iterdir()))}"
    shared: dict[str, Any] = {"arch_options": {"width": 4}, "precision": "fp32", "validation": 0, "name": name}
    settings = {"epochs": 1, "batch_size": 4, **settings}
    where = {"run_dir": tmp_path / name, "zoo": tmp_path / "zoo"}
    return api.train(recipe, file, settings=settings, reporter=reporter, **shared, **where).card


def test_the_card_says_what_was_done_and_the_run_says_it_at_its_start(tmp_path: Path) -> None:
    reporter = _Said()
    card = _train(tmp_path, "standard", {}, reporter)
    assert (card.recipe.augmentation.flip, card.recipe.augmentation.crop_padding) == (False, 0)
    said = "images of mine are not cropped, not mirrored;"
    assert any(line.startswith(said) for line in reporter.lines[:2])
    card = _train(tmp_path, "standard", {"flip": True, "crop_padding": 2})
    assert (card.recipe.augmentation.flip, card.recipe.augmentation.crop_padding) == (True, 2)


def test_what_a_users_own_recipe_says_is_done(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("augmentation: {flip: true}\n")
    for recipe in (own, str(own), load_recipe(own)):
        card = _train(tmp_path, recipe, {})
        assert (card.recipe.augmentation.flip, card.recipe.augmentation.crop_padding) == (True, 0)
