"""What each perturbation of the weights, or each recipe, costs: time, passes and memory of a training step.

    python benchmarks/methods.py                                    # PreActResNet-18, width 64, batch 128
    python benchmarks/methods.py --width 16 --rounds 15 --json
    python benchmarks/methods.py --methods none,sam,looksam --compile
    python benchmarks/methods.py --methods sam,at,trades,at-awp --width 8   # a recipe is named as a method is
    python benchmarks/methods.py --methods sam,sam:m=16,rwp:noisy_weight=1 --clock cpu   # with another setting

All methods take their steps in turn, round after round, each on its own copy of the network, so that
whatever slows the machine for a while slows all of them, and each round begins with another method; a
figure is the median over the rounds, and the ratios are medians of each round's ratio to plain training
in that same round. A method with an interval takes that many steps a turn. On a CPU that others use too,
`--clock cpu` counts the processor's seconds in the place of the wall's. Peak memory is that of a process
of its own. What sparse SAM's Fisher mask costs once an epoch (its examples, one by one) is not in the
time of a step.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam_bench.device import choose_device, choose_precision, device_name, fastest_convolutions
from sam_bench.errors import InputError
from sam_bench.models import architecture_for, create_model
from sam_bench.perturb import WEIGHT_PERTURBATIONS
from sam_bench.perturb.weights import StepContext
from sam_bench.training import build_recipe, load_recipe, override
from sam_bench.training.step import Passes, TrainingStep
from sam_bench.versions import package_versions

_MIB = 2**20


@dataclass
class Row:
    """One method's figures; times are per step, ratios are to plain training."""

    method: str
    settings: str
    milliseconds: float
    lowest: float
    highest: float
    times_standard: float
    times_sam: float | None
    forward: float
    backward: float
    weight_gradients: float
    peak_mib: float | None = None


class Runner:
    """One method with its own network.

    Args:
        method: Name of a weight perturbation or, where there is none of that name, of a recipe; `NAME:KEY=VALUE` with
            a setting replaced.
        options: The command line's.
        device: Where it runs.
    """

    def __init__(self, method: str, options: argparse.Namespace, device: torch.device) -> None:
        method, _, setting = method.partition(":")
        plain = method in WEIGHT_PERTURBATIONS.names()
        recipe = override(load_recipe("standard"), {"weights": method}) if plain else load_recipe(method)
        if setting:
            key, _, value = setting.partition("=")
            recipe = override(recipe, {key: json.loads(value)})
        if recipe.optimizer.settings["lr"] > 0.01:  # the labels are noise: no method is to diverge on them
            recipe = override(recipe, {"lr": 0.01})
        if getattr(build_recipe(recipe).weights, "start_epoch", 0):
            recipe = override(recipe, {"start_epoch": 0})
        architecture = architecture_for(
            "preactresnet18", num_classes=10, in_channels=3, image_size=32, options={"width": options.width}
        )
        torch.manual_seed(0)
        model = create_model(architecture).to(device).to(memory_format=torch.channels_last).train()
        precision, _ = choose_precision(options.precision, device)
        self.method, self.device = build_recipe(recipe), device
        self.step = TrainingStep(model, self.method, precision=precision, compiled=options.compile)
        self.turn = getattr(self.method.weights, "interval", 1)
        self._clock = time.process_time if options.clock == "cpu" else time.perf_counter
        self._done, self.passes = 0, Passes()

    def take_turn(self, x: Tensor, y: Tensor) -> float:
        """Seconds per step."""
        self._wait()
        started = self._clock()
        with fastest_convolutions():
            for _ in range(self.turn):
                result = self.step(x, y, at=StepContext(seed=0, epoch=0, step=self._done, progress=0.0))
                self.passes += result.passes
                self._done += 1
        self._wait()
        return (self._clock() - started) / self.turn

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(options: argparse.Namespace, device: torch.device) -> list[Row]:
    """Every method's row, standard first."""
    x, y = _batch(options, device)
    runners = {name: Runner(name, options, device) for name in options.methods}
    for runner in runners.values():
        runner.take_turn(x, y)
        runner.take_turn(x, y)
        runner.passes = Passes()
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(options.rounds):
        names = list(runners)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds[name].append(runners[name].take_turn(x, y))
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    rows = []
    for name, runner in runners.items():
        examples = options.rounds * runner.turn * len(x)
        spec = runner.method.weights.spec().settings
        rows.append(
            Row(
                method="standard" if name == "none" else name,
                settings=", ".join(f"{key} {value}" for key, value in spec.items() if key not in _COMMON),
                milliseconds=1000 * statistics.median(seconds[name]),
                lowest=1000 * min(seconds[name]),
                highest=1000 * max(seconds[name]),
                times_standard=_ratio(seconds[name], seconds["none"]),
                times_sam=_ratio(seconds[name], seconds["sam"]) if "sam" in seconds else None,
                forward=(runner.passes.train_forward + runner.passes.attack_forward) / examples,
                backward=(runner.passes.train_backward + runner.passes.attack_backward) / examples,
                weight_gradients=runner.passes.weight_gradients / examples,
            )
        )
    return rows


