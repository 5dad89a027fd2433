"""What each method buys: clean and robust accuracy beside the cost of training, one row a method.

    python benchmarks/what_they_buy.py --data cifar10-jpeg.npz                        # hours on two cores
    python benchmarks/what_they_buy.py --data cifar10-jpeg.npz --methods standard,sam-0.2,at --jobs 1
    python benchmarks/what_they_buy.py --data cifar10-jpeg.npz --methods gsam,wsam --seeds 0,1,2
    python benchmarks/what_they_buy.py --data cifar10-jpeg.npz --width 64 --epochs 30 --limit-train 0 --jobs 1
    python benchmarks/what_they_buy.py --data cifar10-jpeg.npz --table-only --submit  # from what there is

Every row is a card in the folder's zoo and records beside it, made by `sam-bench train` and `sam-bench
evaluate`. What exists is not made again, and what was interrupted is continued: stop it and start it as
often as you like. All rows share architecture, epochs, images and batch; the rest is the recipe's, but
for what a row says. The table is read from cards and records; no number is typed. With several seeds it
shows means and standard deviations.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import table, write_json

from sam_bench.records import EvaluationRecord, ModelCard, read_record


@dataclass(frozen=True)
class Row:
    """A method of the table: a recipe, and what is different from it; and a seed of the training."""

    name: str
    recipe: str
    options: tuple[str, ...] = ()
    seed: int = 0


# The order is that in which they are made: what the table is for comes first.
ROWS = [
    Row("standard", "standard"),
    Row("sam-0.2", "sam", ("--rho", "0.2")),
    Row("at-linf-1", "at-linf-1"),
    Row("sam-0.1", "sam", ("--rho", "0.1")),
    Row("sam-0.4", "sam", ("--rho", "0.4")),
    Row("at", "at"),
    Row("noise-sam", "noise-sam"),
    Row("asam", "asam"),
    Row("esam", "esam"),
    Row("looksam", "looksam"),
    Row("aace-sam", "aace-sam"),
    Row("fsam", "fsam"),
    Row("ssam", "ssam"),
    Row("swa", "swa"),
    Row("gaussian", "standard", ("--inputs", "gaussian", "--std", "0.1")),
    Row("awp", "standard", ("--weights", "awp")),
    Row("at-l2-32", "at-l2-32"),
    Row("fast-at", "fast-at"),
    Row("n-fgsm", "n-fgsm"),
    Row("n-fgsm-1", "n-fgsm-1"),
    Row("at-linf-2", "at-linf-2"),
    Row("trades", "trades"),
    Row("sam-at", "sam-at"),
    Row("mart", "mart"),
    Row("at-awp", "at-awp"),
    Row("at-ema", "at-ema"),
    # The recipe begins in its tenth epoch of 200.
    Row("trades-awp", "trades-awp", ("--start-epoch", "1")),
    Row("at-linf-4", "at-linf-4"),
    Row("ssam-dynamic", "ssam-dynamic"),
    Row("entropy-sgd", "entropy-sgd"),
    Row("at-wa", "at-wa"),
    Row("msam", "msam"),
    Row("msam-1", "msam", ("--rho", "1")),
    # The ascents whose rho is a length have that of `sam-0.1`.
    Row("gsam", "gsam", ("--rho", "0.1")),
    Row("input-gradient", "input-gradient", ("--arch-option", "activation=silu")),
    Row("rwp", "rwp"),
    Row("fsam-friendly", "fsam-friendly", ("--rho", "0.1")),
    Row("vasso", "vasso", ("--rho", "0.1")),
    Row("wsam", "wsam", ("--rho", "0.1")),
    Row("usam", "usam"),
    # The default of the authors' class; the recipe's 0.35 is for long runs.
    Row("le-sam", "le-sam", ("--rho", "0.1")),
    Row("fgsm-pgi", "fgsm-pgi"),
    Row("gradalign", "gradalign"),
    # It learns from a batch eight times: two epochs cost what eight of SAM do.
    Row("free-at", "free-at", ("--epochs", "2")),
]


@dataclass(frozen=True)
class Judge:
    """An attack that every model meets; several radii are one curve."""

    attack: str
    norm: str
    radii: tuple[str, ...]
    examples: int
    settings: tuple[str, ...] = ()


def judges(options: argparse.Namespace) -> list[Judge]:
    """The attacks, the quickest first."""
    pgd = ("--steps", "10")
    found = [
        Judge("pgd", "Linf", ("1/255", "2/255", "8/255"), options.n_pgd, pgd),
        Judge("pgd", "L2", ("32/255",), options.n_pgd, pgd),
        Judge("autoattack", "Linf", ("1/255", "8/255"), options.n_autoattack),
    ]
    return [judge for judge in found if judge.examples]


class Table:
    """Where a table's models and records are, and how they are made."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._folder: Path = options.folder
        self._folder.mkdir(parents=True, exist_ok=True)
        # Cards and records keep their commands: those name the data as anyone would who repeats them.
        self._data = options.data.name
        with contextlib.suppress(FileExistsError):  # from before, or from another who makes other rows just now
            (self._folder / self._data).symlink_to(options.data.resolve())
        self.judges = judges(options)
        self._running: set[subprocess.Popen[bytes]] = set()

    def model(self, row: Row) -> str:
        """The row's name in the zoo."""
        seed = f"-s{row.seed}" if row.seed else ""
        return f"{row.name}-prn18-w{self._options.width}{seed}".replace(".", "")

    def card(self, row: Row) -> ModelCard | None:
        """The row's card, once it is trained."""
        found = sorted((self._folder / "model_zoo").glob(f"*/*/{self.model(row)}.json"))
        return read_record(found[0], ModelCard) if found else None

    def records(self, row: Row) -> dict[tuple[str, str, str], tuple[Path, EvaluationRecord]]:
        """What there is: attack, norm and radius to the record with the most images, and its file."""
        records: dict[tuple[str, str, str], tuple[Path, EvaluationRecord]] = {}
        name = self.model(row)
        # An entry's records are copies of the evaluations, which a folder that is committed leaves out.
        paths = [path for path in self._folder.glob(f"leaderboards/*/*/records/{name}-*") if path.suffixes == [".json"]]
        for path in sorted([*paths, *self._folder.glob(f"evaluations/{name}/*.json")]):
            record = read_record(path, EvaluationRecord)
            key = record.attack, record.norm, str(record.eps)
            if record.model == name and (key not in records or records[key][1].n_examples <= record.n_examples):
                records[key] = path, record
        return records

    def train(self, row: Row) -> None:
        """Train a row's model unless there is one."""
        if self.card(row):
            return
        options = self._options
        command: list[object] = ["train", "--recipe", row.recipe, "--dataset", self._data]
        command += ["--width", options.width, "--epochs", options.epochs, "--batch-size", options.batch_size]
        if row.recipe == "entropy-sgd":  # its batch is divided among its inner steps
            del command[-2:]
        if options.limit_train:
            command += ["--limit-train", options.limit_train]
        command += ["--seed", row.seed] if row.seed else []
        command += row.options
        command += ["--validation", 0, "--compile", options.compile, "--precision", options.precision]
        command += ["--weights-dtype", "float16", "--name", self.model(row), "--resume"]
        self._run(row, command)

    def attack(self, row: Row, judge: Judge) -> None:
        """Attack a row's model unless that is done."""
        done = {key: record.n_examples for key, (_, record) in self.records(row).items()}
        if all(done.get((judge.attack, judge.norm, eps), 0) >= judge.examples for eps in judge.radii):
            return
        command = ["evaluate", self.model(row), "--dataset", self._data]
        command += ["--attack", judge.attack, "--norm", judge.norm, "--eps", ",".join(judge.radii)]
        command += ["--n-examples", judge.examples, "--batch-size", 250, *judge.settings, "--resume"]
        self._run(row, command)

    def submit(self, row: Row) -> None:
        """Write a row's entry."""
        paths = [str(path.relative_to(self._folder)) for path, _ in self.records(row).values()]
        self._run(row, ["leaderboard", "submit", self.model(row), *paths])

    def _run(self, row: Row, command: list[object]) -> None:
        spelled = [str(part) for part in command]
        print(f"{time.strftime('%H:%M:%S')} sam-bench {' '.join(spelled)}", file=sys.stderr, flush=True)
        threads = {"OMP_NUM_THREADS": str(self._options.threads)} if self._options.threads else {}
        with self._log(row).open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "sam_bench", *spelled],
                cwd=self._folder,
                env={**os.environ, "SAM_BENCH_ZOO": "model_zoo", **threads},
                stdout=log,
                stderr=log,
            )
            self._running.add(process)
            try:
                if process.wait():
                    raise subprocess.CalledProcessError(process.returncode, spelled)
            finally:
                self._running.discard(process)

    def _log(self, row: Row) -> Path:
        return self._folder / f"{self.model(row)}.log"

    def make(self, rows: list[Row]) -> list[str]:
        """Everything that is missing, training and the quick attacks first; what failed, a line each."""
        failures = []
        with ThreadPoolExecutor(self._options.jobs) as pool:
            stages: list[tuple[Row, Future[None]]] = []
            trained = {row: pool.submit(self._trained_and_seen, row) for row in rows}
            stages += [(row, trained[row]) for row in rows]
            stages += [(row, pool.submit(self._after, trained[row], row)) for row in rows]
            try:
                for row, stage in stages:
                    try:
                        stage.result()
                    except (subprocess.CalledProcessError, RuntimeError) as error:
                        failures.append(f"{self.model(row)}: {error}; see {self._log(row)}")
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(self._running):
                    process.terminate()  # it writes a checkpoint, or has its verdicts on disk
                raise
        return failures

    def _trained_and_seen(self, row: Row) -> None:
        self.train(row)
        for judge in self.judges:
            if judge.attack == "pgd":
                self.attack(row, judge)

    def _after(self, trained: Future[None], row: Row) -> None:
        if trained.exception():
            raise RuntimeError("not attacked further")
        for judge in self.judges:
            self.attack(row, judge)  # what is done is not done again


