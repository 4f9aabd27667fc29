"""The notebooks run from a fresh kernel: the desk's on the simulation, the board's on the simulated board and on the desk."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tellme.golden.config import TINY
from tellme.hw import cache
from tests.pynq.board import FOLDER, simulation
from tests.pynq.files import write_build

ROOT = Path(__file__).parent.parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def execute(name: str, before: str, parameters: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a notebook with other parameters in a kernel of its own; what it printed."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *(p for p in sys.path if p)]))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("TELLME_BUILD", str(cache.root()))
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    known = {line.split(" = ")[0] for line in cell.source.splitlines()}
    assert set(parameters) <= known
    cell.source += "".join(f"\n{key} = {value!r}" for key, value in parameters.items()) + "\n" + before
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return "".join(
        output.text for c in notebook.cells for output in c.get("outputs", ()) if output.output_type == "stream"
    )


def test_the_desk_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, story: Callable[[int], str]) -> None:
    text = execute("desk.ipynb", "", {"tokens": 3, "prompt": "One day"}, tmp_path, monkeypatch)
    assert story(3) in text and "logits equal the golden model's" in text and "tokens/s at 100 MHz" in text
    assert not list(tmp_path.iterdir())


def test_the_board_notebook_runs_on_the_simulated_board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, story: Callable[[int], str]
) -> None:
    path = write_build(tmp_path / "build", TINY)
    monkeypatch.setenv(FOLDER, str(simulation("tiny")))
    plug = "from tests.pynq.board import plug\nplugged_board = plug(uio=True)"
    parameters = {"preset": "tiny", "bitstream": str(path), "prompt": "One day", "tokens": 4}
    text = execute("board.ipynb", plug, parameters, tmp_path, monkeypatch)
    assert "ok   self-test" in text and "FAIL" not in text and "by interrupt" in text
    assert story(4) in text and "answers        2" in text


def test_the_board_notebook_runs_on_the_desk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, story: Callable[[int], str]
) -> None:
    parameters = {"backend": "sim", "preset": "tiny", "prompt": "One day", "tokens": 2}
    text = execute("board.ipynb", "", parameters, tmp_path, monkeypatch)
    assert story(2) in text and "energy         not measured: not a board" in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_are_stored_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type != "code" or (not cell.outputs and cell.execution_count is None)
    assert str(ROOT) not in path.read_text()
