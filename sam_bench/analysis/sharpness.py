"""Sharpness: how much the loss rises around the weights and around the images, and whether that tells robustness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from sam_bench.analysis.base import ANALYSES, Context, Json, LinfRadius, ModelAnalysis
from sam_bench.analysis.correlation import FEWEST, correlation
from sam_bench.analysis.hessian import WeightHessian, input_curvature, top_eigenvalues, trace
from sam_bench.attacks.gradient import PGDAttack
from sam_bench.perturb.inputs import cross_entropy
from sam_bench.perturb.weights import Ascent, BatchLoss, Runner, displaced
from sam_bench.perturb.weights.asam import ASAM
from sam_bench.perturb.weights.sam import SAM
from sam_bench.records import ROBUST, ModelCard, Radius
from sam_bench.seeds import generator
from sam_bench.zoo import LoadedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = 8  # models up to which points carry names
_KINDS = {"neither": "C7", "weights": "C0", "inputs": "C1", "both": "C3", "unknown": "C4"}
"""What was perturbed while the model learned, with its colour in the cycle of `figures.COLOURS`."""


@ANALYSES.register("sharpness")
class Sharpness(ModelAnalysis):
    """Sharpness of the loss by weights and by inputs, beside accuracy under PGD-10 on the same examples.

    SAM's sharpness is the rise of the loss after one ascent step of length rho (Foret et al. 2021,
    arXiv 2010.01412); m-sharpness is its mean over groups of m examples (section 4.1 there); adaptive sharpness
    takes ASAM's step (Kwon et al. 2021, arXiv 2102.11600). BatchNorm uses its running statistics throughout.
    """

    summary = "how sharply the loss rises around weights and images, and whether that goes with robust accuracy"

    rho: tuple[float, ...] = Field(default=(0.05, 0.1, 0.2), description="lengths of SAM's ascent step")
    rho_adaptive: tuple[float, ...] = Field(default=(0.5,), description="lengths of ASAM's ascent step")
    m: int = Field(default=128, ge=1, description="examples of a group whose sharpness is averaged")
    eps: LinfRadius = Field(default=Radius("2/255"), description="Linf radius of the attack, e.g. 2/255")
    eigenvalues: int = Field(default=2, ge=1, description="largest eigenvalues of the Hessian by the weights")
    probes: int = Field(default=20, ge=2, description="random vectors of the estimate of its trace")
    hessian_examples: int = Field(default=200, ge=1, description="the first so many examples, for both Hessians")
    lanczos_steps: int = Field(default=12, ge=1, description="steps of the search in each input's Hessian")

    @field_validator("rho", "rho_adaptive")
    @classmethod
    def _above_zero(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not values or min(values) <= 0:
            raise ValueError("give at least one length, all above 0")
        return values

    def measure(self, model: LoadedModel, context: Context) -> Json:
        """Everything of one model; the Hessians on the first `hessian_examples`."""
        module, stage, n = model.module, context.stage, len(context.x)
        found: Json = {"clean": _clean(module, context)}
        stage.update(0, "PGD-10", share=0.02)
        found["robust_accuracy"] = self._robust_accuracy(module, context)
        stage.update(n // 4, "sharpness", share=0.25)
        found["weights"] = self._ascents(module, context)
        first = slice(0, min(self.hessian_examples, n))
        x, y = context.x[first], context.y[first]
        stage.update(n // 3, "Hessian by the inputs", share=0.35)
        found["inputs"] = self._inputs(module, x, y, context)
        hessian = WeightHessian(module, x, y, batch_size=context.batch_size)

        def product(vector: Tensor) -> Tensor:
            stage.update(n // 2, f"product {hessian.products + 1} with the Hessian by the weights", share=0.5)
            return hessian(vector)

        count = min(self.eigenvalues, hessian.size)
        draws = generator(context.seed, "sharpness", "eigenvalues")
        found["weights"]["eigenvalues"] = top_eigenvalues(product, hessian.size, count, generator=draws)
        draws = generator(context.seed, "sharpness", "trace")
        estimate, error = trace(product, hessian.size, self.probes, generator=draws)
        found["weights"]["trace"] = {"estimate": estimate, "standard_error": error}
        stage.update(n)
        return found

    def _robust_accuracy(self, module: nn.Module, context: Context) -> float:
        result = PGDAttack(steps=10).run(
            module,
            context.x,
            context.y,
            norm="Linf",
            eps=float(self.eps),
            seed=context.seed,
            batch_size=context.batch_size,
            device=context.device,
        )
        return result.verdicts.count(ROBUST) / len(result.verdicts)

    def _ascents(self, module: nn.Module, context: Context) -> Json:
        """Sharpness of the whole set, and its mean over groups, for each method and length."""
        methods: list[Ascent] = [*(SAM(rho=each) for each in self.rho), *(ASAM(rho=each) for each in self.rho_adaptive)]
        whole = rises(module, context.x, context.y, methods, batch_size=context.batch_size)
        m = min(self.m, len(context.x))
        groups = [
            rises(module, context.x[at : at + m], context.y[at : at + m], methods, batch_size=context.batch_size)
            for at in range(0, len(context.x) - m + 1, m)
        ]
        means = torch.tensor(groups, dtype=torch.float64).mean(0).tolist()
        rows = [
            {"rho": rho, "sharpness": one, "m_sharpness": mean}
            for rho, one, mean in zip((*self.rho, *self.rho_adaptive), whole, means, strict=True)
        ]
        return {"sam": rows[: len(self.rho)], "adaptive": rows[len(self.rho) :], "m": m, "groups": len(groups)}

    def _inputs(self, module: nn.Module, x: Tensor, y: Tensor, context: Context) -> Json:
        """Norms of the gradients and largest eigenvalues of the Hessians, over the images."""
        draws = generator(context.seed, "sharpness", "inputs")
        slopes, curvatures = [], []
        for start in range(0, len(x), context.batch_size):
            part = slice(start, start + context.batch_size)
            slope, curvature = input_curvature(module, x[part], y[part], steps=self.lanczos_steps, generator=draws)
            slopes.append(slope.double().cpu())
            curvatures.append(curvature.double().cpu())
        return {"gradient_norm": _spread(torch.cat(slopes)), "top_eigenvalue": _spread(torch.cat(curvatures))}

    def combine(self, measured: Json, cards: Mapping[str, ModelCard]) -> Json:
        """Each quantity's correlation with robust accuracy, as it is and with confidence regressed out."""
        names = list(measured)
        robust = [measured[name]["robust_accuracy"] for name in names]
        confidence = [measured[name]["clean"]["confidence"] for name in names]
        columns = {key: [quantities(measured[name])[key] for name in names] for key in quantities(measured[names[0]])}
        found = {
            key: {
                "spearman": correlation(values, robust, ranks=True),
                "spearman_given_confidence": correlation(values, robust, ranks=True, given=confidence),
                "pearson": correlation(values, robust),
                "pearson_given_confidence": correlation(values, robust, given=confidence),
            }
            for key, values in columns.items()
        }
        return {
            "models": len(names),
            "fewest_models": FEWEST,
            "correlations": found if len(names) >= FEWEST else {},
            "confidence_with_robust_accuracy": correlation(confidence, robust, ranks=True),
            "kinds": _kinds_of(names, cards),
        }

    def draw(self, measured: Json, findings: Json, figure: Figure) -> None:
        """Robust accuracy against four kinds of sharpness, a point a model."""
        from sam_bench.analysis.figures import logarithmic

        figure.set_size_inches(10, 7.5)
        every = {name: quantities(each) for name, each in measured.items()}
        largest = max(range(len(self.rho)), key=self.rho.__getitem__)
        shown = [
            f"m-sharpness, rho {self.rho[largest]:g}",
            f"adaptive sharpness, rho {self.rho_adaptive[0]:g}",
            "largest eigenvalue by weights",
            "input gradient norm, median",
        ]
        for at, (axes, key) in enumerate(zip(figure.subplots(2, 2, sharey=True).flat, shown, strict=True)):
            for name, each in every.items():
                kind = findings["kinds"][name]
                accuracy = 100 * measured[name]["robust_accuracy"]
                axes.plot(each[key], accuracy, "o", color=_KINDS[kind], markersize=5)
                if len(every) <= _NAMED:
                    axes.annotate(name, (each[key], accuracy), textcoords="offset points", xytext=(5, 4), fontsize=7.5)
            axes.set(xlabel=key, ylabel=f"PGD-10 accuracy at {self.eps}, %" if at % 2 == 0 else "")
            axes.margins(x=0.3 if len(every) <= _NAMED else 0.08, y=0.12)
            if all(each[key] > 0 for each in every.values()):
                logarithmic(axes)
            told = findings["correlations"].get(key)
            if told and told["spearman"]:
                axes.set_title(_titled(told), fontsize=9)
        for kind in dict.fromkeys(findings["kinds"].values()):
            figure.axes[0].plot([], [], "o", color=_KINDS[kind], label=f"perturbed in training: {kind}")
        figure.legend(loc="outside lower center", ncols=4)

    def lines(self, measured: Json, findings: Json) -> list[str]:
        """A line a model, then a line a correlation."""
        lines = []
        for name, each in measured.items():
            sam, adaptive = each["weights"]["sam"][-1], each["weights"]["adaptive"][0]
            spread = each["weights"]["trace"]
            lines.append(
                f"{name}: PGD-10 at {self.eps} {each['robust_accuracy']:.1%}; m-sharpness at {sam['rho']:g} "
                f"{sam['m_sharpness']:.3f}, adaptive at {adaptive['rho']:g} {adaptive['m_sharpness']:.3f}; by weights: "
                f"largest eigenvalue {each['weights']['eigenvalues'][0]:.3g}, trace {spread['estimate']:.3g} ± "
                f"{spread['standard_error']:.2g}; by inputs, medians: gradient norm "
                f"{each['inputs']['gradient_norm']['median']:.3g}, largest eigenvalue "
                f"{each['inputs']['top_eigenvalue']['median']:.3g}"
            )
        if not findings["correlations"]:
            lines.append(f"correlations need at least {FEWEST} models; these are {findings['models']}")
        return lines + [f"{key}: {_titled(each)}" for key, each in findings["correlations"].items() if each["spearman"]]