_COMMON = ("start_epoch", "perturb_only", "bn_second_pass")


def _ratio(one: list[float], other: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def _batch(options: argparse.Namespace, device: torch.device) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(options.batch_size, 3, 32, 32, generator=draws)
    y = torch.randint(10, (options.batch_size,), generator=draws)
    return x.to(device, memory_format=torch.channels_last), y.to(device)


def peak_memory(method: str, options: argparse.Namespace, device: torch.device) -> float:
    """MiB that training takes at its highest, in this process, beyond what the libraries take."""
    x, y = _batch(options, device)
    # A first step of a small network: what libraries load when they are first used is not the method's.
    Runner(method, argparse.Namespace(**{**vars(options), "width": 1, "compile": False}), device).take_turn(
        x[:2], y[:2]
    )
    before = _resident()
    runner = Runner(method, options, device)
    runner.take_turn(x, y)
    runner.take_turn(x, y)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MIB
    return _resident() - before


def _resident() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says there is inherited from the process that started this one
        return next(float(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB


def _memory_elsewhere(method: str) -> float:
    """`peak_memory` in a fresh process with this one's options."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", method]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(found.stdout.splitlines()[-1])


def _table(rows: list[Row]) -> str:
    head = "| method | settings | ms a step (lowest to highest) | × standard | × SAM | "
    head += "forward | backward | weight gradients | peak MiB |"
    lines = [head, "|" + " --- |" * (head.count("|") - 1)]
    for row in rows:
        sam = "" if row.times_sam is None else f"{row.times_sam:.2f}"
        peak = "" if row.peak_mib is None else f"{row.peak_mib:.0f}"
        lines.append(
            f"| {row.method} | {row.settings} | {row.milliseconds:.1f} ({row.lowest:.1f} to {row.highest:.1f}) "
            f"| {row.times_standard:.2f} | {sam} | {row.forward:.2f} | {row.backward:.2f} "
            f"| {row.weight_gradients:.2f} | {peak} |"
        )
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9, help="turns of each method")
    parser.add_argument("--methods", default=",".join(WEIGHT_PERTURBATIONS.names()), help="separated by commas")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="cpu: seconds of the processor")
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--no-memory", action="store_true", help="skip the runs that measure peak memory")
    parser.add_argument("--json", action="store_true", help="one JSON object in the place of the table")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    asked = options.methods.split(",")
    for name in (each.partition(":")[0] for each in asked):
        if name not in WEIGHT_PERTURBATIONS.names():
            try:
                load_recipe(name)
            except InputError as error:
                parser.error(f"--methods: {error}")
    first = ["none", *(["sam"] if "sam" in asked else [])]
    options.methods = first + [name for name in asked if name not in ("none", "standard", "sam")]
    return options


def main() -> None:
    """Measure, and print the table or the object."""
    options = _options()
    device, _ = choose_device(options.device)
    if options.clock == "cpu" and device.type != "cpu":
        raise SystemExit(f"--clock cpu: the work is done on {device}; leave it out")
    if options.memory_of:
        print(peak_memory(options.memory_of, options, device))
        return
    rows = measure(options, device)
    if not options.no_memory:
        for row, name in zip(rows, options.methods, strict=True):
            row.peak_mib = _memory_elsewhere(name)
    precision, _ = choose_precision(options.precision, device)
    conditions: dict[str, Any] = {
        "architecture": "preactresnet18",
        "width": options.width,
        "batch_size": options.batch_size,
        "rounds": options.rounds,
        "clock": options.clock,
        "device": device_name(device),
        "precision": precision,
        "compiled": options.compile,
        "versions": package_versions(),
    }
    if options.json:
        print(json.dumps({"conditions": conditions, "rows": [asdict(row) for row in rows]}, indent=2))
        return
    print(_table(rows))
    print("\n" + ", ".join(f"{key} {value}" for key, value in conditions.items() if key != "versions"))


if __name__ == "__main__":
    main()
