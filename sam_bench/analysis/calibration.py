"""Calibration: is a model as often right as it is confident?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field

from sam_bench.analysis.base import ANALYSES, Context, Json, ModelAnalysis
from sam_bench.zoo import LoadedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@ANALYSES.register("calibration")
class Calibration(ModelAnalysis):
    """Expected calibration error on clean images (Guo et al. 2017, arXiv 1706.04599, equation 3).

    Robust accuracy depends on confidence: flat regions and confident answers come together (arXiv 2510.14231).
    """

    summary = "how confident each model is, and how often it is right when it is"

    bins: int = Field(default=15, ge=2, description="intervals of confidence, equally wide")

    def measure(self, model: LoadedModel, context: Context) -> Json:
        """Confidence and accuracy in each interval of confidence."""
        sure, label = context.logits(model.module).softmax(1).max(1)
        sure, hit = sure.cpu(), (label == context.y).double().cpu()
        context.stage.update(len(sure))
        where = (sure * self.bins).long().clamp(max=self.bins - 1)
        count = torch.bincount(where, minlength=self.bins)
        sums = [torch.zeros(self.bins, dtype=torch.float64).index_add_(0, where, each) for each in (sure, hit)]
        means = [(each / count.clamp(min=1)).tolist() for each in sums]
        return {
            "confidence": float(sure.mean()),
            "accuracy": float(hit.mean()),
            "ece": float((sums[0] - sums[1]).abs().sum() / len(sure)),
            "bins": [
                {"examples": int(n), "confidence": c, "accuracy": a} for n, c, a in zip(count, *means, strict=True)
            ],
        }

    def draw(self, measured: Json, findings: Json, figure: Figure) -> None:
        """Accuracy against confidence, a line a model; the diagonal is perfect calibration."""
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
        for name, result in measured.items():
            filled = [each for each in result["bins"] if each["examples"]]
            axes.plot(
                [each["confidence"] for each in filled],
                [each["accuracy"] for each in filled],
                marker="o",
                label=f"{name} (ECE {result['ece']:.3f})",
            )
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        axes.legend()

    def lines(self, measured: Json, findings: Json) -> list[str]:
        """Three numbers a model."""
        return [
            f"{name}: accuracy {each['accuracy']:.1%}, confidence {each['confidence']:.1%}, ECE {each['ece']:.3f}"
            for name, each in measured.items()
        ]
