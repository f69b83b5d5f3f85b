"""The Python API that the command line calls: build a run from settings, train it, write its folder."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from covrl.algorithms import find_algorithm, make_algorithm
from covrl.algorithms.base import Algorithm, Setup
from covrl.config import ProblemsConfig, RunConfig, Settings, check, override, read_settings, read_toml
from covrl.errors import RunBusyError, RunInterruptedError, TrainingStoppedError, UserError
from covrl.evaluation.accuracy import Evaluator, Grader, TraceLabel
from covrl.evaluation.ask import Reply
from covrl.evaluation.ask import ask as ask_model
from covrl.evaluation.reward_watch import blindness
from covrl.generation.base import Sampling
from covrl.generation.engine import TorchGenerator
from covrl.plugins import refuse_code_in_file
from covrl.problems.loading import Fields, load_problems
from covrl.problems.source import ProblemSource, shuffle_hints
from covrl.problems.tasks import task_of
from covrl.prompts import Prompts, check_tokens
from covrl.records import Problem, StepReport
from covrl.reporting.sinks import Sink, read_metrics
from covrl.rewards.functions import RewardFunction, find_reward, name_of
from covrl.rewards.graders import make_grader
from covrl.scoring.compute import recompute_activations
from covrl.scoring.model import SHIPPED, LanguageModel, load_model
from covrl.training import durable
from covrl.training.checkpoint import load_checkpoint, newest_whole, read_state
from covrl.training.distributed import join_world
from covrl.training.keeper import CannotSaveError, Keeper, best_value
from covrl.training.loop import Run, response_tokens
from covrl.training.models import frozen_copy
from covrl.training.resuming import check_config, check_inputs, check_versions
from covrl.training.signals import StopRequest
from covrl.training.warm_format import WarmFormat

SHIPPED_RECIPES = {
    "covrl:digits": "quickstart.toml",
    "covrl:digits-common": "quickstart.toml",
    "covrl:animals": "animals.toml",
}


def build(
    config: RunConfig,
    problems: Sequence[Problem] | None = None,
    held_out: Sequence[Problem] | None = None,
    grade: Grader | None = None,
    label: TraceLabel | None = None,
    reward: RewardFunction | None = None,
    algorithm: type[Algorithm] | None = None,
    evaluation_only: bool = False,
    policy_path: Path | None = None,
) -> Run:
    """Load the model and assemble a run that has not taken a step.

    Problems come from ``[problems]`` unless they are given. ``grade`` judges held-out answers (the default is
    ``evaluation.verifier``) and ``label`` names what traces do in the report: neither has a part in training.
    ``reward`` is a function of problem and sampled text, in the place of ``rewards.function``, and ``algorithm`` a
    class in the place of ``algorithm.name``. ``policy_path`` is where the policy's weights are, if they are no longer
    those of ``model.path``: frozen references are always the latter.

    Raises:
        UserError: a setting, the model, or a problem cannot be used.
    """
    task = task_of(config.problems.train) if problems is None else None
    fields = problem_fields(config.problems)
    if problems is None:
        problems = load_problems(config.problems.train, fields)
    if held_out is None and config.problems.held_out:
        held_out = load_problems(config.problems.held_out, fields)
    if config.problems.shuffle_hints:
        problems = shuffle_hints(problems, config.training.seed)
    source = ProblemSource(problems, config.training.seed)
    if config.training.problems_per_step > len(problems) and not evaluation_only:
        raise UserError(
            f"training.problems_per_step = {config.training.problems_per_step}, but there are only {len(problems)} "
            "problems, and the same problem twice in a step gives the same traces twice; lower it"
        )
    world = join_world(config.model.device)
    config = named_in_config(config, reward, algorithm)
    reward = reward or (None if evaluation_only else find_reward(config.rewards.function))
    moved = config.model.model_copy(update={"path": str(policy_path)}) if policy_path else config.model
    policy, tokenizer = load_model(moved, config.generation.temperature)
    if config.training.recompute:
        recompute_activations(policy.model)
    prompts = Prompts(tokenizer, config.prompts)
    check_tokens(prompts, [*problems, *(held_out or ())])
    check_lengths(prompts, policy.context_length, config, [*problems, *(held_out or ())])
    generator = TorchGenerator(policy.model, tokenizer, config.generation.rows_per_pass, world)
    notes = (*policy.given_up, *generator.prove())
    limits = config.generation
    grade = grade or make_grader(config.evaluation.verifier)
    label = label or (task.label if task else None)
    method = build_algorithm(config, prompts, algorithm, reward is not None, evaluation_only)
    return Run(
        config=config,
        algorithm=method,
        models={"policy": policy} | _beside(method, policy, config if policy_path else None),
        generator=generator,
        prompts=prompts,
        source=source,
        verify=make_grader(config.rewards.verifier) if method.verified and reward is None else None,
        reward=reward,
        label=label,
        evaluator=Evaluator(generator, prompts, limits.max_trace_tokens, limits.max_answer_tokens, grade, label),
        held_out=held_out or (),
        notes=notes,
        world=world,
    )


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
        return WarmFormat(Settings(), setup)
    if cls is not None:
        method = cls(check(cls.Config, config.algorithm.settings, where="[algorithm] "), setup)
    else:
        method = make_algorithm(config.algorithm, setup)
    updates = training.mini_batches * training.epochs
    if updates > 1 and method.one_update:
        raise UserError(
            f"training.mini_batches x epochs = {updates}: {method.name} takes one update a batch, because "
            f"{method.one_update}"
        )
    if updates < method.updates_wanted:
        raise UserError(
            f"training.mini_batches x epochs = {updates}: {method.name} needs at least {method.updates_wanted} updates "
            "a batch; its first update is plain REINFORCE"
        )
    if method.verified and not rewarded and config.rewards.verifier == "none":
        raise UserError(
            f"{method.name} takes its reward from a verifier: set rewards.verifier (text, math, choice, code, …) or "
            "rewards.function, or choose a likelihood method such as covrl"
        )
    return method


def _beside(method: Algorithm, policy: LanguageModel, base: RunConfig | None) -> dict[str, LanguageModel]:
    """The method's other models: copies of the base, which is the policy itself unless ``base`` says otherwise."""
    if not method.models:
        return {}
    start = load_model(base.model, base.generation.temperature)[0] if base else policy
    return {spec.name: frozen_copy(start) for spec in method.models}


