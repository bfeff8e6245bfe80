"""Every notebook runs from a fresh kernel, in its fast setting, and is committed without outputs."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def read(path: Path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_short_stripped_and_asks_a_question(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.cells[0].source.splitlines()[0].endswith("?")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert any("FAST" in cell.source for cell in code)
    assert len(code) <= 12


@pytest.mark.parametrize("path", [pytest.param(path, marks=pytest.mark.slow, id=path.stem) for path in NOTEBOOKS])
def test_notebook_runs(path, monkeypatch, tmp_path):
    monkeypatch.setenv("THETADOT_FAST", "1")
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    notebook = read(path)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": os.fspath(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in shown if output.output_type == "stream" and output.name == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 1
