"""Per-token log-probs in the report: kept in the file, tinted by prompt, escaped."""

from __future__ import annotations

from pathlib import Path

from training.test_step import PROBLEMS, make_run

from covrl.generation.base import Draw
from covrl.records import Problem, StepReport, TokenView, TraceGroup, TraceView
from covrl.reporting.html import render_report
from covrl.reporting.sinks import TracesSink, read_traces
from covrl.reporting.summary import RunSummary
from covrl.training.rollouts import sample
from covrl.training.scores import score_groups
from covrl.training.views import trace_group

TOKENS = (
    TokenView("so ", -0.5, -0.52),
    TokenView("<b>4", -6.0, -0.1),
    TokenView("2", -0.1, -1.6),
    TokenView("!", float("-inf"), None),
)
GROUP = TraceGroup(
    Problem("p", "6 x 7?", "42"), (TraceView("prior", "so <b>42!", "closed", -1.0, 0.5, 0.2, None, TOKENS),)
)


def test_tokens_survive_the_file(tmp_path: Path) -> None:
    sink = TracesSink(tmp_path / "traces.jsonl")
    sink.write(StepReport(1, {}, (), (GROUP,)))
    sink.close()
    (back,) = read_traces(tmp_path / "traces.jsonl")[1]
    assert back.traces[0].tokens[:3] == TOKENS[:3]
    assert back.traces[0].tokens[3] == TokenView("!", None, None)


def test_tokens_are_tinted_by_the_prompt_that_finds_them_likelier_and_escaped() -> None:
    page = render_report(RunSummary("t", steps=[StepReport(1, {"reward/prior": 1.0}, (), (GROUP,))]))
    assert "<span title='prior -0.50, posterior -0.52 nats'>so </span>" in page
    assert "<span class='q3' title='prior -6.00, posterior -0.10 nats'>&lt;b&gt;4</span>" in page
    assert "<span class='p2' title='prior -0.10, posterior -1.60 nats'>2</span>" in page
    assert "<b>4" not in page


def test_a_runs_traces_carry_the_scores_they_were_trained_with() -> None:
    run = make_run()
    (group,) = score_groups(run, sample(run, PROBLEMS[:1], Draw(0, 0)))
    credits = run.algorithm.credit([group])[0]
    for view, rollout, scores in zip(
        trace_group(group, credits, run.prompts).traces, group.rollouts, group.scores, strict=True
    ):
        appended = run.config.prompts.close if rollout.closing == "appended" else ""
        assert "".join(t.text for t in view.tokens) + appended == rollout.text
        assert [t.prior for t in view.tokens] == scores["trace", "prior"].tolist()
        assert [t.posterior for t in view.tokens] == scores["trace", "posterior"].tolist()
