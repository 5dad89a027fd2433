"""Shims are reached only where nothing else provides the module, and RobustBench needs them today."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sam_bench import integrations
from sam_bench.integrations.finder import ShimFinder

TINY_MODEL = "torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10)).eval()"


def python(code: str, *on_path: Path) -> Any:
    """Run code in a fresh interpreter; what it prints last is JSON."""
    path = os.pathsep.join([*map(str, on_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def without_us() -> Any:
    """What happens in an interpreter that has not imported sam_bench, and what once it does so last."""
    return python(f"""
import contextlib, io, json, sys, types, torch
from pathlib import Path
from tempfile import mkdtemp
faults = {{}}
def attempt(name, action):
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            action()
        faults[name] = None
    except BaseException as error:
        faults[name] = type(error).__name__ + ": " + str(error)
def enter():
    import robustbench
sys.modules["pkg_resources"] = sys.modules["autoattack"] = None  # as on a machine that has neither
attempt("pkg_resources", enter)
sys.modules["pkg_resources"] = mine = types.ModuleType("pkg_resources")
attempt("autoattack", enter)
import pyautoattack, pyautoattack.state
sys.modules["autoattack"], sys.modules["autoattack.state"] = pyautoattack, pyautoattack.state
attempt("alias imports", enter)
from robustbench import eval
attempt("interface", lambda: eval.AutoAttack({TINY_MODEL}, eps=0.1, log_path=None))
attempt("device", lambda: eval.benchmark({TINY_MODEL}, n_examples=1, eps=0.1, device="cpu"))
path = Path(mkdtemp()) / "state.json"
state = eval.EvaluationState({{"square", "fab"}}, path=path)
state.robust_flags = torch.tensor([True, False])
read = eval.EvaluationState.from_disk(path)
attempt("mean", lambda: read.robust_flags.mean())
faults["resume"] = read.attacks_to_run != state.attacks_to_run
patched = [hasattr(sys.modules["robustbench"].benchmark, "__wrapped__")]
import sam_bench
patched.append(hasattr(sys.modules["robustbench"].benchmark, "__wrapped__"))
print(json.dumps([faults, patched, sys.modules["pkg_resources"] is mine]))
""")


def test_robustbench_still_has_each_fault_that_is_mended(without_us: Any) -> None:
    """Each of these is a fault of upstream's; when one is gone, its patch can go."""
    faults = dict(without_us[0])
    assert faults.pop("alias imports") is None
    assert "pkg_resources" in faults["pkg_resources"]
    assert "autoattack" in faults["autoattack"]
    assert "log_path" in faults["interface"]
    assert "NotImplementedError" in faults["device"]
    assert "mean" in faults["mean"]
    assert faults["resume"] is True


def test_importing_sam_bench_is_all_it_takes_even_after_robustbench_has_failed() -> None:
    found = python("""
import json, sys
sys.modules["autoattack"] = None
try:
    import robustbench
    failed = False
except ImportError:
    failed = True
del sys.modules["autoattack"]
import sam_bench
import robustbench, autoattack
from autoattack.state import EvaluationState
print(json.dumps({
    "failed": failed,
    "autoattack": autoattack.AutoAttack.__module__,
    "state": EvaluationState.__module__,
    "patched": hasattr(robustbench.benchmark, "__wrapped__") and robustbench.benchmark is robustbench.eval.benchmark,
}))
""")
    assert found == {
        "failed": True,
        "autoattack": "sam_bench.integrations.autoattack_adapter",
        "state": "sam_bench.integrations.state",
        "patched": True,
    }


def test_robustbench_imported_first_is_mended_when_sam_bench_comes_and_keeps_its_pkg_resources(without_us: Any) -> None:
    _, patched, keeps_its_own = without_us
    assert patched == [False, True]
    assert keeps_its_own


