"""A folder that is streamed trains like one in memory, and with whole images where an augmentation needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training_samples import StopsAt, assert_same, saved

from sam_bench import api
from sam_bench.data import channel_stats, load_dataset
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
        precision="fp32",  # as measured, it may differ from run to run in a network so small
        run_dir=where / "run",
        zoo=where / "zoo",
        **options,
    )


def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_bench.api.training.must_stream", lambda *_, **__: True)


def test_a_folder_trains_to_the_same_weights_streamed_and_in_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(folder, tmp_path / "memory")
    reporter = Said()
    short_of_memory(monkeypatch)
    streamed = train(folder, tmp_path / "streamed", reporter=reporter)
    assert any("18 images" in line and "read from disk as they are needed" in line for line in reporter.lines)
    one, other = saved(tmp_path / "memory" / "run"), saved(tmp_path / "streamed" / "run")
    assert_same(one["model"], other["model"])
    assert streamed.card.cost.train_forward == 4
    configs = [(tmp_path / form / "run" / "config.json").read_text() for form in ("memory", "streamed")]
    assert configs[0] == configs[1]


def test_a_model_that_was_trained_streamed_is_evaluated_on_the_same_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch)
    card = train(folder, tmp_path, settings={"epochs": 1}).card
    record = api.evaluate(
        "streamed", attack="fgsm", eps="1/255", dataset=str(folder), zoo=tmp_path / "zoo", output=tmp_path / "r.json"
    )
    assert record.dataset_fingerprint == card.test_fingerprint and record.clean_accuracy == card.clean_accuracy


def test_a_run_begun_in_memory_goes_on_streamed_to_the_same_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(folder, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "parts", reporter=StopsAt(4))
    assert saved(tmp_path / "parts" / "run")["state"]["epoch"] == 1
    short_of_memory(monkeypatch)
    train(folder, tmp_path / "parts", resume=True)
    assert_same(saved(tmp_path / "whole" / "run"), saved(tmp_path / "parts" / "run"))


def test_a_folder_is_normalised_by_a_part_of_it_that_memory_does_not_decide(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam_bench.api.training._STATISTICS", 10)
    held = train(folder, tmp_path / "memory", settings={"epochs": 1}).card.architecture
    short_of_memory(monkeypatch)
    streamed = train(folder, tmp_path / "streamed", settings={"epochs": 1}).card.architecture
    images = load_dataset(str(folder), image_size=12).train
    assert images is not None and len(images) == 24
    part = images.select(torch.tensor([0, 2, 4, 7, 9, 12, 14, 16, 19, 21]))
    assert (held.mean, held.std) == (streamed.mean, streamed.std) == channel_stats(part)
    assert channel_stats(part) != channel_stats(images)


def test_whole_images_are_cut_at_random_when_the_recipe_says_so(folder: Path, tmp_path: Path) -> None:
    cut = train(folder, tmp_path / "cut", settings={"random_resized_crop": True})
    whole = train(folder, tmp_path / "whole")
    assert cut.card.recipe.augmentation.random_resized_crop
    assert cut.card.weights.sha256 != whole.card.weights.sha256


def test_random_resized_crops_are_refused_where_images_are_not_on_disk(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"random_resized_crop needs images as they are on disk, and digits is not"):
        api.train("standard", "digits", settings={"random_resized_crop": True}, run_dir=tmp_path, zoo=tmp_path)
