"""The notebook of the documentation, executed afresh in a kernel of its own; and a kernel that is interrupted."""

from __future__ import annotations

import json
import math
import queue
import re
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import nbformat
import pytest
from execute_notebook import executed
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from nbformat import NotebookNode

from covrl import Run
from covrl.notebook.frames import TRACE

NOTEBOOK = Path(__file__).parents[2] / "docs/notebooks/first-run.ipynb"
PATIENCE_S = 300.0
KEEP = """
import json, pathlib
frame = trained.metrics
kept = {"steps": frame.index.tolist(), "columns": frame.to_dict("list"), "traces": trained.traces.columns.tolist()}
pathlib.Path("kept.json").write_text(json.dumps(kept))
"""


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def html_of(cell: NotebookNode) -> str:
    return "".join(output.data.get("text/html", "") for output in cell.outputs if "data" in output)


def training_cell(notebook: NotebookNode) -> NotebookNode:
    (cell,) = [cell for cell in code_cells(notebook) if "covrl.train(" in cell.source]
    return cell


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def done(folder: Path) -> NotebookNode:
    """The notebook as it is committed, executed, with a cell that keeps what its frames hold."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(KEEP))
    return executed(notebook, folder)


def test_every_cell_runs_without_an_error(done: NotebookNode) -> None:
    cells = code_cells(done)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert kinds <= {"display_data", "execute_result", "stream"}


def test_the_frame_is_the_metrics_file_to_the_value(done: NotebookNode, folder: Path) -> None:
    kept = json.loads((folder / "kept.json").read_text())
    lines = [json.loads(line) for line in (folder / "runs/first/metrics.jsonl").read_text().splitlines()]
    assert kept["steps"] == [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert set(kept["columns"]) == {name for line in lines for name in line["metrics"]}
    assert {"eval/accuracy", "reward/prior", "reward/posterior", "kl/nats_per_trace"} <= set(kept["columns"])
    for name, values in kept["columns"].items():
        for value, line in zip(values, lines, strict=True):
            written = line["metrics"].get(name)
            assert math.isnan(value) if written is None else value == written, (name, line["step"])
    assert kept["traces"] == list(TRACE)


def test_the_model_learned(done: NotebookNode, folder: Path) -> None:
    accuracy = Run(folder / "runs/first").metrics["eval/accuracy"].dropna()
    assert accuracy.iloc[0] < 0.2
    assert accuracy.iloc[-1] > 0.5


def test_the_cell_that_trains_keeps_one_display_in_its_last_state(done: NotebookNode) -> None:
    (output,) = training_cell(done).outputs
    total = max(map(int, re.findall(r'"steps": (\d+)', "".join(cell.source for cell in done.cells))))
    assert f"step {total} of {total}" in output.data["text/plain"]
    html = output.data["text/html"]
    assert html.count("<figure") == 4
    assert html.count("<table") == 2
    assert "left" not in output.data["text/plain"]
    assert len(html) < 60_000


def kinds(cell: NotebookNode) -> list[str]:
    """The kinds of a cell's outputs; what is printed comes in as many pieces as time makes of it."""
    return [kind for kind, _ in groupby(output.output_type for output in cell.outputs)]


def test_what_is_committed_was_executed_and_is_plain(done: NotebookNode) -> None:
    committed = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(committed)
    cells = code_cells(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell, again in zip(cells, code_cells(done), strict=False):
        assert kinds(cell) == kinds(again), cell.source
        assert re.findall(r"<(\w+)", html_of(cell))[:1] == re.findall(r"<(\w+)", html_of(again))[:1]
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert "<script" not in text
    assert not re.search(r"/(?:home|work|tmp|root|Users)/", text), "a path of a machine"


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=PATIENCE_S)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_an_interrupted_kernel_leaves_a_run_that_is_resumed(
    kernel: tuple[KernelManager, BlockingKernelClient], tmp_path: Path
) -> None:
    manager, client = kernel
    (settings,) = [c.source for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.source.startswith("settings = {")]
    small = "settings['training'] |= {'problems_per_step': 2, 'rollouts_per_problem': 2, 'steps': 100000}"
    quiet = "settings['evaluation'] = {'every': 0}"
    request = ask(client, f"import covrl\n{settings}\n{small}\n{quiet}\ncovrl.train(settings, out='run')")
    metrics = tmp_path / "run/metrics.jsonl"
    deadline = time.monotonic() + PATIENCE_S
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    manager.interrupt_kernel()
    found = answers(client, request)
    (error,) = [content for kind, content in found if kind == "error"]
    assert error["ename"] == "RunInterruptedError"
    assert error["traceback"] == [f"RunInterruptedError: {error['evalue']}"]
    step = int(re.search(r"step (\d+)", error["evalue"])[1])  # ty: ignore[not-subscriptable]
    assert error["evalue"].endswith("; continue with: covrl.train(resume='run')")
    displays = [content for kind, content in found if kind == "display_data"]
    assert len(displays) == 1
    last = [content for kind, content in found if kind == "update_display_data"][-1]
    assert last["transient"] == displays[0]["transient"]
    assert "continue with: covrl.train(resume=&#39;run&#39;)" in last["data"]["text/html"]
    done = Run(tmp_path / "run")
    assert done.steps()[-1].step >= step - 1

    text = (tmp_path / "run/config.toml").read_text()
    (tmp_path / "run/config.toml").write_text(text.replace("steps = 100000", f"steps = {done.steps()[-1].step + 2}"))
    found = answers(client, ask(client, "trained = covrl.train(resume='run'); trained.metrics.index.tolist()"))
    assert not [content for kind, content in found if kind == "error"], found
    (result,) = [content["data"]["text/plain"] for kind, content in found if kind == "execute_result"]
    total = int(re.search(r"steps = (\d+)", (tmp_path / "run/config.toml").read_text())[1])  # ty: ignore
    assert json.loads(result) == list(range(1, total + 1))


def ask(client: BlockingKernelClient, code: str) -> str:
    """Begin to execute code; the id of the request."""
    return client.execute(code, store_history=False)


def answers(client: BlockingKernelClient, request: str) -> list[tuple[str, dict[str, Any]]]:
    """The kernel's messages on a request until it is done with it."""
    found: list[tuple[str, dict[str, Any]]] = []
    while found[-1:] != [("status", {"execution_state": "idle"})]:
        try:
            message = client.get_iopub_msg(timeout=PATIENCE_S)
        except queue.Empty:
            raise TimeoutError(f"the kernel does not answer: {found[-1:]}") from None
        if message["parent_header"].get("msg_id") == request:
            found.append((message["msg_type"], message["content"]))
    return found
