"""What the benchmarks share: data, the network, the methods in sam-bench's form, conditions for the report."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import textbook
import torch
from torch import nn

from sam_bench.data import Dataset, channel_stats, known_stats, load_dataset
from sam_bench.device import choose_device, choose_precision, device_name
from sam_bench.models import create_model
from sam_bench.records import Architecture, write_atomic
from sam_bench.training import BuiltRecipe, build_recipe, load_recipe, override
from sam_bench.training.step import TrainingStep
from sam_bench.versions import package_versions

METHODS = ("standard", "sam", "at")
NAMES = {"standard": "standard", "sam": "SAM", "at": f"PGD-{textbook.STEPS} AT"}


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--width", type=int, default=64, help="channels of PreActResNet-18's first stage")
    options.add_argument("--batch-size", type=int, default=128)
    options.add_argument("--methods", default=",".join(METHODS), help="some of standard,sam,at")
    options.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"], help="sam-bench's")
    options.add_argument("--device", default="auto")
    options.add_argument("--threads", type=int, default=None, help="CPU threads; default PyTorch's")
    options.add_argument("--data", default="digits", help="FILE.npz; default: scikit-learn's digits at 32x32")
    options.add_argument("--json", type=Path, default=None, metavar="OUT", help="write the numbers there, too")
    return options


def chosen_methods(options: argparse.ArgumentParser, text: str) -> list[str]:
    """The methods asked for; an unknown one ends the program with its name."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in METHODS:
            options.error(f"--methods: {name!r} is not one of {', '.join(METHODS)}")
    return names


def data_set(spec: str) -> Dataset:
    """A FILE.npz as it is, digits enlarged to 32x32."""
    return load_dataset(spec, image_size=32 if spec == "digits" else None)


def network(data: Dataset, width: int, seed: int, device: torch.device) -> nn.Module:
    """PreActResNet-18 for the data set; the seed decides its weights."""
    assert data.train is not None
    mean, std = known_stats(data.name) or channel_stats(data.train)
    torch.manual_seed(seed)
    architecture = Architecture(
        name="preactresnet18",
        num_classes=data.num_classes,
        in_channels=data.in_channels,
        image_size=data.image_size,
        mean=mean,
        std=std,
        options={"width": width},
    )
    return create_model(architecture).to(device).train()


def method_of(name: str, *, epochs: int, batch_size: int, flip: bool, faithful: bool = False) -> BuiltRecipe:
    """The recipe, with the textbook's settings; `faithful`: with the textbook's use of BatchNorm, too."""
    settings: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "flip": flip}
    if name == "sam":
        settings["rho"] = textbook.RHO
    if name == "at":
        settings |= {"eps": "8/255", "step_size": "2/255", "steps": textbook.STEPS}
    return build_recipe(override(load_recipe(name, faithful=faithful), settings))


def our_step(model: nn.Module, method: BuiltRecipe, *, precision: Any, compiled: bool) -> TrainingStep:
    """sam-bench's step, set up as its loop does."""
    model.to(memory_format=torch.channels_last)
    return TrainingStep(model, method, precision=precision, compiled=compiled)


def conditions(arguments: argparse.Namespace) -> tuple[torch.device, Any, dict[str, Any]]:
    """Device, precision, and what the numbers depend on."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device, _ = choose_device(arguments.device)
    precision, why = choose_precision(arguments.precision, device)
    told = {
        "device": device_name(device),
        "precision": precision,
        "precision_because": why,
        "architecture": f"preactresnet18, width {arguments.width}",
        "batch_size": arguments.batch_size,
        "data": arguments.data,
        "load_average_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "packages": package_versions(),
    }
    return device, precision, told


def synchronise(device: torch.device) -> float:
    """The time when everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, its columns aligned."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Whole or not at all; nowhere when no path was given."""
    if path is not None:
        write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
