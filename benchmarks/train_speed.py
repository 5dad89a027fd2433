"""Training speed of sam-bench beside a textbook loop, in whole runs that take turns.

    python benchmarks/train_speed.py --threads 2 --json speed.json
    python benchmarks/train_speed.py --data cifar10-jpeg.npz --accuracy

Every number is the median of --rounds runs of --steps steps each, data loading included. Warm-up is
left out; what compiling takes is given apart. With --accuracy nothing is timed: both loops train for
--epochs, and the table says what each reaches on the test set.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import common
import textbook
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sam_bench.attacks import Examples, Verifier
from sam_bench.data import Batches, Dataset, Split, to_float
from sam_bench.device import fastest_convolutions
from sam_bench.modes import attacking, frozen
from sam_bench.perturb import Ball, StepContext
from sam_bench.training import BuiltRecipe

WARM_UP = 3  # steps


def main() -> None:
    """Parse, measure, print."""
    options = common.parser(__doc__)
    options.add_argument("--steps", type=int, default=20, help="steps of one timed run")
    options.add_argument("--rounds", type=int, default=5, help="runs of each, taking turns")
    options.add_argument("--workers", type=int, default=2, help="the textbook's DataLoader workers")
    options.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="sam-bench's")
    options.add_argument("--accuracy", action="store_true", help="compare accuracies instead of speeds")
    options.add_argument("--epochs", type=int, default=3, help="with --accuracy")
    options.add_argument("--seeds", type=int, default=3, help="with --accuracy, of standard training and SAM")
    options.add_argument("--at-seeds", type=int, default=1, help="with --accuracy, of adversarial training")
    options.add_argument(
        "--faithful",
        action="store_true",
        help="with --accuracy: BatchNorm's statistics move in PGD and in SAM's second pass, as in the textbook loop",
    )
    options.add_argument("--limit-train", type=int, default=None, help="with --accuracy: the first so many images")
    arguments = options.parse_args()
    methods = common.chosen_methods(options, arguments.methods)
    device, precision, told = common.conditions(arguments)
    data = common.data_set(arguments.data)
    told |= {"compiled": arguments.compile, "steps": arguments.steps, "rounds": arguments.rounds}
    measure = accuracy if arguments.accuracy else speed
    report = {"conditions": told} | measure(arguments, methods, data, device, precision)
    common.write_json(arguments.json, report)


def speed(
    arguments: argparse.Namespace, methods: list[str], data: Dataset, device: torch.device, precision: Any
) -> dict[str, Any]:
    """Images a second of both loops, and how near the device's peak that is."""
    assert data.train is not None
    if len(data.train) < arguments.batch_size:
        sys.exit(f"--batch-size {arguments.batch_size} is more than the {len(data.train)} training images")
    peaks = {kind: matrix_peak(device, kind) for kind in (torch.float32, torch.bfloat16)}
    peak = {"fp32": peaks[torch.float32], "bf16": peaks[torch.bfloat16]}
    # A GPU's float32 convolutions run in TF32 unless it is told otherwise, its matrix products do not.
    mode = {"fp32": float32_mode(device), "bf16": "bf16"}
    say(f"matrix product: {mode['fp32']} {peak['fp32']:.3f}, bf16 {peak['bf16']:.3f} TFLOP/s")
    work = passes_flop(common.network(data, arguments.width, 0, device), data, device)
    rows = []
    for name in methods:
        row = one_method(arguments, name, data, device, precision)
        flop = flop_of(name, work)
        reached = {side: row[side]["images_per_second"] * flop / 1e12 for side in ("textbook", "sam_bench")}
        row |= {
            "method": name,
            "flop_per_image": flop,
            "tflops": reached,
            "share_of_peak": {"textbook": reached["textbook"] / peak["fp32"]}
            | {"sam_bench": reached["sam_bench"] / peak[precision]},
            "speedup": row["sam_bench"]["images_per_second"] / row["textbook"]["images_per_second"],
        }
        rows.append(row)
        common.write_json(arguments.json, {"unfinished": True, "methods": rows})
    ours = {row["method"]: row["sam_bench"]["images_per_second"] for row in rows}
    for row in rows:
        row["steps_of_standard"] = ours["standard"] / ours[row["method"]] if "standard" in ours else None
    head = [
        "method",
        "textbook, images/s",
        "sam-bench, images/s",
        "times",
        "standard's steps",
        "TFLOP/s",
        f"of {mode[precision]} peak",
    ]
    cells = [
        [
            common.NAMES[row["method"]],
            spread(row["textbook"]),
            spread(row["sam_bench"]),
            f"{row['speedup']:.2f}",
            f"{row['steps_of_standard']:.2f}" if row["steps_of_standard"] else "",
            f"{row['tflops']['sam_bench']:.3f}",
            f"{row['share_of_peak']['sam_bench']:.1%}",
        ]
        for row in rows
    ]
    print(common.table(head, cells))
    for row in rows:
        say(f"{row['method']}: the first step took {row['sam_bench']['seconds_before_speed']:.1f} s more: compiling")
    return {"matrix_peak_tflops": peak, "peak_mode": mode, "methods": rows}


