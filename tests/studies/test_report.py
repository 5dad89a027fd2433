"""The report: each number is recomputed from the files, links lead somewhere, what is missing is said."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_samples import content, opened

from sam_bench.errors import InputError
from sam_bench.studies.figures import family_looks, frontier
from sam_bench.studies.jobs import Study
from sam_bench.studies.lookup import is_done
from sam_bench.studies.opening import open_study
from sam_bench.studies.packing import ARCHIVE, pack, unpack, unpacked
from sam_bench.studies.plan import load_plan
from sam_bench.studies.report import write_report


@pytest.fixture(scope="module")
def reported(finished: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(finished.folder, tmp_path_factory.mktemp("report") / "reported"))
    write_report(opened(folder), folder, command="the tests")
    return folder


def _numbers(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "numbers.json").read_text(encoding="utf-8"))
    return found


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("row", ["standard", "sam-02"])
def test_numbers_are_those_of_the_records(reported: Path, row: str) -> None:
    found = _numbers(reported)["rows"][row]
    for eps, text in (("1/255", "1over255"), ("16/255", "16over255")):
        shares = []
        for seed in (0, 1):
            record = _read(reported / "evaluations" / f"{row}-s{seed}" / f"pgd-steps2-Linf-{text}-n40.json")
            shares.append(100 * np.mean([verdict == "robust" for verdict in record["verdicts"]]))
        at = found["evaluations"]["pgd-linf"]["radii"][eps]
        assert at["mean"] == pytest.approx(np.mean(shares))
        assert at["sd"] == pytest.approx(np.std(shares, ddof=1))
        assert at["seeds"] == {str(seed): pytest.approx(share) for seed, share in enumerate(shares)}
    cards = [_read(next(reported.glob(f"model_zoo/*/*/{row}-s{seed}.json"))) for seed in (0, 1)]
    assert found["clean"]["mean"] == pytest.approx(100 * np.mean([card["clean_accuracy"] for card in cards]))
    costs = [card["cost"] for card in cards]
    kinds = ("train_forward", "train_backward", "attack_forward", "attack_backward")
    assert found["passes"] == pytest.approx(np.mean([sum(cost[kind] for kind in kinds) / 2 for cost in costs]))


def test_a_claims_effect_is_the_difference_of_the_records(reported: Path) -> None:
    numbers = _numbers(reported)
    (point,) = numbers["claims"]["C1"]["parts"][0]["points"]
    at = {row: numbers["rows"][row]["evaluations"]["pgd-linf"]["radii"]["1/255"]["mean"] for row in numbers["rows"]}
    assert point["interval"]["estimate"] == pytest.approx(at["sam-02"] - at["standard"], abs=1e-4)
    assert point["interval"]["low"] <= point["interval"]["estimate"] <= point["interval"]["high"]
    assert numbers["claims"]["C4"]["verdict"] == "supported"


def test_clean_verdicts_agree_with_the_cards(reported: Path) -> None:
    for path in reported.glob("measurements/*/clean.json"):
        card = _read(next(reported.glob(f"model_zoo/*/*/{path.parent.name}.json")))
        right = _read(path)["right"]
        assert right.count("1") / len(right) == pytest.approx(card["clean_accuracy"])


def test_every_link_leads_to_a_file(reported: Path) -> None:
    text = (reported / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(links) > 8
    assert [link for link in links if not (reported / link).is_file()] == []


def test_the_report_quotes_the_plan_and_gives_each_verdict(finished: Study, reported: Path) -> None:
    text = (reported / "report.md").read_text(encoding="utf-8")
    assert finished.file.text in text
    for name, claim in _numbers(reported)["claims"].items():
        assert f"| {name} | {claim['text']} | **{claim['verdict']}** |" in text
        for part in claim["parts"]:
            assert part["sentence"] in text


def test_the_page_needs_no_other_file(reported: Path) -> None:
    page = (reported / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert sources
    assert all(source.startswith("data:image/svg+xml") for source in sources)
    assert "<script" not in page
    assert page.count("<table>") == (reported / "report.md").read_text(encoding="utf-8").count("| --- |\n")


def test_what_is_missing_is_said(finished: Study, copied: Path) -> None:
    next(copied.glob("model_zoo/*/*/sam-02-s1.json")).unlink()
    write_report(opened(copied), copied)
    text = (copied / "report.md").read_text(encoding="utf-8")
    assert "**This report is partial.** 3 of 4 models are trained, 6 of 8 measurements are made." in text
    assert "| 1 of 2 |" in text
    claim = _numbers(copied)["claims"]["C1"]
    assert (claim["verdict"], claim["so_far"]) == ("unfinished", "inconclusive")
    assert "sam-02: 1 of 2 seeds of pgd-linf" in claim["waits_for"]


def test_a_claim_whose_rows_the_scale_lacks_is_not_tested(tmp_path: Path) -> None:
    study = open_study(load_plan(), "small", folder=tmp_path, read_only=True)
    write_report(study, tmp_path)
    claims = _numbers(tmp_path)["claims"]
    lacking = {name: claim["left_out"] for name, claim in claims.items() if claim["verdict"] == "not tested"}
    lacks = {"C3": ["at"], "C4": ["at"], "C5": ["at-linf-1", "at-linf-2", "at"]}
    assert lacking == lacks
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| **not tested**: this scale has no at-linf-1, at-linf-2, at |" in text
    assert claims["E"]["verdict"] == "unfinished" and claims["E"]["left_out"] == []


def test_a_median_of_images_that_nothing_breaks_is_no_number(copied: Path) -> None:
    plan = content()
    plan["evaluations"]["minimum-norm"] = {"measure": "minimum-norm"}
    plan["scales"]["mini"]["first"]["minimum-norm"] = 4
    part = {"rule": "more", "a": "sam-02", "b": "standard", "of": "minimum-norm", "least": 0}
    plan["claims"] = {"farther": {"text": "SAM's examples are farther away.", "parts": [part]}}
    study = opened(copied, plan)
    for path in copied.glob("measurements/*/clean.json"):
        note = _read(path) | {"norm": "Linf", "n_examples": 4, "distances": [0.0, 0.01, 0.02, 0.03]}
        del note["right"]
        if path.parent.name == "sam-02-s0":
            note["distances"] = [0.0, None, None, None]
        (path.parent / "minimum-norm.json").write_text(json.dumps(note), encoding="utf-8")
    write_report(study, copied)
    found = _numbers(copied)
    distances = found["rows"]["sam-02"]["evaluations"]["minimum-norm"]
    assert distances["median"] == {"mean": None, "sd": None, "seeds": {"0": None, "1": pytest.approx(255 * 0.015)}}
    assert distances["interval"] is None and distances["not_found"] == 3
    assert "a median is infinite" in found["claims"]["farther"]["sentence"]
    assert "| sam-02 | 2 of 2 | none found for half of the images | – |" in (copied / "report.md").read_text()


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    write_report(opened(tmp_path / "empty", read_only=True), tmp_path / "empty")
    text = (tmp_path / "empty" / "report.md").read_text(encoding="utf-8")
    assert "0 of 4 models are trained" in text


def test_a_changed_plan_is_said(finished: Study, copied: Path) -> None:
    plan = content()
    plan["title"] = "Another title"
    write_report(opened(copied, plan), copied)
    text = (copied / "report.md").read_text(encoding="utf-8")
    assert "The file of the plan has changed since this folder was begun" in text


def test_a_packed_study_gives_the_same_report_without_its_files(reported: Path, tmp_path: Path) -> None:
    archive = pack(reported)
    first = archive.read_bytes()
    assert pack(reported).read_bytes() == first
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(archive, alone)
    with unpacked(alone) as there:
        path = write_report(opened(there, read_only=True), alone, command="the tests", archive=ARCHIVE)["md"]
    before, after = _numbers(reported), _numbers(alone)
    for numbers in (before, after):
        del numbers["about"]["created"]
    assert after == before
    assert f"]({ARCHIVE})" in path.read_text(encoding="utf-8")


def test_a_packed_study_goes_on_where_it_was(reported: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(pack(reported), alone)
    unpack(alone)
    study = opened(alone)
    assert all(is_done(study, job) for job in study.jobs())
    (alone / "study.json").write_text("mine", encoding="utf-8")
    unpack(alone)
    assert (alone / "study.json").read_text(encoding="utf-8") == "mine"


def test_a_study_whose_unpacking_was_stopped_is_unpacked_again(
    reported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(pack(reported), tmp_path)
    copied = shutil.copy2

    def stopped(source: Any, *rest: Any, **options: Any) -> Any:
        if "model_zoo" in str(source):
            raise KeyboardInterrupt
        return copied(source, *rest, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        # The default of copytree's argument is bound already, so the function behind it is what stops.
        patched.setattr(shutil.copytree, "__kwdefaults__", None, raising=False)
        patched.setattr(shutil.copytree, "__defaults__", (False, None, stopped, False, False))
        unpack(tmp_path)
    unpack(tmp_path)
    study = opened(tmp_path)
    assert all(is_done(study, job) for job in study.jobs())


def test_packing_loses_nothing(reported: Path, tmp_path: Path) -> None:
    archive = Path(shutil.copy(pack(reported), tmp_path))
    before = archive.read_bytes()
    assert pack(tmp_path).read_bytes() == before, "nothing is unpacked"
    unpack(tmp_path)
    next(tmp_path.glob("evaluations/*/*.json")).unlink()
    with pytest.raises(InputError, match="has 1 files that its folder lacks, such as evaluations/"):
        pack(tmp_path)
    assert archive.read_bytes() == before


def test_the_frontier_calls_rows_on_a_curve_by_their_strength_and_standard_by_its_name() -> None:
    folder = Path(__file__).parents[2] / "benchmarks/results/wei2023-tiny"
    drawn = frontier(json.loads((folder / "numbers.json").read_text(encoding="utf-8")), "pgd-linf")
    assert drawn is not None
    texts = re.findall(r"<!-- (.*?) -->", drawn["svg"].decode())
    for label in ("standard", "standard-twice", "0.05", "0.4", "0.25/255", "8/255"):
        assert label in texts
    assert "sam-005" not in texts and texts.count("gaussian") == 1  # alone in its family: in the legend


def test_no_two_families_of_the_plan_look_alike_in_the_frontier() -> None:
    rows = {name: row.model_dump(mode="json") for name, row in load_plan().plan.rows.items()}
    looks = family_looks(rows)
    assert set(looks) == {row["family"] for row in rows.values()}
    assert len(set(looks.values())) == len(looks) > 9
