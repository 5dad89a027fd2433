"""Features: what a network learns from adversarial examples, where the answer is known."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sam_bench
from sam_bench.analysis import Context
from sam_bench.analysis.features import Features
from sam_bench.data import Split, load_dataset
from sam_bench.errors import InputError, StoppedError
from sam_bench.progress import SilentReporter
from sam_bench.zoo import LoadedModel

SMALL = {"epochs": 4, "width": 2, "repeats": 1, "train_examples": 256, "steps": 5}


class Halves(nn.Module):
    """Class 0 where the left half of an image is the brighter one, class 1 where the right half is."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x[..., :4].mean((1, 2, 3)), x[..., 4:].mean((1, 2, 3))
        return 20 * torch.stack([left - right, right - left], 1)


def model() -> LoadedModel:
    return LoadedModel(Halves().eval(), "halves", "0" * 64, None, 2, None)


def noise(count: int, seed: int) -> Tensor:
    return torch.randint(64, 192, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def context(stage: Any, **changes: Any) -> Context:
    train = Split(noise(512, 1), torch.zeros(512, dtype=torch.int64))
    x = noise(200, 2) / 255
    y = Halves()(x).argmax(1)
    given: dict[str, Any] = {"x": x, "y": y, "classes": ("left", "right"), "batch_size": 64, "seed": 0}
    return Context(**given | {"stage": stage, "models": {}, "train": train} | changes)


def measured(**settings: Any) -> dict[str, Any]:
    with SilentReporter().stage("", 200) as stage:
        return Features(**SMALL | settings).measure(model(), context(stage))


def test_a_feature_of_the_model_is_learned_from_its_adversarial_examples_alone() -> None:
    # Test images that show the feature: the one half is brighter than the other, by which is known.
    y = torch.arange(200) % 2
    x = noise(200, 2) / 255
    x[..., :4] += 0.15 * (1 - 2 * y.float())[:, None, None, None]
    assert torch.equal(Halves()(x).argmax(1), y)
    with SilentReporter().stage("", 200) as stage:
        settings = SMALL | {"eps": "2", "epochs": 12, "train_examples": 512}
        found = Features(**settings).measure(model(), context(stage, x=x, y=y))
    assert found["target_reached"] == 1
    assert found["accuracy"] > 0.8
    assert found["chance"] == 0.5
    assert found["precision"] in ("bf16", "fp32")


def test_without_a_radius_the_labels_say_nothing() -> None:
    found = measured(eps="0")
    assert found["target_reached"] == pytest.approx(0.5, abs=0.1)
    # What is true of labels that were drawn at random: about half of the test images, give or take.
    assert found["accuracy"] == pytest.approx(0.5, abs=0.25)


def test_images_stay_in_the_ball_and_are_bytes() -> None:
    source, targets = Split(noise(64, 3), torch.zeros(64, dtype=torch.int64)), torch.arange(64) % 2
    for norm, eps in (("Linf", 4 / 255), ("L2", 0.3)):
        with SilentReporter().stage("", 1) as stage:
            moved, _ = Features(norm=norm, eps=str(eps))._moved(Halves(), source, targets, context(stage))
        delta = (moved.images.double() - source.images.double()).flatten(1) / 255
        size = delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)
        slack = 1e-6 if norm == "Linf" else 0.5 / 255 * 8  # rounding to bytes moves each pixel by half a step at most
        assert float(size.max()) <= eps + slack and float(size.min()) > 0
        assert torch.equal(moved.labels, targets)


def test_the_seed_decides_and_the_callers_random_numbers_go_on() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = measured(epochs=1)
    assert torch.equal(torch.rand(1), expected)
    assert measured(epochs=1) == first


def test_a_stopped_training_names_no_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stops:
        """A terminal on which somebody presses Ctrl-C when the training begins."""

        def update(self, done: int, figures: str = "", share: float | None = None) -> None:
            if figures.startswith("epoch"):
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs this in the background ignores Ctrl-C
    try:
        with pytest.raises(StoppedError) as error:
            Features(**SMALL).measure(model(), context(Stops()))
    finally:
        signal.signal(signal.SIGINT, before)
    assert str(error.value) == "features was stopped; the models before are kept"
    assert error.value.exit_code == 130


def test_numbers_and_figure_with_training_images_of_the_data_set(zoo: Path, tmp_path: Path) -> None:
    settings = SMALL | {"epochs": 1, "repeats": 2, "steps": 1, "train_examples": 128}
    result = sam_bench.analyze("features", ["first"], zoo=zoo, n_examples=20, output=tmp_path, settings=settings)
    found = result.measured["first"]
    assert len(found["accuracies"]) == 2
    assert found["accuracy"] == pytest.approx(sum(found["accuracies"]) / 2)
    assert found["chance"] == pytest.approx(0.1)
    assert result.lines[0].startswith("first: ")
    assert all(path.stat().st_size > 1000 for path in result.figures)


def test_data_without_training_images_are_refused(zoo: Path, tmp_path: Path) -> None:
    test = load_dataset("digits", image_size=8, test_only=True).test
    images = test.images.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "own.npz", x_test=images, y_test=test.labels.numpy())
    with pytest.raises(InputError, match="train"):
        sam_bench.analyze("features", ["first"], zoo=zoo, dataset=str(tmp_path / "own.npz"), output=tmp_path / "out")
