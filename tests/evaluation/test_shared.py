"""An evaluation that processes share finds what one finds, and what cannot be shared is refused."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_samples import CPU, Dying, Nearest, attacked, digits, log_of, problem_of
from torch import Tensor

from sam_bench import api
from sam_bench.attacks.autoattack import AutoAttack
from sam_bench.attacks.events import Verdict
from sam_bench.device import device_name
from sam_bench.errors import InputError, SamBenchError
from sam_bench.evaluation import Local, Processes
from sam_bench.evaluation.executors.local import attack_here
from sam_bench.evaluation.executors.processes import travelling
from sam_bench.evaluation.problem import UNASKED

SUITE = AutoAttack(version="custom", suite=("apgd-ce", "apgd-dlr"))


@pytest.fixture(scope="module")
def nearest() -> Nearest:
    return Nearest()


@pytest.mark.slow
def test_processes_that_share_the_examples_find_what_one_finds(nearest: Nearest, tmp_path: Path) -> None:
    problem = problem_of(nearest, digits(40), SUITE, batch_size=16)
    alone = attacked(problem, tmp_path / "alone")
    shared = attacked(problem, tmp_path / "shared", Processes(2, CPU))
    assert shared.verdicts == alone.verdicts and shared.warnings == alone.warnings
    assert Processes(2, CPU).ran_on() == device_name(CPU)


class Keeping(Nearest):
    """Keeps what it computed, as a network keeps its attention maps."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        self.maps = [self.last * 2]
        return self.last


def test_a_module_that_keeps_what_it_computed_is_sent_without_what_was_computed_from() -> None:
    module = Keeping()
    module(torch.rand(2, 64))
    sent = travelling(problem_of(module, digits(4))).model.module
    assert isinstance(sent, Keeping) and sent is not module
    assert torch.equal(sent.means, module.means) and torch.equal(sent.maps[0], module.maps[0])
    assert sent.maps[0].is_leaf and not module.maps[0].is_leaf


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("dies", r"the process of worker \d died \(exit code 3\); with workers=1 its error is seen where it arises"),
        ("refuses", "by hand"),
        ("fails", r"worker \d failed: ZeroDivisionError: by hand"),
    ],
)
def test_a_worker_that_dies_or_fails_is_told_of(how: str, message: str, nearest: Nearest, tmp_path: Path) -> None:
    with pytest.raises(SamBenchError, match=message):
        attacked(problem_of(nearest, digits(20), Dying(how=how)), tmp_path, Processes(2, CPU))


