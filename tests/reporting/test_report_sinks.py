import json
import math

import pytest

from covrl.errors import UserError
from covrl.records import Problem, StepReport, TraceGroup, TraceView
from covrl.reporting.sinks import JsonlSink, TracesSink, cut_behind, read_metrics, read_steps, read_traces


def write(path, *reports, sink=JsonlSink):
    out = sink(path)
    for report in reports:
        out.write(report)
    out.close()
    out.close()


def group(text="sort 123</think>", **numbers):
    numbers = {"reward": -1.0, "advantage": 0.5, "kl": 2.0} | numbers
    view = TraceView(source="prior", text=text, finish="closed", correct="right", **numbers)
    return TraceGroup(Problem("a/0", "q?", "2", accepted=("2", "two")), (view,))


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def test_metrics_come_back_and_the_file_is_strict_json(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    first = StepReport(1, {"reward/prior": -2.125, "kl/x": math.nan, "kl/y": math.inf}, ("KL is × high\u2028",))
    write(path, first, StepReport(2, {"reward/prior": -2}))
    for line in path.read_bytes().splitlines():
        json.loads(line, parse_constant=refuse)
    back = read_metrics(path)
    assert [report.step for report in back] == [1, 2]
    assert back[0].metrics["reward/prior"] == -2.125
    assert math.isnan(back[0].metrics["kl/x"])
    assert math.isnan(back[0].metrics["kl/y"])
    assert back[0].warnings == first.warnings


def test_each_line_is_on_disk_before_the_next_step(tmp_path):
    sink = JsonlSink(tmp_path / "m.jsonl")
    sink.write(StepReport(1, {"a/b": 1.0}))
    assert read_metrics(tmp_path / "m.jsonl")[0].metrics == {"a/b": 1.0}
    sink.close()
    with pytest.raises(ValueError, match="closed"):
        sink.write(StepReport(2, {}))


def test_a_torn_last_line_is_skipped_and_then_overwritten(tmp_path):
    path = tmp_path / "m.jsonl"
    write(path, StepReport(1, {"a/b": 1.0}), StepReport(2, {"a/b": 2.0}))
    path.write_bytes(path.read_bytes()[:-9])
    assert [report.step for report in read_metrics(path)] == [1]
    write(path, StepReport(2, {"a/b": 5.0}))
    assert [report.metrics["a/b"] for report in read_metrics(path)] == [1.0, 5.0]


def test_a_last_line_that_only_lost_its_line_feed_is_kept(tmp_path):
    path = tmp_path / "m.jsonl"
    write(path, StepReport(1, {"a/b": 1.0}))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    write(path, StepReport(2, {"a/b": 2.0}))
    assert [report.step for report in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize(
    "damage", [b'{"step": 2, "met', b"[1]", b'{"step": 2}', b"\xff\xfe", b'{"step":2,"metrics":[]}']
)
def test_damage_in_the_middle_names_file_and_line(tmp_path, damage):
    path = tmp_path / "m.jsonl"
    write(path, StepReport(1, {}), StepReport(2, {}), StepReport(3, {}))
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], damage, *lines[2:]]))
    with pytest.raises(UserError, match=r"m\.jsonl, line 2"):
        read_metrics(path)


def test_a_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="none"):
        read_metrics(tmp_path / "none.jsonl")


def test_a_resumed_run_drops_the_abandoned_steps(tmp_path):
    path = tmp_path / "m.jsonl"
    write(path, *(StepReport(step, {"a/b": 1.0}) for step in (1, 2, 3, 4)))
    write(path, *(StepReport(step, {"a/b": 2.0}) for step in (2, 3)))
    assert [(report.step, report.metrics["a/b"]) for report in read_metrics(path)] == [(1, 1.0), (2, 2.0), (3, 2.0)]