def spread(side: dict[str, Any]) -> str:
    """Median, least and most."""
    runs = side["runs"]
    return f"{side['images_per_second']:.1f} ({min(runs):.1f} to {max(runs):.1f})"


def one_method(
    arguments: argparse.Namespace, name: str, data: Dataset, device: torch.device, precision: Any
) -> dict[str, Any]:
    """Both loops, a run each in turn."""
    contenders = {
        "textbook": textbook_steps(arguments, name, data, device),
        "sam_bench": our_steps(arguments, name, data, device, precision),
    }
    result: dict[str, Any] = {}
    for side, steps in contenders.items():
        started = time.perf_counter()
        next(steps)
        first = common.synchronise(device) - started
        for _ in range(WARM_UP - 1):
            next(steps)
        result[side] = {"first_step_seconds": first, "runs": []}
    for turn in range(arguments.rounds):
        # The one that began last time goes second this time: neither always has the warmer machine.
        for side in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            started = common.synchronise(device)
            for _ in range(arguments.steps):
                next(contenders[side])
            seconds = common.synchronise(device) - started
            result[side]["runs"].append(arguments.steps * arguments.batch_size / seconds)
    for side in contenders:
        own = result[side]
        own["images_per_second"] = statistics.median(own["runs"])
        own["seconds_before_speed"] = max(
            own["first_step_seconds"] - arguments.batch_size / own["images_per_second"], 0
        )
    say(f"{name}: textbook {spread(result['textbook'])}, sam-bench {spread(result['sam_bench'])} images/s")
    return result


def textbook_steps(arguments: argparse.Namespace, name: str, data: Dataset, device: torch.device) -> Iterator[None]:
    """A step of the textbook loop each time it is asked."""
    assert data.train is not None
    model = common.network(data, arguments.width, 0, device)
    step = textbook.Textbook(model, name, lr=0.1, momentum=0.9, weight_decay=5e-4)
    batches = textbook.loader(
        data.train,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        flip=True,
        pinned=device.type == "cuda",
        drop_last=True,
    )
    for x, y in textbook.forever(batches, device):
        step(x, y, lr=0.01)
        yield


def our_steps(
    arguments: argparse.Namespace, name: str, data: Dataset, device: torch.device, precision: Any
) -> Iterator[None]:
    """A step of sam-bench each time it is asked."""
    assert data.train is not None
    method = common.method_of(name, epochs=100, batch_size=arguments.batch_size, flip=True)
    model = common.network(data, arguments.width, 0, device)
    step = common.our_step(model, method, precision=precision, compiled=arguments.compile)
    batches = Batches(
        data.train.to(device),
        batch_size=arguments.batch_size,
        seed=0,
        augmentation=method.recipe.augmentation,
        drop_last=True,
    )
    epoch = number = 0
    while True:
        for x, y in batches.epoch(epoch):
            with fastest_convolutions():  # as in a run, and not in the loop that takes turns with this one
                at = StepContext(seed=0, epoch=0, step=number, progress=0.95)
                step(x.contiguous(memory_format=torch.channels_last), y, at=at)
            number += 1
            yield
        epoch += 1


def matrix_peak(device: torch.device, kind: torch.dtype) -> float:
    """TFLOP/s of the device's best square matrix product, as measured now."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    best, before = 0.0, torch.backends.cuda.matmul.allow_tf32
    try:
        # The peak in what the convolutions compute in, so that a share of it means something.
        torch.backends.cuda.matmul.allow_tf32 = float32_mode(device) == "tf32"
        for _ in range(6):
            started = common.synchronise(device)
            torch.mm(a, b)
            best = max(best, 2 * size**3 / (common.synchronise(device) - started) / 1e12)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return best


def float32_mode(device: torch.device) -> str:
    """What float32 convolutions are computed in: tf32 or fp32."""
    return "tf32" if device.type == "cuda" and torch.backends.cudnn.allow_tf32 else "fp32"


def passes_flop(model: nn.Module, data: Dataset, device: torch.device, examples: int = 4) -> dict[str, float]:
    """FLOP of one image forward, in training, and when its own gradient is sought.

    Counted by `torch.utils.flop_counter`: matrix products and convolutions, an addition and a multiplication
    each one.
    """
    x = torch.rand(examples, data.in_channels, data.image_size, data.image_size, device=device)
    y = torch.zeros(examples, dtype=torch.int64, device=device)

    def forward() -> None:
        with torch.no_grad():
            model(x)

    def training() -> None:
        F.cross_entropy(model(x), y).backward()

    def searching() -> None:
        with frozen(model):
            F.cross_entropy(model(wanted), y).backward()  # the counter does not follow autograd.grad

    wanted = x.clone().requires_grad_(True)
    return {"forward": counted(forward) / examples, "training": counted(training) / examples} | {
        "searching": counted(searching) / examples
    }


def counted(run: Callable[[], None]) -> float:
    """FLOP of what `run` does."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def flop_of(method: str, work: dict[str, float]) -> float:
    """FLOP an image that the method needs; what a loop does beyond that does not count as reached."""
    passes = {"standard": (1, 0), "sam": (2, 0), "at": (1, textbook.STEPS)}[method]
    return passes[0] * work["training"] + passes[1] * work["searching"]


