"""What a step samples: the method's requests until it asks for nothing more, then verdicts and rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from covrl.config import GenerationConfig
from covrl.evaluation.accuracy import said_in
from covrl.generation.base import Draw, Sampling
from covrl.prompts import Prompts
from covrl.records import Group, Problem, Request, Rollout
from covrl.rewards.named import rewarded
from covrl.rewards.segmenter import Segmenter
from covrl.rewards.steps import Tokens, with_step_scores
from covrl.training.memory import with_fewer_rows
from covrl.training.method_checks import planned
from covrl.training.run import Run


def sample(run: Run, problems: Sequence[Problem], draw: Draw) -> list[Group]:
    """Plan and generate until the method asks for nothing more; one judged group per problem."""
    sampling = sampling_of(run)
    history: list[list[Rollout]] = [[] for _ in problems]
    for wave in count():
        plans = [planned(run.algorithm, p, h, draw, wave) for p, h in zip(problems, history, strict=True)]
        requests = [request for plan in plans for request in plan]
        if not requests:
            break
        ahead = run.ahead.generated if run.ahead.steps and run.in_progress is not None else _generated
        rollouts = iter(ahead(run, requests, sampling, draw))
        for past, plan in zip(history, plans, strict=True):
            past += [next(rollouts) for _ in plan]
    return judged(run, [Group(p, tuple(h)) for p, h in zip(problems, history, strict=True)], draw)


def sampling_of(run: Run) -> Sampling:
    """How traces are drawn; a response has room for its trace, the tags and its answer."""
    generation, prompts = run.config.generation, run.config.prompts
    if run.algorithm.samples == "thought":
        return Sampling(generation.max_trace_tokens, prompts.close, generation.temperature)
    tokens, after = response_tokens(run.prompts, generation), run.prompts.before_answer
    return Sampling(tokens, prompts.answer_suffix, generation.temperature, after=after)


def response_tokens(prompts: Prompts, generation: GenerationConfig) -> int:
    """Most tokens of a whole response: trace, closing tag, opening tag, answer."""
    tags = len(prompts.close_ids) + len(prompts.answer_prefix_ids)
    return generation.max_trace_tokens + tags + generation.max_answer_tokens


def _generated(run: Run, requests: Sequence[Request], sampling: Sampling, draw: Draw) -> list[Rollout]:
    return with_fewer_rows(run, requests, sampling.max_tokens, lambda: run.generator.generate(requests, sampling, draw))


def judged(run: Run, groups: Sequence[Group], draw: Draw) -> list[Group]:
    """The groups with verdicts and scores of steps, where the method asks for them, and with the user's rewards.

    A response without an answer in its place is wrong: there is nothing to be in doubt about.
    """
    pairs = [(group.problem, rollout) for group in groups for rollout in group.rollouts]
    if run.algorithm.verified and run.verify is not None:
        said = _said(run, pairs, draw)
        asked = [(problem, text) for (problem, _), text in zip(pairs, said, strict=True) if text is not None]
        verdicts = iter(run.world.shared(run.verify, asked))
        pairs = [
            (p, replace(r, correct="wrong" if text is None else next(verdicts)))
            for (p, r), text in zip(pairs, said, strict=True)
        ]
    if run.reward is not None:
        pairs = rewarded(run.reward, pairs, run.algorithm.by_verdict, run.world.shared)
    if run.algorithm.wants_step_scores and run.step_scorer is not None:
        steps, prompts = run.config.steps, run.prompts
        tokens = Tokens(prompts.tokenizer, Segmenter(steps.rule, steps.pattern or None), prompts.config.close)
        pairs = with_step_scores(pairs, tokens, run.step_scorer, run.world.shared, steps.shows_answer)
    found = iter(rollout for _, rollout in pairs)
    return [Group(g.problem, tuple(next(found) for _ in g.rollouts)) for g in groups]


def _said(run: Run, pairs: Sequence[tuple[Problem, Rollout]], draw: Draw) -> list[str | None]:
    """What each rollout answered: read from a response; behind a thought, sampled with the prior prompt."""
    if run.algorithm.samples == "response":
        return [run.prompts.said(ended(rollout, run.prompts)) for _, rollout in pairs]
    generation, suffix = run.config.generation, run.config.prompts.answer_suffix
    asked = [r.request.answer_after(run.prompts.answer_prompt(p, r)) for p, r in pairs if r.valid]
    sampling = Sampling(generation.max_answer_tokens, suffix, generation.temperature)
    replies = iter(_generated(run, asked, sampling, replace(draw, purpose="answer")) if asked else [])
    return [said_in(next(replies), run.prompts) if r.valid else None for _, r in pairs]


def ended(response: Rollout, prompts: Prompts) -> str:
    """A response's text, in which the end of the text stands for the white space that its suffix ends with.

    A chat model ends "The answer is 7." by its end of turn, where the suffix ".\\n" has a line break.
    """
    suffix = prompts.config.answer_suffix
    visible = suffix.rstrip()
    if response.finish != "eos":
        return response.text
    before = said_in(response, prompts)
    return before + suffix.removeprefix(visible) if before.endswith(visible) else response.text
