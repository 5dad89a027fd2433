"""Robust and non-robust features: what can be learned from a model's adversarial examples alone?"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sam_bench.analysis.base import ANALYSES, BallAnalysis, Context, Json
from sam_bench.data import Split, channel_stats, first_examples, to_float
from sam_bench.device import choose_precision
from sam_bench.errors import StoppedError
from sam_bench.models import architecture_for, create_model
from sam_bench.modes import attacking
from sam_bench.perturb.ball import Ball
from sam_bench.perturb.inputs import input_gradient
from sam_bench.progress import Reporter, Stage
from sam_bench.records import ModelCard, Precision, Radius
from sam_bench.seeds import generator
from sam_bench.training import Ready, RunConfig, Saving, TrainingRun, build_recipe, load_recipe, override
from sam_bench.training.random_state import random_state_kept
from sam_bench.zoo import LoadedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SEARCH = 0.5
"""The share of a model's time that the search of adversarial examples is taken to need, for the progress."""


@ANALYSES.register("features")
class Features(BallAnalysis):
    """Accuracy of a network that learned from targeted adversarial examples (Ilyas et al. 2019, arXiv 1905.02175).

    Each training image is moved towards a random class, and gets that class as its label. To a person it still
    shows the old class, which says nothing about the label. What the network can use on real test images is
    therefore what the attacked model takes for features of the target (section 3.2, their data set D_rand).
    """

    summary = "how much a new network learns from each model's adversarial examples alone"
    needs_train = True

    norm: Literal["Linf", "L2"] = Field(default="L2", description="norm of the ball around each image: Linf or L2")
    eps: Radius = Field(default=Radius("0.5"), ge=0, description="radius of the ball, for images in [0, 1]")
    steps: int = Field(default=20, ge=1, description="steps of PGD towards the target; each is 2.5 eps / steps long")
    train_examples: int = Field(default=10_000, ge=2, description="training images that are moved and relabelled")
    epochs: int = Field(default=10, ge=1, description="epochs of the new network")
    width: int = Field(default=16, ge=1, description="width of the new network, a PreActResNet-18")
    repeats: int = Field(default=3, ge=1, description="new networks for each model, from different seeds")

    def measure(self, model: LoadedModel, context: Context) -> Json:
        """The new networks' accuracies on the real test images, and how often the target was reached."""
        assert context.train is not None
        source = first_examples(context.train, self.train_examples)
        draws = generator(context.seed, self.method, "targets")
        targets = torch.randint(len(context.classes), (len(source),), generator=draws)
        moved, reached = self._moved(model.module, source, targets, context)
        precision = choose_precision("auto", context.device)[0]
        accuracies = []
        for repeat in range(self.repeats):
            begins, share = _SEARCH + (1 - _SEARCH) * repeat / self.repeats, (1 - _SEARCH) / self.repeats
            part = _Part(context, begins, share)
            network = self._learned(moved, context, context.seed + repeat, precision, part)
            accuracies.append(float((context.logits(network).argmax(1) == context.y).double().mean()))
        return {
            "accuracy": sum(accuracies) / self.repeats,
            "accuracies": accuracies,
            "target_reached": reached,
            "chance": 1 / len(context.classes),
            "precision": precision,
        }

    def _moved(self, module: nn.Module, source: Split, targets: Tensor, context: Context) -> tuple[Split, float]:
        """Images moved towards their targets, as bytes, and the share that the model then takes for the target."""
        ball = Ball(norm=self.norm, eps=float(self.eps))
        images, reached = torch.empty_like(source.images), 0
        with attacking(module):
            for rows in torch.arange(len(source)).split(context.batch_size):
                x, target = to_float(source.images[rows].to(context.device)), targets[rows].to(context.device)
                x_adv = x
                for _ in range(self.steps):
                    _, gradient = input_gradient(module, x_adv, target)
                    x_adv = ball.step(x_adv, x, -gradient, 2.5 * ball.eps / self.steps)
                rounded = (x_adv * 255).round().to(torch.uint8)
                with torch.no_grad():
                    reached += int((module(to_float(rounded)).argmax(1) == target).sum())
                images[rows] = rounded.cpu()
                share = int(rows[-1] + 1) / len(source)
                context.stage.update(round(_SEARCH * share * len(context.x)), "adversarial examples")
        return Split(images, targets), reached / len(source)

    @random_state_kept()
    def _learned(
        self, train: Split, context: Context, seed: int, precision: Precision, reporter: Reporter
    ) -> nn.Module:
        """A network that learned from `train` by the package's recipe for standard training, in eval mode."""
        settings = {"epochs": self.epochs, "crop_padding": 0, "flip": False}
        recipe = build_recipe(override(load_recipe("standard"), settings))
        mean, std = channel_stats(train)
        architecture = architecture_for(
            "preactresnet18",
            num_classes=len(context.classes),
            in_channels=train.shape[1],
            image_size=train.shape[2],
            mean=mean,
            std=std,
            options={"width": self.width},
        )
        config = RunConfig(
            name=self.method,
            recipe=recipe.recipe,
            architecture=architecture,
            dataset=self.method,
            seed=seed,
            train_examples=len(train),
            train_fingerprint=train.fingerprint,
            validation_examples=0,
            validation_norm="Linf",
            validation_eps=Radius("2/255"),
            precision=precision,
        )
        torch.manual_seed(seed)
        network = create_model(architecture).to(context.device)
        with tempfile.TemporaryDirectory() as folder:
            saving = Saving(Path(folder) / "run")
            run = TrainingRun(Ready(network, recipe, train.to(context.device), None, config, saving, reporter))
            try:
                return run.fit().model.eval()
            except StoppedError as error:
                # The training's own message names a checkpoint, which goes with the folder.
                raise StoppedError(
                    f"{self.method} was stopped; the models before are kept", error.exit_code - 128
                ) from error

    def combine(self, measured: Json, cards: Mapping[str, ModelCard]) -> Json:
        """Mean and standard error of each model's networks, and its difference from each other model's."""
        return {
            "standard_error": {name: _standard_error(found["accuracies"]) for name, found in measured.items()},
            "less": {
                name: {other: found["accuracy"] - measured[other]["accuracy"] for other in measured if other != name}
                for name, found in measured.items()
            },
        }

    def draw(self, measured: Json, findings: Json, figure: Figure) -> None:
        """A bar a model, a dot a network; the dashed line is chance."""
        names = list(measured)
        figure.set_size_inches(6.4, 1.5 + 0.5 * len(names))
        axes = figure.add_subplot()
        places = range(len(names))
        axes.barh(places, [measured[name]["accuracy"] for name in names], height=0.6)
        for place, name in zip(places, names, strict=True):
            found = measured[name]["accuracies"]
            axes.plot(found, [place] * len(found), "o", color="black", markersize=4)
        chance = measured[names[0]]["chance"]
        axes.axvline(chance, color="0.3", linestyle="--", linewidth=1)
        axes.annotate(" chance", (chance, 1), xycoords=("data", "axes fraction"), va="bottom", ha="center")
        axes.set_yticks(places, [f"{name}\n(target reached {measured[name]['target_reached']:.0%})" for name in names])
        axes.invert_yaxis()
        axes.set(xlabel="accuracy on real images, learned from adversarial examples alone", xlim=(0, None))
        axes.grid(False, axis="y")

    def lines(self, measured: Json, findings: Json) -> list[str]:
        """What was learned from each model, beside chance."""
        return [
            f"{name}: {found['accuracy']:.1%} learned from its adversarial examples "
            f"({_range(found['accuracies'])}; chance {found['chance']:.1%}), target reached on "
            f"{found['target_reached']:.1%}"
            for name, found in measured.items()
        ]


class _Part:
    """The progress of one training, shown as a part of its model's.

    Args:
        context: Has the model's stage.
        begins: The share of the model's work that was done before.
        share: The share of the model's work that the training is.
    """

    def __init__(self, context: Context, begins: float, share: float) -> None:
        self._context, self._begins, self._share = context, begins, share
        self._total = 1

    def say(self, text: str) -> None:
        """Nothing: the training is not the user's."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """Itself."""
        self._total = total
        yield self

    def update(self, done: int, figures: str = "", share: float | None = None) -> None:
        """See `Stage.update`."""
        now = self._begins + self._share * done / self._total
        self._context.stage.update(round(now * len(self._context.x)), figures, share=now)


def _standard_error(values: list[float]) -> float | None:
    """Of the mean over networks; None of one network."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _range(values: list[float]) -> str:
    return f"{min(values):.1%} to {max(values):.1%}" if len(values) > 1 else "one network"
