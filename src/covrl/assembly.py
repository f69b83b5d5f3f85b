"""From settings to a run that has not taken a step: problems, model, prompts, method, generator."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from math import ceil
from pathlib import Path
from typing import NamedTuple

from covrl.algorithms import make_algorithm, with_every_setting
from covrl.algorithms.base import Algorithm, Setup
from covrl.config import ProblemsConfig, RewardConfig, RunConfig, SourceConfig, check
from covrl.distributed.processes import join_world
from covrl.errors import UserError
from covrl.evaluation.accuracy import Evaluator
from covrl.generation.engines import make_generator
from covrl.generation.outside import OutsideGenerator
from covrl.generation.proof import prove
from covrl.models.beside import load_beside
from covrl.models.compute import emulated_note
from covrl.models.model import first_layers, load_model, resolve_dtype
from covrl.models.policy import in_parts, load_policy
from covrl.problems.foils import with_foils
from covrl.problems.loading import load_problems, stem_of
from covrl.problems.source import ProblemSource, shuffle_hints
from covrl.problems.tasks import task_of
from covrl.prompt_checks import check_lengths, check_rows, check_tokens, longest_row, option_notes
from covrl.prompts import Prompts, dated
from covrl.records import Grader, Problem, TraceLabel
from covrl.rewards.code_tests import isolation_notes
from covrl.rewards.functions import find_reward, name_of
from covrl.rewards.graders import make_grader
from covrl.rewards.named import Given, Reward, as_reward, load_reward
from covrl.rewards.step_server import StepServer
from covrl.rewards.steps import StepScorer
from covrl.training.ahead import check_ahead
from covrl.training.distribute import distribute
from covrl.training.fit import fit
from covrl.training.method_checks import check_method
from covrl.training.rollouts import response_tokens
from covrl.training.run import Run
from covrl.training.warm_format import WarmFormat, WarmFormatConfig


def build(
    config: RunConfig,
    problems: Sequence[Problem] | None = None,
    held_out: Sequence[Problem] | None = None,
    grade: Grader | None = None,
    label: TraceLabel | None = None,
    reward: Given | None = None,
    step_scorer: StepScorer | None = None,
    algorithm: type[Algorithm] | None = None,
    evaluation_only: bool = False,
    policy_path: Path | None = None,
) -> Run:
    """Load the model and assemble a run that has not taken a step.

    Problems come from ``[problems]`` unless they are given. ``grade`` judges held-out answers (the default is
    ``evaluation.verifier``) and ``label`` names what traces do in the report: neither has a part in training.
    ``reward`` is a function of problem and sampled text, or several with their names, in the place of
    ``rewards.function`` and ``[[reward]]`` (:func:`covrl.rewards.named.as_reward`). ``step_scorer`` scores reasoning
    steps in the place of ``steps.server``. ``algorithm`` is a class in the place of ``algorithm.name``. ``policy_path``
    is where the policy's weights are, if they are no longer those of ``model.path``: frozen references are always the
    latter.

    Raises:
        UserError: a setting, the model, or a problem cannot be used.
    """
    data = _data(config, problems, held_out, label)
    weights = source_weights(config.problems) if problems is None else None
    source = ProblemSource(data.train, config.training.seed, weights)
    if config.training.problems_per_step > len(data.train) and not evaluation_only:
        raise UserError(
            f"training.problems_per_step = {config.training.problems_per_step}, but there are only {len(data.train)} "
            "problems, and the same problem twice in a step gives the same traces twice; lower it"
        )
    if weights and not evaluation_only:
        _check_shares(data.train, weights, config.training.problems_per_step)
    world = join_world(config.model.device)
    config = config.model_copy(update={"model": resolve_dtype(config.model)})
    given = as_reward(reward)
    config = named_in_config(config, given, algorithm)
    rewards = given if given is not None or evaluation_only else _rewards_of(config)
    if evaluation_only:
        policy, tokenizer = load_model(config.model, config.generation.temperature)
    else:
        policy, tokenizer = load_policy(config, policy_path, world)
    config = config.model_copy(update={"prompts": dated(config.prompts, tokenizer, world.broadcast(date.today()))})
    prompts = Prompts(tokenizer, config.prompts)
    method = build_algorithm(config, prompts, algorithm, rewards is not None, evaluation_only)
    if not evaluation_only:
        config = config.model_copy(update={"algorithm": with_every_setting(config.algorithm, type(method))})
    if method.wants_foils:
        data = data._replace(train=with_foils(data.train, config.training.seed))
        source = ProblemSource(data.train, config.training.seed, weights)
    every = [*data.train, *data.held_out, *(replace(p, hint=p.foil) for p in data.train if p.foil is not None)]
    check_tokens(prompts, every)
    check_rows(prompts, policy.model.get_input_embeddings().weight.shape[0], every)
    check_lengths(prompts, policy.context_length, config, every)
    generator = make_generator(config, config.generation.engine, policy.model, tokenizer, world)
    if not evaluation_only:
        check_ahead(config, generator)
    longest = longest_row(prompts, config, every)
    parts = not evaluation_only and in_parts(config, world)
    few = partial(first_layers, config.model, config.generation.temperature) if parts else None
    proved = prove(policy, generator, tokenizer, longest, config.model.path, world, few)
    slow = emulated_note(config.model.dtype, policy.device)
    said = option_notes(prompts, [*data.train, *data.held_out])
    unisolated = isolation_notes(config.rewards.verifier, config.evaluation.verifier)
    notes = (*policy.given_up, *proved, *([slow] if slow else []), *prompts.notes, *said, *unisolated)
    limits = config.generation
    grade = grade or make_grader(config.evaluation.verifier)
    run = Run(
        config=config,
        algorithm=method,
        models={"policy": policy} | load_beside(policy, method.models, config, bool(policy_path), world),
        generator=generator,
        prompts=prompts,
        source=source,
        verify=make_grader(config.rewards.verifier) if method.verified and rewards is None else None,
        reward=rewards,
        step_scorer=step_scorer or _step_server(config) if method.wants_step_scores else None,
        label=data.label,
        evaluator=Evaluator(
            generator,
            prompts,
            limits.max_trace_tokens,
            limits.max_answer_tokens,
            grade,
            data.label,
            answer_temperature=config.evaluation.answer_temperature,
            world=world,
        ),
        held_out=data.held_out,
        notes=notes,
        world=world,
    )
    run = fit(run, trains=not evaluation_only)
    if not evaluation_only:
        distribute(run)
    elif isinstance(generator, OutsideGenerator):  # each rank has loaded all weights
        generator.start(config.generation.engine)
    return run


def _step_server(config: RunConfig) -> StepScorer:
    """The process reward model that the settings name.

    Raises:
        UserError: they name none, or no address.
    """
    steps = config.steps
    if not steps.server:
        raise UserError(
            f"{config.algorithm.name} takes scores of reasoning steps: set steps.server to the address of a process "
            "reward model (docs/rewards.md), or give step_scorer to covrl.train"
        )
    return StepServer(steps.server, steps.protocol, model=steps.model, timeout_s=steps.timeout_s)


def _rewards_of(config: RunConfig) -> Reward | None:
    """The reward functions that the settings name."""
    if not config.reward:
        return find_reward(config.rewards.function)
    return tuple(load_reward(name, **part.model_dump()) for name, part in config.reward.items())


class _Data(NamedTuple):
    """Problems to train on, held-out problems, and what names their traces in reports."""

    train: Sequence[Problem]
    held_out: Sequence[Problem]
    label: TraceLabel | None


def _data(
    config: RunConfig,
    problems: Sequence[Problem] | None,
    held_out: Sequence[Problem] | None,
    label: TraceLabel | None,
) -> _Data:
    """What is given, and the rest from ``[problems]``; the task's own label goes with its own problems."""
    train = config.problems.train
    task = task_of(train) if problems is None and isinstance(train, str) else None
    if problems is None:
        problems = training_problems(config.problems)
    if held_out is None and config.problems.held_out:
        held_out = problems_of(config.problems.held_out, config.problems)
    if config.problems.shuffle_hints:
        problems = shuffle_hints(problems, config.training.seed)
    return _Data(problems, held_out or (), label or (task.label if task else None))


