"""What a process leaves behind, killed or done, is never taken for something else, and nothing it knew is lost."""

from __future__ import annotations

import dataclasses
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_samples import CPU, Nearest, attacked, digits, evaluate, log_of, problem_of
from team import Done, run_as_team
from torch import Tensor, nn

import sam_bench.attacks.autoattack.attack as autoattack
from sam_bench import api
from sam_bench.attacks import ATTACKS, Attack
from sam_bench.attacks.events import Event, Verdict
from sam_bench.attacks.gradient import PGDAttack
from sam_bench.attacks.warnings import square_warnings
from sam_bench.errors import InputError
from sam_bench.evaluation import Local, Log, Problem, evaluate_curve_of
from sam_bench.progress import Reporter, SilentReporter
from sam_bench.records import ComponentSpec, EvaluationRecord, Radius


class Quantised(nn.Module):
    """Its gradient is exactly zero, so that Square alone gets anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Nearest()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net((x * 8).round() / 8)
        return logits


class Heard(SilentReporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def recorded(
    problem: Problem, path: Path, *, resume: bool = False, reporter: Reporter | None = None
) -> EvaluationRecord:
    return evaluate_curve_of(problem, [problem.eps], [path], executor=Local(CPU), resume=resume, reporter=reporter)[0]


def stop_after(lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the process stop instead of writing another verdict; that an image is right as it is does not count."""
    written = 0
    add = Log.add

    def counted(self: Log, event: Event) -> None:
        nonlocal written
        if isinstance(event, Verdict) and (event.outcome is not None or event.attacks_survived):
            if written == lines:
                raise KeyboardInterrupt
            written += 1
        add(self, event)

    monkeypatch.setattr(Log, "add", counted)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return problem_of(Nearest(), digits(30))


def test_verdicts_that_say_not_of_what_they_are_are_refused(problem: Problem, tmp_path: Path) -> None:
    attacked(problem, tmp_path)
    (tmp_path / "identity.json").unlink()
    for resume in (False, True):
        with pytest.raises(InputError, match=r"nothing says of which evaluation; delete the folder"):
            attacked(problem, tmp_path, resume=resume)