def test_traces_come_back_with_lone_surrogates_and_control_characters(tmp_path):
    path = tmp_path / "t.jsonl"
    odd = group("a\ud800\x00\n</script>é", advantage=math.nan, kl=None)
    write(path, StepReport(1, {}), StepReport(2, {}, groups=(group(), odd)), sink=TracesSink)
    assert len(path.read_bytes().splitlines()) == 1
    back = read_traces(path)
    assert back[2][0] == group()
    assert back[2][1] == group("a\ud800\x00\n</script>é", advantage=None, kl=None)


def test_steps_join_both_files_and_traces_may_be_absent(tmp_path):
    metrics, traces = tmp_path / "metrics.jsonl", tmp_path / "traces.jsonl"
    reports = [StepReport(1, {"a/b": 1.0}), StepReport(2, {"a/b": 2.0}, groups=(group(),))]
    write(metrics, *reports)
    assert [report.groups for report in read_steps(metrics, traces)] == [(), ()]
    write(traces, *reports, sink=TracesSink)
    assert read_steps(metrics, traces) == reports


@pytest.mark.parametrize("sink", [JsonlSink, TracesSink])
def test_a_file_that_was_cut_anywhere_goes_on_as_if_it_had_not(tmp_path, sink):
    """Killed at any byte, checkpoint at any step whose lines are there: cutting and writing on gives the same file."""
    reports = [StepReport(n, {"a": n / 3}, groups=(group(f"ä {n}"),)) for n in (1, 2, 3, 4)]
    write(tmp_path / "whole", *reports, sink=sink)
    whole = (tmp_path / "whole").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    path = tmp_path / "parts"
    for end in range(len(whole) + 1):
        there = sum(e <= end + 1 for e in ends)  # a line that only lacks its line feed is whole
        for step in range(there + 1):
            path.write_bytes(whole[:end])
            assert cut_behind(path, step, every_step=True) == []
            assert path.read_bytes() == whole[: ends[step - 1] if step else 0]
        if end % 7 == 0:
            write(path, *reports[there:], sink=sink)
            assert path.read_bytes() == whole


def test_what_a_loss_of_power_leaves_behind_the_checkpoint_goes_and_what_is_missing_is_said(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, StepReport(1, {}), StepReport(2, {}), StepReport(3, {}))
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 50 + b"\n" + b'{"step": 5}\n')
    assert cut_behind(path, 3, every_step=True) == []
    assert path.read_bytes() == whole
    assert cut_behind(path, 5, every_step=True) == [
        f"{path}: the lines of step 4, 5 are missing; the run goes on without them"
    ]
    path.write_bytes(b"\0" * 50 + b"\n" + whole)
    with pytest.raises(UserError, match="line 1: not a line that covrl wrote"):
        cut_behind(path, 3)
    assert path.read_bytes().endswith(whole)


def test_a_line_that_the_disk_does_not_take_whole_leaves_nothing(tmp_path):
    import errno

    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.write(StepReport(1, {"a": 1.0}))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    file = sink._file

    class Full:
        """Takes 9 bytes of a line, then is full."""

        def __init__(self):
            self.taken = 0

        def write(self, line):
            if self.taken:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.taken = file.write(line[:9])
            return self.taken

        def __getattr__(self, name):
            return getattr(file, name)

    sink._file = Full()
    with pytest.raises(OSError, match="No space left"):
        sink.write(StepReport(2, {"a": 2.0}))
    sink.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("metrics", '{"step": 1, "metrics": {"a": [1]}}', "metrics.a: Input should be a valid number"),
        ("metrics", '{"step": "x", "metrics": {}}', "step: Input should be a valid integer"),
        (
            "traces",
            '{"step": 1, "groups": [{"problem": {"id": 7, "question": "q", "answer": "a"}, "traces": []}]}',
            "groups.0.problem.id: Input should be a valid string",
        ),
    ],
)
def test_a_value_of_another_kind_is_named_on_one_line(tmp_path, file, line, said):
    path = tmp_path / f"{file}.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        (read_metrics if file == "metrics" else read_traces)(path)
    assert str(error.value).startswith(f"{path}, line 1: not a line that covrl wrote ({said}")
    assert str(error.value).endswith("; mend or remove it")
    assert "\n" not in str(error.value)
