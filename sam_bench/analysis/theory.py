"""The simplified model: what can be derived of it, what a simulation gives, and what is only recalled."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from sam_bench.analysis.base import ANALYSES, FreeAnalysis, Json
from sam_bench.analysis.simplified_model import (
    Learner,
    SimplifiedModel,
    at_rest,
    learn,
    ratio,
    recalled_rho,
    recalled_sam_ratio,
)
from sam_bench.seeds import generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OPEN = (
    "W_R of SAM is recalled as W_R (1 + 2/3 rho^2), and the matching rule as 2 + 3 / rho^2 = 2 eta / eps; neither is "
    "derived here.",
    "SAM's one-step ascent, simulated on the logistic loss, does not reproduce the recalled formula.",
    "Uniform noise in [-rho, rho] on the weak weights gives 1 + rho^2 (1 + eta^2) / 3 for large d. That equals the "
    "recalled factor at eta = 1 only. Whether the paper means this is open.",
)

_CURVE = 61  # points of a curve


@ANALYSES.register("theory")
class Theory(FreeAnalysis):
    """W_R of standard training, adversarial training and SAM in the simplified model of arXiv 2305.05392.

    Standard and adversarial training have closed forms. A simulation checks them: logistic regression on
    sampled examples. SAM is simulated in two ways and reported as it comes out.
    """

    summary = "the simplified model of SAM and adversarial training: closed forms, and a simulation beside them"

    p: float = Field(default=0.9, gt=0.5, lt=1, description="how often the robust feature is right")
    d: int = Field(default=20, ge=1, description="how many weak features there are")
    eta: float = Field(default=0.3, gt=0, description="mean of a weak feature where the label is +1")
    radii: tuple[float, ...] = Field(
        default=(0.075, 0.15, 0.225), description="radii that adversarial training learns against, each below eta"
    )
    rhos: tuple[float, ...] = Field(default=(0.1, 0.2, 0.5, 1.0), description="radii of SAM's ascent")
    samples: int = Field(default=10_000, ge=100, description="examples that each simulated classifier learns from")
    runs: int = Field(default=5, ge=2, description="simulations, each on examples of its own")

    @field_validator("radii", "rhos")
    @classmethod
    def _above_zero(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not values or min(values) <= 0:
            raise ValueError("give at least one number, all above 0")
        return values

    @model_validator(mode="after")
    def _below_eta(self) -> Theory:
        if max(self.radii) >= self.eta:
            raise ValueError(f"radii: must be below eta, {self.eta:g}: from there on the weak features say nothing")
        return self

    @property
    def _model(self) -> SimplifiedModel:
        return SimplifiedModel(self.p, self.d, self.eta)

    def combine(self, seed: int) -> Json:
        """Closed forms, simulations with their standard errors, and robust accuracies."""
        model = self._model
        learners = [
            Learner(),
            *(Learner(eps=each) for each in self.radii),
            *(Learner(rho=each) for each in self.rhos),
            *(Learner(rho_each=each) for each in self.rhos),
        ]
        seeds = [f"{seed}/{run}" for run in range(self.runs)]
        sam = 1 + len(self.radii)
        weights, moving = [], set()
        for run in range(self.runs):
            examples = model.sample(self.samples, generator(seed, "theory", run))
            weights.append(learn(examples, learners))
            moving |= {rho for at, rho in enumerate(self.rhos) if not at_rest(examples, weights[run][:, sam + at])}
        ratios = torch.stack([ratio(each) for each in weights])  # [runs, learners]
        factors = ratios / ratios[:, :1]  # paired: against standard training on the same examples
        return {
            "runs": seeds,
            "standard": _beside(model.standard_ratio(), ratios[:, 0]),
            "adversarial": [
                {
                    "eps": eps,
                    **_beside(model.adversarial_ratio(eps), ratios[:, 1 + at]),
                    "factor": model.adversarial_ratio(eps) / model.standard_ratio(),
                    "recalled_matching_rho": recalled_rho(eps, self.eta),
                }
                for at, eps in enumerate(self.radii)
            ],
            "sam": [
                {
                    "rho": rho,
                    "whole_batch_factor": _estimate(factors[:, sam + at]),
                    "each_example_factor": _estimate(factors[:, sam + len(self.rhos) + at]),
                    "uniform_noise_factor": model.noise_ratio(rho / math.sqrt(3)) / model.standard_ratio(),
                    "recalled_factor": recalled_sam_ratio(1.0, rho),
                }
                for at, rho in enumerate(self.rhos)
            ],
            "robust_accuracy": self._accuracies(torch.stack(weights, 1)),
            "open": [*OPEN, *_unsettled(moving)],
        }

    def _accuracies(self, weights: Tensor) -> Json:
        """Accuracy under attack with every radius of a grid: closed forms, and the simulated SAM of largest rho.

        Args:
            weights: [d + 1, runs, learners].
        """
        model = self._model
        grid = [self.eta * at / (_CURVE - 1) for at in range(_CURVE)]
        closed = {"standard": model.standard_ratio()} | {
            f"adversarial training, eps {eps:g}": model.adversarial_ratio(eps) for eps in self.radii
        }
        curves = {
            name: [float(model.accuracy(model.classifier(each), eps)) for eps in grid] for name, each in closed.items()
        }
        largest = 1 + len(self.radii) + max(range(len(self.rhos)), key=self.rhos.__getitem__)
        for name, at in (("whole batch", largest), ("each example", largest + len(self.rhos))):
            curves[f"SAM simulated, {name}, rho {max(self.rhos):g}"] = [
                float(model.accuracy(weights[:, :, at], eps).mean()) for eps in grid
            ]
        return {"eps": grid, "curves": curves}

    def draw(self, measured: Json, findings: Json, figure: Figure) -> None:
        """W_R against eps, robust accuracy against eps, SAM's factor against rho."""
        figure.set_size_inches(12, 4.2)
        ratios, accuracies, factors = figure.subplots(1, 3)
        self._draw_ratios(ratios, findings)
        self._draw_accuracies(accuracies, findings["robust_accuracy"])
        self._draw_factors(factors, findings["sam"])

    def _draw_ratios(self, axes: Axes, findings: Json) -> None:
        model = self._model
        grid = [max(self.radii) * at / (_CURVE - 1) for at in range(_CURVE)]
        axes.plot(grid, [model.adversarial_ratio(eps) for eps in grid], label="closed form")
        simulated = [{"eps": 0.0, **findings["standard"]}, *findings["adversarial"]]
        axes.errorbar(
            [each["eps"] for each in simulated],
            [each["simulated"]["mean"] for each in simulated],
            [2 * each["simulated"]["standard_error"] for each in simulated],
            fmt="o",
            capsize=3,
            label=f"simulated, {self.runs} runs, ± 2 standard errors",
        )
        axes.set(xlabel="eps that is trained against (0: standard)", ylabel="W_R", title="adversarial training")
        axes.legend(loc="upper left")

    def _draw_accuracies(self, axes: Axes, found: Json) -> None:
        for at, (name, curve) in enumerate(found["curves"].items()):
            simulated = name.startswith("SAM")
            axes.plot(
                found["eps"],
                curve,
                f"C{at}{':' if simulated else '-'}",
                linewidth=2.5 if simulated else 1.5,
                label=name,
            )
        axes.axhline(self.p, color="0.6", linewidth=1, linestyle="--", label="robust feature alone")
        axes.set(
            xlabel="eps of the attack on the weak features", ylabel="accuracy under attack", title="robust accuracy"
        )
        axes.legend(loc="lower left", fontsize=7.5)

    def _draw_factors(self, axes: Axes, sam: list[Json]) -> None:
        model = self._model
        grid = [max(self.rhos) * at / (_CURVE - 1) for at in range(_CURVE)]
        axes.plot(
            grid, [recalled_sam_ratio(1.0, rho) for rho in grid], "--", color="0.5", label="recalled, not derived"
        )
        noise = [model.noise_ratio(rho / math.sqrt(3)) / model.standard_ratio() for rho in grid]
        axes.plot(grid, noise, label="derived: uniform noise, large d")
        for colour, name, said in (
            ("C1", "whole_batch", "whole batch"),
            ("C2", "each_example", "each example (m = 1)"),
        ):
            found = [each[f"{name}_factor"] for each in sam]
            axes.errorbar(
                [each["rho"] for each in sam],
                [each["mean"] for each in found],
                [2 * each["standard_error"] for each in found],
                fmt="o" if name == "whole_batch" else "s",
                color=colour,
                capsize=3,
                label=f"SAM simulated, {said}",
            )
        axes.set(xlabel="rho", ylabel="W_R over that of standard training", title="SAM: open")
        axes.legend(loc="upper left")

    def lines(self, measured: Json, findings: Json) -> list[str]:
        """Closed form and simulation, a line a learner; then what is open."""
        rows = [("standard", findings["standard"])]
        rows += [(f"adversarial training, eps {each['eps']:g}", each) for each in findings["adversarial"]]
        return [
            *(
                f"{name}: W_R {each['closed_form']:.4f}; simulated {each['simulated']['mean']:.4f} "
                f"± {each['simulated']['standard_error']:.4f}"
                for name, each in rows
            ),
            *(
                f"SAM, rho {each['rho']:g}: factor simulated {each['whole_batch_factor']['mean']:.4f} (whole batch), "
                f"{each['each_example_factor']['mean']:.4f} (each example); uniform noise derived "
                f"{each['uniform_noise_factor']:.4f}; recalled {each['recalled_factor']:.4f}"
                for each in findings["sam"]
            ),
            *(f"open: {each}" for each in findings["open"]),
        ]


def _unsettled(rhos: set[float]) -> list[str]:
    """A sentence on the radii whose SAM on the whole batch was still moving in some run, if there are any."""
    if not rhos:
        return []
    listed = ", ".join(f"{rho:g}" for rho in sorted(rhos))
    return [
        f"SAM on the whole batch was still moving at its last step for rho {listed}: its factor there is no result. "
        "A smaller eta or d helps."
    ]


def _estimate(values: Tensor) -> Json:
    """Mean over the runs with its standard error."""
    return {
        "mean": float(values.mean()),
        "standard_error": float(values.std() / math.sqrt(len(values))),
        "values": values.tolist(),
    }


def _beside(closed_form: float, values: Tensor) -> Json:
    return {"closed_form": closed_form, "simulated": _estimate(values)}
