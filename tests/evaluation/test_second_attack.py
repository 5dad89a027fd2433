"""A second attack: what another attack breaks of what stood, while every verdict stays as it is."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_samples import CPU, Nearest, attacked, digits, evaluate, problem_of
from hypothesis import given
from hypothesis import strategies as st
from second_attack_samples import ShortMargin

from sam_bench import api
from sam_bench.attacks import Attack
from sam_bench.attacks.gradient import PGDAttack
from sam_bench.attacks.margin import PGDMarginAttack
from sam_bench.attacks.warnings import second_attack_warnings
from sam_bench.data import to_float
from sam_bench.errors import InputError
from sam_bench.evaluation import Local, Log, Processes, results, second_attack_for
from sam_bench.evaluation.results import left_by, with_second_attack
from sam_bench.records import ROBUST, EvaluationRecord, Radius, SecondAttack, read_record, write_record

WEAK = PGDAttack(steps=1, step_size="4/255", random_start=False)
RECORDS = sorted(
    path for path in (Path(__file__).parents[2] / "leaderboards").rglob("records/*.json") if path.suffixes == [".json"]
)


@pytest.fixture(scope="module")
def nearest() -> Nearest:
    return Nearest()


def asked(nearest: Nearest, first: Attack, path: Path, *, workers: int = 1, **changes: Any) -> EvaluationRecord:
    """The record of an evaluation with a second attack on what was left."""
    record = evaluate(nearest, digits(), first, **changes)
    second = left_by(record, problem_of(nearest, digits(), first, **changes), ShortMargin(), [])
    executor = Processes(workers, CPU) if workers > 1 else Local(CPU)
    return with_second_attack(record, second, attacked(second, path, executor))


def test_it_says_what_another_attack_breaks_of_what_stood_and_changes_no_verdict(
    nearest: Nearest, tmp_path: Path
) -> None:
    alone, record = evaluate(nearest, digits(), WEAK), asked(nearest, WEAK, tmp_path)
    added = record.second_opinion
    assert added is not None and record.verdicts == alone.verdicts
    assert (record.robust_accuracy, record.accuracy_after) == (alone.robust_accuracy, alone.accuracy_after)
    x, y = to_float(digits().images), digits().labels
    whole = ShortMargin().run(nearest, x, y, norm="Linf", eps=16 / 255, seed=3)
    expected = [
        place
        for place, verdict in enumerate(alone.verdicts)
        if verdict == ROBUST and whole.verdicts[place] == "pgd-margin"
    ]
    assert added.broken == expected and 2 < len(expected) < alone.verdicts.count(ROBUST)
    assert added.gap == pytest.approx(len(expected) / 60)
    assert added.robust_accuracy == pytest.approx(record.robust_accuracy - added.gap)
    assert (added.attack, added.settings) == ("pgd-margin", {"steps": 4, "restarts": 2, "random_start": True})
    assert [warning.split(":")[0] for warning in record.warnings] == ["second-opinion"]
    assert f"pgd-margin broke a further {added.gap:.2%} of all examples, which pgd had left" in record.warnings[0]


def test_where_it_breaks_nothing_there_is_no_doubt(nearest: Nearest, tmp_path: Path) -> None:
    record = asked(nearest, ShortMargin(steps=12), tmp_path)
    added = record.second_opinion
    assert added is not None and added.broken == [] and record.warnings == []
    assert added.robust_accuracy == record.robust_accuracy > 0


@given(broken=st.integers(0, 10_000), total=st.integers(1, 10_000))
def test_it_is_a_doubt_from_more_than_half_a_point_on(broken: int, total: int) -> None:
    gap = min(broken, total) / total
    assert bool(second_attack_warnings("autoattack", "pgd-margin", gap)) == (gap > 0.005)


@pytest.mark.slow
def test_processes_that_share_it_find_what_one_finds(nearest: Nearest, tmp_path: Path) -> None:
    alone = asked(nearest, WEAK, tmp_path / "alone").second_opinion
    shared = asked(nearest, WEAK, tmp_path / "shared", workers=2).second_opinion
    assert alone is not None and shared is not None
    assert shared.model_copy(update={"seconds": alone.seconds}) == alone


def test_an_attack_gives_no_opinion_on_itself_and_none_where_it_cannot_search() -> None:
    with pytest.raises(InputError, match=r"second_attack runs pgd-margin, which is the attack itself"):
        second_attack_for(PGDMarginAttack(steps=3), "Linf")
    with pytest.raises(InputError, match=r"norm='L1': pgd-margin searches in L2 and Linf"):
        second_attack_for(WEAK, "L1")
    assert second_attack_for(WEAK, "L2") == PGDMarginAttack(steps=100, restarts=10)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_records_from_before_there_were_opinions_are_read_and_written_as_they_are(path: Path, tmp_path: Path) -> None:
    record = read_record(path, EvaluationRecord)
    assert record.second_opinion is None
    write_record(tmp_path / path.name, record)
    # Byte by byte but for fields that came later: a default of theirs is written now.
    before, after = json.loads(path.read_text()), json.loads((tmp_path / path.name).read_text())
    assert {key: after[key] for key in before} == before and "second_opinion" not in after


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda robust, other: {"broken": [other]}, "second_opinion.broken must name, in ascending order, examples "),
        (lambda robust, other: {"broken": robust[::-1]}, "second_opinion.broken must name, in ascending order"),
        (lambda robust, other: {"broken": [robust[0], robust[0]]}, "second_opinion.broken must name"),
        (lambda robust, other: {"broken": [60]}, "second_opinion.broken must name"),
        (lambda robust, other: {"robust_accuracy": 0.99}, "second_opinion.robust_accuracy is 0.99, but the verdicts g"),
        (lambda robust, other: {"gap": 0.99}, "second_opinion.gap is 0.99, but the verdicts give "),
    ],
)
def test_an_opinion_that_its_record_does_not_bear_out_is_refused(
    changes: Callable[[list[int], int], dict[str, Any]], message: str, nearest: Nearest, tmp_path: Path
) -> None:
    record = asked(nearest, WEAK, tmp_path)
    assert record.second_opinion is not None
    robust = [place for place, verdict in enumerate(record.verdicts) if verdict == ROBUST]
    (other, *_) = (place for place, verdict in enumerate(record.verdicts) if verdict != ROBUST)
    fields = record.model_dump()
    fields["second_opinion"] |= changes(robust, other)
    with pytest.raises(ValueError, match=message):
        EvaluationRecord(**fields)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo that holds `tiny`."""
    folder = tmp_path_factory.mktemp("zoo")
    api.train(
        "standard",
        "digits",
        arch="preactresnet10",
        arch_options={"width": 4},
        image_size=8,
        settings={"epochs": 3, "crop_padding": 0, "flip": False, "batch_size": 32},
        name="tiny",
        limit_train=400,
        precision="fp32",
        zoo=folder,
        run_dir=folder / "run",
    )
    return folder


