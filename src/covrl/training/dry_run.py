"""`covrl train --dry-run`: what a run would show the model, what it would sample, and what it would cost."""

from __future__ import annotations

import time
from dataclasses import dataclass

from covrl.evaluation.bench import TRAINING_READS
from covrl.evaluation.posterior_gain import FORMAT_SHARE, PosteriorGain, draw_roles, gain_sentence, posterior_gain
from covrl.generation.base import Draw, Sampling
from covrl.generation.engines import rows_of
from covrl.models.compute import faster_note
from covrl.planning.fitting import Needs, trace_too_large, what_does_not_fit
from covrl.planning.machine import Memory
from covrl.records import Group, Problem, Rollout, Row
from covrl.training.fit import least_memory
from covrl.training.memory import rows_at_once
from covrl.training.needs import measured, moments
from covrl.training.optimizer import warm_up_note
from covrl.training.rollouts import sample
from covrl.training.run import Run
from covrl.training.scores import score_groups

ANSWERS_LOOKED_AT = 1000
"""How many problems' answers are measured against ``generation.max_answer_tokens``."""


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate: what the run ``needs`` of the ``machine``'s memory, bytes on disk, seconds for the whole run.

    Time is one measured round of sampling and scoring, scaled to a step; training is taken as three scorings
    (forward, backward twice as dear). ``tokens`` are the padded ones of the largest training pass, ``rows`` what is
    decoded side by side.
    """

    needs: Needs
    tokens: int
    rows: int
    disk: int
    seconds: float
    machine: Memory

    @property
    def activations(self) -> int:
        """Bytes that the largest training pass keeps for its backward (:func:`covrl.training.needs.pass_bytes`)."""
        return self.needs.fixed + round(self.needs.token * self.tokens)

    @property
    def memory(self) -> int:
        """Bytes on the device in a training pass."""
        return self.needs.training(self.tokens)

    @property
    def sampling(self) -> int:
        """Bytes on the device while sampling; gradients are gone by then."""
        return self.needs.sampling(self.rows)


GAIN_PROBLEMS, GAIN_TRACES = 8, 2
"""Problems, and traces of each prompt a problem, that the posterior gain is measured on."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """The first problem's rows by context, sampled traces, the cost, and what looks wrong in the settings.

    ``gain`` is what posterior traces are worth over prior ones, and ``gain_said`` the same in words; None and empty
    where the method samples none.
    """

    problem: Problem
    rows: dict[str, Row]
    rollouts: tuple[Rollout, ...]
    cost: Cost
    notes: tuple[str, ...] = ()
    gain: PosteriorGain | None = None
    gain_said: str = ""

    @property
    def valid(self) -> float:
        return sum(r.valid for r in self.rollouts) / len(self.rollouts)

    @property
    def truncated(self) -> float:
        return sum(r.finish == "length" for r in self.rollouts) / len(self.rollouts)

    def complaint(self) -> str | None:
        """Named and with figures, if the base cannot do the format."""
        if self.valid >= FORMAT_SHARE:
            return None
        ended = sum(r.finish == "eos" for r in self.rollouts)
        return (
            f"the base does not know the format: {self.valid:.0%} of {len(self.rollouts)} traces end with the closing "
            f"tag ({self.truncated:.0%} cut at the limit, {ended} ended the text before it); raise "
            "generation.max_trace_tokens, reword [prompts], or teach the format with covrl warm-format, where the "
            "problems carry worked solutions"
        )


def dry_run(run: Run, traces: int = 8) -> DryRun:
    """Sample at least ``traces`` traces of the first problems, score them, and take no step."""
    size = run.config.training.rollouts_per_problem
    problems = run.source.take(max(1, -(-traces // size)))
    start = time.perf_counter()
    groups = sample(run, problems, Draw(run.config.training.seed, 0))
    sampled = time.perf_counter()
    score_groups(run, groups)
    scored = time.perf_counter()
    share = run.config.training.problems_per_step / len(problems)
    seconds = share * ((sampled - start) + TRAINING_READS * (scored - sampled)) * run.config.training.steps
    rollouts = tuple(r for g in groups for r in g.rollouts)
    needs, machine = measured(run), least_memory(run)
    cost = _cost(run, seconds, needs, machine)
    short = (what_does_not_fit(cost.memory, cost.sampling, machine), trace_too_large(needs, machine))
    gain = _gain(run) if any(r.source == "posterior" for r in rollouts) else None
    said = gain_sentence(gain, run.algorithm.name) if gain else ""
    notes = (*run.notes, *_notes(run), *(text for text in short if text and text not in run.notes))
    return DryRun(problems[0], _rows(run, groups[0]), rollouts, cost, notes, gain, said)


def _gain(run: Run) -> PosteriorGain:
    """The posterior gain on the first problems, by traces that are sampled for it."""
    generation, seed = run.config.generation, run.config.training.seed
    sampling = Sampling(generation.max_trace_tokens, run.config.prompts.close, generation.temperature)
    drawn = draw_roles(
        run.generator, run.models["policy"], run.prompts, run.source.problems[:GAIN_PROBLEMS], sampling, GAIN_TRACES,
        seed, rows_per_pass=rows_of(generation), tokens_per_pass=run.limits.tokens,
    )  # fmt: skip
    return posterior_gain([d.worth for d in drawn], seed)


def _rows(run: Run, group: Group) -> dict[str, Row]:
    """The contexts of the first valid trace, or of the first one."""
    shown = next((r for r in group.rollouts if r.valid), group.rollouts[0])
    rows = {context.name: context.render(group.problem, shown) for context in run.algorithm.contexts}
    return {name: row for name, row in rows.items() if row is not None}


def largest_pass(run: Run, trace: int) -> int:
    """Padded tokens in the largest pass of a step whose traces all take ``trace`` tokens."""
    training = run.config.training
    step = trace * training.problems_per_step * training.rollouts_per_problem
    return min(max(run.limits.tokens, trace), step)


def _notes(run: Run) -> tuple[str, ...]:
    """What a user should know before training and what is no error."""
    dtype = faster_note(run.config.model.dtype, run.models["policy"].device)
    return tuple(filter(None, (warm_up_note(run.config.training), _long_answers(run), dtype)))


def _long_answers(run: Run) -> str | None:
    limit, looked_at = run.config.generation.max_answer_tokens, run.source.problems[:ANSWERS_LOOKED_AT]
    whole = run.algorithm.samples == "response"  # only there does a missing closing tag make an answer wrong
    tag = 0 if whole else len(run.prompts.encode(run.config.prompts.answer_suffix))
    lengths = {p.id: len(run.prompts.answer(p)) - tag for p in looked_at}
    long = sum(length > limit for length in lengths.values())
    if not long:
        return None
    name, longest = max(lengths.items(), key=lambda item: item[1])
    return (
        f"{long} of {len(looked_at)} reference answers{', closing tag included,' * whole} are longer than "
        f"generation.max_answer_tokens = {limit} (the longest, of problem {name}, has {longest}): when a model is "
        "evaluated it cannot write them in full; raise the limit, or see problems.extract if the field holds more "
        "than the answer"
    )


def _cost(run: Run, seconds: float, needs: Needs, machine: Memory) -> Cost:
    training = run.config.training
    copies = run.config.checkpoint.keep + 1  # the best beside the newest
    rows = min(rows_at_once(run) or 0, training.problems_per_step * training.rollouts_per_problem)
    disk = needs.gradients * copies + moments(run) * run.config.checkpoint.keep
    return Cost(needs, largest_pass(run, needs.trace), rows, disk, seconds, machine)
