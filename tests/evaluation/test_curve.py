"""A curve beside records that are there: what is in its way is said before anything is attacked, what fits is used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluation_samples import Nearest
from second_attack_samples import ShortMargin
from torch import Tensor, nn

from sam_bench import api
from sam_bench.attacks import Event, Verdict
from sam_bench.attacks.gradient import PGDAttack
from sam_bench.errors import InputError
from sam_bench.evaluation import results
from sam_bench.records import ROBUST, EvaluationRecord


class Wavy(nn.Module):
    """Its loss goes up and down, so that an attack misses in a large ball what it finds in a small one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Nearest()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x + 0.2 * (80 * x).sin())
        return logits


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "PGDMarginAttack", ShortMargin)


@pytest.fixture(scope="module")
def wavy() -> Wavy:
    return Wavy()


def curve(wavy: Wavy, *radii: int, **options: Any) -> list[EvaluationRecord]:
    """Of one step; radii in units of 1/255."""
    given: dict[str, Any] = {"attack": "pgd", "settings": {"steps": 1}, "dataset": "digits", "image_size": 8}
    return api.evaluate_curve(wavy, [f"{eps}/255" for eps in radii], **given | {"n_examples": 60} | options)


def files() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path("evaluations").rglob("*") if path.is_file()}


def forget(eps: int) -> None:
    """Delete the record at a radius."""
    (path,) = Path("evaluations").rglob(f"*-{eps}over255-*.json")
    path.unlink()


