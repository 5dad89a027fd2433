"""bfloat16 beside float32: CPU seconds of training steps that take turns, and what `--precision auto` decides.

    OMP_NUM_THREADS=1 python benchmarks/precision.py --widths 8,16,64 --batch-sizes 128,64,32 --json precision.json

Each width has its own batch size. One step of each precision is a warm-up; then they take turns. Nothing is compiled.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import common
import torch

from sam_bench.device import choose_precision, device_name
from sam_bench.models import create_model
from sam_bench.perturb import StepContext
from sam_bench.records import Architecture
from sam_bench.training.step import TrainingStep
from sam_bench.versions import package_versions

CPU = torch.device("cpu")
PRECISIONS: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")


def main() -> None:
    """Parse, measure, print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--widths", default="8,16,64", help="of PreActResNet-18")
    options.add_argument("--batch-sizes", default="128,64,32", help="one for each width")
    options.add_argument("--rounds", default="5,3,2", help="steps of each precision, one number for each width")
    options.add_argument("--json", type=Path, metavar="OUT", help="write the numbers there, too")
    arguments = options.parse_args()
    lists = [[int(n) for n in text.split(",")] for text in (arguments.widths, arguments.batch_sizes, arguments.rounds)]
    if len({len(numbers) for numbers in lists}) > 1:
        options.error("--widths, --batch-sizes and --rounds need as many numbers each")
    torch.set_num_threads(1)
    decided, why = choose_precision("auto", CPU)
    told: dict[str, Any] = {
        "device": device_name(CPU),
        "auto": decided,
        "auto_because": why,
        "packages": package_versions(),
    }
    told["load_average_before"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    rows: list[dict[str, Any]] = []
    for width, batch_size, rounds in zip(*lists, strict=True):
        for method in common.METHODS:
            rows.append(compared(method, width, batch_size, rounds))
            print(rows[-1], flush=True)
            common.write_json(arguments.json, {"conditions": told, "rows": rows})
    cells = [[row["method"], str(row["width"]), f"{row['ratio']:.2f}"] for row in rows]
    print(why, common.table(["method", "width", "fp32 over bf16"], cells), sep="\n")


def compared(name: str, width: int, batch_size: int, rounds: int) -> dict[str, Any]:
    """One method at one width, its precisions in turn."""
    torch.manual_seed(0)
    x, y = torch.rand(batch_size, 3, 32, 32), torch.randint(10, (batch_size,))
    x = x.contiguous(memory_format=torch.channels_last)
    shape = Architecture(
        name="preactresnet18",
        num_classes=10,
        in_channels=3,
        image_size=32,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        options={"width": width},
    )
    steps: dict[str, TrainingStep] = {}
    for precision in PRECISIONS:
        method = common.method_of(name, epochs=100, batch_size=batch_size, flip=True)
        steps[precision] = common.our_step(create_model(shape).train(), method, precision=precision, compiled=False)
    seconds: dict[str, list[float]] = {precision: [] for precision in steps}
    for turn in range(rounds + 1):
        # The one that began last time goes second this time.
        for kind in list(steps)[:: 1 if turn % 2 == 0 else -1]:
            started = time.process_time()
            steps[kind](x, y, at=StepContext(seed=0, epoch=0, step=turn, progress=0.95))
            if turn:
                seconds[kind].append(time.process_time() - started)
    medians = {precision: statistics.median(taken) for precision, taken in seconds.items()}
    return {
        "method": name,
        "width": width,
        "batch_size": batch_size,
        "cpu_seconds": seconds,
        "ratio": medians["fp32"] / medians["bf16"],
        "ratios_in_turn": [a / b for a, b in zip(seconds["fp32"], seconds["bf16"], strict=True)],
    }


if __name__ == "__main__":
    main()
