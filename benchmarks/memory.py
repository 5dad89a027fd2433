"""Peak memory of a training step: standard, SAM and adversarial training, sam-bench and the textbook loop.

    python benchmarks/memory.py --width 64 --json memory.json

Every number comes from a fresh process. On CUDA it is `torch.cuda.max_memory_allocated`. On a CPU it is
the largest sum of what PyTorch's allocator had given out and not got back, from the profiler's memory
events, which it records from the process's start: exact to the byte for tensors, blind to what oneDNN
allocates by itself. The question put to it: is SAM's peak at most standard's plus two copies of the weights (and
the few numbers that a step computes with)?
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import textbook
import torch
from torch.profiler import ProfilerActivity, profile

from sam_bench.device import fastest_convolutions
from sam_bench.perturb.weights import StepContext

STEPS = 3  # the optimizer's state exists from the second step on
SCALARS = 4096  # bytes allowed for norms, losses, counts; an allocator's rounding is below that
SIDES = ("textbook", "sam-bench")


def main() -> None:
    """Measure each in a process of its own, print."""
    options = common.parser(__doc__)
    options.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False, help="sam-bench's")
    options.add_argument("--sides", default=",".join(SIDES), help="textbook, sam-bench, or both")
    options.add_argument("--one", nargs=2, metavar=("SIDE", "METHOD"), help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments, *arguments.one)))
        return
    methods = common.chosen_methods(options, arguments.methods)
    sides = [side.strip() for side in arguments.sides.split(",")]
    for side in sides:
        if side not in SIDES:
            options.error(f"--sides: {side!r} is not one of {', '.join(SIDES)}")
    _, _, told = common.conditions(arguments)
    found = {side: {name: in_fresh_process(side, name) for name in methods} for side in sides}
    head = ["loop", "method", "peak, MB", "over standard, MB", "in copies of the weights"]
    rows = []
    for side, measured in found.items():
        for name, numbers in measured.items():
            row = [side, common.NAMES[name], f"{numbers['peak_bytes'] / 1e6:.1f}", "", ""]
            if "standard" in measured:
                over = numbers["peak_bytes"] - measured["standard"]["peak_bytes"]
                row[3:] = [f"{over / 1e6:+.1f}", f"{over / numbers['weights_bytes']:+.2f}"]
            rows.append(row)
    print(common.table(head, rows))
    ours = found.get("sam-bench", {})
    if {"standard", "sam"} <= ours.keys():
        extra = ours["sam"]["peak_bytes"] - ours["standard"]["peak_bytes"]
        beyond = extra - 2 * ours["sam"]["weights_bytes"]
        verdict = "yes" if beyond <= SCALARS else "NO"
        print(f"SAM at most standard plus two copies of the weights: {verdict} ({beyond:+,} bytes)")
    common.write_json(arguments.json, {"conditions": told | {"compiled": arguments.compile}, "peaks": found})


def in_fresh_process(side: str, method: str) -> dict[str, int]:
    """What `measure` finds where nothing ran before."""
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--one", side, method],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={"KINETO_LOG_LEVEL": "5"} | os.environ,  # the profiler chats on stderr
    )
    if done.returncode != 0:
        sys.exit(f"measuring {side} {method} failed with exit code {done.returncode}; its message is above")
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    print(f"{side} {method}: {result['peak_bytes'] / 1e6:.1f} MB", file=sys.stderr, flush=True)
    return result


def measure(arguments: argparse.Namespace, side: str, method: str) -> dict[str, int]:
    """Peak of some steps on random images, and the size of the weights, in bytes."""
    device, precision, _ = common.conditions(arguments)
    data, weights = common.data_set(arguments.data), 0

    def run() -> None:
        nonlocal weights
        model = common.network(data, arguments.width, 0, device)
        weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        x = torch.rand(arguments.batch_size, data.in_channels, data.image_size, data.image_size, device=device)
        y = torch.randint(0, data.num_classes, (arguments.batch_size,), device=device)
        if side == "textbook":
            learn = textbook.Textbook(model, method, lr=0.1, momentum=0.9, weight_decay=5e-4)
            for _ in range(STEPS):
                learn(x, y, lr=0.01)
            return
        recipe = common.method_of(method, epochs=1, batch_size=arguments.batch_size, flip=True)
        step = common.our_step(model, recipe, precision=precision, compiled=arguments.compile)
        x = x.contiguous(memory_format=torch.channels_last)
        with fastest_convolutions():
            for number in range(STEPS):
                step(x, y, at=StepContext(seed=0, epoch=0, step=number, progress=0.5))

    if device.type == "cuda":
        run()
        return {"peak_bytes": torch.cuda.max_memory_allocated(device), "weights_bytes": weights}
    return {"peak_bytes": cpu_peak(run), "weights_bytes": weights}


def cpu_peak(run: Callable[[], None]) -> int:
    """The most that PyTorch's CPU allocator had given out at once during `run`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events: list[dict[str, Any]] = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"]
    peak = held = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        peak = max(peak, held)
    return peak


if __name__ == "__main__":
    main()
