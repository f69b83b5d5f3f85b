import io
import math
from contextlib import suppress

import pytest
from rich.console import Console

from covrl.records import StepReport
from covrl.reporting.summary import Attempt, Example, ResultRow
from covrl.reporting.tables import comparison_table, trace_panel
from covrl.reporting.terminal import Progress, sparkline


def console(terminal, width=80):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None, legacy_windows=False)


def report(step, **metrics):
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return StepReport(step, {"reward/prior": -2.0, "reward/posterior": -1.0, "kl/nats_per_trace": 3.0} | named)


class Clock:
    """Seconds that only pass when the test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def run(out, total, *, every=10, extra=(), clock=None, **options):
    clock = clock or Clock()
    with Progress(total, console=out, clock=clock, **options) as progress:
        for step in range(1, total + 1):
            clock.now += 2.0
            metrics = {"eval__accuracy": 0.5} if step % every == 0 else {}
            progress.write(report(step, **metrics))
            for made in extra:
                progress.write(made)
    return out.file.getvalue()


@pytest.mark.parametrize("total", [1, 7, 25, 120, 999])
@pytest.mark.parametrize("every", [1, 10, 10_000])
def test_a_log_has_few_lines_and_always_the_last_step(total, every):
    lines = run(console(False), total, every=every).splitlines()
    assert min(total, 10) <= len(lines) <= 25
    assert lines[-1].startswith(f"step {total}/{total}")
    assert all("\x1b" not in line for line in lines)


def test_a_log_line_names_rewards_accuracy_chance_and_time_left():
    line = run(console(False), 40, chance=0.238, title="sort").splitlines()[-4]
    assert "prior reward -2.00  posterior reward -1.00  KL 3.00" in line
    assert "chance 23.8 %" in line
    assert "accuracy 50.0 %" in line
    assert "2.00 s/step" in line
    assert "left" in line


def test_a_run_that_stops_early_still_logs_its_last_step():
    out = console(False)
    with suppress(KeyboardInterrupt), Progress(1000, console=out) as progress:
        progress.write(report(1))
        progress.write(report(2))
        raise KeyboardInterrupt
    assert "step    2/1000" in out.file.getvalue()


def test_a_run_without_a_fixed_end_logs_ever_more_rarely():
    out = console(False)
    with Progress(None, console=out) as progress:
        for step in range(1, 3001):
            progress.write(report(step))
    assert 10 < len(out.file.getvalue().splitlines()) < 60


def test_the_live_display_fits_80_columns_and_shows_each_number():
    out = console(True)
    text = run(out, 30, chance=0.238, title="A title that is far too long for a line of eighty columns " * 2)
    last = text[text.rindex("step 30/30") :]
    for part in ("prior reward", "-2.00", "posterior reward", "-1.00", "3.00", "50.0", "chance 23.8", "1m00s elapsed"):
        assert part in last
    plain = Console(file=io.StringIO(), width=80, color_system=None)
    with Progress(30, chance=0.238, title="long " * 40, console=console(True)) as progress:
        for step in range(1, 31):
            progress.write(report(step, eval__accuracy=0.5))
        plain.print(progress._render())
    lines = plain.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) == 7


def test_nothing_goes_to_standard_output(capsys):
    for out in (Console(stderr=True, force_terminal=True), None):
        with Progress(3, console=out) as progress:
            progress.write(report(1))
            print("result")
    captured = capsys.readouterr()
    assert captured.out == "result\nresult\n"
    assert "step 1/3" in captured.err


@pytest.mark.parametrize("terminal", [True, False])
def test_warnings_come_once_and_text_is_literal(terminal):
    out = console(terminal)
    with Progress(9, title="[bold]title", console=out) as progress:
        for step in range(1, 4):
            progress.write(StepReport(step, {}, warnings=(f"KL [red]{step}.5[/red] is high\x1b[2J",)))
        progress.note("[/nothing] saved \x1b]0;x\x07")
    text = out.file.getvalue()
    assert text.count("is high") == 1
    assert "[red]1.5[/red] is high<U+001B>[2J" in text
    assert "[/nothing] saved <U+001B>]0;x<U+0007>" in text
    assert "[bold]title" in text
    assert "\x1b[2J" not in text


def test_missing_and_broken_metrics_are_left_out():
    for terminal in (True, False):
        out = console(terminal)
        with Progress(2, console=out) as progress:
            progress.write(StepReport(1, {}))
            progress.write(StepReport(2, {"reward/prior": math.nan, "kl/nats_per_trace": math.inf}))
        assert "step 2/2" in out.file.getvalue()


def test_a_terminal_without_unicode_gets_no_blocks():
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    out = Console(file=raw, force_terminal=True, width=80, color_system=None)
    with Progress(3, console=out) as progress:
        for step in range(1, 4):
            progress.write(report(step))
    raw.flush()
    assert b"prior reward" in raw.buffer.getvalue()


def test_the_comparison_table_fits_and_shows_chance():
    rows = [
        ResultRow("held-out accuracy", 0.252, 0.834, 0.238, "greedy [i]x[/i]", count=500),
        ResultRow("reward", -4.0, None, unit="nats"),
        ResultRow("broken", math.nan, math.inf),
    ]
    out = console(False)
    out.print(comparison_table(rows, "Result [bold]"))
    text = out.file.getvalue()
    for part in ("25.2", "83.4", "+58.2", "23.8", "[i]x[/i]", "-4.00", "–", "NaN", "Result [bold]"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_comparison_table_wraps_words_and_loses_none():
    label, note = (
        "accuracy on the held-out problems, one sample each",
        "temperature 1, closing tag appended, 500 problems",
    )
    out = console(False)
    out.print(comparison_table([ResultRow(label, 0.25, 0.83, 0.24, note)]))
    words = out.file.getvalue().split()
    assert [word for word in f"{label} {note}".split() if word not in words] == []
    assert max(map(len, out.file.getvalue().splitlines())) <= 80


@pytest.mark.parametrize("width", [40, 80, 120])
def test_traces_are_printed_literally_and_cut(width):
    before = Attempt("[bold]x[/bold] \x1b[31m\ud800\n" + "word " * 30 + "\nline" * 30, "wrong")
    out = console(False, width)
    out.print(trace_panel([Example("[q]?", "[4]", before, Attempt("sort 4</think>", "right"))], max_lines=5))
    text = out.file.getvalue()
    for part in ("[bold]x[/bold] <U+001B>[31m", "[q]?", "[4]", "wrong", "right", "more lines", "sort 4</think>"):
        assert part in text
    assert max(map(len, text.splitlines())) <= width
    text.encode("utf-8")


def test_sparkline_rises_and_survives_an_outlier():
    assert sparkline([0, 1, 2, 3], 8) == "▁▃▆█"
    assert sparkline([1.0], 8) == sparkline([], 8) == ""
    assert sparkline([2, 2, math.nan, 2], 8) == "▁▁▁"
    rising = [float(value) for value in range(100)]
    rising[50] = 1e6
    assert len(set(sparkline(rising, 20))) > 4
