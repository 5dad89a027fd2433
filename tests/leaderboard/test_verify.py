"""Honest entries pass, however they were made; what is shown of them is right; the state follows from what was done."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_board import DATASET, Planted, bundle_of, class_means, images, robust_places

from sam_bench import api
from sam_bench.api.verifying import check_training, means_of
from sam_bench.cli.main import main
from sam_bench.data import Split
from sam_bench.errors import InputError
from sam_bench.leaderboard.verification import report_of, report_path, state_of
from sam_bench.leaderboard.verify import verify_entry, write_report
from sam_bench.records import MISCLASSIFIED, ROBUST, ModelCard, SecondAttack, accuracies

ROOT = Path(__file__).parents[2]


def _uncompacted(board: Planted) -> None:
    for path in (board.aa, board.pgd):
        board.examples(path, lambda found, about: None)
    assert bundle_of(board.aa.with_suffix(".adversarial.npz").read_bytes()).x_adv[0].dtype == "float32"
    board.seal()


def _one_row(board: Planted) -> None:
    board.pgd.unlink()
    board.pgd.with_suffix(".adversarial.npz").unlink()
    board.seal()


def _card(**changes: Any) -> Callable[[Planted], None]:
    def change(board: Planted) -> None:
        board.edit(board.card, lambda fields: fields.update(changes))
        board.seal()

    return change


def _record(**changes: Any) -> Callable[[Planted], None]:
    def change(board: Planted) -> None:
        board.edit(board.pgd, lambda fields: fields.update(changes))
        if "eps" in changes:
            board.examples(board.pgd, lambda found, about: about.update(eps=changes["eps"]))
        board.seal()

    return change


def _curve(board: Planted) -> None:
    """What the smaller ball broke is carried over, so its examples are in that ball's file only."""
    small = bundle_of(board.pgd.with_suffix(".adversarial.npz").read_bytes()).x_adv
    broken = [place for place, v in enumerate(json.loads(board.aa.read_text())["verdicts"]) if v == "apgd-ce"]
    carried = sorted(set(broken) & set(small))
    assert carried
    board.examples(board.aa, lambda found, about: [found.pop(place) for place in carried])
    board.edit(board.aa, lambda fields: fields.update(carried=len(carried)))
    board.seal()


def _head(board: Planted) -> None:
    """AutoAttack on the first 40 images only."""
    fingerprint = images().head(40).fingerprint

    def shorten(fields: dict[str, Any]) -> None:
        verdicts = fields["verdicts"][:40]
        fields.update(accuracies(verdicts, list(fields["accuracy_after"])))
        fields.update(verdicts=verdicts, n_examples=40, dataset_fingerprint=fingerprint)

    board.edit(board.aa, shorten)

    def change(found: dict[int, Any], about: dict[str, str]) -> None:
        about.update(dataset_fingerprint=fingerprint)
        for place in [place for place in found if place >= 40]:
            found.pop(place)

    board.examples(board.aa, change)
    board.seal()


def _second(board: Planted) -> None:
    """A second attack broke one of those that PGD left, which changes no verdict."""
    fields = json.loads(board.pgd.read_text())
    robust = fields["robust_accuracy"]
    second = SecondAttack(
        attack="pgd-margin",
        engine="sam-bench 0.1.0",
        robust_accuracy=robust - 1 / 60,
        gap=1 / 60,
        broken=robust_places(board.pgd)[:1],
        seconds=1,
    )
    warning = "second-opinion: pgd-margin lowered the accuracy by a further 1.67% of all examples"
    board.edit(board.pgd, lambda record: record.update(second_opinion=second.model_dump(), warnings=[warning]))
    board.seal()


def _made_again(**options: Any) -> Callable[[Planted], None]:
    def make(board: Planted) -> None:
        Planted(board.root).make(class_means() * options.pop("scale", 1.0), **options)

    return make


def _moved(board: Planted) -> None:
    """The whole board in another place."""
    board.root.rename(board.root.with_name("moved"))
    board.__init__(board.root.with_name("moved"))  # type: ignore[misc]


