"""Folders of runs that are still being written, for tests of the live page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from covrl.records import Problem, StepReport, TokenView, TraceGroup, TraceView
from covrl.reporting.sinks import JsonlSink, TracesSink

CONFIG = '[algorithm]\nname = "covrl"\n[training]\nsteps = 100\nseed = {seed}\n[problems]\ntrain = "digits:train"\n'


def new_run(folder: Path, seed: int = 0) -> Path:
    """A run that has recorded nothing yet."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(CONFIG.format(seed=seed))
    return folder


def record(folder: Path, reports: Iterable[StepReport]) -> None:
    """Append steps as a run does."""
    sinks = (JsonlSink(folder / "metrics.jsonl"), TracesSink(folder / "traces.jsonl"))
    for report in reports:
        for sink in sinks:
            sink.write(report)
    for sink in sinks:
        sink.close()


def step(number: int, *groups: TraceGroup, warnings: Sequence[str] = (), **metrics: float) -> StepReport:
    """A step's report; ``reward/prior`` is there unless another is given, ``a__b`` is the metric a/b."""
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return StepReport(number, {"reward/prior": -1.0 / number, **named}, tuple(warnings), groups)


def group(problem: Problem | str, *traces: TraceView) -> TraceGroup:
    """The traces of a problem; of one that is given by its id, the question is "What is ID?"."""
    made = problem if isinstance(problem, Problem) else Problem(problem, f"What is {problem}?", "42")
    return TraceGroup(made, traces)


def trace(text: str, reward: float | None = -1.0, source: str = "prior", **more: object) -> TraceView:
    """A trace with a token a word, unless ``tokens`` says otherwise."""
    words = tuple(TokenView(f"{word} ", -0.5, -0.1) for word in text.split())
    given: Mapping[str, object] = {"finish": "closed", "advantage": 0.5, "kl": 0.1, "tokens": words, **more}
    return TraceView(source, text, reward=reward, **given)  # ty: ignore[invalid-argument-type]