def refused(wavy: Wavy, *radii: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> str:
    """The message of a curve that is refused without an attack, and leaves all files as they are."""

    def attacked(*_: Any, **__: Any) -> list[str]:
        raise AssertionError("the attack was started")

    before = files()
    with monkeypatch.context() as patched, pytest.raises(InputError) as message:
        patched.setattr(PGDAttack, "events", attacked)
        curve(wavy, *radii, **options)
    assert files() == before
    return str(message.value)


def test_a_record_made_alone_is_in_the_way_at_once_and_built_on_with_resume(
    wavy: Wavy, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve(wavy, 32, command="alone")
    for radii in [(8, 16, 32), (24, 32)]:
        said = refused(wavy, *radii, monkeypatch=monkeypatch)
        assert said.endswith(
            "32over255-n60.json is the finished record of another evaluation: it has carried = 0 and this command "
            "gives what smaller balls break; add resume=True to build on it, or delete it"
        )
    built = curve(wavy, 8, 16, 32, resume=True)
    assert built[-1].command == "alone" and built[-1].carried == built[1].verdicts.count("pgd") > 0
    forget(32)
    assert [each.verdicts for each in curve(wavy, 8, 16, 32, resume=True)] == [each.verdicts for each in built]


@pytest.mark.parametrize("added", [4, 12, 24])
def test_a_radius_is_added_to_a_finished_curve(added: int, wavy: Wavy, monkeypatch: pytest.MonkeyPatch) -> None:
    curve(wavy, 8, 16, 32, command="before")
    radii = sorted((8, 16, 32, added))
    said = refused(wavy, *radii, monkeypatch=monkeypatch)
    assert said.endswith("add resume=True to build on it, or delete it")
    more = curve(wavy, *radii, resume=True, command="more")
    assert [str(each.eps) for each in more if each.command == "more"] == [f"{added}/255"]
    whole = [(each.verdicts, each.carried) for each in more]
    for eps in radii:
        forget(eps)
    assert [(each.verdicts, each.carried) for each in curve(wavy, *radii)] == whole
    assert whole[-1][1] > 0


@pytest.mark.parametrize("radii", [(8, 16, 32), (0, 16)])
def test_a_finished_curve_is_made_anew_without_resume(radii: tuple[int, ...], wavy: Wavy) -> None:
    first = curve(wavy, *radii, command="first")
    again = curve(wavy, *radii, command="again")
    assert [each.verdicts for each in again] == [each.verdicts for each in first]
    assert {each.command for each in again} == {"again"} and (first[-1].carried > 0) == (radii[0] > 0)


def test_adversarial_examples_that_were_not_kept_are_missed_before_the_smaller_ball_is_attacked(
    wavy: Wavy, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve(wavy, 16)
    kept: dict[str, Any] = {"save_adversarial": True, "monkeypatch": monkeypatch}
    assert refused(wavy, 8, 16, **kept).endswith("gives what smaller balls break; delete it")
    said = refused(wavy, 8, 16, resume=True, **kept)
    assert said.endswith("its adversarial examples were not kept; delete it to attack again and keep them")
    forget(16)
    curve(wavy, 8, 16, save_adversarial=True)
    assert len(list(Path("evaluations").rglob("*.adversarial.npz"))) == 2


def test_a_second_opinion_stays_with_a_record_that_a_curve_builds_on(wavy: Wavy) -> None:
    (alone,) = curve(wavy, 32, second_attack=True)
    before = alone.second_opinion
    assert before is not None and before.gap > 0.005
    smaller, built = curve(wavy, 24, 32, resume=True)
    added = built.second_opinion
    assert smaller.second_opinion is None and added is not None
    standing = {place for place, verdict in enumerate(built.verdicts) if verdict == ROBUST}
    assert added.broken == sorted(standing.intersection(before.broken)) != before.broken
    assert added.gap == pytest.approx(len(added.broken) / 60)
    assert added.robust_accuracy == pytest.approx(built.robust_accuracy - added.gap)
    (warning,) = built.warnings
    assert warning.startswith("second-opinion: ") and f"a further {added.gap:.2%} of" in warning


def test_on_a_curve_built_on_a_second_opinion_what_it_broke_in_a_small_ball_stays_broken(wavy: Wavy) -> None:
    curve(wavy, 32, second_attack=True)
    smaller, built = curve(wavy, 8, 32, second_attack=True, resume=True)
    forget(32)
    _, whole = curve(wavy, 8, 32, second_attack=True, resume=True)
    assert smaller.second_opinion is not None and built.second_opinion is not None and whole.second_opinion is not None
    assert built.second_opinion.broken == whole.second_opinion.broken and built.warnings == whole.warnings
    for place in smaller.second_opinion.broken:
        assert built.verdicts[place] != ROBUST or place in built.second_opinion.broken


def test_one_file_is_not_asked_of_several_radii(wavy: Wavy, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refused(wavy, 8, 16, output="record.json", monkeypatch=monkeypatch)
    assert said == "output names one file, but eps gives several radii; leave output away"
    assert not Path("record.json").exists()


def test_what_was_found_at_a_radius_is_used_by_a_curve_with_smaller_ones(
    wavy: Wavy, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [record.verdicts for record in curve(wavy, 8, 32)]
    forget(8), forget(32)

    class KilledError(Exception):
        pass

    settled: list[int] = []
    events = PGDAttack.events

    def killed_half_way(*args: Any, **how: Any) -> Iterator[Event]:
        for event in events(*args, **how):
            if isinstance(event, Verdict) and event.outcome == ROBUST:
                if len(settled) == 5:
                    raise KilledError
                settled.append(event.example)
            yield event

    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(PGDAttack, "events", killed_half_way)
        curve(wavy, 32)
    records = curve(wavy, 8, 32, resume=True)
    assert [record.verdicts for record in records] == expected
    assert records[1].carried > 0


def test_finished_records_in_a_folder_that_cannot_be_written_are_given_back(
    wavy: Wavy, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"save_adversarial": True, "second_attack": True}
    records, before = curve(wavy, 8, 32, **options), files()

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)  # root may write everywhere
    for name in ("mkstemp", "NamedTemporaryFile"):
        monkeypatch.setattr(f"tempfile.{name}", refuse)
    for name in ("mkdir", "unlink", "touch"):
        monkeypatch.setattr(Path, name, refuse)
    assert curve(wavy, 8, 32, resume=True, **options) == records and files() == before
    with pytest.raises(InputError, match="no permission to write to"):
        curve(wavy, 8, 16, 32, resume=True, **options)