def accuracy(
    arguments: argparse.Namespace, methods: list[str], data: Dataset, device: torch.device, precision: Any
) -> dict[str, Any]:
    """Clean accuracy after equal epochs from equal weights."""
    assert data.train is not None
    train = data.train if arguments.limit_train is None else data.train.head(arguments.limit_train)
    rows: list[dict[str, Any]] = []
    for name in methods:
        for seed in range(arguments.at_seeds if name == "at" else arguments.seeds):
            found = {
                "textbook": learn_textbook(arguments, name, data, train, device, seed),
                "sam_bench": learn_ours(arguments, name, data, train, device, precision, seed),
            }
            say(f"{name}, seed {seed}: textbook {found['textbook']:.2%}, sam-bench {found['sam_bench']:.2%}")
            rows.append({"method": name, "seed": seed, **found})
            common.write_json(arguments.json, {"unfinished": True, "runs": rows})
    head = ["method", "seeds", "textbook, clean %", "sam-bench, clean %", "difference"]
    cells = []
    for name in methods:
        own = [row for row in rows if row["method"] == name]
        sides = {side: [100 * row[side] for row in own] for side in ("textbook", "sam_bench")}
        means = {side: statistics.mean(values) for side, values in sides.items()}
        each = [" ".join(f"{value:.2f}" for value in sides[side]) for side in sides]
        cells.append(
            [
                common.NAMES[name],
                str(len(own)),
                f"{means['textbook']:.2f} ({each[0]})",
                f"{means['sam_bench']:.2f} ({each[1]})",
                f"{means['sam_bench'] - means['textbook']:+.2f}",
            ]
        )
    print(common.table(head, cells))
    return {"epochs": arguments.epochs, "train_examples": len(train), "test_examples": len(data.test), "runs": rows}


def mirrored(data: Dataset) -> bool:
    """A mirrored digit is no digit."""
    return data.name[:6] != "digits"


def learn_textbook(
    arguments: argparse.Namespace, name: str, data: Dataset, train: Split, device: torch.device, seed: int
) -> float:
    """A run of the textbook loop under the recipe's schedule; its accuracy."""
    method = common.method_of(name, epochs=arguments.epochs, batch_size=arguments.batch_size, flip=mirrored(data))
    model = common.network(data, arguments.width, seed, device)
    step = textbook.Textbook(model, name, lr=0.1, momentum=0.9, weight_decay=5e-4)
    batches = textbook.loader(
        train,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        flip=mirrored(data),
        pinned=device.type == "cuda",
        drop_last=len(train) % arguments.batch_size == 1,  # BatchNorm takes no batch of one
    )
    total = arguments.epochs * len(batches)
    for number, (x, y) in zip(range(total), textbook.forever(batches, device), strict=False):
        step(x, y, lr=0.1 * method.schedule.factor(number / total))
    return clean(model, data, device)


def learn_ours(
    arguments: argparse.Namespace,
    name: str,
    data: Dataset,
    train: Split,
    device: torch.device,
    precision: Any,
    seed: int,
) -> float:
    """A run of sam-bench; its accuracy."""
    method: BuiltRecipe = common.method_of(
        name,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        flip=mirrored(data),
        faithful=arguments.faithful,
    )
    model = common.network(data, arguments.width, seed, device)
    step = common.our_step(model, method, precision=precision, compiled=arguments.compile)
    batches = Batches(
        train.to(device), batch_size=arguments.batch_size, seed=seed, augmentation=method.recipe.augmentation
    )
    total = arguments.epochs * len(batches)
    with fastest_convolutions():
        for epoch in range(arguments.epochs):
            for number, (x, y) in enumerate(batches.epoch(epoch), epoch * len(batches)):
                at = StepContext(seed=seed, epoch=epoch, step=number, progress=number / total)
                step(x.contiguous(memory_format=torch.channels_last), y, at=at)
    return clean(model, data, device)


def clean(model: nn.Module, data: Dataset, device: torch.device) -> float:
    """Accuracy on the test set, in float32."""
    with attacking(model):
        verifier = Verifier(model, ball=Ball(norm="Linf", eps=0.0), batch_size=256, device=device)
        right = verifier.clean(Examples.of(to_float(data.test.images), data.test.labels))
    return float(right.float().mean())


def say(text: str) -> None:
    """Progress, beside the table on stdout."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
