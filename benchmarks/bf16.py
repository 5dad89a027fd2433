"""What bfloat16 gains a training step: the same step in float32 and in bfloat16, in turns.

    OMP_NUM_THREADS=1 python benchmarks/bf16.py --threads 1 --json bf16.json

A ratio is the median over the rounds; on a CPU it is of the processor's seconds, as others may use the machine too.
"""

from __future__ import annotations

import statistics
import time

import common
import torch

from sam_bench.data import Dataset, to_float
from sam_bench.device import choose_precision, fastest_convolutions
from sam_bench.perturb import StepContext

_PRECISIONS = ("fp32", "bf16")


def main() -> None:
    """Parse, measure, print."""
    options = common.parser(__doc__)
    options.set_defaults(batch_size=64)
    options.add_argument("--widths", default="8,16,64", help="channels of the first stage, several; not --width")
    options.add_argument("--rounds", type=int, default=3, help="steps of each, taking turns")
    arguments = options.parse_args()
    methods = common.chosen_methods(options, arguments.methods)
    device, _, told = common.conditions(arguments)
    told = {name: value for name, value in told.items() if name not in ("precision", "architecture")}
    told |= {"threads": torch.get_num_threads(), "auto_chooses": choose_precision("auto", device)}
    data = common.data_set(arguments.data)
    rows = []
    for width in map(int, arguments.widths.split(",")):
        for name in methods:
            seconds = step_seconds(name, width, data, device, arguments.batch_size, arguments.rounds)
            ratios = [fp32 / bf16 for fp32, bf16 in zip(seconds["fp32"], seconds["bf16"], strict=True)]
            rows.append({"width": width, "method": name, "ratio": statistics.median(ratios), "seconds": seconds})
            print(
                f"width {width}, {name}: {rows[-1]['ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True
            )
            common.write_json(arguments.json, {"conditions": told, "rows": rows})
    cells = [
        [str(width), *(f"{row['ratio']:.2f}" for row in rows if row["width"] == width)]
        for width in dict.fromkeys(row["width"] for row in rows)
    ]
    print(common.table(["width", *(common.NAMES[name] for name in methods)], cells))
    print(f"--precision auto: {told['auto_chooses'][0]}, as {told['auto_chooses'][1]}")


def step_seconds(
    name: str, width: int, data: Dataset, device: torch.device, batch_size: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each step in each precision; the first of each is not counted."""
    assert data.train is not None
    first = data.train.head(batch_size).to(device)
    x, y = to_float(first.images).contiguous(memory_format=torch.channels_last), first.labels
    method = common.method_of(name, epochs=100, batch_size=batch_size, flip=True)
    steps = {
        precision: common.our_step(common.network(data, width, 0, device), method, precision=precision, compiled=False)
        for precision in _PRECISIONS
    }
    seconds: dict[str, list[float]] = {precision: [] for precision in _PRECISIONS}
    for number in range(rounds + 1):
        for precision in _PRECISIONS[:: 1 if number % 2 else -1]:
            began = clock(device)
            with fastest_convolutions():
                at = StepContext(seed=0, epoch=0, step=number, progress=0.95)
                steps[precision](x, y, at=at)
            if number:
                seconds[precision].append(clock(device) - began)
    return seconds


def clock(device: torch.device) -> float:
    """The processor's seconds on a CPU; else the time when everything asked of the device is done."""
    return time.process_time() if device.type == "cpu" else common.synchronise(device)


if __name__ == "__main__":
    main()
