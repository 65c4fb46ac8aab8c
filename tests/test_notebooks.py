"""Runs the notebooks of docs/notebooks/, whose cells assert what must hold.

Cells with the tag `exact` print what does not depend on the machine: the same text as in the file.
"""

import pathlib

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.once
NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))
LARGEST = 400_000  # bytes, with the pictures


def printed(notebook):
    """Returns what the cells with the tag `exact` print, of a notebook with outputs."""
    cells = [cell for cell in notebook.cells if "exact" in cell.metadata.get("tags", ())]
    return ["".join(output.text for output in cell.outputs if output.get("name") == "stdout") for cell in cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_prints_what_it_says(path, tmp_path):
    assert path.stat().st_size < LARGEST
    notebook = nbformat.read(path, as_version=4)
    expected = printed(notebook)
    assert expected
    assert all(expected)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert printed(notebook) == expected