def test_importing_sam_bench_imports_nothing_heavy_and_nobody_else_meets_pkg_resources() -> None:
    heavy, finders, found = python("""
import json, sys
import sam_bench
heavy = sorted({"torch", "timm", "robustbench", "pyautoattack", "torchvision"} & set(sys.modules))
sys.path[:] = []  # as on a machine where no package provides it
try:
    import pkg_resources
    found = True
except ImportError:
    found = False
print(json.dumps([heavy, [type(finder).__name__ for finder in sys.meta_path][-1], found]))
""")
    assert heavy == []
    assert finders == "ShimFinder"
    assert found is False


def test_installing_twice_changes_nothing() -> None:
    before = list(sys.meta_path)
    integrations.install()
    assert sys.meta_path == before
    assert sum(isinstance(finder, ShimFinder) for finder in before) == 1


CLASSIC = """
import pyautoattack

class AutoAttack:
    def __init__(self, model, norm="Linf", eps=.3, seed=None, verbose=True, attacks_to_run=[], version="standard",
                 is_tf_model=False, device="cuda", log_path=None):
        inner = pyautoattack.AutoAttack(model, norm=norm, eps=eps, seed=seed, version=version, device=device)
        self.__dict__.update(vars(inner))
        self.get_logits, self.get_seed, self.verbose = inner.get_logits, inner.get_seed, verbose
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 5
        self.square.n_queries = 20
"""


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A folder with packages `autoattack` (classic constructor) and `pkg_resources`, as an installer leaves them."""
    (tmp_path / "autoattack").mkdir()
    (tmp_path / "autoattack" / "__init__.py").write_text(CLASSIC)
    (tmp_path / "autoattack" / "checks.py").write_text("from pyautoattack.checks import *\n")
    (tmp_path / "autoattack-7.5.dist-info").mkdir()
    (tmp_path / "autoattack-7.5.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: autoattack\nVersion: 7.5\n"
    )
    (tmp_path / "pkg_resources.py").write_text("resource_filename = None\n")
    return tmp_path


def test_installed_packages_win_over_the_stand_ins_and_run_the_attack(sound: Path) -> None:
    found = python(
        f"""
import json, torch
import sam_bench
import autoattack, pkg_resources
from sam_bench.attacks.autoattack import AutoAttack
torch.manual_seed(0)
model, x = {TINY_MODEL}, torch.rand(8, 3, 32, 32)
result = AutoAttack(engine="reference").run(model, x, model(x).argmax(1), norm="Linf", eps=0.3)
print(json.dumps([autoattack.__file__, pkg_resources.__file__, result.engine, sorted(set(result.verdicts))]))
""",
        sound,
    )
    assert found[0].startswith(str(sound))
    assert found[1].startswith(str(sound))
    assert found[2] == "autoattack 7.5"
    assert "apgd-ce" in found[3]


def test_resource_filename_finds_what_lies_beside_a_module_and_the_rest_says_what_to_do() -> None:
    from sam_bench.integrations.shims import pkg_resources

    beside_a_module = pkg_resources.resource_filename("robustbench.loaders", "helper_files/imagenet_test_image_ids.txt")
    in_a_package = pkg_resources.resource_filename("robustbench", "helper_files/imagenet_test_image_ids.txt")
    assert beside_a_module == in_a_package
    assert len(Path(beside_a_module).read_text().splitlines()) == 5000
    with pytest.raises(AttributeError, match=r"pkg_resources.get_distribution .* pip install 'setuptools<81'"):
        _ = pkg_resources.get_distribution


def test_resource_filename_unpacks_what_is_zipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    from sam_bench.integrations.shims import pkg_resources

    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("zipped_package/__init__.py", "")
        archive.writestr("zipped_package/data/note.txt", "inside")
    monkeypatch.syspath_prepend(str(tmp_path / "packed.zip"))
    assert Path(pkg_resources.resource_filename("zipped_package", "data/note.txt")).read_text() == "inside"
