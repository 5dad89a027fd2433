"""A run can be stopped anywhere, in any way, and ends as if it had not been."""

from __future__ import annotations

import csv
import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from training_samples import StopsAt, assert_same, digits, method_of, run, saved

from sam_bench.data import Split, hold_out
from sam_bench.errors import InputError, SamBenchError
from sam_bench.training import PARTS
from sam_bench.training.folder import RunFolder
from sam_bench.training.state import RunState

# Every second pair, as on a chessboard: each method meets half of the other axis.
PAIRS = [
    (inputs, weights)
    for row, inputs in enumerate(PARTS["inputs"].names())
    for column, weights in enumerate(PARTS["weights"].names())
    if (row + column) % 2 == 0
]


@pytest.fixture(autouse=True)
def time_passes_between_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard orders a run's files by the second each was begun in, so no two may share one.

    Nobody resumes a run within the second; these tests do.
    """
    clock = itertools.count(time.time() + 1000)
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: next(clock)))


def figures(folder: Path) -> list[dict[str, str]]:
    """The log without what the clock says."""
    with (folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in accumulator.Tags()["scalars"] if "second" not in tag]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize(("inputs", "weights"), PAIRS)
def test_a_pair_of_perturbations_trains_saves_and_resumes_bitwise(inputs: str, weights: str, tmp_path: Path) -> None:
    settings = {"inputs": inputs, "weights": weights, "averaging": "ema"}
    if inputs == "pgd":
        settings["steps"] = 2
    whole = run(tmp_path / "whole", method_of("standard", settings))
    with pytest.raises(KeyboardInterrupt):
        # Three reports an epoch: the first and the last batch, and the saved epoch. This is the second epoch's first.
        run(tmp_path / "parts", method_of("standard", settings), reporter=StopsAt(4))
    assert saved(tmp_path / "parts")["state"]["epoch"] == 1
    resumed = run(tmp_path / "parts", method_of("standard", settings), resume=True)
    assert_same(saved(tmp_path / "whole"), saved(tmp_path / "parts"))
    assert_same(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))
    assert whole.state.epoch == resumed.state.epoch == 2 and whole.state.passes == resumed.state.passes


@pytest.mark.parametrize(
    ("part", "name"),
    [(part, name) for part in ("averaging", "objective", "optimizer", "schedule") for name in PARTS[part].names()],
)
def test_every_other_part_of_a_recipe_resumes_bitwise(part: str, name: str, tmp_path: Path) -> None:
    # An objective may compare clean with perturbed inputs, which then move; one looks at the clean ones alone.
    moving = {"inputs": "fgsm"} if part == "objective" and name != "input-gradient" else {}
    needed = {"timm": {"opt": "lamb"}, "swa": {"average_from": 0.3}}.get(name, {})
    method = method_of("sam", {part: name, "epochs": 3, **moving, **needed})
    run(tmp_path / "whole", method)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", method, reporter=StopsAt(7))
    run(tmp_path / "parts", method, resume=True)
    assert_same(saved(tmp_path / "whole"), saved(tmp_path / "parts"))


@pytest.mark.parametrize("pause", [0.0, 600.0])
def test_a_run_interrupted_at_every_report_in_turn_ends_the_same(pause: float, tmp_path: Path) -> None:
    train, validation = hold_out(digits().head(40), 16, 0)
    method = method_of("sam", {"epochs": 3})
    splits = {"train": train, "validation": validation}
    run(tmp_path / "whole", method, **splits)
    stops = 0
    for report in range(1, 100):
        try:
            run(tmp_path / "parts", method, **splits, resume=True, reporter=StopsAt(report), pause=pause)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 4
    assert_same(saved(tmp_path / "whole"), saved(tmp_path / "parts"))
    assert figures(tmp_path / "whole") == figures(tmp_path / "parts")
    assert events(tmp_path / "whole") == events(tmp_path / "parts")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"pause": 600.0}, [1, 4], id="short epochs share one, the first and the last have it"),
        pytest.param({"pause": 0.0}, [1, 2, 3, 4], id="long epochs each have one"),
        pytest.param({"pause": 600.0, "keep": 3}, [1, 2, 3, 4], id="epochs that stay each have one"),
        pytest.param({"pause": 600.0, "on_nan": "rollback"}, [0, 1, 4], id="rollback begins with the untrained"),
    ],
)
def test_an_epoch_has_a_checkpoint_where_the_last_one_is_some_seconds_old(
    options: dict[str, Any], expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, validation = hold_out(digits().head(40), 16, 0)
    save, written = RunFolder.save, list[int]()

    def save_and_look(folder: RunFolder, state: RunState, tensors: dict[str, Any], *, keep: int = 1) -> None:
        save(folder, state, tensors, keep=keep)
        written.append(state.epoch)
        if state.best_epoch:  # the best weights are those that the checkpoint beside them speaks of
            best = torch.load(tmp_path / "best.pt", weights_only=True)
            assert best["epoch"] == state.best_epoch

    monkeypatch.setattr(RunFolder, "save", save_and_look)
    run(tmp_path, method_of("sam", {"epochs": 4}), train=train, validation=validation, **options)
    assert written == expected


def test_a_run_that_dies_between_two_checkpoints_resumes_from_the_first_with_its_best_weights(tmp_path: Path) -> None:
    train, validation = hold_out(digits().head(40), 16, 0)
    method, splits = method_of("sam", {"epochs": 5, "lr": 0.01}), {"train": train, "validation": validation}
    whole = run(tmp_path / "whole", method, **splits, select="best")
    assert whole.state.best_epoch > 1
    with pytest.raises(KeyboardInterrupt):  # three reports an epoch: this is the fifth epoch's first
        run(tmp_path / "parts", method, **splits, select="best", reporter=StopsAt(13), pause=600.0)
    state = saved(tmp_path / "parts")["state"]
    assert state["epoch"] == state["best_epoch"] == 1
    assert torch.load(tmp_path / "parts" / "best.pt", weights_only=True)["epoch"] == 1
    resumed = run(tmp_path / "parts", method, **splits, select="best", resume=True, pause=600.0)
    assert_same(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))
    assert events(tmp_path / "whole") == events(tmp_path / "parts")


def test_events_and_log_hold_every_epoch_once_with_equal_figures(tmp_path: Path) -> None:
    train, validation = hold_out(digits().head(40), 16, 0)
    trained = run(tmp_path, method_of("sam", {"epochs": 3}), train=train, validation=validation)
    rows, scalars = figures(tmp_path), events(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert set(scalars) == set(rows[0]) - {"epoch"}
    assert {"loss", "train_accuracy", "validation_accuracy", "validation_robust_accuracy"} < set(scalars)
    for tag, series in scalars.items():
        assert [step for step, _ in series] == [1, 2, 3]
        assert [value for _, value in series] == pytest.approx([row[tag] for row in trained.state.log], rel=1e-6)
        assert [value for _, value in series] == pytest.approx([float(row[tag]) for row in rows], rel=1e-5)


@pytest.mark.parametrize("crash", range(1, 6))
def test_a_crash_at_any_write_leaves_a_run_that_resumes_to_the_same_end(
    crash: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = method_of("sam")
    run(tmp_path / "whole", method)
    writes = 0
    replace = Path.replace

    def crashing(self: Path, target: Path) -> Path:
        nonlocal writes
        writes += 1
        if writes == crash:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", crashing)
        run(tmp_path / "parts", method)
    run(tmp_path / "parts", method, resume=True)
    assert_same(saved(tmp_path / "whole"), saved(tmp_path / "parts"))
    assert figures(tmp_path / "whole") == figures(tmp_path / "parts")
    assert events(tmp_path / "whole") == events(tmp_path / "parts")


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tensorboard.summary.writer import event_file_writer
from training_samples import StopsAt, method_of, run

class Killed(StopsAt):
    def update(self, done, figures="", share=None):
        try:
            super().update(done, figures)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGKILL)

run(Path(sys.argv[2]), method_of("sam", {"epochs": 3}), reporter=Killed(8))
"""


