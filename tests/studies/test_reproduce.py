"""`sam-bench reproduce`, and a study with every kind of measurement from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from study_samples import content, opened

from sam_bench.cli.reproduce import command
from sam_bench.errors import InputError
from sam_bench.progress import SilentReporter
from sam_bench.records import Radius
from sam_bench.studies.estimate import estimate, passes_of, passes_per_image
from sam_bench.studies.jobs import Study
from sam_bench.studies.plan import load_plan
from sam_bench.studies.report import write_report
from sam_bench.studies.runner import run_study


@pytest.mark.slow
def test_a_study_with_every_kind_of_measurement(tmp_path: Path) -> None:
    plan = content()
    plan["evaluations"] |= {
        "pgd-matched": {"attack": "pgd", "settings": {"steps": 2}, "eps": ["16/255"], "temperature": "matched"},
        "autoattack": {"attack": "autoattack", "eps": ["1/255"]},
        "published-fault": {
            "attack": "autoattack",
            "eps": ["1/255"],
            "fault": "normalised-inputs",
            "only": ["standard"],
        },
        "minimum-norm": {"measure": "minimum-norm"},
    }
    mini = plan["scales"]["mini"]
    mini["first"] |= {"pgd-matched": 20, "autoattack": 4, "published-fault": 2, "minimum-norm": 10}
    mini["seeds"] = {"main": 1, "other": 1}
    study = opened(tmp_path / "study", plan)
    assert run_study(study, reporter=SilentReporter()) == []
    write_report(study, study.folder)
    numbers = json.loads((study.folder / "numbers.json").read_text(encoding="utf-8"))
    assert numbers["progress"] == {"models": [2, 2], "measurements": [11, 11]}
    standard, sam = numbers["confidence"]
    assert standard["temperature"] == 1
    assert sam["after"] == pytest.approx(standard["before"], abs=1e-3)
    (fault,) = numbers["fault"]
    assert fault["robust"] <= fault["clean"]
    assert fault["correct"] is not None
    note_path = study.folder / fault["note"]
    note_path.write_text(json.dumps({**json.loads(note_path.read_text(encoding="utf-8")), "head": False}))
    write_report(study, study.folder)
    (again,) = json.loads((study.folder / "numbers.json").read_text(encoding="utf-8"))["fault"]
    assert again["correct"] is None, "AutoAttack's first images are not these"
    distances = numbers["rows"]["sam-02"]["evaluations"]["minimum-norm"]
    note = json.loads((study.folder / distances["notes"]["0"]).read_text(encoding="utf-8"))
    middle = sorted(note["distances"])[4:6]
    assert distances["median"]["mean"] == pytest.approx(255 * sum(middle) / 2)
    assert "## The published evaluation's fault" in (study.folder / "report.md").read_text(encoding="utf-8")


def test_the_estimate_of_what_is_left(finished: Study, tmp_path: Path) -> None:
    done = estimate(finished)
    assert done.hours == 0
    assert [line.passes for line in done.trainings] == [2, 8]
    assert passes_of(opened(tmp_path / "new", read_only=True), "sam-02") == 8  # counted, not read from a card


@pytest.mark.parametrize(
    ("name", "passes"), [("pgd-linf", 50), ("pgd-l2", 40), ("minimum-norm", 100), ("autoattack", 2 * (1910 + 5947 / 3))]
)
def test_the_passes_of_an_image_that_nothing_breaks(name: str, passes: float) -> None:
    assert passes_per_image(load_plan().plan.evaluations[name]) == pytest.approx(passes)


def test_a_report_can_be_had_of_an_empty_folder(tmp_path: Path) -> None:
    given = ["wei2023", "--scale", "tiny", "--report-only", "--output", str(tmp_path / "none")]
    said = CliRunner().invoke(command, given, catch_exceptions=False)
    assert said.exit_code == 0
    assert "E: unfinished. At equal passes, SAM is at least as robust" in said.output
    assert "0 of 75 models are trained" in (tmp_path / "none" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scale", "huge"], "scale='huge' is no scale that is known"),
        (["--scale", "tiny"], "give its FILE.npz or FOLDER, or another data set"),
        (["--scale", "tiny", "--dataset", "nothing.npz"], "dataset='nothing.npz' is no file, folder or known name"),
        (["--part", "3"], "part='3' must be like 1/3"),
        (["--part", "0/3"], "part='0/3' must be 1/3 to 3/3"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(InputError) as refused:
        CliRunner().invoke(command, ["wei2023", "--output", str(tmp_path / "new"), *options], catch_exceptions=False)
    assert message in str(refused.value)
    assert not (tmp_path / "new" / "runs").exists()


def test_radii_of_the_plan_are_those_of_its_claims() -> None:
    plan = load_plan().plan
    assert plan.evaluations["pgd-linf"].eps[0] == Radius("0.5/255")
    assert [str(eps) for eps in plan.claims["E"].parts[0].eps] == [str(eps) for eps in plan.evaluations["pgd-linf"].eps]  # type: ignore[union-attr]
