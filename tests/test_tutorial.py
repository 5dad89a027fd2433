"""The tutorial's notebook runs from its first cell to its last, and is committed with what it prints."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "tutorial.ipynb"

SMALL = """
EPOCHS, WIDTH, TRAIN_IMAGES, N_AUTOATTACK = 1, 2, 64, 2
RHOS, EPSILONS, RADII = [0.1], ["16/255"], ["16/255", "32/255"]
"""


def assigned(source: str) -> set[str]:
    """The names that a cell sets."""
    names = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name))
    return {name.id for name in names if isinstance(name.ctx, ast.Store)}


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (settings,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    assert assigned(settings.source) == assigned(SMALL)
    settings.source = SMALL
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()

    (folder,) = tmp_path.glob("sam-bench-tutorial-*")
    assert (folder / "leaderboards" / "leaderboard.png").exists()
    assert len(list((folder / "model_zoo" / "digits-8px" / "Linf").glob("*.json"))) == 8
    texts = {
        output.data["text/plain"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "execute_result"
    }
    assert {"True", "torch.Size([2, 10])"} <= texts


def test_what_it_printed_is_committed() -> None:
    assert NOTEBOOK.stat().st_size < 300_000
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum(bool(cell.outputs) for cell in code) >= 8
    outputs = [output for cell in code for output in cell.outputs]
    assert not [each for each in outputs if each.output_type == "error" or each.get("name") == "stderr"]
    assert "/home/" not in str(outputs) and "/tmp/" not in str(outputs)
