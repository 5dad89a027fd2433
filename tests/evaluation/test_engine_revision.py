"""An upgrade does not strand a half-done evaluation, unless it changes what the engine finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from evaluation_samples import Nearest, attacked, digits, problem_of
from interruptions import interrupted_after, tells_more_than_clean

from sam_bench import api
from sam_bench.errors import InputError
from sam_bench.evaluation import Problem
from sam_bench.records import EvaluationRecord, Radius, read_record


@pytest.fixture
def half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Problem:
    """An evaluation that was interrupted after three verdicts, in `tmp_path`."""
    problem = problem_of(Nearest(), digits(10), eps=Radius("64/255"))
    with interrupted_after(3, monkeypatch), pytest.raises(KeyboardInterrupt):
        attacked(problem, tmp_path, resume=True)
    return problem


def _edit(folder: Path, engine: str) -> None:
    path = folder / "identity.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"engine": engine}))


def _sessions(folder: Path) -> list[int]:
    """Lines of each session, but for those of a clean image."""
    parts = (part.read_text().splitlines() for part in sorted(folder.glob("part-*")))
    return [sum(tells_more_than_clean(json.loads(line)) for line in lines) for lines in parts]


@pytest.mark.parametrize("engine", ["sam-bench revision 1", "sam-bench 0.1.0"])
def test_another_version_of_the_package_goes_on(
    half_done: Problem, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert json.loads((tmp_path / "identity.json").read_text())["engine"] == "sam-bench revision 1"
    _edit(tmp_path, engine)
    monkeypatch.setattr("sam_bench.attacks.base.__version__", "9.9.9")
    record = attacked(half_done, tmp_path, resume=True)
    assert len(record.verdicts) == 10 and _sessions(tmp_path)[0] == 3


def test_another_revision_of_the_engine_does_not(
    half_done: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam_bench.attacks.base.ENGINE_REVISION", 2)
    with pytest.raises(InputError, match="engine = sam-bench revision 1 and this command gives sam-bench revision 2"):
        attacked(half_done, tmp_path, resume=True)


def test_a_finished_record_is_taken_after_an_upgrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    path = tmp_path / "record.json"

    def evaluate() -> EvaluationRecord:
        return api.evaluate(
            module,
            dataset="digits-8px",
            attack="fgsm",
            eps="1/255",
            n_examples=4,
            device="cpu",
            output=path,
            resume=True,
        )

    first = evaluate()
    assert (first.engine, first.engine_revision) == ("sam-bench 0.1.0", 1)
    monkeypatch.setattr("sam_bench.attacks.base.__version__", "9.9.9")
    assert evaluate() == first == read_record(path, EvaluationRecord)
    monkeypatch.setattr("sam_bench.attacks.base.ENGINE_REVISION", 2)
    with pytest.raises(InputError, match="finished record of another evaluation: it has engine = sam-bench revision 1"):
        evaluate()
