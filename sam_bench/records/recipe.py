"""Recipe: a method as a point on the two axes, with everything that decides what is learned."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sam_bench.records.fields import SCHEMA_VERSION, Name, Record


def _no_truth_value(kind: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"must be {kind}, not {str(value).lower()}")
        return value

    return BeforeValidator(check)


Count = Annotated[int, _no_truth_value("a valid integer")]
"""A whole number, or its text as options and overrides give it; `true` is none."""
Number = Annotated[float, _no_truth_value("a number")]
"""The same for any number: `mixup: true` would be an alpha of 1."""


class ComponentSpec(BaseModel):
    """One part of a recipe: the registered name of a method, and that method's own settings.

    The settings are checked by the room that owns the method, so that a new method (a plug-in's,
    too) needs no change here.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    method: str

    @property
    def settings(self) -> dict[str, Any]:
        """The settings without the method's name."""
        return dict(self.model_extra or {})

    def __eq__(self, other: object) -> bool:
        """A setting that is None is as good as absent: older cards lack those that were added since."""
        if not isinstance(other, ComponentSpec):
            return NotImplemented
        return (self.method, self._given()) == (other.method, other._given())

    def __hash__(self) -> int:
        return hash(self.method)

    def _given(self) -> dict[str, Any]:
        return {name: value for name, value in self.settings.items() if value is not None}


class Augmentation(Record):
    """What is done to each training image before it is perturbed."""

    crop_padding: Count = Field(default=4, ge=0, description="random crop after padding by this many pixels; 0: none")
    padding_mode: Literal["reflect", "zeros"] = Field(default="reflect", description="how the border is filled")
    flip: bool = Field(default=True, description="mirror left and right with probability 1/2")
    random_resized_crop: bool = Field(
        default=False,
        description="ImageNet's: a random part of the image at the final size, instead of the padded crop",
    )
    mixup: Number = Field(default=0.0, ge=0, description="alpha of Mixup, which averages images in pairs; 0: none")
    cutmix: Number = Field(default=0.0, ge=0, description="alpha of CutMix, which pastes a part of another; 0: none")


NONE = ComponentSpec(method="none")


class Recipe(Record):
    """A training method in full; its JSON is what a card stores and what `recipes show` prints."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Name
    summary: str = Field(description="one line: what it does")
    good_for: str = Field(default="", description="what it is good for and what it is not")
    source: str = Field(default="", description="the paper or code the settings come from")
    inputs: ComponentSpec = Field(default=NONE, description="perturbation of the input (adversarial training's axis)")
    weights: ComponentSpec = Field(default=NONE, description="perturbation of the weights (SAM's axis)")
    objective: ComponentSpec = ComponentSpec(method="cross-entropy")
    averaging: ComponentSpec = NONE
    optimizer: ComponentSpec = ComponentSpec(method="sgd")
    schedule: ComponentSpec = ComponentSpec(method="piecewise")
    augmentation: Augmentation = Augmentation()
    epochs: Count = Field(default=100, ge=1, description="passes over the training set")
    batch_size: Count = Field(default=128, ge=2, description="examples a step")