def figures(board: Table, rows: list[Row]) -> list[dict[str, Any]]:
    """What cards and records say, a dictionary for each row that is trained."""
    found = []
    for row in rows:
        card = board.card(row)
        if card is None:
            continue
        records = {key: record for key, (_, record) in board.records(row).items()}
        seen = records.get(("pgd", "Linf", "1/255"))
        figure: dict[str, Any] = {
            "method": row.name,
            "seed": row.seed,
            "recipe": " ".join((row.recipe, *row.options)),
            "clean": seen and seen.clean_accuracy,
            "passes": card.cost.passes,
            "seconds": card.cost.seconds,
        }
        for judge in board.judges:
            for eps in judge.radii:
                record = records.get((judge.attack, judge.norm, eps))
                figure[f"{judge.attack} {judge.norm} {eps}"] = record and record.robust_accuracy
        found.append(figure)
    return found


def printed(found: list[dict[str, Any]]) -> str:
    """The table in Markdown, a line for each method; a dash where a figure is still missing."""
    heads = [key for key in found[0] if key not in ("recipe", "seed")]
    methods = dict.fromkeys(figure["method"] for figure in found)
    rows = []
    for method in methods:
        runs = [figure for figure in found if figure["method"] == method]
        rows.append([method, *(_cell(key, [run[key] for run in runs]) for key in heads[1:]), str(len(runs))])
    return table([*heads, "seeds"], rows)


