"""`sweep`: a grid of settings, each point trained, registered and attacked, here or on a Ray cluster."""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from sam_bench import zoo as zoos
from sam_bench.api.evaluation import evaluate_curve, parse_radii
from sam_bench.api.grid import Run, plan_runs
from sam_bench.api.model_and_data import is_named_dataset
from sam_bench.api.training import train
from sam_bench.attacks import ATTACKS
from sam_bench.errors import InputError, SamBenchError, StoppedError
from sam_bench.evaluation import OnRay, chosen_executor
from sam_bench.parallel import Job, check_main_module, run_jobs
from sam_bench.progress import Reporter, SilentReporter
from sam_bench.records import ComponentSpec, ModelCard, Norm, Radius, read_record, write_atomic
from sam_bench.training import build_method, load_recipe, override
from sam_bench.zoo.names import full_name

_DECIDES_NOTHING = {"keep", "save_every", "authors", "allow_large_eps"}


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
        error: Why the run failed; None where it did not.
    """

    name: str
    settings: Mapping[str, Any]
    clean: float | None = None
    robust: Mapping[str, float] = field(default_factory=dict)
    passes: float | None = None
    seconds: float | None = None
    error: str | None = None


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


@dataclass(frozen=True)
class _Plan:
    """What the runs have in common, and what is done with each when it is trained."""

    folder: Path
    zoo: Path
    data_dir: Path
    device: str
    attack: str | None
    norm: Norm
    radii: list[Radius]
    allow_large_eps: bool
    attack_settings: Mapping[str, Any]
    n_examples: int | None
    command: str


def sweep(
    grid: Mapping[str, Sequence[Any]],
    *,
    arch_options: Mapping[str, Any] | None = None,
    attack: str | None = None,
    norm: Norm = "Linf",
    radii: str | Sequence[str | float] | None = None,
    attack_settings: Mapping[str, Any] | None = None,
    n_examples: int | None = None,
    executor: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    workers: int | None = None,
    device: str = "auto",
    data_dir: Path = Path("data"),
    zoo: Path | None = None,
    run_dir: Path = Path("runs"),
    reporter: Reporter | None = None,
    command: str = "",
) -> SweepResult:
    """Train a model for every combination of values, and attack each if asked to.

    A run that is interrupted is continued when the same sweep is asked for again, one that is finished
    is not done again, and one that fails does not stop the others. Several machines share the folders
    of runs, zoo and evaluations.

    Args:
        grid: Name to values. A name is an argument of `train` (`recipe`, `dataset`, `arch`, `seed`, …), a setting
            of the recipe by its bare name (`rho`, `epochs`), a part of it (`weights`), or `width`.
        arch_options: What every architecture is given besides.
        attack: What to attack each model with; default nothing.
        norm: Norm of the ball.
        radii: Of the ball, as for `evaluate_curve`.
        attack_settings: The attack's own settings.
        n_examples: The first so many test images; default all.
        executor: `local` or `ray`.
        ray_address: As for `evaluate`.
        workers: Runs side by side; default 1, and with Ray as many as there is room for. Of several GPUs here, each
            worker has one.
        device: `auto`, `cpu`, `cuda`, ….
        data_dir: Where torchvision's data sets are kept.
        zoo: Folder of the zoo; default `$SAM_BENCH_ZOO`, else `./model_zoo`.
        run_dir: Folder of the runs' folders.
        reporter: Where progress goes; default nowhere.
        command: For cards and records.

    Raises:
        InputError: Something given is wrong, no run or more than 1,000 are asked for, or two would have one name;
            before anything is trained.
    """
    check_main_module()
    reporter = reporter or SilentReporter()
    try:
        runs = plan_runs(grid, arch_options=arch_options or {})
    except InputError as error:
        if attack is not None and str(error).startswith("--eps does not apply"):
            raise InputError(f"{error}; the radius of the attack on the trained models is --attack-eps") from error
        raise
    if attack is not None:
        ATTACKS.build(ComponentSpec(method=attack, **(attack_settings or {}))).check(norm)
    large = any(grid.get("allow_large_eps", ()))
    plan = _Plan(
        folder=run_dir,
        zoo=zoos.zoo_dir(zoo),
        data_dir=data_dir,
        device=device,
        attack=attack,
        norm=norm,
        radii=parse_radii(radii, norm, allow_large_eps=large, option="--attack-eps") if attack is not None else [],
        allow_large_eps=large,
        attack_settings=attack_settings or {},
        n_examples=n_examples,
        command=command,
    )
    varies = [key for key, values in grid.items() if len(values) > 1]
    reporter.say(f"{len(runs)} run{'' if len(runs) == 1 else 's'}: {', '.join(run.name for run in runs)}")
    with chosen_executor(executor, address=ray_address, device=device, workers=workers) as away:
        if away is None:
            jobs = [Job(run.name, _do, {"run": run, "plan": plan}) for run in runs]
            differing = {run.name: run.varies for run in runs}
            side_by_side = min(workers or 1, len(jobs))
            rows = run_jobs(
                jobs,
                workers=side_by_side,
                reporter=reporter,
                died=lambda name, why: SweepRow(name, differing[name], error=why),
                own=partial(_gpu_of, device=device) if side_by_side > 1 else None,
            )
        else:
            rows = _on_cluster(runs, plan, away, reporter)
    return SweepResult(varies=varies, rows=rows)


def _gpu_of(worker: int, *, device: str) -> dict[str, int]:
    """A GPU to each worker in turn, where there are several and none was named."""
    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return {}
    return {"gpu": worker % torch.cuda.device_count()}


def _do(run: Run, plan: _Plan, *, gpu: int | None = None, reporter: Reporter) -> SweepRow:
    """Train and attack, on this GPU if one is given; whatever goes wrong becomes a row."""
    try:
        if gpu is not None:
            torch.cuda.set_device(gpu)  # what `cuda` means in this process from here on
        card = _finished(run, plan) or _train(run, plan, reporter)
        records = []
        if plan.attack is not None:
            records = evaluate_curve(
                full_name(card),  # the name alone may be another model's, too, of other data or another threat model
                plan.radii,
                attack=plan.attack,
                norm=plan.norm,
                settings=plan.attack_settings,
                # A data set of one's own is on no card.
                dataset=None if is_named_dataset(card.dataset) else run.arguments["dataset"],
                dataset_name=None if is_named_dataset(card.dataset) else card.dataset,
                n_examples=plan.n_examples,
                allow_large_eps=plan.allow_large_eps,
                device=plan.device,
                data_dir=plan.data_dir,
                zoo=plan.zoo,
                resume="if-any",
                reporter=reporter,
                command=plan.command,
            )
    except StoppedError as error:
        error.args = (f"{error}; the same sweep goes on with it",)
        raise
    except SamBenchError as error:
        return SweepRow(run.name, run.varies, error=str(error))
    except Exception as error:
        return SweepRow(run.name, run.varies, error=f"{type(error).__name__}: {error}")
    return SweepRow(
        run.name,
        run.varies,
        clean=card.clean_accuracy,
        robust={str(record.eps): record.robust_accuracy for record in records},
        passes=card.cost.passes,
        seconds=card.cost.seconds,
    )


def _train(run: Run, plan: _Plan, reporter: Reporter) -> ModelCard:
    folder = plan.folder / run.name
    result = train(
        **run.arguments,
        name=run.name,
        run_dir=folder,
        zoo=plan.zoo,
        data_dir=plan.data_dir,
        device=plan.device,
        resume=True,
        reporter=reporter,
        command=plan.command,
    )
    done = {
        "arguments": _decides(run),
        "recipe": _recipe(run),
        "card": str(result.card_path),
        "weights": result.card.weights.sha256,
    }
    write_atomic(folder / "sweep.json", json.dumps(done, indent=2))
    return result.card


def _finished(run: Run, plan: _Plan) -> ModelCard | None:
    """The card of a run that the same arguments have brought to its end, if it is in the zoo still."""
    try:
        done = json.loads((plan.folder / run.name / "sweep.json").read_text(encoding="utf-8"))
        path = Path(done["card"])
        asked = [_decides(run), _recipe(run)]
        if [done["arguments"], done["recipe"]] != asked or plan.zoo.resolve() not in path.resolve().parents:
            return None
        card = read_record(path, ModelCard)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return card if card.weights.sha256 == done["weights"] else None


def _decides(run: Run) -> Any:
    """The arguments that the weights depend on, as JSON has them, and what tells whether a data file changed."""
    decides = {key: value for key, value in run.arguments.items() if key not in _DECIDES_NOTHING}
    return json.loads(json.dumps({**decides, "file": _state(str(decides.get("dataset", "")))}, default=str))


def _state(dataset: str) -> list[int] | None:
    """Size and time of a file of one's own; None for a data set known by name, and for a folder."""
    try:
        found = Path(dataset).expanduser().stat()
    except (OSError, RuntimeError, ValueError):
        return None
    is_file = stat.S_ISREG(found.st_mode) and not is_named_dataset(dataset)
    return [found.st_size, found.st_mtime_ns] if is_file else None


def _recipe(run: Run) -> Any:
    """The recipe as it is now, which may be a file that was edited, as a card has it."""
    arguments = run.arguments
    chosen = load_recipe(arguments.get("recipe", "standard"), faithful=arguments.get("faithful", False))
    return build_method(override(chosen, arguments.get("settings", {}))).recipe.model_dump(mode="json")


def _on_cluster(runs: list[Run], plan: _Plan, away: OnRay, reporter: Reporter) -> list[SweepRow]:
    """Each run a task; the folders are this process's, on every node."""
    here = Path.cwd()
    plan = replace(
        plan,
        folder=here / plan.folder,
        zoo=here / plan.zoo,
        data_dir=here / plan.data_dir,
        device="cuda" if away.gpus else "cpu",
    )
    rows: dict[int, SweepRow] = {}
    with (
        _marked([plan.folder, plan.zoo]) as marks,
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
    if plan.device == "cpu":
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
    return {"varies": result.varies, "runs": [asdict(row) for row in result.rows]}