def named_in_config(config: RunConfig, reward: RewardFunction | None, algorithm: type[Algorithm] | None) -> RunConfig:
    """The settings with the names of what was given in Python, so that the run's file says what it was."""
    changed = config
    if reward is not None:
        changed = changed.model_copy(
            update={"rewards": config.rewards.model_copy(update={"function": name_of(reward)})}
        )
    if algorithm is not None:
        changed = changed.model_copy(
            update={"algorithm": config.algorithm.model_copy(update={"name": name_of(algorithm)})}
        )
    return changed


def build_evaluation(config: RunConfig, source: str) -> Run:
    """A run whose held-out problems are those of ``source``, for its evaluator; nothing else of it is used."""
    task = task_of(source)
    problems = load_problems(source, problem_fields(config.problems))
    return build(config, problems, problems, label=task.label if task else None, evaluation_only=True)


def problem_fields(config: ProblemsConfig) -> Fields:
    """The field names of ``[problems]`` as the loader takes them."""
    return Fields(
        question=config.question_field,
        answer=config.answer_field,
        accepted=config.accepted_field or None,
        id=config.id_field or None,
        extract=config.extract,
        solution=config.solution_field or None,
    )


def check_lengths(prompts: Prompts, context: int | None, config: RunConfig, problems: Sequence[Problem]) -> None:
    """Every prompt, a whole trace and the answer must fit the model's context (``None``: it has no limit).

    Raises:
        UserError: the longest problem does not fit; names it, with the arithmetic.
    """
    if context is None:
        return
    longest = max(problems, key=lambda p: len(p.question) + len(p.shown))
    prompt = max(len(prompts.prior(longest)), len(prompts.posterior(longest)))
    after = len(prompts.close_ids) + len(prompts.answer_prefix_ids) + len(prompts.answer(longest))
    trace = config.generation.max_trace_tokens
    if prompt + trace + after > context:
        raise UserError(
            f"problem {longest.id}: {prompt} prompt tokens + {trace} trace tokens + {after} answer tokens exceed the "
            f"model's context of {context}; lower generation.max_trace_tokens or leave the problem out"
        )