def _cost(forward: float) -> dict[str, Any]:
    return {"train_forward": forward, "train_backward": 10.0 * (forward // 10), "seconds": 1.0, "device": "cpu"}


HONEST: dict[str, Callable[[Planted], Any]] = {
    "as it was submitted": lambda board: None,
    "adversarial examples as an evaluation writes them": _uncompacted,
    "one row": _one_row,
    "the paper's link and authors written by hand": lambda board: board.edit(
        board.entry, lambda fields: fields.update(link="https://example.org", authors="Ada Lovelace", venue="J 2026")
    ),
    "authors on the card": _card(authors="Ada Lovelace"),
    "a curve over eps": _curve,
    "AutoAttack on the first images": _head,
    "a second attack": _second,
    "a warning of the attack": _record(warnings=["zero-gradients: the gradient is zero on 3.0% of the points"]),
    "a radius as a number": _record(eps=str(12 / 255)),
    "another seed": _record(seed=12),
    "another device": _record(device="a GPU", batch_size=512),
    "fewer epochs than the recipe": _card(epochs=5, cost=_cost(10.0)),
    "a last forward pass for BatchNorm": _card(cost=_cost(21.0)),
    "an older card": lambda board: (
        board.edit(board.card, lambda fields: fields.pop("architecture_sha256")),
        board.seal(),
    ),
    "other files beside the records": lambda board: (board.aa.parent / "notes.txt").write_text("mine"),
    "another model": _made_again(scale=0.9),
    "submitted twice": _made_again(),
    "a ball in which all is broken": _made_again(attacks={"autoattack": "128/255"}),
    "another place": _moved,
    "a stale report beside it": lambda board: (board.aa.parent / "m.verification.json").write_text("{}"),
}


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_entry_passes(planted: Planted, kind: str) -> None:
    HONEST[kind](planted)
    found = planted.verify()
    assert found.passed, found.reason
    assert [check.name for check in found.checks] == ["numbers", "manifest", "training", "replay"]
    assert found.state == "replayed"


def test_replay_proves_the_claimed_robust_accuracy_to_be_an_upper_bound(planted: Planted) -> None:
    shown = {row.record: row.at_most for row in planted.verify().rows}
    for path in (planted.aa, planted.pgd):
        assert shown[f"records/{path.name}"] == pytest.approx(json.loads(path.read_text())["robust_accuracy"])


def test_a_report_gives_the_state_and_keeps_an_audit(planted: Planted) -> None:
    assert state_of(planted.entry) == "claimed"
    write_report(planted.verify(audit=1, beacon="the hash of a commit"))
    assert state_of(planted.entry) == "audited" and state_of(planted.entry, f"records/{planted.pgd.name}") == "replayed"
    report = report_of(planted.entry)
    audit = report.rows[0].audit if report else None
    assert audit is not None and len(audit.drawn) == 1 and audit.broken == []
    claims = len(robust_places(planted.aa))
    assert audit.may_be_false == pytest.approx(0.95) and audit.at_least == pytest.approx(0.05 * claims / 60)
    write_report(planted.verify())
    assert state_of(planted.entry) == "audited"
    planted.edit(planted.entry, lambda fields: fields.update(authors="X"))
    assert state_of(planted.entry) == "claimed"
    write_report(planted.verify())
    assert state_of(planted.entry) == "replayed"  # the audit was of the entry before


def test_nothing_is_reported_of_an_entry_that_was_refused(planted: Planted) -> None:
    planted.manifest.unlink()
    with pytest.raises(InputError, match="so there is nothing to report"):
        write_report(planted.verify())
    assert report_of(planted.entry) is None


def test_what_changes_during_a_verification_is_not_reported(planted: Planted) -> None:
    for path in (planted.entry, planted.manifest):
        verification, content = planted.verify(), path.read_bytes()
        path.write_bytes(content + b"\n")
        with pytest.raises(InputError, match="has changed since it was verified"):
            write_report(verification)
        path.write_bytes(content)
    assert report_of(planted.entry) is None


def test_a_small_audit_does_not_replace_a_large_one(planted: Planted) -> None:
    for count in (3, 1):
        # AutoAttack breaks a few that PGD did not, and each machine draws others: the first draw without one will do.
        tried = (planted.verify(audit=count, beacon=f"public text {number}") for number in range(20))
        write_report(next(found for found in tried if found.passed))
        report = report_of(planted.entry)
        assert report is not None and report.rows[0].audit is not None and len(report.rows[0].audit.drawn) == 3


def test_two_reports_at_once_keep_what_both_have_shown(planted: Planted) -> None:
    """While one is written, another process has the folder: it is waited for, and then read."""
    replayed, audited = planted.verify(), planted.verify(audit=1, beacon="the hash of a commit")
    script = (
        "import sys\nfrom pathlib import Path\nfrom sam_bench.locks import claimed\n"
        "with claimed(Path(sys.argv[1])):\n    print('in', flush=True)\n    sys.stdin.readline()\n"
        "    Path(sys.argv[2]).write_bytes(Path(sys.argv[3]).read_bytes())\n"
    )
    write_report(replayed)
    kept = planted.root / "report.json"
    report_path(planted.entry).rename(kept)
    command = [sys.executable, "-c", script, *map(str, (planted.entry.parent, report_path(planted.entry), kept))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == "in\n"
        writing = threading.Thread(target=write_report, args=(audited,))
        writing.start()
        writing.join(1)  # longer than it takes without the wait
        print("go", file=other.stdin, flush=True)
        writing.join(60)
    assert state_of(planted.entry) == "audited"


def test_an_audit_that_refutes_an_entry_takes_its_report_away(planted: Planted) -> None:
    planted.judge(planted.aa, lambda verdicts: verdicts.__setitem__(slice(None), _all_robust(verdicts)))
    planted.seal()
    given: dict[str, Any] = {"data_dir": planted.root / "data", "zoo": planted.root / "model_zoo", "device": "cpu"}
    planted.aa.with_suffix(".adversarial.npz").unlink(missing_ok=True)
    planted.seal()
    assert api.verify_entry(planted.entry, write=True, **given).shown
    assert report_path(planted.entry).exists()
    found = api.verify_entry(planted.entry, write=True, audit=60, beacon="a public text", **given)
    assert found.refuted and found.checks[-1].name == "audit" and not report_path(planted.entry).exists()


def _all_robust(verdicts: list[str]) -> list[str]:
    return [each if each == MISCLASSIFIED else ROBUST for each in verdicts]


def test_without_the_data_nothing_is_refuted(planted: Planted) -> None:
    found = planted.verify(data_dir=planted.root / "elsewhere")
    assert not found.passed and not found.refuted and not found.shown
    assert found.reason.startswith(
        f"this could not be checked: give the test images of {DATASET} with dataset; without it: unknown"
    )


def test_the_verb_takes_data_and_zoo(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(planted.root)
    found = api.verify_entry(f"leaderboards/{DATASET}/Linf/m.json", device="cpu")  # data, zoo: the folders beside
    assert found.passed, found.reason
    found = api.verify_entry(planted.entry, dataset=planted.root / "data" / f"{DATASET}.npz", device="cpu", write=True)
    assert found.passed and state_of(planted.entry) == "replayed"
    assert api.verify_entry(planted.entry, zoo=planted.root, data_dir="nowhere", device="cpu", write=True).reason
    assert state_of(planted.entry) == "replayed"
    with pytest.raises(InputError, match="go together"):
        api.verify_entry(planted.entry, audit=5)
    with pytest.raises(InputError, match="at least 1"):
        api.verify_entry(planted.entry, audit=0, beacon="b")
    with pytest.raises(InputError, match=r"beacon.*must not be empty"):
        api.verify_entry(planted.entry, audit=5, beacon=" ")


def test_the_training_cost_of_every_committed_card_follows_from_its_recipe() -> None:
    cards = [*(ROOT / "model_zoo").glob("*/*/*.json"), *(ROOT / "benchmarks").glob("results/*/model_zoo/*/*/*.json")]
    assert len(cards) > 20
    for path in cards:
        check_training(ModelCard.model_validate_json(path.read_text()))


def test_the_command_says_every_step_and_exits_with_1_where_one_fails(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(planted.root)

    def run(*options: str) -> tuple[int, str]:
        command = ["sam-bench", "leaderboard", "verify", f"leaderboards/{DATASET}/Linf/m.json", "--device", "cpu"]
        monkeypatch.setattr("sys.argv", [*command, *options])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, capfd.readouterr().out

    code, out = run("--write")
    assert code == 0 and out.count("passed  ") == 4 and out.endswith("m.json: replayed\n")
    assert state_of(planted.entry) == "replayed"
    planted.manifest.unlink()
    code, out = run("--json")
    said = json.loads(out)
    assert code == 1 and said["passed"] is False and said["state"] == "claimed"
    assert [check["passed"] for check in said["checks"]] == [True, False]
    assert "m.manifest.json does not exist" in said["checks"][1]["message"]


def test_submit_keeps_the_examples_as_bytes_where_the_data_are_at_hand(planted: Planted) -> None:
    records = sorted((planted.root / "evaluations").glob("*.json"))
    folder, data = planted.root / "again" / "leaderboards", planted.root / "data" / f"{DATASET}.npz"
    for given, kind in ((None, "float32"), (data, "uint8")):
        done = api.submit("m", records, zoo=planted.root / "model_zoo", folder=folder, dataset=given)
        kept = bundle_of((folder / DATASET / f"Linf/records/{planted.aa.stem}.adversarial.npz").read_bytes()).x_adv
        assert sum(image.dtype == kind for image in kept.values()) > len(kept) / 2
        found = api.verify_entry(done.path, dataset=data, zoo=planted.root / "model_zoo", device="cpu")
        assert found.passed, found.reason


def test_a_record_submitted_without_its_examples_takes_those_of_the_old_one_away(planted: Planted) -> None:
    record = planted.root / "evaluations" / "pgd.json"
    record.with_suffix(".adversarial.npz").unlink()
    api.submit("m", [record], zoo=planted.root / "model_zoo", folder=planted.root / "leaderboards")
    assert not planted.pgd.with_suffix(".adversarial.npz").exists()
    assert "have no adversarial examples and stay claimed" in planted.verify().reason


def test_a_model_that_pytorch_cannot_run_is_refused(planted: Planted) -> None:
    def test(card: ModelCard) -> Split:
        raise RuntimeError("out of \x1b memory")

    given = means_of(dataset=None, data_dir=planted.root, zoo=None, audit=None, beacon=None, device="cpu")
    found = verify_entry(planted.entry, dataclasses.replace(given, test=test))
    assert not found.passed and found.reason == "the model cannot be run: out of \\x1b memory"
