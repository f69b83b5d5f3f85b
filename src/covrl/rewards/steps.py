"""Scores of the steps of traces, and token rewards made of them.

A trace is cut into steps (:mod:`covrl.rewards.segmenter`), and something that judges steps gives each a number: a
process reward model on a server (:mod:`covrl.rewards.step_server`), or any function of the same form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from covrl.errors import TrainingStoppedError, UserError
from covrl.records import Problem, Rollout, Span
from covrl.rewards.calls import CallFailedError, Calls, one_line, results_of, returns_coroutine
from covrl.rewards.functions import as_number, name_of, plain, shown
from covrl.rewards.named import batch_name, trace_name
from covrl.rewards.segmenter import Segmenter, Step


@dataclass(frozen=True, slots=True)
class StepsToScore:
    """What a scorer sees of a trace: the question, the reference answer where it is shown, and the steps' texts.

    Together the texts are the trace's, without its closing tag.
    """

    question: str
    answer: str | None
    steps: tuple[str, ...]


StepScorer = Callable[[Sequence[StepsToScore]], Sequence[tuple[float, ...]]]
"""Traces -> a number for each of their steps, in order. What the numbers mean is the scorer's to say."""

At = Literal["last", "even", "each"]


@dataclass(frozen=True, slots=True)
class EachTrace:
    """A scorer that asks a judge trace by trace, with limits.

    Example:
        >>> EachTrace(ask_model, timeout_s=30, concurrency=8)

    ``judge`` gives a number for each step of one trace and may be ``async``. ``timeout_s`` bounds each call (seconds;
    0: no limit), ``concurrency`` is how many run at once: in threads, or coroutines of one event loop.
    """

    judge: Callable[[StepsToScore], Any]
    timeout_s: float = 600.0
    concurrency: int = 1

    @property
    def name(self) -> str:
        """The scorer as messages name it."""
        return name_of(self.judge)

    def __call__(self, asked: Sequence[StepsToScore]) -> list[Any]:
        """What the judge gave for each trace, in order.

        Raises:
            CallFailedError: it raised or took too long; ``call`` is the number of the trace.
        """
        work = [partial(self.judge, each) for each in asked]
        (found,) = results_of([Calls(work, self.timeout_s, self.concurrency, returns_coroutine(self.judge))])
        return found


class Tokens(NamedTuple):
    """What is needed to cut traces into steps: their tokenizer, the rule, and the tag that ends a thought."""

    tokenizer: Any
    segmenter: Segmenter
    close: str = ""


def with_step_scores(
    pairs: Sequence[tuple[Problem, Rollout]],
    tokens: Tokens,
    scorer: StepScorer,
    share: Callable[[Callable[[Sequence[Any]], list[Any]], Sequence[Any]], list[Any]],
    shows_answer: bool = False,
) -> list[tuple[Problem, Rollout]]:
    """The pairs with ``steps`` and ``step_scores`` of each rollout; empty for a trace without tokens.

    ``shows_answer`` gives the scorer the reference answer; ``share`` divides the work between processes
    (``World.shared``), so that the scorer is called once in each, with its share of the traces.

    Raises:
        UserError: the scorer raised, or did not give a finite number for each step; names it, the problem and the
            rollout. What ends training by itself, such as a server that does not answer, passes through.
    """
    found = share(partial(_steps_of, tokens, scorer, shows_answer), pairs)
    return [
        (problem, replace(rollout, steps=spans, step_scores=scores))
        for (problem, rollout), (spans, scores) in zip(pairs, found, strict=True)
    ]


def _steps_of(
    tokens: Tokens, scorer: StepScorer, shows_answer: bool, pairs: Sequence[tuple[Problem, Rollout]]
) -> list[tuple[tuple[Span, ...], tuple[float, ...]]]:
    cut = [_cut(tokens, rollout) for _, rollout in pairs]
    asked = [i for i, steps in enumerate(cut) if steps]
    questions = [_question(pairs[i][0], cut[i], tokens.close, shows_answer) for i in asked]
    scores = dict(zip(asked, _scored(scorer, questions, [pairs[i] for i in asked]), strict=True))
    return [(tuple(step.span for step in steps), scores.get(i, ())) for i, steps in enumerate(cut)]