@dataclass(frozen=True, slots=True)
class Trained:
    """A training that ended: its folder, its last and best model, its reports, and the seconds it took."""

    run: Run
    folder: Path
    last: Path
    best: Path | None
    reports: list[StepReport] = field(default_factory=list)
    seconds: float = 0.0


def train(
    config: RunConfig | Mapping[str, Any],
    problems: Sequence[Problem] | None = None,
    held_out: Sequence[Problem] | None = None,
    out: str | Path | None = None,
    grade: Grader | None = None,
    reward: RewardFunction | str | None = None,
    algorithm: type[Algorithm] | str | None = None,
    sinks: Sequence[Sink] = (),
) -> Trained:
    """Train a model from settings and problems: :func:`build`, a new folder, :func:`train_run`.

    Example:
        >>> trained = covrl.train({"model": {"path": "my/model"}}, problems, held_out, out="runs/first")
        >>> trained.best   # a plain Hugging Face folder

    ``reward`` is a function ``(problem, text) -> float`` or its name (entry point or ``module:function``): the reward
    of the group family, an addition to the answer's likelihood in CoVRL and its family. ``algorithm`` is a method's
    class or its name. ``grade`` judges held-out answers.

    Raises:
        UserError: a setting, the model, a problem or the folder cannot be used.
        TrainingStoppedError: the method, a guard or the user ended the run; what was done is written.
    """
    checked = config if isinstance(config, RunConfig) else check(RunConfig, config)
    if isinstance(reward, str):
        reward = find_reward(reward)
    if isinstance(algorithm, str):
        algorithm = find_algorithm(algorithm)
    run = build(checked, problems, held_out, grade, reward=reward, algorithm=algorithm)
    folder = run.world.same(Path(out) if out is not None else Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}")
    if run.world.first:
        new_run_folder(folder)
    return train_run(run, folder, sinks)


def train_run(
    run: Run, folder: Path, sinks: Sequence[Sink] = (), say: Callable[[str], None] = lambda _: None
) -> Trained:
    """Take all remaining steps, in a folder of :func:`new_run_folder` or of the run that ``run`` resumes.

    Writes ``config.toml``, ``metrics.jsonl``, ``traces.jsonl``, ``checkpoints/`` and, with held-out problems,
    ``best/``. Ctrl-C and SIGTERM end it before the next forward (of several processes: before the next phase of a
    step), with a checkpoint of the last whole step. After a kill at any moment
    :func:`resume` and this function make the same files as if there had been none. Of several processes all call it
    with a run built alike, and the first alone writes and reports.

    Raises:
        UserError: another process is training in this folder, or has trained there since ``run`` was resumed.
        CannotSaveError: the disk is full or not writable; the last good checkpoint is as it was.
        TrainingStoppedError: the method, a guard or the user ended the run; what was done up to there is written.
    """
    start = time.perf_counter()
    reports: list[StepReport] = []
    world = run.world
    with ExitStack() as cleanup:
        if world.first:
            cleanup.enter_context(alone_in(folder))
        world.distribute(run)
        stop = cleanup.enter_context(StopRequest(say))
        run.folder, run.stopping = folder, lambda: stop.requested
        keeper = Keeper(run, folder)
        sinks = sinks if world.first else ()
        for note in (*run.notes, *keeper.notes, *_blind(run)):
            say(note)
        for closed in (keeper, *sinks):
            cleanup.callback(closed.close)
        try:
            for report in run.steps():
                reports.append(report)
                keeper.keep(report)  # before the others see it: what they do wrong costs no step
                for sink in sinks:
                    sink.write(report)
                if world.any(stop.requested) and run.done < run.config.training.steps:
                    raise RunInterruptedError(f"interrupted after step {run.done}")
        except KeyboardInterrupt:  # inside a step, where the state is not whole: what is on disk stays
            raise RunInterruptedError(f"interrupted inside step {run.done + 1}") from None
        except CannotSaveError:
            raise
        except Exception as error:
            if not world.agreed(error):
                raise  # it is this rank's alone: the others cannot take part in a checkpoint
            try:
                keeper.last()
            except CannotSaveError as also:
                raise TrainingStoppedError(f"{error}; {also}") from error
            raise
        last = keeper.last()
    assert last is not None  # it is None inside a step only
    return Trained(run, folder, last / "model", durable.present(folder / "best"), reports, time.perf_counter() - start)


