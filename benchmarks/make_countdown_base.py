"""Makes the base model of the CountDown task: ``python benchmarks/make_countdown_base.py``.

Model, optimizer and loss are those of :mod:`make_base`; what differs is the vocabulary (a token a number) and the
traces. The base is shown direct solutions, searches that find the target, and searches that give up after a few
branches and answer with the last one. So what it says is honest, its accuracy is well below what longer searches would
give, and the lengths of its traces differ.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import base_texts as task
from make_base import Example, make, train
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from covrl.models.model import SHIPPED
from covrl.problems.countdown import MOST, Habit, Question, expression, questions, search, solution, write_trace

BASE_FOLDER = SHIPPED / "base_countdown"

# Numbers from the largest, so that none is read as the beginning of a longer one.
NUMBERS = tuple(str(number) for number in range(MOST, -1, -1))
VOCABULARY = task.SPECIAL + task.TAGS + (" make ", " no", ",", ";", "=", "+", "-", "*", "/", "(", ")") + NUMBERS
"""Every token; its index is its id."""

DIRECT_SHARE = 0.3
"""Share of direct solutions under the prior prompt; the others are searches."""

MOST_BRANCHES = 6
"""A search gives up after a number of branches that is drawn from 1 to this, each alike."""

TRUE_HINTS = 0.8
"""Share of posterior rows whose hint is the question's own solution, and whose trace leads to it directly. The others
show the solution of another question, and the trace is drawn as under the prior prompt."""

STRAY_ANSWERS = 0.02
"""Share of prior rows whose answer is another question's, so that wrong answers have a likelihood."""

STEPS = 1500
PRIOR_ROWS = 64
POSTERIOR_ROWS = 32


def prior_trace(rng: random.Random, question: Question) -> tuple[Habit, str, str]:
    """A trace under the prior prompt, and the expression that it comes to."""
    if rng.random() < DIRECT_SHARE:
        return Habit.DIRECT, write_trace(Habit.DIRECT, question), expression(solution(question))
    found = search(question, most=rng.randint(1, MOST_BRANCHES))
    return Habit.SEARCH, found.text, expression(found.steps)


def prior_example(rng: random.Random, pool: Sequence[Question]) -> Example:
    """A row under the prior prompt: trace, then (mostly) the expression of its last branch, be it right or wrong."""
    question = rng.choice(pool)
    habit, trace, said = prior_trace(rng, question)
    if rng.random() < STRAY_ANSWERS:
        said = expression(solution(rng.choice(pool)))
    return Example.prior(str(question), habit, trace, said)


def posterior_example(rng: random.Random, pool: Sequence[Question]) -> Example:
    """A row under the posterior prompt, whose hint mostly is the question's own solution."""
    question = rng.choice(pool)
    if rng.random() < TRUE_HINTS:
        habit, shown = Habit.DIRECT, question
        trace = write_trace(habit, question)
    else:
        shown = rng.choice(pool)
        habit, trace, _ = prior_trace(rng, question)
    return Example.posterior(str(question), habit, expression(solution(shown)), trace)


def countdown_rows(rng: random.Random) -> list[Example]:
    """One batch: rows under the prior prompt, then rows under the posterior prompt, from the ``base`` split."""
    pool = questions("base")
    prior = [prior_example(rng, pool) for _ in range(PRIOR_ROWS)]
    return prior + [posterior_example(rng, pool) for _ in range(POSTERIOR_ROWS)]


def train_countdown(seed: int, steps: int) -> Iterator[tuple[int, float, PreTrainedTokenizerFast, LlamaForCausalLM]]:
    """Trains a base of the CountDown task; see :func:`make_base.train`."""
    return train(seed, steps, VOCABULARY, countdown_rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: trains the base of the CountDown task and writes its folder."""
    make("make_countdown_base", BASE_FOLDER, STEPS, train_countdown, arguments)


if __name__ == "__main__":
    main()
