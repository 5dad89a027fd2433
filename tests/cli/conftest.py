"""The command line, run in this process, in an empty folder; and a small trained model to run it on."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cli_runner import SMALL, CommandLine

from sam_bench import api


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    """`sam-bench` in an empty folder without a zoo elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAM_BENCH_ZOO", raising=False)
    return CommandLine(tmp_path, monkeypatch, capfd)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a zoo that holds `tiny`, trained on digits until it is right more often than not."""
    folder = tmp_path_factory.mktemp("trained")
    api.train(
        "standard",
        "digits",
        name="tiny",
        arch="preactresnet10",
        arch_options={"width": 4},
        image_size=8,
        settings=SMALL | {"epochs": 4, "schedule": "one-cycle", "batch_size": 32, "lr": 0.1},
        limit_train=256,
        validation=0,
        precision="fp32",
        zoo=folder / "model_zoo",
        run_dir=folder / "runs" / "tiny",
    )
    return folder


@pytest.fixture
def with_tiny(cli: CommandLine, trained: Path) -> CommandLine:
    """`sam-bench` in a folder whose zoo holds `tiny`."""
    shutil.copytree(trained / "model_zoo", cli.folder / "model_zoo")
    return cli
