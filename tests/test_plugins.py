"""A package that registers something broken costs its own names, and a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
from sam_bench.perturb.weights.ascent import Ascent

class Own(Ascent):
    def ascend(self, batch, parameters, gradients):
        pass

def no_class():
    pass
"""
ENTRIES = """
[sam_bench.weight_perturbations]
own = somebodys:Own
gone = somebodys.nosuch:Gone
function = somebodys:no_class
sam = somebodys:Own

[sam_bench.attacks]
misplaced = somebodys:Own

[sam_bench.architectures]
net = somebodys.nosuch:net
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as pip leaves one."""
    site = tmp_path_factory.mktemp("site")
    (site / "somebodys.py").write_text(MODULE)
    info = site / "somebodys-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    (info / "RECORD").write_text("somebodys.py,,\n")
    return site


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=site, capture_output=True, text=True)


def test_the_others_work_and_each_broken_one_is_told_once(site: Path) -> None:
    code = (
        "from sam_bench.perturb import WEIGHT_PERTURBATIONS as W; from sam_bench.models import create_model; "
        "from sam_bench.models.registry import architectures; from sam_bench.attacks import ATTACKS; "
        "print(W.get('own').method, W.get('sam').__module__, 'gone' in W.names(), 'pgd' in ATTACKS.names(), "
        "'preactresnet18' in architectures())"
    )
    done = run(site, "-c", code)
    assert done.stdout == "own sam_bench.perturb.weights.sam False True True\n", done.stderr
    for said in (
        "'gone' of the package somebodys (sam_bench.weight_perturbations: somebodys.nosuch:Gone) cannot be used: Mod",
        "'function' of the package somebodys (sam_bench.weight_perturbations: somebodys:no_class) cannot be used: it "
        "is no weight perturbation, a class derived from WeightPerturbation",
        "(sam_bench.weight_perturbations: somebodys:Own) cannot be used: the name is taken",
        "'misplaced' of the package somebodys (sam_bench.attacks: somebodys:Own) cannot be used: it is no attack",
        "'net' of the package somebodys (sam_bench.architectures: somebodys.nosuch:net) cannot be used: Module",
    ):
        assert done.stderr.count(said) == 1, done.stderr


def test_a_broken_one_is_refused_where_it_is_asked_for_and_doctor_names_all(site: Path) -> None:
    done = run(site, "-m", "sam_bench", "train", "--weights", "gone", "--dataset", "digits")
    assert done.returncode == 2 and "weight perturbation 'gone' of the package somebodys" in done.stderr
    assert "Traceback" not in done.stderr
    done = run(site, "-m", "sam_bench", "doctor")
    assert "plug-ins" in done.stdout and done.returncode == 1
    assert all(name in done.stdout for name in ("'gone'", "'function'", "'sam'", "'misplaced'", "'net'"))


def test_what_another_package_runs_is_named_with_its_version(site: Path) -> None:
    done = run(site, "-c", "from sam_bench.plugins import version_of; print(version_of('somebodys.attack'))")
    assert done.stdout == "somebodys 2.5\n"
