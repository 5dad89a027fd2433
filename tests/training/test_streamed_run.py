"""A folder that is streamed trains like one in memory, and with whole images where an augmentation needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from training_samples import assert_same, saved

from sam_bench import api
from sam_bench.data import sources
from sam_bench.errors import InputError
from sam_bench.progress import SilentReporter


class Said(SilentReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images a class, of two sizes."""
    root, draws = tmp_path_factory.mktemp("images"), np.random.RandomState(0)
    for part, count in (("train", 12), ("test", 4)):
        for name in ("bird", "cat"):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                size = (20, 14) if number % 2 else (16, 16)
                pixels = draws.randint(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return root


def train(folder: Path, where: Path, **options: Any) -> api.TrainResult:
    settings = {"epochs": 2, "batch_size": 8, **options.pop("settings", {})}
    return api.train(
        "sam",
        str(folder),
        arch="preactresnet10",
        arch_options={"width": 2},
        image_size=12,
        settings=settings,
        name="streamed",
        validation=6,
        run_dir=where / "run",
        zoo=where / "zoo",
        **options,
    )


def test_a_folder_trains_to_the_same_weights_streamed_and_in_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(folder, tmp_path / "memory")
    reporter = Said()
    monkeypatch.setattr(sources, "must_stream", lambda *_: True)  # as on a machine with less memory
    streamed = train(folder, tmp_path / "streamed", reporter=reporter)
    assert any("18 images" in line and "read from disk as they are needed" in line for line in reporter.lines)
    one, other = saved(tmp_path / "memory" / "run"), saved(tmp_path / "streamed" / "run")
    assert_same(one["model"], other["model"])
    assert streamed.card.cost.train_forward == 4


def test_whole_images_are_cut_at_random_when_the_recipe_says_so(folder: Path, tmp_path: Path) -> None:
    cut = train(folder, tmp_path / "cut", settings={"random_resized_crop": True})
    whole = train(folder, tmp_path / "whole")
    assert cut.card.recipe.augmentation.random_resized_crop
    assert cut.card.weights.sha256 != whole.card.weights.sha256


def test_random_resized_crops_are_refused_where_images_are_not_on_disk(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"random_resized_crop needs images as they are on disk, and digits is not"):
        api.train("standard", "digits", settings={"random_resized_crop": True}, run_dir=tmp_path, zoo=tmp_path)
