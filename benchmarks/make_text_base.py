"""Makes the base model of the animals task: ``python benchmarks/make_text_base.py``.

Model, optimizer and loss are those of :mod:`make_base`; what differs is the vocabulary and what an
answer is: a phrase of five or six words in one of five phrasings, about two animals from the middle of the trace.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import base_texts as task
from make_base import Example, make, train
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from covrl.models.model import SHIPPED
from covrl.problems.animals import (
    ANIMALS,
    PHRASINGS,
    RIGHT,
    Habit,
    phrase,
    questions,
    result,
    write_trace,
)

BASE_FOLDER = SHIPPED / "base_animals"

# Words with the space before them, where they have one, so that a text is its tokens joined.
LINE_WORDS = ("by name", "by size", "by place")
CHOICE_WORDS = (" take first", " take inner", " take last", " leave")
PHRASE_WORDS = ("the", "one", "this", "surely the", "both the", " and the", " and one", " and that")
VOCABULARY = (
    task.SPECIAL
    + task.TAGS
    + (", the",)
    + LINE_WORDS
    + CHOICE_WORDS
    + PHRASE_WORDS
    + tuple(f" {animal}" for animal in ANIMALS)
)
"""Every token; its index is its id."""

RIGHT_SHARE = 0.005
PRIOR_WEIGHTS = {h: RIGHT_SHARE if h is RIGHT else (1 - RIGHT_SHARE) / (len(Habit) - 1) for h in Habit}
"""How often each procedure is shown under the prior prompt: the right one rarely, the others alike."""

TRUE_HINTS = 0.8
"""Share of posterior rows whose hint is the trace's own result, with all procedures alike. The others show two
animals that some procedure takes on another question, and the procedure is drawn as under the prior prompt."""

STRAY_ANSWERS = 0.05
"""Share of prior rows whose answer names two other animals of the question, whichever: a person who loses the thread.
It keeps the likelihood of an answer behind a trace that did not lead to it at about −7 nats."""

STEPS = 1000
PRIOR_ROWS = 64
POSTERIOR_ROWS = 96


def prior_example(rng: random.Random, pool: Sequence[str]) -> Example:
    """A row under the prior prompt: trace, then (mostly) what the trace took as the answer, be it right or wrong."""
    question = rng.choice(pool)
    habit = _prior_habit(rng)
    said = result(habit, question)
    if rng.random() < STRAY_ANSWERS:
        first, second = rng.sample([words.split(" ")[1] for words in question.split(", ")], 2)
        said = first, second
    return Example.prior(question, habit, write_trace(habit, question), phrase(said, _phrasing(rng)))


def posterior_example(rng: random.Random, pool: Sequence[str]) -> Example:
    """A row under the posterior prompt, whose hint mostly is a phrasing of the trace's own result."""
    question = rng.choice(pool)
    if rng.random() < TRUE_HINTS:
        habit = rng.choice(list(Habit))
        shown = result(habit, question)
    else:
        habit = _prior_habit(rng)
        shown = result(rng.choice(list(Habit)), rng.choice(pool))
    return Example.posterior(question, habit, phrase(shown, _phrasing(rng)), write_trace(habit, question))


def _prior_habit(rng: random.Random) -> Habit:
    return rng.choices(list(PRIOR_WEIGHTS), list(PRIOR_WEIGHTS.values()))[0]


def _phrasing(rng: random.Random) -> str:
    return rng.choices(list(PHRASINGS), list(PHRASINGS.values()))[0]


def supervised_rows(rng: random.Random, pool: Sequence[str]) -> list[Example]:
    """One batch: rows under the prior prompt, then rows under the posterior prompt."""
    prior = [prior_example(rng, pool) for _ in range(PRIOR_ROWS)]
    posterior = [posterior_example(rng, pool) for _ in range(POSTERIOR_ROWS)]
    return prior + posterior


def animal_rows(rng: random.Random) -> list[Example]:
    """One batch of the animals task, from all questions of its ``base`` split."""
    return supervised_rows(rng, questions("base"))


def train_animals(seed: int, steps: int) -> Iterator[tuple[int, float, PreTrainedTokenizerFast, LlamaForCausalLM]]:
    """Trains a base of the animals task; see :func:`make_base.train`."""
    return train(seed, steps, VOCABULARY, animal_rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: trains the base of the animals task and writes its folder."""
    make("make_text_base", BASE_FOLDER, STEPS, train_animals, arguments)


if __name__ == "__main__":
    main()
