"""Which one-step adversarial training overfits to its step: robust accuracy after every epoch.

    python benchmarks/collapse.py --data cifar10-jpeg.npz                    # an hour on one core
    python benchmarks/collapse.py --data digits --arch preactresnet10 --eps 64 --limit-train 0    # some minutes
    python benchmarks/collapse.py --data cifar10-jpeg.npz --width 64 --epochs 30 --limit-train 0

All methods train with the same network, images, optimizer and schedule, against the same large radius. After every
epoch PGD-10 attacks held-out images. In catastrophic overfitting this robust accuracy falls to nothing within an
epoch or two, while the training accuracy against the method's own step jumps.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import table, write_json

from sam_bench import train
from sam_bench.device import device_name
from sam_bench.versions import package_versions

_COMMON: dict[str, Any] = {"optimizer.lr": 0.1, "schedule": "cyclic", "top": 0.4, "bn_mode": "train"}

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "fgsm, no random start": ("fast-at", {"random_start": False, "step": 1.0}),
    "fgsm": ("fast-at", {"step": 1.25}),
    "n-fgsm": ("n-fgsm", {"step": 1.0}),
    "fgsm-pgi": ("fgsm-pgi", {"step": 1.0, "label_smoothing": 0}),
    "gradalign": ("gradalign", {"step": 1.0}),
}


def curve(name: str, options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Train, and give the figures of every epoch."""
    recipe, chosen = METHODS[name]
    settings = _COMMON | {key: value for key, value in chosen.items() if key != "step"}
    settings |= {
        "eps": f"{options.eps}/255",
        "step_size": f"{chosen['step'] * options.eps:g}/255",
        "epochs": options.epochs,
    }
    run = folder / name.replace(", ", "-").replace(" ", "-")
    train(
        recipe,
        options.data,
        settings=settings,
        arch=options.arch,
        arch_options={"width": options.width},
        limit_train=options.limit_train or None,
        validation=options.validation,
        validation_eps=f"{options.eps}/255",
        name=run.name,
        run_dir=run,
        zoo=folder / "zoo",
        seed=options.seed,
        allow_large_eps=True,
    )
    with (run / "log.csv").open() as file:
        columns = ("train_accuracy", "validation_accuracy", "validation_robust_accuracy")
        return [{column: float(row[column]) for column in columns} for row in csv.DictReader(file)]


def main() -> None:
    """Train every method and print the robust accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="digits, or FILE.npz")
    parser.add_argument("--arch", default="preactresnet18")
    parser.add_argument("--width", type=int, default=8, help="channels of PreActResNet-18's first stage")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--eps", type=int, default=16, help="radius, in 255ths")
    parser.add_argument("--limit-train", type=int, default=10_500, help="training images; 0: all")
    parser.add_argument("--validation", type=int, default=500, help="of these, held out and attacked")
    parser.add_argument("--methods", default=";".join(METHODS), help="separated by semicolons")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None, metavar="OUT", help="write the numbers there, too")
    options = parser.parse_args()
    curves: dict[str, list[dict[str, float]]] = {}
    conditions = {key: value for key, value in vars(options).items() if key not in ("json", "data", "methods")}
    conditions |= {"data": Path(options.data).stem, "versions": package_versions()}
    conditions["device"] = device_name(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        for name in options.methods.split(";"):
            curves[name] = curve(name, options, Path(folder))
            robust = [round(100 * epoch["validation_robust_accuracy"], 1) for epoch in curves[name]]
            print(name, robust, flush=True)
            if options.json:
                write_json(options.json, {"conditions": conditions, "curves": curves})
    rows = [
        [name, *(f"{100 * epoch['validation_robust_accuracy']:.1f}" for epoch in epochs)]
        for name, epochs in curves.items()
    ]
    print(table(["method", *(str(epoch + 1) for epoch in range(options.epochs))], rows))


if __name__ == "__main__":
    main()
