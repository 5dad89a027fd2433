"""A small study that is finished."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from study_samples import opened

from sam_bench.progress import SilentReporter
from sam_bench.studies.jobs import Study
from sam_bench.studies.runner import run_study


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Nobody writes into its folder."""
    study = opened(tmp_path_factory.mktemp("study") / "finished")
    assert run_study(study, reporter=SilentReporter(), command="the tests") == []
    return study


@pytest.fixture
def copied(finished: Study, tmp_path: Path) -> Path:
    """The folder of a copy of it, to change."""
    return Path(shutil.copytree(finished.folder, tmp_path / "copied"))
