"""What an analysis is: a question asked of models, of records, or of neither.

An analysis is a class in a file of this folder. Its fields are its settings, and become options of the command line.
It says what it measures and how to draw it. Loading models, keeping what is measured and writing files is done
by the caller (`sam_bench.api.analyzing`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor, nn

from sam_bench.data import Split
from sam_bench.errors import InputError
from sam_bench.modes import inputs_copied
from sam_bench.perturb.ball import check_eps
from sam_bench.progress import Stage
from sam_bench.records import EvaluationRecord, ModelCard, Radius
from sam_bench.registry import Component, Registry
from sam_bench.zoo import LoadedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # only who draws waits for Matplotlib

Json = dict[str, Any]
"""What is written as JSON: text, numbers, lists and dictionaries. No NaN."""


def _within_images(eps: Radius) -> Radius:
    if eps >= 1:
        raise ValueError(f"images are in [0, 1], so {eps} holds all of them; give a radius such as {eps}/255")
    return eps


LinfRadius = Annotated[Radius, AfterValidator(_within_images)]
"""A Linf radius that does not hold all images."""


@dataclass(frozen=True)
class Context:
    """What an analysis of models is given besides the model.

    Attributes:
        x: The examples, float32 [N, C, H, W] in [0, 1], on the device.
        y: Their labels, int64 [N].
        classes: The name of each class, by label.
        batch_size: Examples at a time.
        seed: Decides every random draw; see `generator`.
        stage: Where progress goes: `stage.update(done, figures, share=0.3)`.
        models: Every model of this analysis by name. Calling one loads it; keep few of them at a time.
        train: The training images, as bytes on the CPU; None unless the analysis says `needs_train`.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    batch_size: int
    seed: int
    stage: Stage
    models: Mapping[str, Callable[[], LoadedModel]]
    train: Split | None = None

    @property
    def device(self) -> torch.device:
        """Where examples and models are."""
        return self.x.device

    def generator(self) -> torch.Generator:
        """A new generator on the CPU, from the seed."""
        return torch.Generator().manual_seed(self.seed)

    def logits(self, module: nn.Module, x: Tensor | None = None) -> Tensor:
        """Logits of a model in eval mode, float64 [N, classes] on the device.

        Args:
            module: The model.
            x: Images, float [N, C, H, W] in [0, 1]; None: the examples.

        Raises:
            InputError: The model answers NaN, which `argmax` would take for the largest logit.
        """
        parts = (self.x if x is None else x).split(self.batch_size)
        with inputs_copied(module), torch.inference_mode():
            found = torch.cat([module(part.to(self.device)).double() for part in parts])
        if found.isnan().any():
            raise InputError("the model answers NaN on some of the images, which is no answer: leave it out")
        return found


class Analysis(Component):
    """A question with a figure and numbers for an answer. Derive from one of the three classes below."""

    summary: ClassVar[str]
    """One sentence for the list of analyses: what it answers."""

    @abstractmethod
    def draw(self, measured: Json, findings: Json, figure: Figure) -> None:
        """Draw the answer. The figure is empty; set its size where the number of models asks for another.

        Args:
            measured: Name to what was measured, if anything was.
            findings: What follows from all of it.
            figure: Where to draw.
        """

    @abstractmethod
    def lines(self, measured: Json, findings: Json) -> list[str]:
        """The answer in a few lines of text, for the terminal."""


class ModelAnalysis(Analysis):
    """An analysis that looks at models, one at a time. What was measured on a model is kept and not measured again."""

    asks_others: ClassVar[bool] = False
    """Whether what is measured on one model depends on the others, as in a matrix of transfers."""

    needs_train: ClassVar[bool] = False
    """Whether it asks for the training images, too."""

    @abstractmethod
    def measure(self, model: LoadedModel, context: Context) -> Json:
        """Measure one model.

        Args:
            model: In eval mode, on the device. Leave its parameters, modes and gradients as they are.
            context: The examples and the rest.
        """

    def combine(self, measured: Json, cards: Mapping[str, ModelCard]) -> Json:
        """What follows from the measurements of all models.

        Args:
            measured: Name to what `measure` returned, in the order of the models.
            cards: Name to card, for the models that have one.
        """
        return {}


class BallAnalysis(ModelAnalysis):
    """An analysis that moves images within a ball. Its defaults are for the subclass to choose."""

    norm: Literal["Linf", "L2"] = Field(default="Linf", description="norm of the ball around each image: Linf or L2")
    eps: Radius = Field(default=Radius("2/255"), ge=0, description="radius of the ball, for images in [0, 1]")

    @model_validator(mode="after")
    def _eps_is_of_images(self) -> BallAnalysis:
        try:
            check_eps(self.norm, self.eps, hint="")
        except InputError as error:
            raise ValueError(f"eps: {self.eps} {error.problem}") from error
        return self


@dataclass(frozen=True)
class NamedRecord:
    """A record with what is known of its model.

    Attributes:
        record: The record.
        path: Its file, as it was given.
        card: The card of the model in the zoo whose weights it is of; None where there is none.
    """

    record: EvaluationRecord
    path: str
    card: ModelCard | None


class RecordAnalysis(Analysis):
    """An analysis of records. It costs nothing: no model is run."""

    needs_labels: ClassVar[bool] = False
    """Whether it asks for the test labels, so that the data set must be at hand."""

    @abstractmethod
    def combine(
        self, records: list[NamedRecord], labels: Mapping[int, Tensor] | None, classes: tuple[str, ...]
    ) -> Json:
        """What follows from the records.

        Args:
            records: At least one.
            labels: A record's number of examples to their labels, int64 [n]. None unless `needs_labels`.
            classes: The name of each class; empty unless `needs_labels`.

        Raises:
            InputError: The records do not fit each other, or the question.
        """


class FreeAnalysis(Analysis):
    """An analysis that needs neither a model nor a record."""

    @abstractmethod
    def combine(self, seed: int) -> Json:
        """The answer."""


ANALYSES: Registry[Analysis] = Registry(kind="analysis", field="analysis", group="sam_bench.analyses", base=Analysis)
