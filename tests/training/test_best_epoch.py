"""Which epoch is the best one: the most robust, of these the most accurate, of these the first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_samples import method_of, run

from sam_bench.data import Split

Accuracies = tuple[float, float]  # clean, robust


class Scripted(nn.Module):
    """A network whose accuracies on validation images are given for every epoch; an epoch is one batch."""

    def __init__(self, script: list[Accuracies]) -> None:
        super().__init__()
        self.script, self.bias = script, nn.Parameter(torch.zeros(10))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.bias + 0 * x.flatten(1).sum(1, keepdim=True)
        if self.training:
            self.epochs += 1
            return logits
        attacked = bool(((x * 255).round() - x * 255).abs().max() > 1e-3)
        right = round(len(x) * self.script[int(self.epochs) - 1][attacked])
        classes = (torch.arange(len(x)) >= right).long()
        return logits + nn.functional.one_hot(classes, 10)


@pytest.mark.parametrize(
    ("script", "best"),
    [
        ([(0.5, 0.25), (0.5, 0.25), (0.5, 0.25)], 1),
        ([(0.5, 0.25), (0.75, 0.25), (0.75, 0.25)], 2),
        ([(0.75, 0.25), (0.5, 0.5), (1.0, 0.25)], 2),
        ([(0.5, 0.0), (0.25, 0.0), (0.75, 0.5)], 3),
        ([(0.0, 0.0), (0.0, 0.0), (0.0, 0.0)], 1),
    ],
    ids=["a tie: the first", "equally robust: the more accurate", "the more robust", "the last", "nothing learned"],
)
def test_the_best_epoch_is_the_first_of_the_most_accurate_of_the_most_robust(
    script: list[Accuracies], best: int, tmp_path: Path
) -> None:
    images = Split(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
    method = method_of("standard", {"epochs": 3, "batch_size": 8, "crop_padding": 0})
    trained = run(tmp_path, method, model=Scripted(script), train=images, validation=images, select="best")
    assert trained.model.epochs == best
