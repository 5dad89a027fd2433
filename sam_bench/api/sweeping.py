"""`sweep`: a grid of settings, each point trained, registered and attacked, here or on a Ray cluster."""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sam_bench import zoo as zoos
from sam_bench.api.evaluation import prepared_evaluation
from sam_bench.api.model_and_data import is_named_dataset
from sam_bench.api.specs.sweep import Run, SweepSpec
from sam_bench.api.specs.train import TrainSpec
from sam_bench.api.training import run_training
from sam_bench.device import gpu_of_worker
from sam_bench.errors import SamBenchError, StoppedError
from sam_bench.evaluation import OnRay, chosen_executor
from sam_bench.parallel import Job, run_jobs
from sam_bench.progress import Reporter, SilentReporter
from sam_bench.records import ModelCard, Precision, read_record, write_atomic
from sam_bench.zoo.names import full_name


@dataclass(frozen=True)
class SweepRow:
    """What came out of a run.

    Attributes:
        name: Of the model.
        settings: Its values of what differs among the runs.
        clean: Clean accuracy on the test set, in [0, 1].
        robust: Radius to robust accuracy, where an attack was asked for.
        passes: Forward-backward passes per training image.
        seconds: Of training.
        precision: Of training.
        error: Why the run failed; None where it did not.
        failure: The error itself, where it is one of ours.
    """

    name: str
    settings: Mapping[str, Any]
    clean: float | None = None
    robust: Mapping[str, float] = field(default_factory=dict)
    passes: float | None = None
    seconds: float | None = None
    precision: Precision | None = None
    error: str | None = None
    failure: SamBenchError | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class SweepResult:
    """What came out of a sweep.

    Attributes:
        varies: Names of what differs among the runs.
        rows: One a run, in the grid's order.
    """

    varies: list[str]
    rows: list[SweepRow]

    @property
    def failed(self) -> list[SweepRow]:
        """The runs that failed."""
        return [row for row in self.rows if row.error is not None]


def run_sweep(spec: SweepSpec, *, reporter: Reporter | None = None, command: str = "") -> SweepResult:
    """Train a model for every combination of values, and attack each if asked to. See `sam_bench.sweep`."""
    reporter = reporter or SilentReporter()
    device, zoo = spec.train.device, zoos.zoo_dir(spec.train.zoo)
    spec = spec.but(train=spec.train.but(zoo=zoo))
    spec.check()
    runs = spec.runs()
    plan = _Plan(spec, command)
    reporter.say(f"{len(runs)} run{'' if len(runs) == 1 else 's'}: {', '.join(run.name for run in runs)}")
    chosen = chosen_executor(spec.executor, address=spec.ray_address, device=device, workers=spec.workers)
    with chosen as away:
        if away is None:
            jobs = [Job(run.name, _do, {"run": run, "plan": plan}) for run in runs]
            differing = {run.name: run.varies for run in runs}
            side_by_side = min(spec.workers or 1, len(jobs))
            rows = run_jobs(
                jobs,
                workers=side_by_side,
                reporter=reporter,
                died=lambda name, why: SweepRow(name, differing[name], error=why),
                own=partial(gpu_of_worker, device=device) if side_by_side > 1 else None,
            )
        else:
            rows = _on_cluster(runs, plan, away, reporter)
    if "precision" not in spec.varies and len({row.precision for row in rows} - {None}) > 1:
        narrow = ", ".join(row.name for row in rows if row.precision == "bf16")
        reporter.say(
            f"not all runs had the same precision (bf16: {narrow}; the others fp32), which also changes accuracies: to "
            "compare them, name one `precision` and sweep again in other folders"
        )
    return SweepResult(varies=list(spec.varies), rows=rows)


@dataclass(frozen=True)
class _Plan:
    """What the runs have in common."""

    spec: SweepSpec
    command: str

    @property
    def zoo(self) -> Path:
        """Where the models go."""
        return zoos.zoo_dir(self.spec.train.zoo)

    def moved(self, here: Path, device: str) -> _Plan:
        """The plan for another machine that sees the same folders."""
        train = self.spec.train
        there = {"zoo": here / self.zoo, "data_dir": here / train.data_dir, "device": device}
        evaluation = self.spec.evaluation and self.spec.evaluation.but(**there)
        spec = self.spec.but(train=train.but(**there), evaluation=evaluation, run_dir=here / self.spec.run_dir)
        return replace(self, spec=spec)


def _do(run: Run, plan: _Plan, *, gpu: int | None = None, reporter: Reporter) -> SweepRow:
    """Train and attack, on this GPU if one is given; whatever goes wrong becomes a row."""
    try:
        if gpu is not None:
            torch.cuda.set_device(gpu)  # what `cuda` means in this process from here on
        card = _finished(run, plan) or _train(run, plan, reporter)
        records = []
        if plan.spec.evaluation is not None:
            own = not is_named_dataset(card.dataset)  # a data set of one's own is on no card
            attack = plan.spec.evaluation.but(
                dataset=run.spec.dataset if own else None,
                dataset_name=card.dataset if own else None,
                zoo=plan.zoo,
                resume="if-any",
            )
            # The name alone may be another model's, too, of other data or another threat model.
            with prepared_evaluation(full_name(card), attack, reporter=reporter, command=plan.command) as evaluate:
                records = evaluate()
    except StoppedError as error:
        error.args = (f"{error}; the same sweep goes on with it",)
        raise
    except SamBenchError as error:
        return SweepRow(run.name, run.varies, error=str(error), failure=error)
    except Exception as error:
        return SweepRow(run.name, run.varies, error=f"{type(error).__name__}: {error}")
    return SweepRow(
        run.name,
        run.varies,
        clean=card.clean_accuracy,
        robust={str(record.eps): record.robust_accuracy for record in records},
        passes=card.cost.passes,
        seconds=card.cost.seconds,
        precision=card.precision,
    )


