"""TrainSpec: everything that can be said of a training."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from sam_bench.api.naming import default_name
from sam_bench.api.specs.base import option
from sam_bench.api.specs.checks import Data, Flag, Length, Place, Positive, RecipeLike, Settings, Text, Whole
from sam_bench.api.specs.shared import RunSpec
from sam_bench.errors import InputError
from sam_bench.models import architecture_options, architectures
from sam_bench.perturb.ball import check_eps
from sam_bench.records import NAME_PATTERN, Augmentation, Norm, Radius, Recipe, RobustBenchDataset
from sam_bench.training import PARTS, BuiltRecipe, build_recipe, load_recipe, override, settings_of_methods
from sam_bench.training.build import PLAIN


class TrainSpec(RunSpec):
    """A training: the recipe with its settings, the data, the network, and how the run is kept.

    Reading `recipe` from a file happens when the recipe is asked for first, not when the spec is made.
    """

    positional: ClassVar[tuple[str, ...]] = ("recipe", "dataset")

    recipe: Annotated[
        str | Path | Recipe,
        RecipeLike(),
        option(
            "standard, sam, at, …, or a YAML file; see `recipes list`.",
            identity=True,
            in_name=True,
            sweep=True,
            first=1,
        ),
    ] = "standard"
    faithful: Annotated[
        bool,
        Flag(),
        option(
            "The published code's settings where the recipe's differ; see `recipes show`.",
            identity=True,
            in_name=True,
            sweep=True,
        ),
    ] = False
    dataset: Annotated[
        str,
        Data(),
        option(
            "cifar10, cifar100, svhn, tiny-imagenet, imagenet, cifar10-c-fog-3, …, digits, FILE.npz or FOLDER.",
            identity=True,
            sweep=True,
            group="data",
            first=2,
        ),
    ] = "cifar10"
    settings: Annotated[
        Mapping[str, Any],
        Settings(),
        option("Settings of the recipe to replace, by name: {'rho': 0.1, 'epochs': 10}.", identity=True, in_name=True),
    ] = {}
    arch: Annotated[
        str,
        Text("an architecture's name"),
        option(
            "An architecture of ours, or timm:NAME.",
            identity=True,
            in_name=True,
            sweep=True,
            group="model",
            first=3,
        ),
    ] = "preactresnet18"
    arch_options: Annotated[
        Mapping[str, Any],
        Settings(),
        option(
            "Any other option of the architecture, such as patch_size=4.",
            identity=True,
            in_name=True,
            sweep=False,
            group="model",
        ),
    ] = {}
    init: Annotated[
        str | None,
        Text("a model's name or a file", paths=True),
        option(
            "Start from these weights: a model of the zoo, a file, robustbench:NAME or timm:NAME. Mean and standard "
            "deviation are theirs; the last layer is new where the classes differ.",
            identity=True,
            in_name=True,
            sweep=True,
            group="model",
            default="random weights",
        ),
    ] = None
    extra_data: Annotated[
        Path | None,
        Place(folder=False),
        option(
            "FILE.npz of further training images, such as generated ones (image, label), mixed into every batch.",
            identity=True,
            in_name=True,
            sweep=True,
            group="data",
        ),
    ] = None
    extra_fraction: Annotated[
        float,
        Positive(),
        option("Their share of every batch.", identity=True, sweep=True, group="data"),
    ] = 0.7
    limit_train: Annotated[
        int | None,
        Whole(),
        option(
            "Train on the first so many images only, for a quick look; of a FOLDER, of every class in turn.",
            identity=True,
            sweep=True,
            group="data",
        ),
    ] = None
    validation: Annotated[
        int | None,
        Whole(),
        option(
            "Training images held out to watch the run; 0: none.",
            identity=True,
            sweep=True,
            group="data",
            default="one in 50, at most 1,000",
        ),
    ] = None
    validation_eps: Annotated[
        Radius | None,
        Length(),
        option(
            "Radius of the PGD-10 run on the validation images.",
            identity=True,
            sweep=True,
            group="inputs",
            default="the recipe's, else 2/255, or 32/255 in L2",
        ),
    ] = None
    precision: Annotated[
        Literal["auto", "bf16", "fp32"],
        option(
            "auto, bf16 or fp32; auto takes bf16 where the device is faster with it.",
            identity=True,
            sweep=True,
            group="device",
        ),
    ] = "auto"
    compile: Annotated[
        Literal["auto", "on", "off"],
        option(
            "torch.compile: a minute at the start, faster afterwards; auto: for long runs.",
            identity=True,
            sweep=True,
            group="device",
        ),
    ] = "auto"
    micro_batch: Annotated[
        int | None,
        Whole(1),
        option(
            "Examples a device runs at a time, in training (with BatchNorm at least two) and validation.",
            identity=True,
            sweep=True,
            group="device",
        ),
    ] = None
    sync_ascent: Annotated[
        bool,
        Flag(),
        option(
            "On several devices: SAM ascends along the whole batch's gradient.",
            identity=True,
            sweep=True,
            group="device",
        ),
    ] = False
    sync_bn: Annotated[
        bool,
        Flag(),
        option("On several devices: BatchNorm over the whole batch.", identity=True, sweep=True, group="device"),
    ] = False
    on_nan: Annotated[
        Literal["stop", "rollback"],
        option(
            "When the loss is NaN or infinite: stop, or go back to the last checkpoint with half the learning rate, "
            "at most three times.",
            identity=True,
            sweep=True,
        ),
    ] = "stop"
    select: Annotated[
        Literal["last", "best"],
        option(
            "Register the last epoch, or the one with the best robust accuracy on the validation images, as measured.",
            identity=True,
            sweep=True,
        ),
    ] = "last"
    name: Annotated[
        str | None,
        Text("a name"),
        option(
            "Name in the zoo.",
            first=7,
            default="made of recipe, perturbations, architecture and a seed other than 0",
        ),
    ] = None
    robustbench_dataset: Annotated[
        RobustBenchDataset | None,
        option(
            "The RobustBench data set whose inputs and classes a data set of your own shares.",
            sweep=True,
            group="data",
        ),
    ] = None
    threat: Annotated[
        Literal["Linf", "L2"] | None,
        option("The threat model it is listed under.", sweep=True, default="the recipe's norm, else Linf"),
    ] = None
    weights_dtype: Annotated[
        Literal["float32", "float16"],
        option("How the weights are stored; what is stored is what is measured.", sweep=True),
    ] = "float32"
    authors: Annotated[str, Text(), option("Who trained it, for the card.", sweep=False)] = ""
    run_dir: Annotated[
        Path | None,
        Place(),
        option("Folder of checkpoint, log and TensorBoard events.", default="runs/NAME"),
    ] = None
    keep: Annotated[int, Whole(1), option("How many epochs' checkpoints stay in the run's folder.", sweep=False)] = 1
    save_every: Annotated[
        float,
        Positive(),
        option(
            "Write a checkpoint within an epoch, too, when it takes longer than this.", sweep=False, metavar="MINUTES"
        ),
    ] = 10.0
    resume: Annotated[bool, Flag(), option("Continue the run of this name where it stopped.", first=9)] = False

    @classmethod
    def mapping_of(cls, name: str) -> str | None:
        if name in settings_of_recipes():
            return "settings"
        of_networks = (architecture_options(each).model_fields for each in architectures())
        return "arch_options" if any(name in options for options in of_networks) else None

    @cached_property
    def base(self) -> Recipe:
        """The recipe before any setting is replaced. A cached property: its file is read once."""
        return load_recipe(self.recipe, faithful=self.faithful)

    def read_with(self, recipes: dict[tuple[str, bool], Recipe]) -> None:
        """Share the recipe with other specs, so that a file is read once, however many runs follow it."""
        if not isinstance(self.recipe, Recipe):
            key = str(self.recipe), self.faithful
            self.__dict__["base"] = recipes.get(key) or recipes.setdefault(key, self.base)

    @cached_property
    def method(self) -> BuiltRecipe:
        """The recipe with the settings replaced, every name turned into the component it stands for."""
        try:
            return build_recipe(override(self.base, self.settings))
        except InputError:
            self._say_what_is_given_elsewhere()
            raise

    def _say_what_is_given_elsewhere(self) -> None:
        for name in self.settings:
            if name in type(self).model_fields:
                raise InputError("is no setting of a recipe but a keyword of its own", field=name)
            if self.mapping_of(name) == "arch_options":
                hint = f"give it as `arch_options={{'{name}': …}}`"
                raise InputError("is no setting of a recipe but an option of the network", field=name, hint=hint)

    @property
    def norm(self) -> Norm:
        """The norm of the ball that is trained in, or the threat model's where nothing is perturbed."""
        ball = self.method.inputs.ball
        return ball.norm if ball else self.threat or "Linf"

    def identity(self) -> dict[str, Any]:
        """See `Spec.identity`. The settings are those of the whole recipe, so that equal trainings are equal."""
        fields = super().identity()
        if isinstance(self.recipe, Recipe):
            fields["recipe"] = self.recipe.name
        options = {f"arch_options.{name}": value for name, value in fields.pop("arch_options").items()}
        return fields | options

    def components(self) -> dict[str, Any]:
        recipe = self.method.recipe.model_dump(mode="json")
        methods = {part: recipe[part].pop("method") for part in PARTS}
        settings = {f"{part}.{name}": value for part in PARTS for name, value in recipe[part].items()}
        plain = {name: recipe[name] for name in PLAIN}
        return {**methods, **settings, **recipe["augmentation"], **plain}

    def default_name(self, varies: Mapping[str, Any] | None = None) -> str:
        """What the run is called when nobody says.

        Args:
            varies: Values that tell the runs of a sweep apart; the name says them all.
        """
        varies = varies or {}
        seed = 0 if "seed" in varies else self.seed
        name = default_name(self.method.recipe, self.base, self.arch, self.arch_options, seed=seed)
        said = {each for each, known in self.options().items() if known.in_name and each != "seed"} - {"faithful"}
        said |= {"width", "inputs", "weights", *self.method.recipe.inputs.settings}
        said |= set(self.method.recipe.weights.settings)
        if self.init is not None and "init" not in varies:
            name += f"-from-{_bare(in_words(self.init))}"
        if self.extra_data is not None and "extra_data" not in varies:
            name += f"-extra-{_bare(in_words(self.extra_data))}"
        for key, value in varies.items():
            if key not in said:
                name += "-" + _bare(f"{key}{in_words(value)}".replace("/", "over"))
        return name if len(name) <= 100 else f"{name[:91]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    def check(self) -> None:
        """Refuse what cannot be trained, as far as it is known without the data.

        Raises:
            InputError: A setting, a radius or the name is wrong; names the field.
        """
        for name in type(self.method.inputs).model_fields:
            length = getattr(self.method.inputs, name)
            if isinstance(length, Radius):
                norm = self.method.inputs.ball.norm if self.method.inputs.ball else "Linf"
                check_eps(norm, length, allow_large=self.allow_large_eps, field=name)
        if self.validation_eps is not None:
            check_eps(self.norm, self.validation_eps, allow_large=self.allow_large_eps, field="validation_eps")
        if not self.extra_fraction < 1:
            raise InputError("must be below 1: some images of the data set are left", **self._said("extra_fraction"))
        if self.limit_train is not None and self.limit_train < 2:
            raise InputError("must be at least 2: BatchNorm needs two images in a batch", **self._said("limit_train"))
        if self.validation is not None:
            self.check_selection(self.validation)
        if self.name is not None and not re.fullmatch(NAME_PATTERN, self.name):
            raise InputError(
                "cannot name a model: use letters, digits, '.', '_' and '-', starting with a letter or digit, at most "
                "100 characters",
                **self._said("name"),
            )

    def check_selection(self, held_out: int) -> None:
        """Refuse to select the best epoch where there is nothing to tell it by.

        Args:
            held_out: How many images are.
        """
        if self.select == "best" and not held_out:
            raise InputError(
                "`select='best'` needs validation images to tell the best epoch by; give `validation` above 0"
            )

    def _said(self, field: str) -> dict[str, Any]:
        return {"field": field, "value": getattr(self, field)}


def _bare(text: str) -> str:
    """Without what a name may not have: of a model its last part."""
    return re.sub(r"[^A-Za-z0-9_-]", "", text.rpartition("/")[2].rpartition(":")[2])


_FILES = (".npz", ".yaml", ".yml", ".json", ".safetensors", ".pt", ".pth")


def in_words(value: Any) -> str:
    """A value in a name: of a path the last part, of several values their row."""
    if isinstance(value, (list, tuple)):
        return "-".join(map(str, value))
    text = str(value)
    return Path(text).stem if text.endswith(_FILES) or Path(text).is_dir() else text


def settings_of_recipes() -> list[str]:
    """Every name that a recipe's settings can have: of parts, of their settings, of numbers of the run."""
    return [*settings_of_methods(), *Augmentation.model_fields, *PARTS, *PLAIN]
