"""Running a study: nothing is done twice, a kill changes nothing, a failure stops nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from study_samples import content, opened

from sam_bench.data import load_dataset
from sam_bench.errors import InputError
from sam_bench.progress import SilentReporter
from sam_bench.studies.jobs import Measurement, Model, Study
from sam_bench.studies.lookup import is_done
from sam_bench.studies.numbers import numbers_of
from sam_bench.studies.results import read_study
from sam_bench.studies.runner import run_study
from sam_bench.zoo import Zoo

_SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import pytest
from study_samples import opened
from sam_bench.progress import SilentReporter
from sam_bench.studies.runner import run_study
run_study(opened(Path(sys.argv[1])), reporter=SilentReporter())
"""


def _results(folder: Path) -> dict[str, object]:
    """What decides a report: weights, verdicts, clean verdicts."""
    found: dict[str, object] = {}
    for path in sorted(folder.glob("*/*/**/*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        keys = ("weights", "verdicts", "right", "clean_accuracy")
        found[path.relative_to(folder).as_posix()] = {key: content[key] for key in keys if key in content}
    return {name: each for name, each in found.items() if not name.startswith("runs/")}


@pytest.mark.slow
def test_a_killed_study_goes_on_in_two_processes_and_comes_to_the_same_result(finished: Study, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    script = [sys.executable, "-c", _SCRIPT, str(folder), str(Path(__file__).parent)]
    process = subprocess.Popen(script, env={**os.environ, "OMP_NUM_THREADS": "1"})
    until = time.monotonic() + 300
    while not list(folder.glob("evaluations/*/*.json")) and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    study = opened(folder)
    done = [job for job in study.jobs() if is_done(study, job)]
    assert 0 < len(done) < len(study.jobs())
    assert run_study(study, reporter=SilentReporter(), workers=2) == []
    assert _results(folder) == _results(finished.folder)


def test_what_is_there_is_not_made_again(finished: Study, copied: Path) -> None:
    shutil.rmtree(copied / "runs")
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*.json")}
    assert run_study(opened(copied), reporter=SilentReporter()) == []
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*.json")} == before
    assert not (copied / "runs").exists()


def test_a_record_of_other_weights_is_made_again(finished: Study, copied: Path) -> None:
    ours, others = copied / "evaluations" / "standard-s0", copied / "evaluations" / "standard-s1"
    shutil.rmtree(ours)
    shutil.copytree(others, ours)
    study = opened(copied)
    assert not all(is_done(study, job) for job in study.jobs())


def test_a_failed_job_does_not_stop_the_others(finished: Study, copied: Path) -> None:
    plan = content()
    plan["rows"]["sam-02"]["settings"]["rho"] = 0.3  # the model that is there is of another run
    shutil.rmtree(copied / "evaluations" / "standard-s1")
    study = opened(copied, plan)
    failures = run_study(study, reporter=SilentReporter())
    assert {failure.job for failure in failures} >= {"sam-02-s0", "sam-02-s1"}
    assert all(failure.job.startswith("sam-02") for failure in failures)
    assert "sam-02-s0 in" in failures[0].reason
    assert "is of another run: its weights.rho is 0.2, not 0.3" in failures[0].reason
    assert all(is_done(study, job) for job in study.jobs() if "standard" in job.name)


def test_a_model_of_other_data_or_another_length_is_not_taken_for_the_plans(finished: Study, copied: Path) -> None:
    for name, value in (("epochs", 3), ("limit_train", 128), ("width", 8)):
        plan = content()
        plan["scales"]["mini"][name] = value
        (failure, *_) = run_study(opened(copied, plan), reporter=SilentReporter())
        assert "is of another run: its" in failure.reason


def test_a_scale_may_be_on_another_network_and_its_models_are_the_plans(tmp_path: Path) -> None:
    plan = content()
    plan["scales"]["mini"] |= {"arch": "wideresnet", "arch_options": {"depth": 10}, "width": 1, "rows": ["standard"]}
    plan["scales"]["mini"] |= {"epochs": 1, "limit_train": 32, "seeds": {"main": 1, "other": 1}}
    plan["scales"]["mini"]["first"] = {"pgd-linf": 4}
    study = opened(tmp_path / "study", plan)
    assert run_study(study, reporter=SilentReporter()) == []
    assert all(is_done(study, job) for job in study.jobs())
    (card,) = Zoo(study.zoo).cards()
    assert (card.architecture.name, card.architecture.options) == ("wideresnet", {"depth": 10, "width": 1})


def test_a_model_that_started_from_another_or_learned_from_other_images_is_not_taken_for_the_plans(
    finished: Study, copied: Path
) -> None:
    study, path = opened(copied), next(copied.glob("model_zoo/*/*/sam-02-s1.json"))
    card = json.loads(path.read_text())
    extra = {"file": "more.npz", "fraction": 0.5, "examples": 9, "fingerprint": "0" * 64}
    for change, message in (
        ({"init": "standard-s0"}, "its init is standard-s0, not None"),
        ({"extra_data": extra}, "its extra_data is more.npz, not None"),
        ({"train_fingerprint": "0" * 64}, "learned from 256 images and standard-s0 from 256, which are not the same"),
        ({"test_fingerprint": "0" * 64}, "sam-02-s1 in .* was tested on other images than standard-s0"),
        (
            {"recipe": card["recipe"] | {"augmentation": card["recipe"]["augmentation"] | {"flip": True}}},
            "was trained with flip True and standard-s0 with False",
        ),
    ):
        path.write_text(json.dumps(card | change))
        with pytest.raises(InputError, match=message):
            is_done(study, Model("sam-02", 1))


def test_measurements_wait_for_a_model_that_another_part_trains(finished: Study, copied: Path) -> None:
    card = next(copied.glob("model_zoo/*/*/standard-s0.json"))
    card.unlink()
    study = opened(copied)
    jobs = [job for job in study.jobs() if not isinstance(job, Model) and job.model == Model("standard", 0)]
    assert jobs
    assert not any(is_done(study, job) for job in jobs)
    assert run_study(study, reporter=SilentReporter(), part=(2, 4)) == []  # it has nothing to do with that model
    assert not card.exists()


class Heard(SilentReporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_a_measurement_that_needs_a_model_of_another_part_is_named(finished: Study, copied: Path) -> None:
    plan = content()
    matched = {"attack": "pgd", "settings": {"steps": 1}, "eps": ["16/255"], "temperature": "matched"}
    plan["evaluations"]["pgd-matched"] = matched
    plan["scales"]["mini"]["first"]["pgd-matched"] = 8
    next(copied.glob("model_zoo/*/*/standard-s0.json")).unlink()
    study, heard = opened(copied, plan), Heard()
    parts = len(study.rows) * 2
    mine = [job for job in study.jobs() if isinstance(job, Model)].index(Model("sam-02", 0)) + 1
    assert run_study(study, reporter=heard, part=(mine, parts)) == []
    assert any("sam-02-s0.pgd-matched" in said and "another part" in said for said in heard.said)


def test_equal_confidence_is_measured_again_if_standard_was_trained_anew(finished: Study, copied: Path) -> None:
    plan = content()
    matched = {"attack": "pgd", "settings": {"steps": 1}, "eps": ["16/255"], "temperature": "matched"}
    plan["evaluations"]["pgd-matched"] = matched
    plan["scales"]["mini"]["first"]["pgd-matched"] = 8
    study, job = opened(copied, plan), Measurement(Model("sam-02", 0), "pgd-matched")
    assert run_study(study, reporter=SilentReporter()) == []
    assert is_done(study, job)
    path = next(copied.glob("model_zoo/*/*/standard-s0.json"))
    card = json.loads(path.read_text())
    path.write_text(json.dumps(card | {"weights": card["weights"] | {"sha256": "0" * 64}}))
    assert not is_done(study, job)


def test_a_claim_waits_for_equal_confidence_with_standard_trained_anew(finished: Study, copied: Path) -> None:
    plan = content()
    matched = {"attack": "pgd", "settings": {"steps": 1}, "eps": ["1/255"], "temperature": "matched"}
    plan["evaluations"]["pgd-matched"] = matched
    plan["scales"]["mini"]["first"]["pgd-matched"] = 8
    plan["claims"]["C1"]["parts"][0]["of"] = "pgd-matched"
    study = opened(copied, plan)
    assert run_study(study, reporter=SilentReporter()) == []
    path = copied / "measurements/sam-02-s0/pgd-matched.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_sha256": "0" * 64}))
    numbers = numbers_of(read_study(study))
    claim = numbers["claims"]["C1"]
    assert (claim["verdict"], claim["waits_for"]) == ("unfinished", ["sam-02: 1 of 2 seeds of pgd-matched"])
    assert [(each["row"], each["seed"]) for each in numbers["confidence"] if each["row"] == "sam-02"] == [("sam-02", 1)]
    assert numbers["progress"]["measurements"] == [11, 12]


def _sorted_digits(path: Path, **arrays: object) -> Path:
    """The digits as a file, those of the test set sorted by class."""
    digits = load_dataset("digits")
    found: dict[str, object] = {}
    for name, split in (("train", digits.train), ("test", digits.test)):
        assert split is not None
        order = split.labels.argsort(stable=True) if name == "test" else slice(None)
        found[f"x_{name}"] = np.asarray(split.images[order].permute(0, 2, 3, 1))
        found[f"y_{name}"] = np.asarray(split.labels[order])
    np.savez(path, **found, **arrays)  # type: ignore[arg-type]
    return path


def test_a_file_with_a_name_of_its_own_gives_models_of_the_plan(tmp_path: Path) -> None:
    file, plan = _sorted_digits(tmp_path / "my digits.npz", name="named-within"), content()
    plan["scales"]["mini"] |= {"epochs": 1, "limit_train": 32, "seeds": {"main": 1, "other": 1}, "rows": ["standard"]}
    study = opened(tmp_path / "study", plan, dataset=str(file))
    assert study.dataset_name == "named-within"
    assert run_study(study, reporter=SilentReporter()) == []
    assert all(is_done(study, job) for job in study.jobs())


def test_a_note_says_whether_its_images_begin_the_test_set(tmp_path: Path) -> None:
    file, plan = _sorted_digits(tmp_path / "sorted.npz"), content()
    plan["evaluations"] = {"fault": {"attack": "autoattack", "eps": ["1/255"], "fault": "normalised-inputs"}}
    plan["claims"].pop("C1")
    mini = plan["scales"]["mini"]
    mini |= {"epochs": 1, "limit_train": 32, "seeds": {"main": 1, "other": 1}, "rows": ["standard"]}
    mini["first"] = {"fault": 2}
    for dataset, head in (("digits", True), (str(file), False)):
        study = opened(tmp_path / Path(dataset).stem, plan, dataset=dataset)
        assert run_study(study, reporter=SilentReporter()) == []
        (note,) = study.folder.glob("measurements/standard-s0/fault*.json")
        assert json.loads(note.read_text())["head"] is head
