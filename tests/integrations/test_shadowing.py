"""Another package's copy of RobustBench over the installed one is named, with the way to mend it."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path

import pytest

from sam_bench.doctor import examine
from sam_bench.integrations.shadowing import FIX, detect_shadowing, warn_if_shadowed

FILES = {"robustbench/__init__.py": b"from .eval import benchmark\n", "robustbench/eval.py": b"def benchmark(): ...\n"}


def install(site: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    """Lay files down as pip does: over what is there, with a record of their hashes."""
    record = []
    for file, content in files.items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_bytes(content)
        digest = urlsafe_b64encode(sha256(content).digest()).rstrip(b"=").decode()
        record.append(f"{file},sha256={digest},{len(content)}")
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("\n".join([*record, f"{info.name}/RECORD,,"]))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    install(tmp_path, "robustbench", "1.1.1", FILES)
    return tmp_path


def test_the_installation_the_tests_run_in_is_sound() -> None:
    assert detect_shadowing() is None


def test_files_as_they_were_installed_are_nobodys_fault(site: Path, recwarn: pytest.WarningsRecorder) -> None:
    warn_if_shadowed(pytest)
    assert detect_shadowing() is None and not recwarn.list


def test_the_package_that_overwrote_them_is_named_with_the_fix(site: Path, tmp_path: Path) -> None:
    install(site, "torchattacks", "3.5.1", {**FILES, "robustbench/__init__.py": b"# from .eval import benchmark\n"})
    assert detect_shadowing() == "torchattacks 3.5.1"
    with pytest.warns(UserWarning, match=r"overwritten by torchattacks 3\.5\.1; to fix it: pip uninstall"):
        warn_if_shadowed(pytest)
    finding = next(each for each in examine(data_dir=tmp_path, zoo=tmp_path) if each.what == "robustbench.benchmark")
    assert finding.status == "wrong" and "torchattacks 3.5.1" in finding.detail and finding.fix == FIX


def test_a_file_changed_by_nobody_known_is_told_too(site: Path) -> None:
    (site / "robustbench/eval.py").write_text("")
    assert detect_shadowing() == "something"