def _blind(run: Run) -> list[str]:
    """What the reward watch cannot see in this run."""
    graded = run.evaluator is not None and run.evaluator.grade is not None
    asked = run.config.evaluation
    why = blindness(asked.every, min(len(run.held_out), asked.problems), graded)
    return [why] if why else []


def resume(
    folder: Path,
    problems: Sequence[Problem] | None = None,
    held_out: Sequence[Problem] | None = None,
    reward: RewardFunction | str | None = None,
    algorithm: type[Algorithm] | str | None = None,
) -> Run:
    """The run of a folder, where its newest whole checkpoint was cut; a run that has none yet is at its beginning.

    What was given to :func:`train` in Python (problems, a reward function, a method's class) is to be given again.
    Damaged checkpoints that were passed over, and settings that changed and may, are in the run's ``notes``. Nothing
    in the folder is changed before :func:`train_run`.

    Raises:
        UserError: no run there, only damaged checkpoints, settings or problems that are no longer the run's, or code
            that was given in Python and is not given now.
    """
    table = read_toml(folder / "config.toml")
    for key, given in (("function", reward), ("name", algorithm)):
        section = "rewards" if key == "function" else "algorithm"
        if given is not None:
            table.setdefault(section, {})[key] = given if isinstance(given, str) else name_of(given)
    given = {"rewards": reward, "algorithm": algorithm}
    refuse_code_in_file({k: v for k, v in table.items() if given.get(k) is None}, folder / "config.toml")
    config = check(RunConfig, table, where=f"{folder / 'config.toml'}: ")
    found, notes = _checkpoint_to_resume(folder, config)
    state = read_state(found) if found else {}
    changes = check_config(state, config, folder / "config.toml")
    run = build(
        config,
        problems,
        held_out,
        reward=None if isinstance(reward, str) else reward,
        algorithm=None if isinstance(algorithm, str) else algorithm,
        policy_path=found / "model" if found else None,
    )
    if found:
        check_inputs(state, run)
        load_checkpoint(run, found)
        notes += [*changes, *check_versions(found)]
    if changes:  # the steps behind the checkpoint will not be the same again: what they found best still counts
        run.best = max(filter(None, (run.best, best_value(folder / "best"))), default=None)
    run.notes = (*run.notes, *notes)
    return run


