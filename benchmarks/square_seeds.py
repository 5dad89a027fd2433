"""How much Square's verdicts differ from seed to seed: our AutoAttack engine and its authors' code, two seeds each.

    OMP_NUM_THREADS=1 python benchmarks/square_seeds.py --json benchmarks/results/square-seeds.json

A small network learns scikit-learn's digits. It then rounds its inputs, so that its gradients are exactly zero.
AutoAttack standard attacks the first test images four times. Only the examples count that are right without an attack
and that no run breaks before Square: on these, Square alone decides. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor, nn

import sam_bench
from sam_bench.attacks import ATTACKS, AttackResult
from sam_bench.data import load_dataset, to_float
from sam_bench.device import device_name
from sam_bench.records import ComponentSpec, Radius
from sam_bench.versions import package_versions

IMAGE_SIZE = 8
RUNS = [("fast", 0), ("fast", 1), ("reference", 0), ("reference", 1)]


class Quantised(nn.Module):
    """A network that sees its inputs rounded to a few levels: the gradient with respect to the input is zero."""

    def __init__(self, network: nn.Module, levels: int) -> None:
        super().__init__()
        self.network, self.levels = network, levels

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(torch.round(x * self.levels) / self.levels)
        return logits


def trained(folder: Path, epochs: int, seed: int) -> nn.Module:
    """A PreActResNet-10 of width 8 that has learned the digits; the settings are the quickstart's."""
    settings = {
        "epochs": epochs,
        "batch_size": 64,
        "lr": 0.1,
        "schedule": "one-cycle",
        "crop_padding": 0,
        "flip": False,
    }
    run = sam_bench.train(
        "standard",
        "digits",
        image_size=IMAGE_SIZE,
        arch="preactresnet10",
        arch_options={"width": 8},
        settings=settings,
        seed=seed,
        precision="fp32",
        compile="off",
        device="cpu",
        name="digits",
        run_dir=folder / "run",
        zoo=folder / "zoo",
    )
    return sam_bench.load_model(run.card.name, zoo=folder / "zoo")


def main(say: Callable[[str], None] = print) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=60, help="the first so many test images")
    parser.add_argument("--eps", default="24/255", help="radius in Linf")
    parser.add_argument("--levels", type=int, default=16, help="inputs are rounded to multiples of 1 / LEVELS")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = Quantised(trained(Path(folder), options.epochs, options.seed), options.levels).eval()
    test = load_dataset("digits", image_size=IMAGE_SIZE, test_only=True).test.head(options.n)
    x, y = to_float(test.images), test.labels

    results: dict[str, AttackResult] = {}
    seconds: dict[str, float] = {}
    for engine, seed in RUNS:
        attack = ATTACKS.build(ComponentSpec(method="autoattack", engine=engine))
        began = time.process_time()
        result = attack.run(model, x, y, norm="Linf", eps=float(Radius(options.eps)), seed=seed, batch_size=len(x))
        run = f"{engine}, seed {seed}"
        results[run], seconds[run] = result, time.process_time() - began
        say(f"{run}: {seconds[run]:.0f} CPU seconds; " + "; ".join(map(str, result.warnings)))

    verdicts = list(zip(*(result.verdicts for result in results.values()), strict=True))
    decided = [i for i, words in enumerate(verdicts) if set(words) <= {"square", "robust"}]
    robust = {run: {i for i in decided if result.verdicts[i] == "robust"} for run, result in results.items()}
    pairs = [
        {
            "one": one,
            "other": other,
            "robust in the first alone": len(robust[one] - robust[other]),
            "robust in the second alone": len(robust[other] - robust[one]),
        }
        for one, other in combinations(results, 2)
    ]
    numbers = {
        "examples": len(x),
        "right without an attack": sum(words[0] != "misclassified" for words in verdicts),
        "decided by Square alone": len(decided),
        "robust": {run: len(examples) for run, examples in robust.items()},
        "pairs": pairs,
        "cpu_seconds": seconds,
    }
    conditions = {
        "network": f"preactresnet10 of width 8, {options.epochs} epochs on digits-{IMAGE_SIZE}px",
        "levels": options.levels,
        "norm": "Linf",
        "eps": options.eps,
        "training_seed": options.seed,
        "device": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "packages": package_versions(),
    }
    report = json.dumps({"conditions": conditions, "numbers": numbers}, indent=2)
    say(report)
    if options.json:
        options.json.write_text(report + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