@pytest.fixture
def options(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An evaluation of it in an empty folder, its opinion cut short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "PGDMarginAttack", ShortMargin)
    weak = {"steps": 1, "step_size": "2/255", "random_start": False}
    return {"model": "tiny", "attack": "pgd", "settings": weak, "n_examples": 60, "zoo": zoo, "second_attack": True}


def _without_times(record: EvaluationRecord) -> dict[str, Any]:
    added = record.second_opinion
    fields = record.model_dump(exclude={"seconds", "created"})
    return fields | {"second_opinion": added and added.model_dump(exclude={"seconds"})}


def stop_in_it(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the process stop instead of writing another line of the second attack's log."""
    add, written = Log._write, 0

    def stop(self: Any, entry: dict[str, Any]) -> None:
        nonlocal written
        if ".opinion" in str(self.path):
            if written == after:
                raise KeyboardInterrupt
            written += 1
        add(self, entry)

    monkeypatch.setattr(Log, "_write", stop)


@pytest.mark.parametrize("after", [0, 3, 8])
def test_interrupted_in_the_middle_of_it_nothing_is_lost(
    after: int, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = api.evaluate(**options, eps="16/255", output=tmp_path / "whole.json")
    assert whole.second_opinion is not None and len(whole.second_opinion.broken) > 3
    again: dict[str, Any] = {**options, "eps": "16/255", "output": tmp_path / "again.json"}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_in_it(after, patched)
        api.evaluate(**again)
    assert {path.name for path in tmp_path.glob("again*")} == {"again.progress", "again.opinion.progress"}
    with pytest.raises(InputError, match=r"again\.progress holds an evaluation that was not finished: add resume=True"):
        api.evaluate(**again)
    record = api.evaluate(**again, resume=True)
    assert _without_times(record) == _without_times(whole)
    assert {path.name for path in tmp_path.glob("again*")} == {"again.json"}
    assert read_record(tmp_path / "again.json", EvaluationRecord) == record


def test_it_is_added_to_a_finished_record_and_not_asked_twice(options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    alone = api.evaluate(**options | {"second_attack": False}, eps="16/255", output=path)
    assert alone.second_opinion is None
    added = api.evaluate(**options, eps="16/255", output=path, resume=True)
    assert added.second_opinion is not None and added.created == alone.created
    assert added.model_copy(update={"second_opinion": None, "warnings": alone.warnings}) == alone
    before = path.read_bytes()
    for second_attack in (True, False):
        again = api.evaluate(**options | {"second_attack": second_attack}, eps="16/255", output=path, resume=True)
        assert again == added and path.read_bytes() == before


def test_on_a_curve_each_radius_has_one_and_what_it_broke_stays_broken(options: dict[str, Any]) -> None:
    curve = api.evaluate_curve(options.pop("model"), ["2/255", "8/255", "16/255"], **options, save_adversarial=True)
    opinions: list[SecondAttack] = [record.second_opinion for record in curve if record.second_opinion is not None]
    assert len(opinions) == 3
    left = [added.robust_accuracy for added in opinions]
    assert left == sorted(left, reverse=True) and left[0] > left[-1]
    for smaller, larger in itertools.pairwise(curve):
        assert smaller.second_opinion is not None and larger.second_opinion is not None
        for place in smaller.second_opinion.broken:
            assert larger.verdicts[place] != ROBUST or place in larger.second_opinion.broken
    assert [record.carried for record in curve[1:]] == [record.verdicts.count("pgd") for record in curve[:-1]]
    (folder,) = Path("evaluations").iterdir()
    assert len(list(folder.glob("*.opinion.adversarial.npz"))) == 3 and not list(folder.glob("*.progress"))


def test_radius_zero_leaves_nothing_to_break(options: dict[str, Any], tmp_path: Path) -> None:
    record = api.evaluate(**options, eps=Radius("0"), output=tmp_path / "zero.json")
    assert record.second_opinion is not None and record.second_opinion.broken == []
    assert record.second_opinion.robust_accuracy == record.clean_accuracy > 0


def test_its_progress_outlives_a_resume_without_it(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = api.evaluate(**options, eps="16/255", output=tmp_path / "whole.json")
    again: dict[str, Any] = {**options, "eps": "16/255", "output": tmp_path / "again.json"}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_in_it(5, patched)
        api.evaluate(**again)
    assert api.evaluate(**again | {"second_attack": False}, resume=True).second_opinion is None
    assert {path.name for path in tmp_path.glob("again*")} == {"again.json", "again.opinion.progress"}
    (part,) = (tmp_path / "again.opinion.progress").glob("part-*")
    assert len(part.read_text().splitlines()) == 5
    assert _without_times(api.evaluate(**again, resume=True)) == _without_times(whole)
    assert {path.name for path in tmp_path.glob("again*")} == {"again.json"}


def test_its_adversarial_examples_go_with_it(options: dict[str, Any], tmp_path: Path) -> None:
    path, bundle = tmp_path / "a.json", tmp_path / "a.opinion.adversarial.npz"
    api.evaluate(**options, eps="16/255", output=path, save_adversarial=True)
    assert bundle.exists()
    api.evaluate(**options | {"second_attack": False}, eps="16/255", output=path)
    assert {each.name for each in tmp_path.glob("a*")} == {"a.json"}


def test_its_adversarial_examples_are_made_where_they_are_asked_for_later(
    options: dict[str, Any], tmp_path: Path
) -> None:
    path, bundle = tmp_path / "b.json", tmp_path / "b.opinion.adversarial.npz"
    asked: dict[str, Any] = {**options, "eps": "16/255", "output": path}
    api.evaluate(**asked | {"second_attack": False}, save_adversarial=True)
    judged = api.evaluate(**asked, resume=True)
    assert judged.second_opinion is not None and not bundle.exists()
    again = api.evaluate(**asked, resume=True, save_adversarial=True)
    assert _without_times(again) == _without_times(judged) and again.created == judged.created
    assert np.load(bundle)["index"].tolist() == judged.second_opinion.broken
    before = path.read_bytes(), bundle.read_bytes()
    api.evaluate(**asked, resume=True, save_adversarial=True)
    assert (path.read_bytes(), bundle.read_bytes()) == before
