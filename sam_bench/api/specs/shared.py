"""What trainings and evaluations have in common: the data, the seed, the device, the zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from sam_bench.api.specs.base import Spec, option
from sam_bench.api.specs.checks import Data, Device, Flag, Place, Seed, Text, Whole


class DataSpec(Spec):
    """The images, and how they are read."""

    dataset: Annotated[
        str | None,
        Data(),
        option(
            "cifar10, cifar100, svhn, tiny-imagenet, imagenet, cifar10-c-fog-3, …, digits, FILE.npz or FOLDER.",
            identity=True,
            sweep=True,
            group="data",
            first=5,
            default="the one on the model's card",
        ),
    ] = None
    image_size: Annotated[
        int | None,
        Whole(),
        option("Resize to this many pixels (digits and folders).", identity=True, sweep=True, group="data"),
    ] = None
    dataset_name: Annotated[
        str | None,
        Text("a name"),
        option("What a data set of your own is called on cards and records.", identity=True, sweep=False, group="data"),
    ] = None
    data_dir: Annotated[
        Path,
        Place(),
        option("Where torchvision's data sets are kept.", sweep=False, group="data"),
    ] = Path("data")


class RunSpec(DataSpec):
    """What every run needs besides the data."""

    seed: Annotated[
        int,
        Seed(),
        option("Decides every random draw.", identity=True, in_name=True, sweep=True, first=8),
    ] = 0
    allow_large_eps: Annotated[
        bool,
        Flag(),
        option("Accept an eps that was probably meant in units of 1/255.", sweep=False, group="inputs"),
    ] = False
    device: Annotated[str, Device(), option("auto, cpu, cuda, cuda:1, ….", sweep=False, group="device", first=10)] = (
        "auto"
    )
    zoo: Annotated[
        Path | None,
        Place(),
        option("Folder of the zoo.", sweep=False, default="$SAM_BENCH_ZOO, else ./model_zoo"),
    ] = None
