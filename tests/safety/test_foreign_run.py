"""Looking at a run folder that somebody else made: no code of it runs, and odd lines are one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safe_project import Command

from covrl.errors import UserError
from covrl.evaluation.store import open_store

CODE = "import os\nos.mkdir({mark!r})\ndef f(problem, text): return 1.0\nclass F: pass\n"


@pytest.fixture
def run(project: Path, command: Command) -> Path:
    """A run of one step, whose settings may be changed."""
    assert command("train", "--config", "run.toml", "--out", "run").code == 0
    return project / "run"


def set_in(run: Path, section: str, key: str, value: str) -> None:
    path = run / "config.toml"
    kept = [line for line in path.read_text().splitlines() if not line.startswith(f"{key} = ")]
    at = kept.index(f"[{section}]") + 1
    path.write_text("\n".join([*kept[:at], f'{key} = "{value}"', *kept[at:]]) + "\n")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("algorithm", "name", "evil_module:F"),
        ("rewards", "function", "evil_module:f"),
        ("rewards", "verifier", "evil_module:f"),
        ("evaluation", "verifier", "evil_module:f"),
    ],
)
def test_settings_of_a_run_name_no_code(
    run: Path, project: Path, command: Command, section: str, key: str, value: str
) -> None:
    mark = project / "it-ran"
    (project / "evil_module.py").write_text(CODE.format(mark=str(mark)))
    set_in(run, section, key, value)
    for arguments in (
        ["train", "--resume", "run"],
        ["train", "--config", "run/config.toml", "--out", "again"],
        ["eval", "--model", "run", "--problems", "train.jsonl", "--limit", "1"],
        ["ask", "run", "1+1", "-n", "1"],
        ["view", "run"],
    ):
        found = command(*arguments)
        assert found.code in (0, 2), found
        assert found.code == 2 or arguments[0] != "train", "training with it is refused"
        assert len(found.err.splitlines()) == 1 or found.code == 0
        assert not mark.exists(), arguments


VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.just(10**400), st.just("<b>x</b>"), st.just(1e308),
    st.lists(st.integers(0, 1), max_size=2), st.dictionaries(st.sampled_from("ab"), st.integers(0, 1), max_size=1),
)  # fmt: skip


def put(value: Any, place: list[int], into: Any) -> Any:
    """A copy of a JSON value in which one part, chosen by ``place``, is another."""
    if not place or not isinstance(into, dict | list) or not into:
        return value
    keys = list(into) if isinstance(into, dict) else list(range(len(into)))
    key = keys[place[0] % len(keys)]
    changed = dict(into) if isinstance(into, dict) else list(into)
    changed[key] = put(value, place[1:], into[key])
    return changed


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["metrics.jsonl", "traces.jsonl"]), place=st.lists(st.integers(0, 9), max_size=7), value=VALUE
)
@example(name="metrics.jsonl", place=[0], value=10**400)
@example(name="traces.jsonl", place=[1, 0, 0, 4], value=0)
@example(name="traces.jsonl", place=[1, 0, 1, 0, 7, 0], value=["x", "<b>", None])
def test_odd_lines_are_one_line_or_no_matter(
    lines: Path, tmp_path: Path, command: Command, name: str, place: list[int], value: Any
) -> None:
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(lines, folder)
    (line,) = (folder / name).read_text().splitlines()
    changed = put(value, place, json.loads(line))
    (folder / name).write_text(json.dumps(changed) + "\n")
    found = command("view", str(folder))
    assert found.code in (0, 2), found
    if found.code == 2:
        assert len(found.err.splitlines()) == 1
    else:
        assert "<b>x</b>" not in (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a run with one step and two traces."""
    folder = tmp_path_factory.mktemp("lines")
    tokens = [["a", -0.1, -0.2], ["b", None, None]]
    trace = {"source": "prior", "text": "ab", "finish": "closed", "reward": -1.0, "advantage": 0.5, "kl": 0.1}
    trace |= {"correct": "right", "tokens": tokens}
    problem = {"id": "p", "question": "q", "answer": "a", "accepted": ["b"], "hint": None, "solution": None}
    record = {"step": 1, "groups": [{"problem": problem, "traces": [trace, trace]}]}
    (folder / "traces.jsonl").write_text(json.dumps(record) + "\n")
    metrics = {"step": 1, "metrics": {"reward/prior": -1.0, "eval/accuracy": 0.5}, "warnings": ["w"]}
    (folder / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    (folder / "config.toml").write_text('[training]\nsteps = 2\n[algorithm]\nname = "covrl"\n')
    return folder


@pytest.mark.parametrize(
    "text",
    ["training = 3", "problems = []", "algorithm = 1", '[training]\nsteps = "9"', "a = 1979-05-27", '"<b>" = "<i>"'],
)
def test_an_odd_config_is_no_matter_for_the_page(lines: Path, tmp_path: Path, command: Command, text: str) -> None:
    shutil.copytree(lines, tmp_path / "run")
    (tmp_path / "run/config.toml").write_text(text)
    assert command("view", str(tmp_path / "run")).code == 0
    assert "<i>" not in (tmp_path / "run/report.html").read_text().split("id='config'")[1]


SAMPLE = {
    "trace": "t", "said": "4", "answer": "4", "verdict": "right", "finish": "closed", "trace_tokens": 1,
    "answer_tokens": 1, "answer_cut": False, "nats": 1.0, "label": None,
}  # fmt: skip
SOLVED = {"problem": "1", "question": "q", "reference": "4", "digest": "d", "greedy": SAMPLE, "samples": [SAMPLE]}


@pytest.mark.parametrize("place", [[0], [1], [3], [4], [4, 0], [4, 3], [4, 5], [5], [5, 0], [5, 0, 8], [5, 0, 9]])
@pytest.mark.parametrize("value", [3.5, ["x"], {"a": 1}, None])
def test_odd_records_of_an_evaluation_are_refused(tmp_path: Path, place: list[int], value: Any) -> None:
    path = tmp_path / "samples.jsonl"
    head = {"model": "m"}
    path.write_text(f"{json.dumps(head)}\n{json.dumps(SOLVED)}\n")
    assert open_store(path, head).solved["1"].greedy.said == "4"
    changed = put(value, place, SOLVED)
    if (place == [5, 0, 8] and value == 3.5) or (place == [5, 0, 9] and value is None):
        return  # as it may be
    path.write_text(f"{json.dumps(head)}\n{json.dumps(changed)}\n")
    with pytest.raises(UserError, match="not a file of `covrl eval`"):
        open_store(path, head)


@pytest.mark.parametrize("content", [b"\xff\n", b"[]\n", b"[" * 100_000 + b"\n", b"\n\n", b'{"model": "m"}\n\xff\n'])
def test_odd_bytes_of_an_evaluation_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a file of `covrl eval`"):
        open_store(path, {"model": "m"})
