"""From the user's verb to the model it is a short way."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import sam_bench

FRAMES = 9
HOME = str(Path(sam_bench.__file__).parent)


class NotesItsCallers(nn.Module):
    """A small network that remembers the deepest stack of the package's frames that it was called from."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(392, 4))
        self.deepest: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        frames: list[str] = []
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename.startswith(HOME):
                frames.append(f"{frame.f_code.co_filename[len(HOME) :]}:{frame.f_lineno} {frame.f_code.co_name}")
            frame = frame.f_back  # type: ignore[assignment]
        self.deepest = max(self.deepest, frames, key=len)
        logits: Tensor = self.body(x)
        return logits


def test_at_most_nine_frames_of_the_package_lie_between_evaluate_and_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8), random.integers(0, 4, 8)
    np.savez(
        tmp_path / "images.npz", x_train=images, y_train=labels, x_test=images, y_test=labels, classes=list("abcd")
    )
    model = NotesItsCallers()
    sam_bench.evaluate(
        model,
        dataset=str(tmp_path / "images.npz"),
        attack="autoattack",
        eps="1/255",
        settings={"version": "custom", "suite": ["apgd-ce", "fab-t", "square"]},
        n_examples=2,
        output=str(tmp_path / "record.json"),
    )
    assert len(model.deepest) <= FRAMES, "\n".join(reversed(model.deepest))
