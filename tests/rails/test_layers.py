"""Every module imports from the layers below its own alone, as pyproject.toml lists them."""

from __future__ import annotations

import pytest
from importlinter.cli import lint_imports
from shape import ROOT


def test_imports_lead_downwards(capsys: pytest.CaptureFixture[str]) -> None:
    code = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert code == 0, capsys.readouterr().out