def _cell(key: str, values: list[float | None]) -> str:
    """The mean over seeds, with the standard deviation where there are several; accuracies in per cent."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "–"
    scale, digits = (1, 0) if key in ("passes", "seconds") else (100, 1)
    mean = f"{scale * statistics.fmean(known):.{digits}f}"
    if len(known) == 1 or key == "passes":
        return mean
    return f"{mean} ± {scale * statistics.stdev(known):.{digits}f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="FILE.npz, as for sam-bench train")
    parser.add_argument("--folder", type=Path, default=Path("what-they-buy"), help="models, records, logs")
    parser.add_argument("--methods", default=",".join(row.name for row in ROWS), help="rows, separated by commas")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--limit-train", type=int, default=10_000, help="0: all images")
    parser.add_argument("--seeds", default="0", help="of the training, separated by commas")
    parser.add_argument("--n-pgd", type=int, default=2_000)
    parser.add_argument("--n-autoattack", type=int, default=200, help="0: without AutoAttack")
    parser.add_argument("--precision", default="fp32", choices=["auto", "bf16", "fp32"])
    parser.add_argument("--compile", default="off", choices=["auto", "on", "off"])
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each; 0: PyTorch's choice")
    parser.add_argument("--table-only", action="store_true", help="make nothing, show what there is")
    parser.add_argument("--submit", action="store_true", help="write each row's entry into the folder's leaderboards")
    parser.add_argument("--json", type=Path, default=None, metavar="OUT", help="write the numbers there, too")
    options = parser.parse_args()
    known = {row.name: row for row in ROWS}
    for name in options.methods.split(","):
        if name not in known:
            parser.error(f"--methods: {name!r} is not one of {', '.join(known)}")
    if not options.data.exists():
        parser.error(f"--data: there is no file {options.data}")
    if not all(seed.isdecimal() for seed in options.seeds.split(",")):
        parser.error(f"--seeds: {options.seeds!r} must be whole numbers from 0 on, separated by commas")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    options.rows = [replace(known[name], seed=seed) for name in options.methods.split(",") for seed in seeds]
    return options


def main() -> None:
    """Make what is missing and print the table."""
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    board = Table(options)
    try:
        failures = [] if options.table_only else board.make(options.rows)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    found = figures(board, options.rows)
    if options.submit:
        for row in options.rows:
            if any(attack == "autoattack" for attack, _, _ in board.records(row)):  # else there can be no entry
                board.submit(row)
    if not found:
        raise SystemExit("no row is trained yet")
    print(printed(found))
    write_json(options.json, {"rows": found})
    for failure in failures:
        print(failure, file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