@pytest.mark.slow
def test_a_killed_process_loses_no_epoch_that_was_saved(tmp_path: Path) -> None:
    folder = Path(__file__).parent
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "parts")], capture_output=True, text=True
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    # Killed in the third epoch: the two before it are in the checkpoint, the log, and TensorBoard's events.
    assert saved(tmp_path / "parts")["state"]["epoch"] == 2
    assert [step for step, _ in events(tmp_path / "parts")["loss"]] == [1, 2]
    method = method_of("sam", {"epochs": 3})
    run(tmp_path / "parts", method, resume=True)
    run(tmp_path / "whole", method)
    assert_same(saved(tmp_path / "whole"), saved(tmp_path / "parts"))
    assert figures(tmp_path / "whole") == figures(tmp_path / "parts")
    assert events(tmp_path / "whole") == events(tmp_path / "parts")


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    method = method_of("sam")
    run(tmp_path, method)
    before = [(tmp_path / name).read_bytes() for name in ("checkpoint.pt", "log.csv", "config.json")]
    again = run(tmp_path, method, resume=True)
    assert again.state.epoch == 2
    assert before == [(tmp_path / name).read_bytes() for name in ("checkpoint.pt", "log.csv", "config.json")]


def test_a_run_is_not_overwritten_unasked_nor_continued_as_another(tmp_path: Path) -> None:
    run(tmp_path, method_of("sam"))
    before = saved(tmp_path)
    with pytest.raises(InputError, match=r"holds a run already: add resume=True"):
        run(tmp_path, method_of("sam"))
    other = digits().select(torch.arange(24, 48))

    def images(train: Split) -> str:
        return f"train_fingerprint='{train.fingerprint[:12]}…'"

    differing: list[tuple[dict[str, Any], str]] = [
        ({"method": method_of("sam", {"rho": 0.3})}, r"weights\.rho=0\.2 and this command gives weights\.rho=0\.3"),
        ({"method": method_of("sam"), "seed": 1}, r"seed=0 and this command gives seed=1"),
        (
            {"method": method_of("sam"), "precision": "bf16"},
            r"precision='fp32' and this command gives precision='bf16'",
        ),
        ({"method": method_of("sam"), "train": digits().head(20)}, r"train_examples=24 and .* train_examples=20"),
        ({"method": method_of("sam"), "train": other}, rf"{images(digits().head(24))} and .* {images(other)}"),
    ]
    for changes, message in differing:
        with pytest.raises(InputError, match=f"cannot resume .*: it was started with {message}$"):
            run(tmp_path, **changes, resume=True)
        with pytest.raises(InputError, match=f"holds another run already: it was started with {message}; choose"):
            run(tmp_path, **changes)
    assert_same(before, saved(tmp_path))


