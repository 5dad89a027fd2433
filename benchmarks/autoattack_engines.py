"""The fast AutoAttack engine against its authors' code: same model, same examples; verdicts, passes, time.

    python benchmarks/autoattack_engines.py standard-prn18-w16 sam-rho02-prn18-w16 --dataset cifar10-jpeg.npz --n 32
    python benchmarks/autoattack_engines.py MODEL --norm L2 --eps 0.5 --engines reference,upstream-draws --json out.json
    python benchmarks/autoattack_engines.py MODEL --engines reference,fast,bf16,screen --batch-size 256

A MODEL is what `sam-bench evaluate` takes. Engines: `reference` (pyautoattack), `fast`, `upstream-draws`
(the fast engine with upstream's random numbers: its verdicts have to be the reference's one by one),
`compiled` (`--compile on`, its compilation in the time), `bf16`, `screen`. Passes are examples through the
model, padding included, counted by the model itself, which a compiled one cannot; a backward pass is one
that reached the input. CPU seconds are of this process, all threads, and of the compilers it started.
Engines run one after the other; on a machine that others use, compare CPU seconds and passes, not wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam_bench import zoo as zoos
from sam_bench.allocator import freed_memory_kept
from sam_bench.attacks import ATTACKS, AttackResult
from sam_bench.data import load_dataset, to_float
from sam_bench.device import choose_device, device_name
from sam_bench.records import ComponentSpec, Radius
from sam_bench.versions import package_versions

ENGINES: dict[str, dict[str, Any]] = {
    "reference": {"method": "autoattack", "engine": "reference"},
    "fast": {"method": "autoattack", "engine": "fast"},
    "upstream-draws": {"method": "autoattack", "engine": "fast", "rng": "upstream"},
    "compiled": {"method": "autoattack", "compile": "on"},
    "bf16": {"method": "autoattack-bf16"},
    "screen": {"method": "autoattack-screen"},
}


class Counted(nn.Module):
    """A model that counts the examples passed forward, and those whose gradient came back."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(self._came_back)
        logits: Tensor = self.model(x)
        return logits

    def _came_back(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


@dataclass
class Row:
    """One engine on one model."""

    model: str
    engine: str
    clean: float
    robust: float
    broken_by: dict[str, int]
    differs: int | None
    """Examples whose verdict (broken or not) is not the first engine's."""
    otherwise: int | None
    """Examples broken by another attack than the first engine's."""
    forwards: int | None
    backwards: int | None
    cpu_seconds: float
    wall_seconds: float
    warnings: list[str]


def measure(
    name: str, engine: str, model: nn.Module, x: Tensor, y: Tensor, first: AttackResult | None, options: Any
) -> tuple[Row, AttackResult]:
    """Run one engine; verdicts are compared with `first`'s."""
    settings = dict(ENGINES[engine])
    if options.version and settings["method"] == "autoattack":
        settings["version"] = options.version
    if options.suite and settings["method"] == "autoattack":
        settings |= {"version": "custom", "suite": options.suite.split(",")}
    attack = ATTACKS.build(ComponentSpec(**settings))
    # A counter inside a compiled graph would have it compiled anew at every call.
    counted = None if engine == "compiled" else Counted(model).eval()
    cpu, wall = _cpu_seconds(), time.perf_counter()
    # As in an evaluation; the authors' code is run as they have it.
    with nullcontext() if engine == "reference" else freed_memory_kept(torch.device(options.device)):
        result = attack.run(
            counted or model,
            x,
            y,
            norm=options.norm,
            eps=float(Radius(options.eps)),
            seed=options.seed,
            batch_size=options.batch_size,
            device=options.device,
        )
    if torch.device(options.device).type == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
    by = Counter(result.verdicts)
    robust, wrong = by.pop("robust", 0), by.pop("misclassified", 0)
    pairs = [] if first is None else list(zip(first.verdicts, result.verdicts, strict=True))
    row = Row(
        model=name,
        engine=f"{engine} ({result.engine})",
        clean=1 - wrong / len(x),
        robust=robust / len(x),
        broken_by={attack: by[attack] for attack in result.attacks if by[attack]},
        differs=None if first is None else sum((a == "robust") != (b == "robust") for a, b in pairs),
        otherwise=None if first is None else sum(a != b for a, b in pairs if "robust" not in (a, b)),
        forwards=None if counted is None else counted.forwards,
        backwards=None if counted is None else counted.backwards,
        cpu_seconds=cpu,
        wall_seconds=wall,
        warnings=[str(each) for each in result.warnings],
    )
    return row, result


def _cpu_seconds() -> float:
    """Of this process and of those it has started and waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def table(rows: list[Row]) -> str:
    """The rows as Markdown, ratios to each model's first engine."""
    head = "| model | engine | clean | robust | differs | forward | backward | CPU s | wall s | CPU ratio |"
    lines = [head, "|" + " --- |" * (head.count("|") - 1)]
    first = rows[0]
    for row in rows:
        if row.model != first.model:
            first = row
        ratio = f"{first.cpu_seconds / row.cpu_seconds:.2f}x" if row.cpu_seconds else ""
        differs = "" if row.differs is None else str(row.differs)
        passes = ["–" if count is None else f"{count:,}" for count in (row.forwards, row.backwards)]
        lines.append(
            f"| {row.model} | {row.engine} | {row.clean:.2%} | {row.robust:.2%} | {differs} | {passes[0]} "
            f"| {passes[1]} | {row.cpu_seconds:.1f} | {row.wall_seconds:.1f} | {ratio} |"
        )
    return "\n".join(lines)


def main(say: Callable[[str], None] = print) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--dataset-name")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--n", type=int, default=32, help="the first so many test images")
    parser.add_argument("--norm", default="Linf", choices=["Linf", "L2", "L1"])
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--engines", default="reference,fast,upstream-draws", help=", ".join(ENGINES))
    parser.add_argument("--version", choices=["standard", "plus", "rand"])
    parser.add_argument("--suite", help="attacks of a custom version, separated by commas")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="threads of PyTorch")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.device = str(choose_device(options.device)[0])
    data = load_dataset(options.dataset, name=options.dataset_name, image_size=options.image_size, test_only=True)
    test = data.test.head(options.n)
    x, y = to_float(test.images.cpu()), test.labels.cpu()
    rows = []
    for name in options.models:
        loaded = zoos.load_model(name, zoo=options.zoo, threat=options.norm, device=options.device)
        first = None
        for engine in options.engines.split(","):
            row, result = measure(name, engine, loaded.module, x, y, first, options)
            first = first or result
            rows.append(row)
            say(json.dumps(asdict(row)))
    conditions = {
        "dataset": data.name,
        "n": len(x),
        "norm": options.norm,
        "eps": options.eps,
        "seed": options.seed,
        "batch_size": options.batch_size,
        "device": device_name(torch.device(options.device)),
        "threads": torch.get_num_threads(),
        "packages": package_versions(),
    }
    say(", ".join(f"{key} {value}" for key, value in conditions.items()))
    say(table(rows))
    if options.json:
        options.json.write_text(json.dumps({"conditions": conditions, "rows": [asdict(row) for row in rows]}, indent=2))


if __name__ == "__main__":
    main()