def build_algorithm(
    config: RunConfig, prompts: Prompts, cls: type[Algorithm] | None, rewarded: bool, evaluation_only: bool = False
) -> Algorithm:
    """The run's method, with combinations that make no sense refused.

    Raises:
        UserError: no such method, a wrong setting, or a combination that cannot train, with the reason.
    """
    training = config.training
    setup = Setup(
        prompts,
        training.rollouts_per_problem,
        training.problems_per_step,
        response_tokens(prompts, config.generation),
    )
    if evaluation_only:  # the method has no part in it, and one that was given in Python may not be at hand
        return WarmFormat(WarmFormatConfig(), setup)
    if cls is not None:
        method = cls(check(cls.Config, config.algorithm.settings, where="[algorithm] "), setup)
    else:
        method = make_algorithm(config.algorithm, setup)
    check_method(method)
    if config.steps.server and not method.wants_step_scores:
        raise UserError(
            f"steps.server = {config.steps.server}: {method.name} takes no scores of reasoning steps; leave it out"
        )
    if training.rollouts_per_problem < method.rollouts_wanted:
        raise UserError(
            f"training.rollouts_per_problem = {training.rollouts_per_problem}: {method.name} compares the traces of a "
            f"problem with each other and needs at least {method.rollouts_wanted}"
        )
    updates = training.mini_batches * training.epochs
    if updates > 1 and method.one_update:
        raise UserError(
            f"training.mini_batches x epochs = {updates}: {method.name} takes one update a batch, because "
            f"{method.one_update}"
        )
    # A mini-batch is of whole groups, so there are never more of them than problems.
    taken = min(training.mini_batches, training.problems_per_step) * training.epochs
    if taken < method.updates_wanted:
        few = f" of {training.problems_per_step} problem(s)" if taken < updates else ""
        raise UserError(
            f"training.mini_batches x epochs = {updates}{few}: {method.name} needs at least {method.updates_wanted} "
            "updates a batch; its first update is plain REINFORCE"
        )
    if method.verified and not rewarded and config.rewards.verifier == "none":
        raise UserError(
            f"{method.name} takes its reward from a verifier: set rewards.verifier (text, math, choice, code, …) or "
            "rewards.function, or choose a likelihood method such as covrl"
        )
    return method


