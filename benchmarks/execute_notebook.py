"""Executes the notebook of the documentation afresh and writes it back with its outputs: `make notebook`.

    .venv/bin/python benchmarks/execute_notebook.py docs/notebooks/first-run.ipynb

The run is made in a folder of its own that is removed afterwards. About a minute on two cores. What packages write to
standard error, of the machine they run on, is left out.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

LONGEST_S = 1200
"""Of one cell, on a busy machine."""


def executed(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """The notebook with the outputs of all its cells, which are executed one after another in ``folder``.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        timeout=LONGEST_S,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    return notebook


def main() -> None:
    """Execute the notebooks that are named."""
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            made = executed(nbformat.read(name, as_version=4), Path(folder))
        nbformat.write(made, name)


if __name__ == "__main__":
    main()
