"""Rollouts of later steps, sampled on a server while this step trains (``generation.ahead`` = k).

Step n takes what was asked for when step n − k began, and asks for the first requests of step n + k. Then it judges,
scores and trains while the server samples. So step n trains on traces of weights that are up to k steps older than
those of a run with k = 0: they are off policy by that much, which ``sampler/staleness_*`` counts in steps and
``sampler/gap_*`` in nats, and what corrects for another engine (:mod:`covrl.training.mismatch`) corrects for it too:
the log-probs of a trace are those with which it was drawn.

Weights are never replaced while a batch is sampled, so each trace is of one policy. Nothing is kept between runs: the
place in the problems is that of a run with k = 0, and a resumed run samples again what was under way.

Source: one or more steps of staleness are usual in asynchronous RL of language models (Noukhovitch et al., 2024,
CONFIRMED-2nd: k = 1). The correction by the sampler's own log-probs is INFERRED (ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

from covrl.algorithms.base import Algorithm
from covrl.config import RunConfig
from covrl.distributed.world import World
from covrl.errors import UserError
from covrl.generation.base import Draw, Generator, Sampling
from covrl.generation.outside import OutsideGenerator
from covrl.problems.source import ProblemSource
from covrl.records import Group, Problem, Request, Rollout
from covrl.training.method_checks import planned


class Sampled(Protocol):
    """What of a run is used here."""

    config: RunConfig
    algorithm: Algorithm
    generator: Generator
    source: ProblemSource
    world: World


class Ahead:
    """What is sampled for later steps, one step after another, in a thread of its own.

    ``jobs`` are the steps that were begun, by their draw's number: of several processes each samples a share.
    ``found`` is what the present step got from its job, and ``used`` how much of it.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.jobs: dict[int, Future[list[Rollout]]] = {}
        self.found: dict[int, dict[Request, Rollout]] = {}
        self.used = 0
        self._pool = ThreadPoolExecutor(1, "covrl-ahead") if steps else None

    def generated(self, run: Sampled, requests: Sequence[Request], sampling: Sampling, draw: Draw) -> list[Rollout]:
        """The rollouts of the present step's traces, from its job as far as it has them; begins the next jobs.

        Raises:
            EngineError: the engine failed, now or while it sampled ahead.
        """
        found = self._found(run, draw.step)
        left = [request for request in requests if request not in found]
        self.used += len(requests) - len(left)
        self._begin(run, sampling, draw)
        fresh = iter(run.generator.generate(left, sampling, draw) if left else ())
        return [found[request] if request in found else next(fresh) for request in requests]

    def _found(self, run: Sampled, step: int) -> dict[Request, Rollout]:
        """What all ranks sampled ahead for a step."""
        if step not in self.found and step in self.jobs:
            own: list[Rollout] = []
            failed: Exception | None = None
            try:
                own = self.jobs[step].result()
            except Exception as error:
                failed = error
            run.world.raise_together(failed)
            self.found[step] = {rollout.request: rollout for rollout in run.world.gathered(own)}
        return self.found.get(step, {})

    def _begin(self, run: Sampled, sampling: Sampling, draw: Draw) -> None:
        """Ask for the first requests of the next steps, as far as they have not been asked for."""
        last = min(draw.step + self.steps, run.config.training.steps - 1)
        missing = [step for step in range(draw.step + 1, last + 1) if step not in self.jobs]
        if not missing:
            return
        assert isinstance(run.generator, OutsideGenerator)
        assert self._pool is not None
        run.generator.catch_up()  # here, where the weights are at rest, and not while they are trained
        for step, problems in zip(range(draw.step + 1, last + 1), self._problems(run, last - draw.step), strict=True):
            if step in missing:
                later = replace(draw, step=step)
                asked = [request for p in problems for request in planned(run.algorithm, p, [], later, 0)]
                self.jobs[step] = self._pool.submit(run.generator.generate_ahead, asked, sampling, later)

    @staticmethod
    def _problems(run: Sampled, steps: int) -> list[list[Problem]]:
        """Those of the next steps, if the present one takes no more of them; the source stays where it is."""
        before = run.source.state_dict()
        found = [run.source.take(run.config.training.problems_per_step) for _ in range(steps)]
        run.source.load_state_dict(before)
        return found

    def finish(self, step: int) -> None:
        """Forget the jobs up to a step's."""
        self.jobs = {number: job for number, job in self.jobs.items() if number > step}
        self.found, self.used = {}, 0

    def metrics(self, groups: Sequence[Group], done: int) -> dict[str, float]:
        """How many steps older than the trained weights, ``done`` of them, those are that sampled the groups; and the
        share of traces that were sampled ahead for nothing. Empty where nothing is sampled ahead.
        """
        ages = [done - rollout.version for group in groups for rollout in group.rollouts]
        if not self.steps or not ages:
            return {}
        found = {"sampler/staleness_mean": sum(ages) / len(ages), "sampler/staleness_max": float(max(ages))}
        ahead = sum(map(len, self.found.values()))
        return found | {"sampler/unused_share": 1 - self.used / ahead if ahead else 0.0}

    def close(self) -> None:
        """Begin no further job; one that is under way ends by itself."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def check_ahead(config: RunConfig, generator: Generator) -> None:
    """That something can sample while the run trains.

    Raises:
        UserError: the engine is no server.
    """
    asked = f"generation.ahead = {config.generation.ahead}"
    if not config.generation.ahead:
        return
    if not isinstance(generator, OutsideGenerator) or not generator.backend.apart:
        raise UserError(
            f"{asked}: only a vLLM server can sample while a step trains, and generation.engine is "
            f"{config.generation.engine}; set ahead to 0, or engine to a server's address"
        )


def resumed_note(config: RunConfig, done: int) -> str | None:
    """Which rollouts a run samples again that goes on after step ``done``; None where there are none."""
    ahead, steps = config.generation.ahead, config.training.steps
    if not ahead or not 0 < done < steps:
        return None
    last = min(done + ahead, steps)
    which = f"step {done + 1}" if last == done + 1 else f"steps {done + 1} to {last}"
    return (
        f"generation.ahead = {ahead}: what was sampled ahead for {which} is sampled again, with the weights of step "
        f"{done}: from here on it is not bit for bit the run that was interrupted"
    )