def test_the_gpu_that_a_worker_is_given_is_its_current_one(nearest: Nearest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that calls `cuda()` would otherwise put a tensor on the first GPU, and the others on its own."""
    became: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: became.append(str(device)))
    problem = problem_of(nearest, digits(2))
    for device in ("cuda:99", "cpu"):
        try:
            next(iter(attack_here(problem, problem.stored({0: UNASKED}), torch.device(device))))
        except (RuntimeError, AssertionError):  # no machine has that many
            assert device == "cuda:99"
    assert became == ["cuda:99"]


def test_a_module_that_cannot_be_pickled_is_refused_before_anything_is_begun(tmp_path: Path) -> None:
    module = Nearest()
    module.hook = (image for image in ())
    problem = problem_of(module, digits(10))
    with pytest.raises(InputError, match=r"workers=2 needs a module that can be pickled, and nearest .* \(.*generator"):
        attacked(problem, tmp_path / "log", Processes(2, CPU))
    assert not (tmp_path / "log").exists()
    assert len(attacked(problem, tmp_path / "log").verdicts) == 10


def test_a_missing_compiler_is_told_before_anything_is_begun(
    nearest: Nearest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    problem = problem_of(nearest, digits(10), AutoAttack(compile="on"))
    with pytest.raises(InputError, match=r"compile='on': there is no C\+\+ compiler"):
        attacked(problem, tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_what_depends_on_the_batch_is_not_shared(nearest: Nearest, tmp_path: Path) -> None:
    reference = problem_of(nearest, digits(10), AutoAttack(engine="reference"))
    with pytest.raises(InputError, match=r"\(pyautoattack .*\) cannot be shared among processes.*leave workers away"):
        attacked(reference, tmp_path, Processes(2, CPU))


@pytest.mark.parametrize("setting", [{"engine": "reference"}, {"rng": "upstream"}], ids=str)
def test_verdicts_that_depend_on_the_batch_are_told_at_the_end(setting: dict[str, Any], nearest: Nearest) -> None:
    problem = problem_of(nearest, digits(30), AutoAttack(version="custom", suite=("apgd-ce",), **setting))
    events = list(Local(CPU).run(problem, dict.fromkeys(range(30), UNASKED)))
    told = [event for event in events if isinstance(event, Verdict)]
    assert {each.outcome for each in told} > {"apgd-ce"} and len({each.example for each in told}) == 30
    assert events[-len(told) :] == told


def test_adversarial_examples_are_kept_where_they_are_asked_for(nearest: Nearest, tmp_path: Path) -> None:
    problem = problem_of(nearest, digits(30), save_adversarial=True)
    found = attacked(problem, tmp_path)
    x, kept = digits(30).images.float() / 255, log_of(problem, tmp_path).adversarial()
    broken = [place for place, verdict in enumerate(found.verdicts) if verdict == "pgd"]
    assert broken and sorted(kept) == broken
    for place in broken:
        assert kept[place].dtype == torch.float32
        assert float((kept[place] - x[place]).abs().max()) <= 16 / 255 + 1e-6
        assert int(nearest(kept[place][None]).argmax(1)) != int(digits(30).labels[place])


@pytest.mark.slow
def test_the_curve_falls_carries_over_and_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    api.train(
        "standard",
        "digits",
        arch="preactresnet10",
        arch_options={"width": 4},
        image_size=8,
        settings={"epochs": 2, "crop_padding": 0, "flip": False},
        name="tiny",
        limit_train=400,
    )
    options: dict[str, Any] = {"attack": "pgd", "settings": {"steps": 3}, "n_examples": 80, "save_adversarial": True}
    radii = ["0.1", "4/255", "16/255"]
    curve = api.evaluate_curve("tiny", radii, **options)
    assert [str(record.eps) for record in curve] == ["4/255", "16/255", "0.1"]
    robust = [record.robust_accuracy for record in curve]
    assert robust == sorted(robust, reverse=True) and robust[0] > robust[-1]
    for smaller, larger in itertools.pairwise(curve):
        broken = {place for place, verdict in enumerate(smaller.verdicts) if verdict == "pgd"}
        assert larger.carried == len(broken)
        assert all(larger.verdicts[place] == "pgd" for place in broken)
    alone = api.evaluate("tiny", eps="4/255", **options, output=tmp_path / "alone.json")
    assert alone.verdicts == curve[0].verdicts and alone.carried == curve[0].carried == 0
    folder = tmp_path / "evaluations" / "tiny"
    assert not list(folder.glob("*.progress"))
    bundle = np.load(folder / "pgd-steps3-Linf-4over255-n80.adversarial.npz")
    assert len(bundle["index"]) == len(bundle["x_adv"]) == alone.verdicts.count("pgd")
    # The second of three is missing: resumed, the others are taken as they are.
    before = (folder / "pgd-steps3-Linf-4over255-n80.json").read_bytes()
    (folder / "pgd-steps3-Linf-16over255-n80.json").unlink()
    again = api.evaluate_curve("tiny", radii, **options, resume=True)
    assert [record.verdicts for record in again] == [record.verdicts for record in curve]
    assert (folder / "pgd-steps3-Linf-4over255-n80.json").read_bytes() == before
    # What is in the way at the second is said before anything is done at the first.
    bundle_file = folder / "pgd-steps3-Linf-4over255-n80.adversarial.npz"
    bundle_file.unlink()
    with pytest.raises(InputError, match=r"^save_adversarial: .*4over255-n80\.json is finished, and .* not kept"):
        api.evaluate_curve("tiny", radii, **options, resume=True)
    (folder / "pgd-steps3-Linf-16over255-n80.progress").mkdir()
    (folder / "pgd-steps3-Linf-16over255-n80.progress" / "part-0001-0000.jsonl").write_text("")
    with pytest.raises(InputError, match=r"16over255-n80\.progress holds an evaluation that was not finished"):
        api.evaluate_curve("tiny", radii, **options)
    assert not bundle_file.exists() and not list(folder.glob("*4over255*.progress"))


@pytest.mark.slow
def test_torchrun_shares_an_evaluation_and_writes_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    api.train(
        "standard",
        "digits",
        arch="preactresnet10",
        arch_options={"width": 2},
        image_size=8,
        settings={"epochs": 1, "crop_padding": 0, "flip": False},
        name="tiny",
        limit_train=200,
    )
    alone = api.evaluate("tiny", attack="pgd", eps="16/255", n_examples=51, output=tmp_path / "alone.json")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sam_bench"]
    command += ["evaluate", "tiny", "--attack", "pgd", "--eps", "16/255", "--n-examples", "51", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)  # one object: one of the processes prints
    assert printed["verdicts"] == alone.verdicts
    assert done.stderr.count("record written to") == 1
    folder = tmp_path / "evaluations" / "tiny"
    assert [path.name for path in folder.iterdir()] == ["pgd-Linf-16over255-n51.json"]
