"""Transfer: do adversarial examples of one model break another?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from sam_bench.analysis.base import ANALYSES, BallAnalysis, Context, Json
from sam_bench.modes import attacking
from sam_bench.perturb.inputs import PGD
from sam_bench.records import ModelCard
from sam_bench.zoo import LoadedModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@ANALYSES.register("transfer")
class Transfer(BallAnalysis):
    """Robust accuracy of every model on the adversarial examples of every model.

    Models that use the same non-robust features break on the same examples (Ilyas et al. 2019, arXiv 1905.02175,
    section 3.3). Only images count that both models classify correctly when clean.
    """

    summary = "robust accuracy of each model on the adversarial examples of each other"
    asks_others = True

    steps: int = Field(default=10, ge=1, description="steps of PGD")

    def measure(self, model: LoadedModel, context: Context) -> Json:
        """One row of the matrix: this model's adversarial examples, on every model."""
        adversarial = self._adversarial(model.module, context)
        right = _right(model.module, context.x, context)
        on: Json = {}
        for name, load in context.models.items():
            other = load().module
            both = right & _right(other, context.x, context)
            held = _right(other, adversarial, context)[both]
            on[name] = {"examples": int(both.sum()), "robust": float(held.float().mean()) if len(held) else None}
        return {"accuracy": float(right.float().mean()), "on": on}

    def _adversarial(self, module: nn.Module, context: Context) -> Tensor:
        """PGD's last iterates, float [N, C, H, W] in [0, 1]; it starts at the image, so that nothing is drawn."""
        search = PGD(norm=self.norm, eps=self.eps, steps=self.steps, random_start=False)
        found = []
        with attacking(module):
            for start in range(0, len(context.x), context.batch_size):
                batch = slice(start, start + context.batch_size)
                x, y = context.x[batch], context.y[batch]
                found.append(search.perturb(module, x, y, generator=context.generator()))
                context.stage.update(start + len(found[-1]))
        return torch.cat(found)

    def combine(self, measured: Json, cards: Mapping[str, ModelCard]) -> Json:
        """The matrix, and per model the mean over the others as source and as target."""
        names = list(measured)
        matrix = {source: {target: measured[source]["on"][target]["robust"] for target in names} for source in names}
        return {
            "matrix": matrix,
            "as_source": {name: _mean(matrix[name][other] for other in names if other != name) for name in names},
            "as_target": {name: _mean(matrix[other][name] for other in names if other != name) for name in names},
        }

    def draw(self, measured: Json, findings: Json, figure: Figure) -> None:
        """The matrix: a row for where the examples come from, a column for the model that is evaluated."""
        names = list(measured)
        figure.set_size_inches(3.4 + 0.75 * len(names), 2.2 + 0.62 * len(names))
        axes = figure.add_subplot()
        values = [[_shown(findings["matrix"][source][target]) for target in names] for source in names]
        image = axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        _write(axes, values)
        axes.set(ylabel="adversarial examples of", xlabel="evaluated on")
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.grid(False)
        axes.set_title(f"{self.norm} PGD-{self.steps}, eps {self.eps}", loc="left")
        figure.colorbar(image, ax=axes, label="robust accuracy")

    def lines(self, measured: Json, findings: Json) -> list[str]:
        """Per model: against itself, as a source for the others, as a target of the others."""
        return [
            f"{name}: on its own examples {_percent(findings['matrix'][name][name])}; the others on its examples "
            f"{_percent(findings['as_source'][name])}; on the others' examples {_percent(findings['as_target'][name])}"
            for name in measured
        ]


def _right(module: nn.Module, x: Tensor, context: Context) -> Tensor:
    """Which images the model classifies correctly, bool [N]."""
    return context.logits(module, x).argmax(1) == context.y


def _mean(values: Iterable[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return sum(known) / len(known) if known else None


def _shown(value: float | None) -> float:
    return float("nan") if value is None else value


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def _write(axes: Axes, values: list[list[float]]) -> None:
    """The numbers in per cent, in each cell."""
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            text = "–" if value != value else f"{100 * value:.0f}"
            axes.text(column, row, text, ha="center", va="center", color="black" if value > 0.55 else "white")
