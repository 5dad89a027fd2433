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

import pytest
from study_samples import content, opened

from sam_bench.errors import InputError
from sam_bench.progress import SilentReporter
from sam_bench.studies.found import is_done
from sam_bench.studies.jobs import Model, Study
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
