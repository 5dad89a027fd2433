"""A user's own images that are not as they should be: which file, which array, and what is wrong with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cli_runner import CommandLine
from PIL import Image

_TRAIN = [
    *("train", "--dataset", "mine.npz", "--arch", "preactresnet10", "--width", "2", "--epochs", "1"),
    *("--validation", "0", "--precision", "fp32"),
]


def _arrays(**changes: Any) -> dict[str, Any]:
    draws = np.random.default_rng(0)
    arrays = {
        "x_train": draws.integers(0, 256, (24, 8, 8, 1), dtype=np.uint8),
        "y_train": np.arange(24) % 4,
        "x_test": draws.integers(0, 256, (8, 8, 8, 1), dtype=np.uint8),
        "y_test": np.arange(8) % 4,
    }
    return {key: value for key, value in (arrays | changes).items() if value is not None}


def _ragged() -> np.ndarray[Any, Any]:
    images = np.empty(24, dtype=object)
    for index in range(24):
        images[index] = np.zeros((8 + index % 2, 8 + index % 2, 1), dtype=np.uint8)
    return images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": None}, "mine.npz lacks y_train; it must hold x_train, y_train, x_test, y_test (it holds x_train,"),
        ({"x_train": None, "y_test": None}, "mine.npz lacks x_train and y_test; it must hold x_train, y_train, x_test"),
        (
            {"x_train": np.full((24, 8, 8, 1), 255.0)},
            "mine.npz: x_train holds floats from 255 to 255; floats must all be in [0, 1], or save uint8 (0 to 255)",
        ),
        (
            {"x_test": np.full((8, 8, 8, 1), -0.1)},
            "mine.npz: x_test holds floats from -0.1 to -0.1; floats must all be",
        ),
        (
            {"x_test": np.full((8, 8, 8, 1), np.nan)},
            "mine.npz: x_test has NaN in it; floats must all be",
        ),
        (
            {"y_test": np.arange(8)},
            "mine.npz: y_test has the label 7 (at 7), but there are 4 classes: labels must be from 0 to 3",
        ),
        (
            {"y_train": np.arange(24) % 4 - 1},
            "mine.npz: y_train has the label -1 (at 0); labels must be integers from 0",
        ),
        ({"y_train": np.arange(24) % 4 + 1}, "but never has the label 0; number the labels from 0"),
        ({"y_train": np.arange(23) % 4}, "mine.npz: x_train has 24 images, but y_train has 23 labels"),
        (
            {"x_test": np.zeros((8, 9, 9, 1), dtype=np.uint8)},
            "mine.npz: x_test has images of 9x9x1, but x_train of 8x8x1; they must be the same",
        ),
        (
            {"x_train": _ragged()},
            "mine.npz: x_train is an object array (a pickle, which is never loaded); save numbers",
        ),
        ({"x_train": _ragged()}, "images all of one size"),
    ],
)
def test_arrays_that_are_wrong_are_named(cli: CommandLine, changes: dict[str, Any], message: str) -> None:
    np.savez(cli.folder / "mine.npz", **_arrays(**changes))
    assert message in cli.refused(*_TRAIN)


@pytest.mark.parametrize("keep", [0, 100, 2000])
def test_a_file_that_is_cut_off_is_named(cli: CommandLine, keep: int) -> None:
    path = cli.folder / "mine.npz"
    np.savez(path, **_arrays())
    path.write_bytes(path.read_bytes()[:keep])
    message = cli.refused(*_TRAIN)
    assert message == (
        "sam-bench: mine.npz is not a whole .npz file (a zip archive, written by numpy.savez): it is of another kind "
        "or cut off"
    )


def test_own_images_are_trained_on_and_evaluate_asks_for_them_again(cli: CommandLine) -> None:
    np.savez(cli.folder / "mine.npz", **_arrays())
    trained = cli.done(*_TRAIN, "--name", "own")
    following = "sam-bench evaluate own --attack autoattack --eps 8/255 --dataset mine.npz"
    assert trained.out.splitlines()[-1] == f"next: {following}"

    message = cli.refused("evaluate", "own", "--attack", "fgsm")
    assert message == (
        "sam-bench: model own was trained on mine, which cannot be loaded by name: give its FILE.npz or FOLDER with "
        "--dataset"
    )
    # What `train` says to do next is what works, but for the attack.
    arguments = following.replace("autoattack", "fgsm").split()[1:]
    assert cli.done(*arguments, "--json").json["n_examples"] == 8


def test_another_test_set_under_the_same_name_is_noticed(cli: CommandLine) -> None:
    np.savez(cli.folder / "mine.npz", **_arrays())
    cli.done(*_TRAIN, "--name", "own")
    np.savez(cli.folder / "mine.npz", **_arrays(x_test=np.zeros((8, 8, 8, 1), dtype=np.uint8)))
    message = cli.refused("evaluate", "own", "--attack", "fgsm", "--dataset", "mine.npz")
    assert "the test images of mine here are not those the card of own names" in message
    assert "give the same data, or another --dataset-name" in message


def test_more_classes_than_the_model_knows_are_noticed(cli: CommandLine) -> None:
    np.savez(cli.folder / "mine.npz", **_arrays())
    cli.done(*_TRAIN, "--name", "own")
    message = cli.refused("evaluate", "own", "--attack", "fgsm", "--dataset", "digits-8px")
    assert message == "sam-bench: model own knows 4 classes, but data set digits-8px has labels up to 9"


def test_recommend_sweeps_over_a_folder_of_images_of_several_sizes(cli: CommandLine) -> None:
    draws = np.random.default_rng(0)
    for index in range(16):
        folder = cli.folder / "pics" / ("train" if index < 8 else "test") / f"class {index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draws.integers(0, 256, (8, 8 + index // 2 % 2, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    asked = ["recommend", "--dataset", "pics", "--eps", "8/255", "--budget", "1x", "--sweep", "--epochs", "1"]
    assert "give an --image-size N to bring all to N x N" in cli.refused(*asked, leaves=("pics",))
    found = cli.done(*asked, "--image-size", "8", "--quiet", "--json").json
    (command,) = {answer["command"] for answer in found["answers"].values()}
    assert command == "sam-bench train --recipe standard --dataset pics --image-size 8"
