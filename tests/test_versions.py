"""What a card says of the code that made it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import torch

import sam_bench
from sam_bench.versions import package_versions

_ASK = "from sam_bench.versions import source_commit; print(source_commit())"


def _copy(folder: Path) -> None:
    """As much of the package as the question needs."""
    (folder / "sam_bench").mkdir(parents=True)
    (folder / "sam_bench" / "__init__.py").touch()
    shutil.copy(Path(sam_bench.__file__).parent / "versions.py", folder / "sam_bench")


def _asked(folder: Path) -> str:
    return subprocess.run([sys.executable, "-c", _ASK], cwd=folder, capture_output=True, text=True, check=True).stdout


def _git(folder: Path, *command: str) -> str:
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", "-C", folder, *name, *command], capture_output=True, text=True, check=True).stdout


def test_the_versions_that_decide_numbers_are_there() -> None:
    versions = package_versions()
    assert {"python", "sam-bench", "torch", "torchvision", "timm", "numpy", "robustbench"} <= set(versions)
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"pyautoattack", "autoattack"} & set(versions)


def test_a_checkout_says_its_commit_and_that_its_files_differ(tmp_path: Path) -> None:
    _copy(tmp_path)
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", "sam_bench")
    _git(tmp_path, "commit", "-qm", "first")
    head = _git(tmp_path, "rev-parse", "HEAD")[:12]
    assert _asked(tmp_path) == f"{head}\n"
    (tmp_path / "sam_bench" / "__init__.py").write_text("x = 1\n")
    assert _asked(tmp_path) == f"{head}.changed\n"


def test_an_installed_copy_in_somebody_elses_repository_has_no_commit(tmp_path: Path) -> None:
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "commit", "-qm", "theirs", "--allow-empty")
    _copy(tmp_path / "site-packages")
    assert _asked(tmp_path / "site-packages") == "None\n"