def rises(module: nn.Module, x: Tensor, y: Tensor, methods: list[Ascent], *, batch_size: int) -> list[float]:
    """How much the mean loss rises where each method moves the weights; one gradient serves all of them.

    The weights are back bit for bit afterwards, and `.grad` is as before.

    Args:
        module: In eval mode; maps `x` to logits.
        x: Inputs, float [N, C, H, W].
        y: Labels, int64 [N].
        methods: What moves the weights.
        batch_size: Examples at a time.
    """
    kept = [(parameter, parameter.grad) for parameter in module.parameters()]
    batch = BatchLoss(module, x, y, runner=Runner(micro_batch=batch_size), at=None)
    found = []
    try:
        before = batch.backward(update_bn=False).loss
        parameters, gradients = batch.gradients()
        for method in methods:
            moves = [gradient.clone() for gradient in gradients]
            method.perturbation(batch, parameters, moves)
            with displaced(parameters, moves):
                found.append(float(batch.evaluate(update_bn=False).mean() - before))
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient
    return found


def quantities(measured: Json) -> dict[str, float]:
    """What is correlated with robust accuracy, by the name that figures and numbers give it."""
    weights, inputs = measured["weights"], measured["inputs"]
    found = {}
    for called, kind in (("", "sam"), ("adaptive ", "adaptive")):
        for each in weights[kind]:
            found[f"{called or 'SAM '}sharpness, whole set, rho {each['rho']:g}"] = each["sharpness"]
            found[f"{called or 'm-'}sharpness, rho {each['rho']:g}"] = each["m_sharpness"]
    return found | {
        "largest eigenvalue by weights": weights["eigenvalues"][0],
        "trace by weights": weights["trace"]["estimate"],
        "input gradient norm, median": inputs["gradient_norm"]["median"],
        "input gradient norm, mean": inputs["gradient_norm"]["mean"],
        "largest eigenvalue by inputs, median": inputs["top_eigenvalue"]["median"],
        "largest eigenvalue by inputs, mean": inputs["top_eigenvalue"]["mean"],
    }


