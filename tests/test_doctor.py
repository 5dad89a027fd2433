"""The doctor: all is well here, and what is not is named with the way to fix it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from sam_bench import cores
from sam_bench.cli.main import cli
from sam_bench.doctor import Finding, examine


@pytest.fixture
def there(tmp_path: Path) -> dict[str, Path]:
    return {"data_dir": tmp_path / "data", "zoo": tmp_path / "zoo"}


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    assert len({finding.what for finding in findings}) == len(findings)
    return {finding.what: finding for finding in findings}


def test_on_the_machine_that_runs_the_tests_all_is_well(there: dict[str, Path]) -> None:
    findings = by_name(examine(**there))
    # A full disk or a missing compiler is the machine's affair: noted, not wrong.
    wrong = [finding for finding in findings.values() if finding.status == "wrong"]
    assert wrong == []
    for what in ("Python", "versions", "device", "precision", "robustbench.benchmark", "autoattack", "timm"):
        assert findings[what].status == "ok" and findings[what].detail and not findings[what].fix
    assert "will be made when needed" in findings["data folder"].detail
    assert not any(path.exists() for path in there.values()), "a look changes nothing"


def test_on_a_busy_machine_it_measures_with_the_threads_that_a_run_would_take(
    there: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)
    monkeypatch.setattr(cores, "busy_cores", lambda: 1.2)
    cores.take_spare_cores.cache_clear()
    torch.set_num_threads(2)
    try:
        device = by_name(examine(**there))["device"]
        assert torch.get_num_threads() == 1
        assert ", 1 thread; 1 of 2 threads, because other processes keep 1.2 of 2 cores busy" in device.detail
    finally:
        cores.take_spare_cores.cache_clear()
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("module", "what", "fix"),
    [
        ("robustbench", "robustbench.benchmark", "pip install 'robustbench>=1.1.1'"),
        ("autoattack", "autoattack", "pip install pyautoattack"),
        ("timm", "timm", "pip install 'timm>=1.0.9'"),
    ],
)
def test_a_package_that_cannot_be_imported_is_reported_with_the_way_to_mend_it(
    module: str, what: str, fix: str, there: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # This is how Python itself marks a module as not importable.
    monkeypatch.setitem(sys.modules, module, None)
    finding = by_name(examine(**there))[what]
    assert finding.status == "wrong" and finding.fix == fix
    assert finding.detail.startswith(f"import {module} fails: ModuleNotFoundError: ")


def test_a_package_that_breaks_on_import_is_reported_with_its_error(
    tmp_path: Path, there: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "path" / "robustbench"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise AttributeError('module numpy has no attribute float')\n")
    for name in [name for name in sys.modules if name.split(".")[0] == "robustbench"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "path")
    finding = by_name(examine(**there))["robustbench.benchmark"]
    assert finding == Finding(
        "robustbench.benchmark",
        "wrong",
        "import robustbench fails: AttributeError: module numpy has no attribute float",
        "pip install 'robustbench>=1.1.1'",
    )


def test_a_missing_compiler_is_worth_a_note(there: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    finding = by_name(examine(**there))["torch.compile"]
    assert finding.status == "note" and "compiler" in finding.detail and "gcc" in finding.fix


def test_a_c_compiler_alone_does_not_compile_for_a_cpu(
    there: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gcc").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sam_bench.doctor.choose_device", lambda _: (torch.device("cpu"), ""))
    assert by_name(examine(**there))["torch.compile"].detail == "needs a C++ compiler on cpu"


@pytest.mark.parametrize("below", [(), ("data",)])
def test_a_folder_that_cannot_be_made_is_wrong(below: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    where = tmp_path.joinpath("file", *below)
    findings = by_name(examine(data_dir=where, zoo=where))
    assert findings["data folder"].status == findings["zoo"].status == "wrong"
    assert findings["data folder"].fix == "choose another with `data_dir`"
    assert findings["zoo"].detail == f"{where} cannot be written"


def test_an_environment_variable_names_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM_BENCH_ZOO", str(tmp_path))
    assert by_name(examine(data_dir=tmp_path))["zoo"].detail == f"{tmp_path} holds 0 models"


def test_a_card_that_cannot_be_read_is_wrong_in_every_form(there: dict[str, Path]) -> None:
    card = there["zoo"] / "cifar10" / "Linf" / "bad.json"
    card.parent.mkdir(parents=True)
    card.write_text("{")
    done = doctor("--data-dir", str(there["data_dir"]), "--zoo", str(there["zoo"]), "--json")
    assert done.exit_code == 1 and not done.stderr
    (zoo,) = (finding for finding in json.loads(done.stdout)["findings"] if finding["what"] == "zoo")
    assert zoo["status"] == "wrong" and zoo["fix"] == "fix or delete the file named"
    assert f"holds 0 models, and 1 card that cannot be used: {card} is not a valid ModelCard" in zoo["detail"]


def test_a_zoo_that_is_there_and_cannot_be_written_is_wrong(
    there: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    there["zoo"].mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != there["zoo"])  # root may write everywhere
    finding = by_name(examine(**there))["zoo"]
    assert (finding.status, finding.detail) == ("wrong", f"{there['zoo']} cannot be written")


def doctor(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["doctor", *arguments])


def test_the_command_prints_a_line_for_each_finding_or_one_json_object(there: dict[str, Path]) -> None:
    where = ["--data-dir", str(there["data_dir"]), "--zoo", str(there["zoo"])]
    plain, machine = doctor(*where), doctor(*where, "--json")
    assert plain.exit_code == machine.exit_code == 0
    findings = json.loads(machine.stdout)["findings"]
    assert all(set(finding) == {"what", "status", "detail", "fix"} for finding in findings)
    for finding in findings:
        assert f"{finding['status']:<6} {finding['what']}: {finding['detail']}" in plain.stdout


def test_the_command_fails_when_something_is_wrong_and_still_says_everything(
    there: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "robustbench", None)
    where = ["--data-dir", str(there["data_dir"]), "--zoo", str(there["zoo"])]
    plain, machine = doctor(*where), doctor(*where, "--json")
    assert plain.exit_code == machine.exit_code == 1
    assert "-> pip install 'robustbench>=1.1.1'" in plain.stdout and "torch.compile" in plain.stdout
    statuses = {finding["what"]: finding["status"] for finding in json.loads(machine.stdout)["findings"]}
    assert statuses["robustbench.benchmark"] == "wrong" and statuses["timm"] == "ok"
