"""Which levers pay on a GPU: a table in three to four minutes.

    python benchmarks/levers.py --seconds 180 --json levers.json
    python benchmarks/levers.py --device cpu --width 8 --batches 16 --rows 16 --seconds 60

Training: eager; compiled, as shipped; compiled with CUDA graphs (mode reduce-overhead); adversarial training whose
PGD step is a graph forward, one back and kernels around them, or one CUDA graph. Attacks: what a gradient and a
forward pass cost at each batch size and precision. Rows are written as they are made. A variant that fails says why,
and the next one is tried.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import common
import textbook
import torch
from torch import Tensor, nn

from sam_bench import graphs
from sam_bench.device import fastest_convolutions, true_float32
from sam_bench.models import create_model
from sam_bench.modes import attacking
from sam_bench.perturb import StepContext
from sam_bench.perturb.inputs import PGD, input_gradient
from sam_bench.records import Architecture
from sam_bench.training.step import TrainingStep

# How the networks are compiled where not as shipped: a search through these has no step that is one graph.
TRAINING: dict[str, dict[str, Any]] = {
    "reduce-overhead": {"dynamic": False, "mode": "reduce-overhead"},
    "two graphs a PGD step": {"dynamic": False},
}
ATTACKS = ("tf32", "tf32 channels_last", "bf16 channels_last", "bf16 channels_last compiled", "fp32")


@dataclass
class Table:
    """Rows as they come, on stdout and in a file."""

    path: Path | None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, run: Callable[[], dict[str, float]], **what: Any) -> None:
        """Measure, or say why that failed."""
        try:
            row = what | run()
        except Exception as error:
            row = what | {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"}
        finally:
            torch._dynamo.reset()
        self.rows.append(row)
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
        if self.path:
            self.path.write_text(json.dumps(self.rows, indent=1))


def network(width: int, size: int, device: torch.device) -> nn.Module:
    """PreActResNet-18 for ten classes."""
    torch.manual_seed(0)
    kind = Architecture(
        name="preactresnet18",
        num_classes=10,
        in_channels=3,
        image_size=size,
        mean=(0.49, 0.48, 0.45),
        std=(0.25, 0.24, 0.26),
        options={"width": width},
    )
    return create_model(kind).to(device).train()


def timed(run: Callable[[], object], device: torch.device, *, least: float = 0.6) -> tuple[float, float]:
    """Median seconds a call of five rounds, and the longest over the shortest."""
    for _ in range(3):
        run()
    started = common.synchronise(device)
    run()
    count = max(2, int(least / 5 / max(common.synchronise(device) - started, 1e-5)))
    rounds = []
    for _ in range(5):
        started = common.synchronise(device)
        for _ in range(count):
            run()
        rounds.append((common.synchronise(device) - started) / count)
    return statistics.median(rounds), max(rounds) / min(rounds)


def one_cuda_graph_a_step(step: TrainingStep, x: Tensor, y: Tensor) -> None:
    """Have a step search with one CUDA graph for a pass forward, one back and the move."""
    pgd = step.recipe.inputs
    assert isinstance(pgd, PGD)
    size = float(pgd.eps) / 4 if pgd.step_size is None else float(pgd.step_size)

    def move(point: Tensor, x: Tensor, y: Tensor) -> Tensor:
        def loss(at: Tensor) -> Tensor:
            with step._autocast(at):
                logits = step.model(at)
            return nn.functional.cross_entropy(logits.float(), y, reduction="sum")

        return pgd.ball.step(point, x, torch.func.grad(loss)(point), size)

    moved = torch.compile(move, fullgraph=True, dynamic=False, mode="reduce-overhead")

    def perturbed(x: Tensor, y: Tensor, at: StepContext, *, first: int, total: int) -> tuple[Tensor, Tensor]:
        point = (x + pgd.ball.eps * (torch.rand_like(x) * 2 - 1)).clamp(0.0, 1.0)
        with pgd._searching(step.model):
            for _ in range(pgd.steps):
                # A copy: the graph's next run may not be given what its last one left in its memory.
                point = moved(point, x, y).clone(memory_format=torch.preserve_format)
        return point, x

    step._perturbed = perturbed  # type: ignore[method-assign]


def training(options: argparse.Namespace, device: torch.device, method: str, how: str, batch: int) -> dict[str, float]:
    """Speed of one kind of step."""
    began, compiles = time.time(), how != "eager"
    compiled = graphs.compiled
    try:
        if how in TRAINING:
            settings = TRAINING[how]
            graphs.compiled = lambda model: torch.compile(model, **settings)  # type: ignore[assignment,return-value]
        recipe = common.method_of(method, epochs=100, batch_size=batch, flip=True)
        model = network(options.width, options.size, device)
        step = common.our_step(model, recipe, precision="bf16", compiled=compiles)
    finally:
        graphs.compiled = compiled
    x = torch.rand(batch, 3, options.size, options.size, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,), device=device)
    if "one CUDA graph" in how:
        one_cuda_graph_a_step(step, x, y)
    number = 0

    def run() -> None:
        nonlocal number
        step(x, y, at=StepContext(seed=0, epoch=0, step=number, progress=0.5))
        number += 1

    with graphs.room_for_graphs(compiles), fastest_convolutions():
        run()
        first = common.synchronise(device) and time.time() - began
        seconds, spread = timed(run, device)
    return {"ms": 1e3 * seconds, "images_per_s": batch / seconds, "spread": spread, "first_s": first}


def attack(options: argparse.Namespace, device: torch.device, kind: str, rows: int) -> dict[str, float]:
    """Gradients and forward passes a second of one kind of search."""
    model = network(options.width, options.size, device).eval()
    layout = torch.channels_last if "channels_last" in kind else torch.contiguous_format
    model.to(memory_format=layout)
    called = graphs.compiled(model) if "compiled" in kind else model
    x = torch.rand(rows, 3, options.size, options.size, device=device).contiguous(memory_format=layout)
    y = torch.randint(10, (rows,), device=device)
    exact = true_float32() if kind == "fp32" else nullcontext()
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=kind.startswith("bf16"))
    with exact, attacking(model), graphs.room_for_graphs("compiled" in kind), autocast:
        gradient, _ = timed(lambda: input_gradient(called, x, y), device, least=0.4)
        with torch.no_grad():
            forward, _ = timed(lambda: called(x), device, least=0.4)
    return {"gradients_per_s": rows / gradient, "forwards_per_s": rows / forward}


def main() -> None:
    """Parse, then measure until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180, help="nothing is begun after these")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="of the images")
    parser.add_argument("--batches", default="128,512,1024", help="of training")
    parser.add_argument("--rows", default="128,256,512,1024", help="of attacks")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device, end, table = torch.device(options.device), time.time() + options.seconds, Table(options.json)
    batches, rows = ([int(each) for each in text.split(",")] for text in (options.batches, options.rows))
    cuda_only = ("reduce-overhead", "one CUDA graph a PGD step")
    hows = ["eager", "compiled", *TRAINING, "one CUDA graph a PGD step"]
    plan = [(how, name, batches[0]) for how in hows for name in common.METHODS if "PGD" not in how or name == "at"]
    plan += [("compiled", name, batch) for batch in batches[1:] for name in ("standard", "at")]
    searches = [(kind, count) for kind in ATTACKS for count in rows if "compiled" not in kind or count == rows[-1]]
    print(f"PGD of {textbook.STEPS} steps; {torch.__version__}; {device}", flush=True)
    # Attacks first: they are quick, and what a compilation takes is not known.
    for kind, count in searches:
        if time.time() < end and not (device.type == "cpu" and "compiled" in kind):
            table.add(partial(attack, options, device, kind, count), attack=kind, rows=count)
    for how, name, batch in plan:
        if time.time() < end and not (device.type == "cpu" and how in cuda_only):
            table.add(
                partial(training, options, device, name, how, batch),
                method=name,
                how=how,
                batch=batch,
            )


if __name__ == "__main__":
    main()
