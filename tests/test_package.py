"""The package as others get it: what is in the archives, what importing costs, what the metadata says."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import entry_points, metadata
from pathlib import Path

import pytest

import sam_bench

ROOT = Path(sam_bench.__file__).resolve().parent.parent


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_loads_none_of_the_heavy_ones() -> None:
    heavy = (
        "torch",
        "torchvision",
        "timm",
        "robustbench",
        "numpy",
        "sklearn",
        "matplotlib",
        "pydantic",
        "rich",
        "yaml",
    )
    code = f"import sys, sam_bench; print([name for name in {heavy!r} if name in sys.modules])"
    assert python(code) == "[]"


def test_a_command_that_only_helps_waits_for_pytorch_and_for_no_package_of_seconds_beside_it() -> None:
    slow = ("torchvision", "timm", "robustbench", "sklearn", "scipy", "matplotlib", "triton", "ray", "torch._dynamo")
    code = f"import sys, sam_bench.api; print([name for name in {slow!r} if name in sys.modules])"
    assert python(code) == "[]"


def test_the_verbs_are_there_and_nothing_else_is_claimed() -> None:
    assert sorted(sam_bench.__all__) == dir(sam_bench)
    for name in sam_bench.__all__:
        assert getattr(sam_bench, name) is not None
    with pytest.raises(AttributeError, match="module 'sam_bench' has no attribute 'trian'"):
        _ = sam_bench.trian


def test_the_metadata_names_the_version_and_the_command() -> None:
    assert metadata("sam-bench")["Version"] == sam_bench.__version__
    (command,) = entry_points(group="console_scripts", name="sam-bench")
    assert command.value == "sam_bench.cli.main:main" and callable(command.load())


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str]]:
    """The names in the wheel and, without its first folder, in the sdist, built from a copy of the sources."""
    if not (ROOT / "setup.cfg").exists():
        pytest.skip("the tests run against an installed wheel, whose sources are not here")
    source = tmp_path_factory.mktemp("source")
    tracked = ["pyproject.toml", "setup.cfg", "README.md", "LICENSE", "MANIFEST.in", *_package_files()]
    for name in tracked:
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("dist")
    # Without an environment of its own, which would be downloaded; the wheel is built from the sdist.
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    assert wheel.name == f"sam_bench-{sam_bench.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as source_archive:
        members = {member.name.split("/", 1)[-1] for member in source_archive.getmembers() if member.isfile()}
        return set(archive.namelist()), members


def _package_files() -> set[str]:
    """Everything below sam_bench that is not made by Python itself."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "sam_bench").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".tmp", ".pyc")
    }


def test_wheel_and_sdist_hold_every_file_of_the_package(archives: tuple[set[str], set[str]]) -> None:
    expected = _package_files()
    kinds = {Path(name).suffix for name in expected}
    assert {".py", ".yaml", ".j2"} <= kinds and "sam_bench/py.typed" in expected
    for names in archives:
        assert expected - names == set()


def test_the_wheel_holds_nothing_but_the_package_and_its_metadata(archives: tuple[set[str], set[str]]) -> None:
    wheel, sdist = archives
    folders = {name.split("/")[0] for name in wheel}
    assert folders == {"sam_bench", f"sam_bench-{sam_bench.__version__}.dist-info"}
    assert any(name.endswith("LICENSE") for name in wheel)
    assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE"} <= sdist


def test_no_benchmark_hides_a_package_of_its_name() -> None:
    """A script's folder comes first on its path: one called autoattack.py would be what `import autoattack` finds."""
    scripts = [script.stem for script in (ROOT / "benchmarks").glob("*.py")]
    assert scripts and [name for name in scripts if importlib.util.find_spec(name) is not None] == []