def _clean(module: nn.Module, context: Context) -> Json:
    """Loss, accuracy and confidence on the clean images."""
    logits = context.logits(module)
    confidence, label = logits.softmax(1).max(1)
    return {
        "loss": float(cross_entropy(logits, context.y).mean()),
        "confidence": float(confidence.mean()),
        "accuracy": float((label == context.y).double().mean()),
    }


def _spread(values: Tensor) -> Json:
    """Mean, median and 90th percentile of float64 [N]."""
    return {
        "mean": float(values.mean()),
        "median": float(values.quantile(0.5)),
        "percentile_90": float(values.quantile(0.9)),
    }


def _titled(told: Json) -> str:
    """Spearman's correlation, as it is and with confidence regressed out."""
    plain, partial = told["spearman"], told["spearman_given_confidence"]
    text = f"Spearman {plain['estimate']:.2f} [{plain['low']:.2f}, {plain['high']:.2f}]"
    if partial is None:
        return text
    return f"{text}; given confidence {partial['estimate']:.2f} [{partial['low']:.2f}, {partial['high']:.2f}]"


def _kinds_of(names: list[str], cards: Mapping[str, ModelCard]) -> dict[str, str]:
    """The kind of each model, a key of `_KINDS`."""
    found = {}
    for name in names:
        card = cards.get(name)
        if card is None or card.imported:
            found[name] = "unknown"
            continue
        perturbed = [axis for axis in ("inputs", "weights") if getattr(card.recipe, axis).method != "none"]
        found[name] = "both" if len(perturbed) == 2 else perturbed[0] if perturbed else "neither"
    return found
