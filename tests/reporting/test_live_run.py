"""A run that is looked at while it goes on, is killed, resumed, damaged or deleted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_runs import group, new_run, record, step, trace

from covrl.errors import UserError
from covrl.reporting.folder import summary_of
from covrl.reporting.live import run as live_run
from covrl.reporting.live.index import TraceIndex, Wanted
from covrl.reporting.live.run import LiveRun, open_run, poll, trace_tokens
from covrl.reporting.sinks import cut_behind


@pytest.fixture
def index() -> Iterator[TraceIndex]:
    made = TraceIndex()
    yield made
    made.close()


@pytest.fixture
def run(tmp_path: Path) -> LiveRun:
    return open_run(0, new_run(tmp_path / "run"))


def texts(index: TraceIndex) -> list[str]:
    return [each.trace.text for each in index.traces(index.find(Wanted(order="oldest"), index.newest()))]


def steps(run: LiveRun) -> list[int]:
    return [report.step for report in run.steps]


def test_a_run_is_followed_from_before_its_first_step(run: LiveRun, index: TraceIndex) -> None:
    poll(run, index)
    assert (steps(run), run.said(), run.version) == ([], [], 0)
    for number in (1, 2):
        record(run.folder, [step(number, group("p", trace(f"t{number}")))])
        poll(run, index)
        assert steps(run) == list(range(1, number + 1))
        assert run.version == number
    poll(run, index)
    assert run.version == 2, "nothing is new"
    assert texts(index) == ["t1", "t2"]
    assert run.traces_version == 0
    assert run.summary() == summary_with_no_traces(run.folder)


def summary_with_no_traces(folder: Path) -> object:
    (folder / "traces.jsonl").rename(folder / "kept")
    made = summary_of(folder)
    (folder / "kept").rename(folder / "traces.jsonl")
    return made


def test_an_unfinished_last_line_is_waited_for(run: LiveRun, index: TraceIndex) -> None:
    record(run.folder, [step(1, group("p", trace("t1"))), step(2, group("p", trace("t2")))])
    whole = {name: (run.folder / name).read_bytes() for name in ("metrics.jsonl", "traces.jsonl")}
    for name, content in whole.items():
        (run.folder / name).write_bytes(content[:-20])
    poll(run, index)
    assert (steps(run), texts(index), run.said()) == ([1], ["t1"], [])
    for name, content in whole.items():
        (run.folder / name).write_bytes(content)
    poll(run, index)
    assert (steps(run), texts(index), run.said()) == ([1, 2], ["t1", "t2"], [])


@pytest.mark.parametrize("seen_cut", [True, False], ids=["looked at while cut", "looked at afterwards"])
def test_a_run_that_is_resumed_takes_steps_again(run: LiveRun, index: TraceIndex, seen_cut: bool) -> None:
    record(run.folder, [step(number, group("p", trace(f"old {number}"))) for number in range(1, 6)])
    poll(run, index)
    for name in ("metrics.jsonl", "traces.jsonl"):
        cut_behind(run.folder / name, 2)
    if seen_cut:
        poll(run, index)
        assert (steps(run), texts(index)) == ([1, 2], ["old 1", "old 2"])
    record(run.folder, [step(number, group("p", trace(f"new {number}"))) for number in range(3, 9)])
    poll(run, index)
    assert steps(run) == list(range(1, 9))
    assert texts(index) == ["old 1", "old 2", *(f"new {number}" for number in range(3, 9))]
    assert run.traces_version > 0


def test_steps_that_were_written_twice_count_once(run: LiveRun, index: TraceIndex) -> None:
    record(run.folder, [step(n, group("p", trace(f"old {n}"))) for n in (1, 2, 3)])
    poll(run, index)
    record(run.folder, [step(2, group("p", trace("new 2")), reward__prior=7.0)])
    poll(run, index)
    assert [(r.step, r.metrics["reward/prior"]) for r in run.steps] == [(1, -1.0), (2, 7.0)]
    assert texts(index) == ["old 1", "new 2"]


def test_a_line_that_is_not_ours_is_told_and_the_others_are_shown(run: LiveRun, index: TraceIndex) -> None:
    record(run.folder, [step(1, group("p", trace("t1")))])
    for name in ("metrics.jsonl", "traces.jsonl"):
        with (run.folder / name).open("ab") as file:
            file.write(b'\n{"steps": 2}\n[\n' + b"[" * 100_000 + b"\n\xff\n")
    record(run.folder, [step(3, group("p", trace("t3")))])
    poll(run, index)
    assert (steps(run), texts(index)) == ([1, 3], ["t1", "t3"])
    said = run.said()
    assert len(said) == 2 * live_run.MOST_FAULTS
    assert "metrics.jsonl, line 3: not a line that covrl wrote" in said[0]
    assert "traces.jsonl, line 3" in said[live_run.MOST_FAULTS]
    (run.folder / "metrics.jsonl").write_bytes(b"")
    (run.folder / "traces.jsonl").write_bytes(b"")
    poll(run, index)
    assert (steps(run), texts(index), run.said()) == ([], [], [])


def test_a_folder_that_is_deleted_stays_to_be_seen_and_one_that_comes_back_is_read(
    run: LiveRun, index: TraceIndex
) -> None:
    record(run.folder, [step(1, group("p", trace("t1")))])
    poll(run, index)
    shutil.rmtree(run.folder)
    poll(run, index)
    assert (steps(run), texts(index), run.said()) == (
        [1],
        ["t1"],
        [f"{run.folder}: the folder is gone; what was read of it is shown"],
    )
    (place,) = index.places([1]).values()
    assert trace_tokens(run, place) is None
    new_run(run.folder, seed=7)
    record(run.folder, [step(4, group("p", trace("t4")))])
    poll(run, index)
    assert (steps(run), texts(index), run.said()) == ([4], ["t4"], [])
    assert run.config["training"]["seed"] == 7


def test_a_file_that_cannot_be_read_is_told_until_it_can(run: LiveRun, index: TraceIndex) -> None:
    record(run.folder, [step(1, group("p", trace("t1")))])
    poll(run, index)
    (run.folder / "metrics.jsonl").rename(run.folder / "kept")
    (run.folder / "metrics.jsonl").mkdir()
    poll(run, index)
    assert steps(run) == [1]
    assert len(run.said()) == 1
    assert "metrics.jsonl: cannot be read: " in run.said()[0]
    (run.folder / "metrics.jsonl").rmdir()
    (run.folder / "kept").rename(run.folder / "metrics.jsonl")
    poll(run, index)
    assert run.said() == []


def test_settings_that_become_unreadable_are_those_of_before(run: LiveRun, index: TraceIndex) -> None:
    (run.folder / "config.toml").write_text("[training]\nsteps = ")
    record(run.folder, [step(1)])
    poll(run, index)
    assert run.config["training"]["steps"] == 100
    assert "not a TOML file" in run.said()[0]


def test_a_large_run_is_read_in_parts_each_line_once(
    run: LiveRun, index: TraceIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_run, "MOST_BYTES", 2_000)
    record(run.folder, [step(number, group("p", trace(f"t{number}"))) for number in range(1, 101)])
    polls = 0
    while polls == 0 or any(run.behind.values()):
        before = index.newest()
        poll(run, index)
        polls += 1
        assert index.newest() - before < 20
    assert polls > 5
    assert (steps(run), texts(index)) == (list(range(1, 101)), [f"t{number}" for number in range(1, 101)])


def test_tokens_come_from_the_file_if_it_still_has_them_there(run: LiveRun, index: TraceIndex) -> None:
    groups = [group("p", trace("one two")), group("q", trace("three"), trace("four five"))]
    record(run.folder, [step(1, group("o", trace("zero"))), step(2, *groups)])
    poll(run, index)
    places = index.places([1, 2, 3])
    assert trace_tokens(run, places[3]) == groups[1]
    content = (run.folder / "traces.jsonl").read_bytes()
    for other in (content[5:], content.replace(b'"step": 2', b'"step": 3'), b"", content[: places[3].at + 9]):
        (run.folder / "traces.jsonl").write_bytes(other)
        assert trace_tokens(run, places[3]) is None
    lines = content.splitlines(keepends=True)
    record_ = json.loads(lines[1])
    record_["groups"][1]["traces"].pop()
    changed = json.dumps(record_).ljust(len(lines[1]) - 1)
    (run.folder / "traces.jsonl").write_bytes(lines[0] + changed.encode())
    assert trace_tokens(run, places[3]) is None, "a group of another size is another group"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such folder"),
        (lambda path: path.write_text("x"), "no such folder"),
        (lambda path: path.mkdir(), "not the folder of a run"),
        (lambda path: (path.mkdir(), (path / "config.toml").write_text("a = ")), "not a TOML file"),
    ],
)
def test_what_is_not_a_run_is_refused(tmp_path: Path, make: object, said: str) -> None:
    make(tmp_path / "x")  # ty: ignore[not-callable]
    with pytest.raises(UserError, match=said):
        open_run(0, tmp_path / "x")
