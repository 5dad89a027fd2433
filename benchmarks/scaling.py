"""What a second worker gains: one evaluation by one and two processes, and by one and two workers of Ray.

    python benchmarks/scaling.py                              # 256 digits, APGD-CE and APGD-T
    python benchmarks/scaling.py --attack pgd --n 500 --rounds 5 --json out.json

A small network is trained on scikit-learn's digits first. The four ways take turns, round after round, and each
round begins with another one, so that whatever slows the machine slows all of them; a figure is the median over
the rounds. Processes are counted with their start, since each evaluation starts its own; Ray is started once, and
its workers have loaded PyTorch before the first round. All four must give every example the same verdict.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import table, write_json

from sam_bench import api
from sam_bench.attacks import ATTACKS
from sam_bench.attacks.events import Verdict
from sam_bench.data import load_dataset
from sam_bench.device import device_name
from sam_bench.evaluation import Executor, Local, OnRay, Problem, Processes
from sam_bench.evaluation.problem import UNASKED
from sam_bench.integrations.ray import connected
from sam_bench.parallel import usable_cores
from sam_bench.records import ComponentSpec, Radius
from sam_bench.versions import package_versions
from sam_bench.zoo import load_model

WAYS = (("processes", 1), ("processes", 2), ("Ray", 1), ("Ray", 2))


def trained(folder: Path, width: int) -> str:
    """The name of a network that has learnt the digits."""
    settings = {"epochs": 10, "schedule": "one-cycle", "lr": 0.1, "batch_size": 64, "crop_padding": 0, "flip": False}
    options: dict[str, Any] = {"image_size": 8, "arch": "preactresnet10", "arch_options": {"width": width}}
    api.train(
        "standard", "digits", name="digits", settings=settings, validation=0, precision="fp32", device="cpu",
        zoo=folder / "zoo", run_dir=folder / "run", **options,
    )  # fmt: skip
    return "digits"


def main() -> None:
    """Measure, print, write."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--attack", default="autoattack-screen")
    options.add_argument("--eps", default="16/255")
    options.add_argument("--n", type=int, default=256, help="examples")
    options.add_argument("--width", type=int, default=8, help="channels of PreActResNet-10's first stage")
    options.add_argument("--task-size", type=int, default=64)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--json", type=Path, default=None, metavar="OUT", help="write the numbers there, too")
    given = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, connected("local", workers=2) as cluster:
        folder = Path(name)
        test = load_dataset("digits", image_size=8, test_only=True).test
        problem = Problem(
            model=load_model(trained(folder, given.width), zoo=folder / "zoo"),
            test=test.head(given.n),
            dataset="digits",
            attack=ATTACKS.build(ComponentSpec(method=given.attack)),
            norm="Linf",
            eps=Radius(given.eps),
            seed=0,
            batch_size=64,
        )
        cpu = torch.device("cpu")

        def run(way: str, workers: int, what: Problem = problem) -> tuple[float, list[str | None]]:
            executor: Executor = Processes(workers, cpu) if workers > 1 else Local(cpu)
            if way == "Ray":
                executor = OnRay(cluster, device="cpu", workers=workers, task_size=given.task_size)
            started, found = time.perf_counter(), dict[int, str | None]()
            for event in executor.run(what, dict.fromkeys(range(len(what.test)), UNASKED)):
                if isinstance(event, Verdict):
                    found[event.example] = event.outcome
            return time.perf_counter() - started, [found[place] for place in sorted(found)]

        small = replace(problem, test=test.head(8), attack=ATTACKS.get("fgsm")())
        run("Ray", 2, small)
        seconds: dict[tuple[str, int], list[float]] = {way: [] for way in WAYS}
        load = os.getloadavg()[0]
        verdicts: list[str | None] = []
        for number in range(given.rounds):
            for way in WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]:
                took, found = run(*way)
                seconds[way].append(took)
                if verdicts and found != verdicts:
                    raise SystemExit(f"{way[1]} x {way[0]} gave other verdicts")
                verdicts = found
    rows = []
    for (kind, workers), each in seconds.items():
        gains = [one / two for one, two in zip(seconds[kind, 1], each, strict=True)]
        gain = f"{statistics.median(gains):.2f}x" if workers > 1 else ""
        rows.append([kind, str(workers), f"{statistics.median(each):.1f}", f"{min(each):.1f} to {max(each):.1f}", gain])
    print(table(["workers are", "how many", "seconds", "lowest to highest", "gain"], rows))
    told = {
        "what": f"{given.attack}, Linf {given.eps}, PreActResNet-10 of width {given.width}, {given.n} digits",
        "robust": verdicts.count("robust"),
        "device": device_name(torch.device("cpu")),
        "cores": usable_cores(),
        "load_average_before": load,
        "rounds": given.rounds,
        "task_size": given.task_size,
        "packages": package_versions(),
    }
    print("\n" + "; ".join(f"{key} {value}" for key, value in told.items() if key != "packages"))
    write_json(given.json, told | {"seconds": {f"{way} {count}": took for (way, count), took in seconds.items()}})


if __name__ == "__main__":
    main()