@pytest.mark.parametrize("damage", ["cut", "emptied", "foreign", "pickle"])
def test_a_damaged_checkpoint_is_named_and_not_trained_on(damage: str, tmp_path: Path) -> None:
    method = method_of("standard")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, method, reporter=StopsAt(4))
    file = tmp_path / "checkpoint.pt"
    whole = file.read_bytes()
    pickle = b"cposix\nsystem\n(S'touch owned'\ntR."
    content = {"cut": whole[: len(whole) // 2], "emptied": b"", "foreign": b"weights", "pickle": pickle}[damage]
    file.write_bytes(content)
    with pytest.raises(SamBenchError, match=r"checkpoint\.pt is .*not a checkpoint of this program"):
        run(tmp_path, method, resume=True)
    assert file.read_bytes() == content


def test_a_checkpoint_of_another_version_is_refused_and_stays(tmp_path: Path) -> None:
    method = method_of("standard")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, method, reporter=StopsAt(4))
    file = tmp_path / "checkpoint.pt"
    content = torch.load(file, weights_only=True)
    for written, told in ((content["format"] + 1, content["format"] + 1), (None, 1)):
        other = {key: value for key, value in content.items() if key != "format"}
        torch.save(other if written is None else {"format": written, **other}, file)
        before = file.read_bytes()
        with pytest.raises(SamBenchError, match=rf"written by another version of sam-bench \(its format is {told}, "):
            run(tmp_path, method, resume=True)
        assert file.read_bytes() == before
    torch.save(content, file)
    assert run(tmp_path, method, resume=True).state.epoch == 2


HOLDS = """
import sys
from pathlib import Path
from sam_bench.training.folder import RunFolder

with RunFolder(Path(sys.argv[1])).claimed():
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_a_folder_in_use_is_refused_until_its_process_ends_however_it_ends(tmp_path: Path) -> None:
    method = method_of("standard")
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "claimed\n"
        with pytest.raises(InputError, match=rf"is in use by process {holder.pid} on .*; wait for it"):
            run(tmp_path, method)
        holder.kill()
        holder.wait()
    assert run(tmp_path, method).state.epoch == 2
    assert not (tmp_path / "in-use").exists()