def test_a_log_half_removed_still_says_of_what_it_is(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever order a file system lists a folder in, its identity goes last."""
    attacked(problem, tmp_path / "j")
    removed: list[str] = []
    unlink = Path.unlink

    def killed(self: Path, missing_ok: bool = False) -> None:
        removed.append(self.name)
        unlink(self, missing_ok=missing_ok)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            Log(tmp_path / "j", problem).remove()
    assert removed == ["part-0001.jsonl"] and (tmp_path / "j" / "identity.json").exists()
    Log(tmp_path / "j", problem).remove()
    assert not (tmp_path / "j").exists()


def test_killed_between_record_and_log_the_next_one_tidies_up(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.json"
    with monkeypatch.context() as patched:
        patched.setattr(Log, "remove", lambda self: None)
        record = recorded(problem, path)
    assert (tmp_path / "r.progress").exists()
    assert recorded(problem, path, resume=True).verdicts == record.verdicts
    assert [each.name for each in tmp_path.iterdir()] == ["r.json"]


def test_a_finished_record_does_not_cost_another_evaluation_its_log(problem: Problem, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    recorded(problem, path)
    other = dataclasses.replace(problem, eps=Radius("1/255"))
    attacked(other, tmp_path / "r.progress")
    recorded(problem, path, resume=True)
    assert Log(tmp_path / "r.progress", other).is_of_problem()


_ITS_OWN = {
    "autoattack": [],
    "autoattack-bf16": ["bf16"],
    "autoattack-screen": ["upper-bound"],
    "autoattack-sampled": ["sampled"],
}


@pytest.mark.parametrize("name", _ITS_OWN)
@pytest.mark.parametrize("lines", [1, 6, 20])
def test_doubts_outlive_a_kill(name: str, lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written when they arise: before the verdicts that keep an example from being run again."""
    plan = autoattack.build_suite

    def short(*args: Any, **options: Any) -> list[Any]:
        return [dataclasses.replace(part, iterations=12) for part in plan(*args, **options)]

    monkeypatch.setattr(autoattack, "build_suite", short)
    attack: Attack = ATTACKS.build(ComponentSpec(method=name))
    problem = problem_of(Quantised(), digits(12), attack, eps=Radius("2/255"))
    whole = attacked(problem, tmp_path / "whole")
    codes = {doubt.split(":")[0] for doubt in whole.warnings}
    assert codes >= {"zero-gradients", *_ITS_OWN[name]}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_after(lines, patched)
        attacked(problem, tmp_path / "parts")
    again = attacked(problem, tmp_path / "parts", resume=True)
    assert set(again.warnings) == set(whole.warnings)
    assert again.verdicts == whole.verdicts


def test_squares_gain_is_a_share_of_all_examples() -> None:
    """As upstream counts it: 0.2 % of all, not of those that the model gets right without an attack."""
    attacks = ["apgd-ce", "square"]
    few = ["misclassified"] * 600 + ["square"] * 2 + ["robust"] * 398
    assert square_warnings(few, attacks) == []
    (doubt,) = square_warnings([*few[:-1], "square"], attacks)
    assert doubt.code == "square-better" and "0.30% of all examples" in doubt.text
    assert square_warnings([*few[:-1], "square"], ["square"]) == [] == square_warnings([], attacks)


def test_witnesses_that_are_missing_are_told_of_and_those_of_an_earlier_record_go(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, bundle = tmp_path / "r.json", tmp_path / "r.adversarial.npz"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_after(12, patched)
        recorded(problem, path)
    heard, keeping = Heard(), dataclasses.replace(problem, save_adversarial=True)
    record = recorded(keeping, path, resume=True, reporter=heard)
    kept = np.load(bundle)
    missing = record.verdicts.count("pgd") - len(kept["index"])
    assert missing > 0 and any(f"lacks {missing} of the examples that were broken" in said for said in heard.said)
    assert str(kept["eps"]) == "16/255" and str(kept["checkpoint_sha256"]) == "a" * 64
    path.unlink()
    recorded(dataclasses.replace(problem, attack=PGDAttack(steps=2)), path)
    assert not bundle.exists()


def test_processes_that_share_an_evaluation_wait_for_the_slowest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two hours are for a team that goes in step; the last example of a shard may take longer."""
    asked: list[timedelta] = []

    def begin(backend: str, timeout: timedelta) -> None:
        asked.append(timeout)
        raise InterruptedError

    monkeypatch.setattr(torch.distributed, "init_process_group", begin)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InterruptedError):
        api.evaluate("no-such-model")
    assert asked and asked[0] > timedelta(days=7)


def over_two_disks(folder: Path, *arguments: str) -> Done:
    return run_as_team(Path(__file__).parent / "two_disks.py", str(folder), *arguments, cwd=folder)


@pytest.mark.slow
def test_machines_without_a_common_disk_leave_nothing_to_one_another(tmp_path: Path) -> None:
    done = over_two_disks(tmp_path, "64/255")
    assert done.returncode == 0, done.stderr
    verdicts = json.loads(done.stdout)
    assert verdicts == evaluate(Nearest(), digits(40), eps=Radius("64/255")).verdicts and "pgd" in verdicts
    assert not (tmp_path / "0" / "r.progress").exists() and not (tmp_path / "1" / "r.progress").exists()
    assert len(np.load(tmp_path / "0" / "r.adversarial.npz")["index"]) == verdicts.count("pgd")
    # A leftover on the second machine's disk is not looked at: rank 0 alone reads and writes.
    other = problem_of(Nearest(), digits(40), eps=Radius("64/255"))
    attacked(other, tmp_path / "1" / "r.progress")
    for resume in ([], ["--resume"]):
        (tmp_path / "0" / "r.json").unlink(missing_ok=True)
        again = over_two_disks(tmp_path, "0", *resume)
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout) == evaluate(Nearest(), digits(40), eps=Radius("0")).verdicts != verdicts
    assert len(log_of(other, tmp_path / "1" / "r.progress").verdicts) == 40


@pytest.mark.slow
def test_processes_of_torchrun_go_on_with_what_one_process_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_of(Nearest(), digits(40), eps=Radius("64/255"), save_adversarial=True)
    (tmp_path / "0").mkdir()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_after(25, patched)
        attacked(problem, tmp_path / "0" / "r.progress")
    done = over_two_disks(tmp_path, "64/255", "--resume")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == evaluate(Nearest(), digits(40), eps=Radius("64/255")).verdicts


@pytest.mark.slow
def test_a_process_of_torchrun_that_fails_ends_the_others_with_its_reason(tmp_path: Path) -> None:
    done = over_two_disks(tmp_path, "64/255", "--fail")
    assert done.returncode != 0 and "SamBenchError: it failed on rank 1" in done.stderr