def _checkpoint_to_resume(folder: Path, config: RunConfig) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, or None where the run had not come to its first; and what is to be said of it."""
    found, damaged = newest_whole(folder / "checkpoints")
    said = [f"{path} is damaged: {why}" for path, why in damaged]
    if found:
        return found, [f"{text}; going on from {found.name}" for text in said]
    if said:
        raise UserError(f"{said[0]}; no other checkpoint can be used, so the run cannot be resumed")
    metrics = folder / "metrics.jsonl"
    steps = [report.step for report in read_metrics(metrics)] if metrics.exists() else []
    if steps and steps[-1] > config.checkpoint.every:
        raise UserError(f"{folder}: {steps[-1]} steps are recorded, but its checkpoints are gone; begin a new run")
    return None, ["the run was stopped before its first checkpoint: it begins again at step 1"]


def model_of_run(folder: Path) -> Path:
    """The best model of a run's folder, or its newest.

    Raises:
        UserError: the run has no model yet.
    """
    best = durable.present(folder / "best")
    if best is not None:
        return best
    found, damaged = newest_whole(folder / "checkpoints")
    if found is None:
        said = f"{damaged[0][0]} is damaged: {damaged[0][1]}" if damaged else f"{folder}: the run has no model yet"
        raise UserError(said)
    return found / "model"


def has_settings(model: str) -> bool:
    """Whether a model brings settings: it is a run's folder, or a shipped base, which has its recipe."""
    return model in SHIPPED_RECIPES or (Path(model) / "config.toml").is_file()


def config_for(model: str, file: Path | None = None, settings: Sequence[str] = ()) -> RunConfig:
    """Settings to use ``model`` with: those of ``file``, else of the run that it is the folder of, else the defaults.

    The shipped base has its quickstart recipe. ``settings`` are ``section.key=value`` assignments.
    """
    is_run = (Path(model) / "config.toml").is_file()
    table: dict[str, Any] = {}
    if file is not None:
        table = read_settings(file)
    elif is_run:
        table = read_toml(Path(model) / "config.toml")
    elif model in SHIPPED_RECIPES:
        table = read_toml(SHIPPED / SHIPPED_RECIPES[model])
    path = str(model_of_run(Path(model))) if is_run else model
    table["model"] = {**table.get("model", {}), "path": path}
    return check(RunConfig, override(table, settings))


def ask(model: str, question: str, answer: str | None, n: int, seed: int, file: Path | None = None) -> list[Reply]:
    """Traces of a model for one question; of a run, its base's first.

    Raises:
        UserError: the question or the answer is empty or too long, or the model cannot be used.
    """
    if not question.strip():
        raise UserError("the question is empty")
    if answer is not None and not answer.strip():
        raise UserError("--answer is empty; leave it out to sample from the prior prompt alone")
    config = config_for(model, file)
    problem = Problem("of the command line", question, answer or "-")
    chosen = {"model": config.model}
    if (Path(model) / "config.toml").is_file():
        base = check(RunConfig, read_toml(Path(model) / "config.toml")).model
        chosen = {"base": base, "trained": config.model}
    sampling = Sampling(config.generation.max_trace_tokens, config.prompts.close, config.generation.temperature)
    replies: list[Reply] = []
    for name, where in chosen.items():
        loaded, tokenizer = load_model(where, config.generation.temperature)
        prompts = Prompts(tokenizer, config.prompts)
        check_lengths(prompts, loaded.context_length, config, [problem])
        replies += ask_model(name, loaded, prompts, question, answer, sampling, n, seed)
    return replies


def new_run_folder(folder: Path) -> None:
    """Create the folder of a run.

    Raises:
        UserError: it cannot be written, or holds a run already.
    """
    if (folder / "config.toml").exists():
        raise UserError(f"{folder}: there is a run in this folder already; resume it, or choose another with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror}") from None


@contextmanager
def alone_in(folder: Path) -> Generator[None]:
    """Hold the folder's lock, which the system lets go of when the process ends, however it ends.

    Raises:
        RunBusyError: another process holds it.
        UserError: the folder cannot be written, or its file system has no locks.
    """
    try:
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunBusyError(f"{folder}: a run is going on in this folder; wait for it or stop it") from None
        except OSError as error:
            raise UserError(f"{folder}: cannot lock {lock.name}: {error.strerror}") from None
        yield
