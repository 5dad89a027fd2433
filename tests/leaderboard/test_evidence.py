"""A row without adversarial examples stays claimed and the others do not; `evidence` finds the examples again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_board import DATASET, Planted, bundle_of

from sam_bench import api
from sam_bench.api import evidence
from sam_bench.cli.main import main
from sam_bench.errors import InputError
from sam_bench.leaderboard.verification import state_of
from sam_bench.leaderboard.verify import write_report
from sam_bench.records import sha256_file


def _strip(board: Planted, *records: Path) -> None:
    for record in records:
        record.with_suffix(".adversarial.npz").unlink()
    board.seal()


def test_a_row_without_examples_stays_claimed_while_the_others_are_proven(planted: Planted) -> None:
    _strip(planted, planted.pgd)
    found = planted.verify()
    assert not found.passed and not found.refuted and found.state == "replayed"
    assert [row.state for row in found.rows] == ["replayed", "claimed"]
    assert f"1 of 2 rows have no adversarial examples and stay claimed: records/{planted.pgd.name}" in found.reason
    write_report(found)
    states = [state_of(planted.entry, f"records/{path.name}") for path in (planted.aa, planted.pgd)]
    assert states == ["replayed", "claimed"]


def test_what_is_false_refuses_the_entry_whatever_other_rows_lack(planted: Planted) -> None:
    _strip(planted, planted.aa)
    planted.examples(planted.pgd, lambda found, about: found.pop(min(found)))
    planted.seal()
    found = planted.verify()
    assert found.refuted and found.state == "claimed" and "although the record says" in found.reason
    with pytest.raises(InputError, match="so there is nothing to report"):
        write_report(found)


def test_a_row_without_examples_is_not_audited(planted: Planted) -> None:
    _strip(planted, planted.aa)
    found = planted.verify(audit=2, beacon="b")
    assert [row.state for row in found.rows] == ["claimed", "replayed"] and found.state == "claimed"
    assert found.checks[-1].message == "there is no replayed row of AutoAttack"


def test_examples_for_an_entry_that_has_changed_meanwhile_are_not_kept(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    _strip(planted, planted.pgd)
    find = evidence.find_again

    def overtaken(*given: Any, **more: Any) -> Any:
        planted.edit(planted.entry, lambda fields: fields.update(authors="Ada Lovelace"))
        return find(*given, **more)

    monkeypatch.setattr(evidence, "find_again", overtaken)
    sealed = planted.manifest.read_bytes()
    with pytest.raises(InputError, match="has changed since it was attacked: do it again"):
        api.add_evidence(planted.entry, data_dir=planted.root / "data", zoo=planted.root / "model_zoo", device="cpu")
    assert not planted.pgd.with_suffix(".adversarial.npz").exists() and planted.manifest.read_bytes() == sealed


def test_the_command_says_which_rows_hold_evidence(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _strip(planted, planted.pgd)
    monkeypatch.chdir(planted.root)
    entry = f"leaderboards/{DATASET}/Linf/m.json"
    for command, code, lines in (
        (
            ["verify", entry, "--write"],
            1,
            [f"replayed  records/{planted.aa.name}", f"claimed  records/{planted.pgd.name}"],
        ),
        (["evidence", entry], 0, [f"written: {planted.pgd.with_suffix('.adversarial.npz').absolute()}"]),
        (["evidence", entry], 0, ["nothing to do: the adversarial examples are there"]),
        (["verify", entry, "--write"], 0, [f"replayed  records/{planted.pgd.name}"]),
    ):
        monkeypatch.setattr("sys.argv", ["sam-bench", "leaderboard", *command, "--device", "cpu"])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capfd.readouterr()
        assert (stopped.value.code or 0) == code and set(lines) <= {*out.splitlines(), *err.splitlines()}
    assert state_of(planted.entry, f"records/{planted.pgd.name}") == "replayed"


def test_examples_are_found_again_for_what_a_row_calls_broken(planted: Planted) -> None:
    kept = {path: path.read_bytes() for path in planted.entry.parent.rglob("*.json")}
    _strip(planted, planted.aa, planted.pgd)
    files = api.add_evidence(planted.entry, dataset=planted.root / "data" / f"{DATASET}.npz", device="cpu")
    assert files == [path.with_suffix(".adversarial.npz") for path in (planted.pgd, planted.aa)]
    shown: set[int] = set()
    for path in (planted.pgd, planted.aa):  # a smaller ball's examples serve the larger one
        verdicts = json.loads(path.read_text())["verdicts"]
        broken = {place for place, verdict in enumerate(verdicts) if verdict not in ("robust", "misclassified")}
        found = set(bundle_of(path.with_suffix(".adversarial.npz").read_bytes()).x_adv)
        assert found == broken - shown
        shown |= found
    found_again = planted.verify()
    assert found_again.passed, found_again.reason
    assert all(path.read_bytes() == before for path, before in kept.items() if "manifest" not in path.name)


def test_examples_that_are_there_are_kept_when_others_are_found(planted: Planted) -> None:
    data = planted.root / "data" / f"{DATASET}.npz"
    file = planted.pgd.with_suffix(".adversarial.npz")
    before = file.read_bytes()
    assert api.add_evidence(planted.entry, [f"records/{planted.pgd.name}"], dataset=data, device="cpu") == []
    assert file.read_bytes() == before
    kept = bundle_of(before).x_adv
    planted.examples(planted.pgd, lambda found, about: found.pop(min(found)))
    planted.seal()
    assert planted.verify().refuted
    assert api.add_evidence(planted.entry, dataset=data, device="cpu") == [file]
    after = bundle_of(file.read_bytes()).x_adv
    assert set(after) == set(kept) and len(kept) > 1
    assert planted.verify().passed


def test_a_curves_larger_ball_alone_is_not_refuted_for_what_it_carried(planted: Planted) -> None:
    planted.examples(planted.aa, lambda found, about: found.pop(min(found)))
    planted.edit(planted.aa, lambda fields: fields.update(carried=1))
    planted.pgd.with_suffix(".adversarial.npz").unlink()
    planted.seal()
    found = planted.verify()
    assert not found.refuted and [row.state for row in found.rows] == ["claimed", "claimed"]
    assert planted.verify(attack_again=True).passed


def test_what_was_shown_before_is_kept_when_less_is_asked_for(planted: Planted) -> None:
    _strip(planted, planted.pgd)
    write_report(planted.verify(attack_again=True))
    write_report(planted.verify(audit=2, beacon="b"))
    states = [state_of(planted.entry, f"records/{path.name}") for path in (planted.aa, planted.pgd)]
    assert states == ["audited", "replayed"]


def test_a_verifier_attacks_again_what_a_row_without_examples_calls_broken(planted: Planted) -> None:
    _strip(planted, planted.aa, planted.pgd)
    before = sorted(planted.root.rglob("*"))
    found = planted.verify(attack_again=True)
    assert found.passed and [row.state for row in found.rows] == ["replayed", "replayed"], found.reason
    claimed = [json.loads(path.read_text())["robust_accuracy"] for path in (planted.aa, planted.pgd)]
    assert [row.at_most for row in found.rows] == pytest.approx(claimed)
    assert sorted(planted.root.rglob("*")) == before


def test_a_row_stays_claimed_where_not_all_that_it_calls_broken_is_broken_again(planted: Planted) -> None:
    planted.judge(planted.aa, lambda verdicts: verdicts.__setitem__(verdicts.index("robust"), "apgd-ce"))
    _strip(planted, planted.aa, planted.pgd)
    found = planted.verify(attack_again=True)
    assert not found.passed and not found.refuted
    assert [row.state for row in found.rows] == ["claimed", "replayed"]
    assert f"records/{planted.aa.name}: AutoAttack did not break 1 of the" in found.reason


def test_what_cannot_be_broken_again_is_said_and_nothing_is_written(planted: Planted) -> None:
    planted.judge(planted.aa, lambda verdicts: verdicts.__setitem__(verdicts.index("robust"), "apgd-ce"))
    _strip(planted, planted.aa)
    before = sha256_file(planted.manifest)
    with pytest.raises(InputError, match=r"did not break 1 of the \d+ examples again"):
        api.add_evidence(planted.entry, dataset=planted.root / "data" / f"{DATASET}.npz", device="cpu")
    assert not planted.aa.with_suffix(".adversarial.npz").exists() and sha256_file(planted.manifest) == before
    with pytest.raises(InputError, match=r"has no row 'records/x.json', but records/m-autoattack"):
        api.add_evidence(planted.entry, ["records/x.json"], device="cpu")