def named_in_config(config: RunConfig, reward: Reward | None, algorithm: type[Algorithm] | None) -> RunConfig:
    """The settings with the names of what was given in Python, so that the run's file says what it was."""
    changed = config
    if reward is not None:
        one = name_of(reward) if callable(reward) else ""
        several = {} if callable(reward) else {r.name: RewardConfig(**r.settings) for r in reward}
        rewards = config.rewards.model_copy(update={"function": one})
        changed = changed.model_copy(update={"rewards": rewards, "reward": several})
    if algorithm is not None:
        changed = changed.model_copy(
            update={"algorithm": config.algorithm.model_copy(update={"name": name_of(algorithm)})}
        )
    return changed


def build_evaluation(config: RunConfig, source: str) -> Run:
    """A run whose held-out problems are those of ``source``, for its evaluator; nothing else of it is used."""
    task = task_of(source)
    problems = load_problems(source, config.problems.fields)
    return build(config, problems, problems, label=task.label if task else None, evaluation_only=True)


def problems_of(source: str | SourceConfig, config: ProblemsConfig) -> list[Problem]:
    """The problems of a source that is no training source: by its name, or with fields of its own.

    Raises:
        UserError: the source cannot be read.
    """
    if isinstance(source, str):
        return load_problems(source, config.fields)
    return load_problems(source.source, source.fields_of(config).fields, source.name)


def training_problems(config: ProblemsConfig) -> list[Problem]:
    """The problems that are trained on; of several sources each with the name of its own as ``origin``.

    Raises:
        UserError: a source cannot be read, or two of them have a name or a problem's id in common.
    """
    if isinstance(config.train, str):
        return load_problems(config.train, config.fields)
    found: dict[str, Problem] = {}
    for name, source in _named(config.train).items():
        for problem in load_problems(source.source, source.fields_of(config).fields, name):
            if problem.id in found:
                raise UserError(
                    f"problems.train: the sources {found[problem.id].origin} and {name} both have a problem "
                    f"{problem.id!r}: give them other ids (id_field), or none, so that they are numbered"
                )
            found[problem.id] = replace(problem, origin=name)
    return list(found.values())


def source_weights(config: ProblemsConfig) -> dict[str, float] | None:
    """The weight of each source by its name, where there are several; see :func:`training_problems`."""
    if isinstance(config.train, str):
        return None
    return {name: source.weight for name, source in _named(config.train).items()}


def _named(sources: Sequence[SourceConfig]) -> dict[str, SourceConfig]:
    named: dict[str, SourceConfig] = {}
    for source in sources:
        name = source.name or re.sub(r"[^\w.-]+", "-", stem_of(source.source))
        if name in named:
            raise UserError(
                f"problems.train: {named[name].source} and {source.source} would both be called {name}: give one of "
                "them another name"
            )
        named[name] = source
    return named


def _check_shares(problems: Sequence[Problem], weights: Mapping[str, float], per_step: int) -> None:
    """No source has to give a step more problems than it has.

    Raises:
        UserError: one has; says how many it would be.
    """
    counts = Counter(problem.origin for problem in problems)
    for name, weight in weights.items():
        most = ceil(per_step * weight / sum(weights.values()))
        if most > counts[name]:
            raise UserError(
                f"problems.train: by its weight {name} gives up to {most} of the {per_step} problems of a step, but it "
                f"has only {counts[name]}: lower its weight or training.problems_per_step"
            )