def _cut(tokens: Tokens, rollout: Rollout) -> list[Step]:
    return tokens.segmenter.steps(
        tokens.tokenizer, rollout.trace_ids, rollout.text, rollout.request.prefix_ids, tokens.close
    )


def _question(problem: Problem, steps: Sequence[Step], close: str, shows_answer: bool) -> StepsToScore:
    *texts, last = (step.text for step in steps)
    return StepsToScore(problem.question, problem.answer if shows_answer else None, (*texts, last.removesuffix(close)))


def _scored(
    scorer: StepScorer, questions: Sequence[StepsToScore], pairs: Sequence[tuple[Problem, Rollout]]
) -> list[tuple[float, ...]]:
    if not questions:
        return []
    what = f"step scorer {getattr(scorer, 'name', None) or name_of(scorer)}"
    try:
        given = list(scorer(questions))
    except (UserError, TrainingStoppedError):
        raise
    except CallFailedError as error:
        raise UserError(f"{what}: {trace_name(pairs[error.call])}: {error.why}") from error.__cause__
    except Exception as error:
        raise UserError(f"{what}: {batch_name(pairs)}: {one_line(error)}") from error
    if len(given) != len(questions):
        raise UserError(
            f"{what}: {batch_name(pairs)}: gave {len(given)} rows of scores for {len(questions)} traces; it must give "
            "one for each, in order"
        )
    return [
        _row(f"{what}: {trace_name(pair)}", row, len(question.steps))
        for row, question, pair in zip(given, questions, pairs, strict=True)
    ]


def _row(where: str, row: Any, steps: int) -> tuple[float, ...]:
    if isinstance(row, str | bytes) or not hasattr(row, "__iter__"):
        raise UserError(f"{where}: gave {shown(row)}; it must give {steps} numbers, one for each step")
    values = list(row)
    if len(values) != steps:
        raise UserError(f"{where}: gave {len(values)} scores for {steps} steps; it must give one for each, in order")
    numbers = [as_number(plain(value)) for value in values]
    wrong = next((i for i, n in enumerate(numbers) if n is None or not math.isfinite(n)), None)
    if wrong is not None:
        raise UserError(f"{where}: gave {shown(values[wrong])} for step {wrong + 1}; it must be a finite number")
    return tuple(n for n in numbers if n is not None)


def token_rewards(scores: Sequence[float], steps: Sequence[Span], length: int, at: At = "last") -> Tensor:
    """The scores of a trace's steps at its tokens, ``[T]`` with ``T = length``, float64.

    ``last``: each score at the last token of its step, 0 elsewhere. ``even``: spread over the step's tokens in equal
    parts. Both sum to the sum of the scores. ``each``: the whole score at every token of the step.

    Example:
        >>> token_rewards((1.0, 3.0), (Span(0, 1), Span(1, 4)), 4, "even")
        tensor([1., 1., 1., 1.], dtype=torch.float64)

    Raises:
        ValueError: there is not one score for each step, or the steps do not divide the trace's tokens.
    """
    if len(scores) != len(steps):
        raise ValueError(f"{len(scores)} scores for {len(steps)} steps")
    if [span.start for span in steps] + [length] != [0, *(span.stop for span in steps)]:
        raise ValueError(f"the steps {[tuple(span) for span in steps]} do not divide {length} tokens")
    found = torch.zeros(length, dtype=torch.float64)
    for score, (start, stop) in zip(scores, steps, strict=True):
        if at == "last":
            found[stop - 1] = score
        else:
            found[start:stop] = score / (stop - start) if at == "even" else score
    return found


def step_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Of the traces whose steps have scores: ``steps/count`` a trace, and the mean of all scores and of each lowest."""
    scored = [r.step_scores for r in rollouts if r.step_scores]
    if not scored:
        return {}
    flat = [score for row in scored for score in row]
    return {
        "steps/count": len(flat) / len(scored),
        "steps/score": sum(flat) / len(flat),
        "steps/lowest_score": sum(map(min, scored)) / len(scored),
    }