def _train(run: Run, plan: _Plan, reporter: Reporter) -> ModelCard:
    folder, train = plan.spec.run_dir / run.name, plan.spec.train
    spec = run.spec.but(
        name=run.name, run_dir=folder, zoo=plan.zoo, data_dir=train.data_dir, device=train.device, resume=True
    )
    result = run_training(spec, reporter=reporter, command=plan.command)
    done = {
        "arguments": _decides(run.spec),
        "recipe": run.spec.method.recipe.model_dump(mode="json"),  # the card's may suit the images better
        "card": str(result.card_path),
        "weights": result.card.weights.sha256,
    }
    write_atomic(folder / "sweep.json", json.dumps(done, indent=2))
    return result.card


def _finished(run: Run, plan: _Plan) -> ModelCard | None:
    """The card of a run that the same arguments have brought to its end, if it is in the zoo still."""
    try:
        done = json.loads((plan.spec.run_dir / run.name / "sweep.json").read_text(encoding="utf-8"))
        path = Path(done["card"])
        # What an older sweep left out was at its default.
        arguments = _decides(TrainSpec(dataset=run.spec.dataset)) | done["arguments"]
        told = {name: value for name, value in arguments.items() if name in _decides(run.spec)}
        asked = [_decides(run.spec), run.spec.method.recipe.model_dump(mode="json")]
        if [told, done["recipe"]] != asked or plan.zoo.resolve() not in path.resolve().parents:
            return None
        card = read_record(path, ModelCard)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return card if card.weights.sha256 == done["weights"] else None


def _decides(spec: TrainSpec) -> dict[str, Any]:
    """The fields that tell runs apart, as JSON has them, and what tells whether a file of them changed."""
    names = {name for name, each in spec.options().items() if each.sweep or each.identity}
    states = {"file": spec.dataset, "extra_data_file": spec.extra_data, "init_file": spec.init}
    dumped = json.dumps(
        spec.model_dump(include=names) | {name: _state(str(path)) for name, path in states.items() if path},
        default=str,
    )
    decides: dict[str, Any] = json.loads(dumped)
    return decides


def _state(dataset: str) -> list[int] | None:
    """Size and time of a file of one's own; None for a data set known by name, and for a folder."""
    try:
        found = Path(dataset).expanduser().stat()
    except (OSError, RuntimeError, ValueError):
        return None
    is_file = stat.S_ISREG(found.st_mode) and not is_named_dataset(dataset)
    return [found.st_size, found.st_mtime_ns] if is_file else None


def _on_cluster(runs: list[Run], plan: _Plan, away: OnRay, reporter: Reporter) -> list[SweepRow]:
    """Each run a task; the folders are this process's, on every node."""
    here = Path.cwd()
    plan = plan.moved(here, "cuda" if away.gpus else "cpu")
    rows: dict[int, SweepRow] = {}
    with (
        _marked([plan.spec.run_dir, plan.zoo]) as marks,
        reporter.stage(f"runs on {away.describe()}", len(runs)) as stage,
    ):
        ended = away.cluster.run(
            _do_elsewhere,
            (plan, here, marks),
            runs,
            gpus=int(away.gpus),
            at_a_time=away.workers,
            told=lambda number, text: reporter.say(f"{runs[number].name}: {text}"),
            say=reporter.say,
        )
        for number, row in ended:
            if isinstance(row, SamBenchError) or row is None:
                row = SweepRow(runs[number].name, runs[number].varies, error=str(row))
            rows[number] = row
            stage.update(len(rows), f"{sum(each.error is not None for each in rows.values())} failed")
    return [rows[number] for number in range(len(runs))]


@contextmanager
def _marked(folders: Sequence[Path]) -> Iterator[list[Path]]:
    """A file in each folder, by which another machine knows it for the same one."""
    name = f".sweep-{os.getpid()}-{secrets.token_hex(4)}"
    marks = [folder / name for folder in folders]
    try:
        for mark in marks:
            write_atomic(mark, "")
        yield marks
    finally:
        for mark in marks:
            mark.unlink(missing_ok=True)


def _do_elsewhere(shared: tuple[_Plan, Path, list[Path]], run: Run, tell: Callable[[str], None]) -> SweepRow:
    """`_do`, on another machine perhaps."""
    plan, folder, marks = shared
    for mark in marks:
        if not mark.exists():
            raise SamBenchError(
                f"a node does not see {mark.parent}: a sweep over several machines needs the folders of runs and zoo, "
                "and the one it is started in, on a file system that all of them share"
            )
    os.chdir(folder)
    if plan.spec.train.device == "cpu":
        torch.set_num_threads(1)  # the CPU that Ray has counted
    return _do(run, plan, reporter=_Telling(tell))


class _Telling(SilentReporter):
    """Sends the lines that stay to where they are shown."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def say(self, text: str) -> None:
        self._tell(text)


def as_json(result: SweepResult) -> dict[str, Any]:
    """The result as one JSON object."""
    runs = [{name: value for name, value in vars(row).items() if name != "failure"} for row in result.rows]
    return {"varies": result.varies, "runs": runs}
