"""The Python API that the command line calls: build a run from settings, train it, resume it, ask its model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

from covrl import files
from covrl.algorithms import find_algorithm
from covrl.algorithms.base import Algorithm
from covrl.assembly import build, build_algorithm, build_evaluation, named_in_config
from covrl.checkpoints.checkpoint import identity, load_checkpoint, newest_whole, read_state
from covrl.checkpoints.folder import model_of_run, new_run_folder
from covrl.checkpoints.resuming import check_config, check_inputs, check_versions
from covrl.checkpoints.run_writer import CannotSaveError, RunWriter, best_value
from covrl.config import RunConfig, check, override, read_settings, read_toml, refuse_idle_style, reward_assignments
from covrl.errors import RunInterruptedError, TrainingStoppedError, UserError
from covrl.evaluation.ask import Reply
from covrl.evaluation.ask import ask as ask_model
from covrl.files import alone_in
from covrl.generation.base import Sampling
from covrl.generation.engine import TorchGenerator
from covrl.generation.proof import prove
from covrl.guards.reward_watch import blindness
from covrl.guards.signals import stop_requests
from covrl.hub.push import check_push, push
from covrl.models.model import SHIPPED, SHIPPED_BASES, load_model
from covrl.notebook.live import LiveView, in_notebook
from covrl.notebook.run import Run as RunFolder
from covrl.notebook.run import about
from covrl.plugins import refuse_address_in_file, refuse_code_in_file, reward_tables
from covrl.prompt_checks import check_lengths, check_rows, check_tokens, longest_row
from covrl.prompts import Prompts, dated
from covrl.records import Grader, Problem, StepReport
from covrl.reporting.sinks import Sink, read_metrics
from covrl.rewards.named import Given, Reward, as_reward
from covrl.rewards.steps import StepScorer
from covrl.secrets import redacted
from covrl.training.ahead import resumed_note
from covrl.training.distribute import check_alike
from covrl.training.loop import steps
from covrl.training.optimizer import warm_up_note
from covrl.training.run import Run

__all__ = [
    "Trained",
    "alone_in",
    "ask",
    "build",
    "build_algorithm",
    "build_evaluation",
    "check_can_push",
    "config_for",
    "model_of_run",
    "new_run_folder",
    "resume",
    "train",
    "train_run",
]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Trained(RunFolder):
    """A training that ended: a :class:`covrl.Run` with its last and best model, its reports, and the seconds it took.

    ``run`` has the model in memory, ``reports`` the steps that were taken in this process.
    """

    run: Run
    folder: Path
    last: Path
    best: Path | None
    reports: list[StepReport] = field(default_factory=list)
    seconds: float = 0.0


def train(
    config: RunConfig | Mapping[str, Any] | None = None,
    problems: Sequence[Problem] | None = None,
    held_out: Sequence[Problem] | None = None,
    out: str | Path | None = None,
    grade: Grader | None = None,
    reward: Given | None = None,
    algorithm: type[Algorithm] | str | None = None,
    step_scorer: StepScorer | None = None,
    sinks: Sequence[Sink] = (),
    resume: str | Path | None = None,
) -> Trained:
    """Train a model from settings and problems: :func:`build`, a new folder, :func:`train_run`.

    Example:
        >>> trained = covrl.train({"model": {"path": "my/model"}}, problems, held_out, out="runs/first")
        >>> trained.best   # a plain Hugging Face folder
        >>> trained.metrics   # and what else covrl.Run has

    ``reward`` is a function ``(problem, text) -> float`` or its name (entry point or ``module:function``): the reward
    of the group family, an addition to the answer's likelihood in CoVRL and its family. Several have names and weights:
    ``{"right": f, "brevity": (g, 0.1)}``, or a list of :class:`covrl.NamedReward`, which may be ``async`` or batched
    too (docs/rewards.md). ``algorithm`` is a method's class or its name. ``grade`` judges held-out answers.
    ``step_scorer`` gives each reasoning step a number, for methods that want that.

    ``resume`` is the folder of a run to go on with, in the place of ``config`` and ``out``; what else was given is to
    be given again. In a notebook the cell shows the run while it trains (docs/notebooks.md), and interrupting it leaves
    a run that can be resumed.

    Raises:
        UserError: a setting, the model, a problem or the folder cannot be used.
        TrainingStoppedError: the method, a guard or the user ended the run; what was done is written.
    """
    given: dict[str, Any] = {
        "problems": problems,
        "held_out": held_out,
        "grade": grade,
        "reward": reward,
        "algorithm": algorithm,
        "step_scorer": step_scorer,
    }
    if resume is not None:
        if config is not None or out is not None:
            raise UserError("resume continues the run as it is: leave config and out away")
        folder = Path(resume)
        run = _resumed(folder, **given)
        check_can_push(run)
    else:
        if config is None:
            raise UserError("give settings, or the folder of a run to resume")
        if isinstance(algorithm, str):
            given["algorithm"] = find_algorithm(algorithm)
        run = build(config if isinstance(config, RunConfig) else check(RunConfig, config), **given)
        check_can_push(run)
        named = Path(out) if out is not None else Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}"
        folder = run.world.broadcast(named)
        if run.world.first:
            new_run_folder(folder)
    again = [f"resume={str(folder)!r}", *(f"{name}={name}" for name, value in given.items() if value is not None)]
    return _shown_in_notebook(run, folder, sinks, ", ".join(again))


def _shown_in_notebook(run: Run, folder: Path, sinks: Sequence[Sink], again: str) -> Trained:
    """Take all remaining steps; in a notebook its cell shows them. ``again`` is what resumes the run."""
    with ExitStack() as cell:
        how: dict[str, Any] = {"sinks": sinks}
        if run.world.first and in_notebook():
            before = RunFolder(folder).steps() if run.done else []
            earlier = [report for report in before if report.step <= run.done]
            live = LiveView(str(folder), about(run.config.model_dump()), run.config.training.steps, earlier)
            how = {"sinks": [cell.enter_context(live), *sinks], "say": live.note}
        try:
            return train_run(run, folder, **how)
        except RunInterruptedError as error:
            raise RunInterruptedError(f"{error}; continue with: covrl.train({again})") from error


def train_run(
    run: Run, folder: Path, sinks: Sequence[Sink] = (), say: Callable[[str], None] = lambda _: None
) -> Trained:
    """Take all remaining steps, in a folder of :func:`new_run_folder` or of the run that ``run`` resumes.

    Writes ``config.toml``, ``metrics.jsonl``, ``traces.jsonl``, ``checkpoints/`` and, with held-out problems,
    ``best/``, and at the end pushes the model where ``hub.push`` says. Ctrl-C and SIGTERM end it before the next
    forward (of several processes: before the next phase of a step), with a checkpoint of the last whole step. After a
    kill at any moment :func:`resume` and this function make the same files as if there had been none. Of several
    processes all call it with a run built alike, and the first alone writes and reports.

    Raises:
        UserError: another process is training in this folder, or has trained there since ``run`` was resumed; or all is
            done and the model could not be pushed.
        CannotSaveError: the disk is full or not writable; the last good checkpoint is as it was.
        TrainingStoppedError: the method, a guard or the user ended the run; what was done up to there is written.
    """
    start = time.perf_counter()
    reports: list[StepReport] = []
    world = run.world
    with ExitStack() as cleanup:
        if world.first:
            cleanup.enter_context(alone_in(folder))
        check_alike(run)
        stopping = cleanup.enter_context(stop_requests(say))
        run.folder, run.stopping = folder, stopping
        writer = RunWriter(run, folder)
        sinks = sinks if world.first else ()
        for note in filter(None, (*run.notes, *writer.notes, *_blind(run), warm_up_note(run.config.training))):
            say(redacted(note))
        for closed in (run.ahead, writer, *sinks):
            cleanup.callback(closed.close)
        try:
            for made in steps(run):
                report = replace(made, warnings=tuple(map(redacted, made.warnings)))  # sinks of others get it too
                reports.append(report)
                writer.write(report)  # before the others see it: what they do wrong costs no step
                for sink in sinks:
                    sink.write(report)
                if world.any(stopping()) and run.done < run.config.training.steps:
                    raise RunInterruptedError(f"interrupted after step {run.done}")
        except KeyboardInterrupt:  # inside a step, where the state is not whole: what is on disk stays
            raise RunInterruptedError(f"interrupted inside step {run.done + 1}") from None
        except CannotSaveError:
            raise
        except Exception as error:
            if world.agreed(error):  # else it is this rank's alone: the others cannot take part in a checkpoint
                _keep_what_was_done(writer, error)
            raise
        last = writer.last()
    assert last is not None  # it is None inside a step only
    if run.config.hub.push:
        world.on_rank0(lambda: _push(run, folder, say))
    return Trained(run, folder, last / "model", files.present(folder / "best"), reports, time.perf_counter() - start)


def check_can_push(run: Run) -> None:
    """Check before anything is trained that what is to be pushed at the end has a name and a token.

    Raises:
        UserError: it has not.
    """
    if run.config.hub.push:
        run.world.on_rank0(lambda: check_push(run.config.hub.push))


def _push(run: Run, folder: Path, say: Callable[[str], None]) -> None:
    hub = run.config.hub
    try:
        say(f"pushed to {push(folder, hub.push, hub.private)}")
    except UserError as error:
        raise UserError(f"{error}; the run itself is done: covrl push {folder} {hub.push}") from None


def _keep_what_was_done(writer: RunWriter, error: Exception) -> None:
    try:
        writer.last()
    except CannotSaveError as also:
        raise TrainingStoppedError(f"{error}; {also}") from error


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
    reward: Given | Sequence[str] | None = None,
    algorithm: type[Algorithm] | str | None = None,
    engine: str | None = None,
    step_scorer: StepScorer | None = None,
    grade: Grader | None = None,
) -> Run:
    """The run of a folder, where its newest whole checkpoint was cut; a run that has none yet is at its beginning.

    What was given to :func:`train` in Python (problems, reward functions, a scorer of steps, a method's class) is to be
    given again; of reward functions that were typed, ``reward`` is the names, as ``--reward`` takes them.
    ``generation.engine`` is to be given again too, as ``engine``, where it is on another machine.
    Damaged checkpoints that were passed over, and settings that changed and may, are in the run's ``notes``. Nothing
    in the folder is changed before :func:`train_run`.

    Raises:
        UserError: no run there, only damaged checkpoints, settings or problems that are no longer the run's, or code
            that was given in Python, or an engine on another machine, that is not given now.
    """
    typed, made = _typed_or_made(reward)
    cls = None if isinstance(algorithm, str) else algorithm
    table = _with_given(read_toml(folder / "config.toml"), typed, made is not None, algorithm, folder / "config.toml")
    if engine is None:
        refuse_address_in_file(table, folder / "config.toml")
    else:
        table = override(table, [f"generation.engine={json.dumps(engine)}"])
    config = named_in_config(check(RunConfig, table, where=f"{folder / 'config.toml'}: "), made, cls)
    found, notes = _checkpoint_to_resume(folder, config)
    state = read_state(found) if found else {}
    method = cls or find_algorithm(config.algorithm.name)
    changes = check_config(state, config, method, folder / "config.toml")
    run = build(
        config,
        problems,
        held_out,
        grade,
        reward=made,
        algorithm=cls,
        step_scorer=step_scorer,
        policy_path=found / "model" if found else None,
    )
    # before anything is read together: where a folder lags behind, a rank may not see the newest yet
    run.world.check_same(found and identity(found), "checkpoints")
    if found:
        changes += check_inputs(state, run)
        load_checkpoint(run, found)
        notes += [*changes, *check_versions(found), *filter(None, [resumed_note(config, run.done)])]
    if changes:  # the steps behind the checkpoint will not be the same again: what they found best still counts
        run.best = max(filter(None, (run.best, best_value(folder / "best"))), default=None)
    run.notes = (*run.notes, *notes)
    return run


_resumed = resume  # where an argument has its name


def _typed_or_made(reward: Any) -> tuple[list[str], Reward | None]:
    """Names of reward functions as ``--reward`` takes them, or functions that were made in Python."""
    if isinstance(reward, str):
        return [reward], None
    if isinstance(reward, Sequence) and all(isinstance(each, str) for each in reward):
        return list(reward), None
    return [], as_reward(reward)


def _with_given(
    table: dict[str, Any],
    typed: Sequence[str],
    made: bool,
    algorithm: type[Algorithm] | str | None,
    file: Path,
) -> dict[str, Any]:
    """The settings of ``file`` with the names that are typed now; ``made``: reward functions are given as they are.

    Raises:
        UserError: the file names code that is not given.
    """
    names = {text.partition("=")[0] for text in typed if "=" in text}
    left = {k: v for k, v in table.items() if not (k == "algorithm" and algorithm is not None)}
    if made or len(names) < len(typed):
        left.pop("rewards", None)
    left["reward"] = {} if made else {n: part for n, part in reward_tables(table) if n not in names}
    refuse_code_in_file(left, file)
    table = override(table, reward_assignments(typed))
    if isinstance(algorithm, str):
        table.setdefault("algorithm", {})["name"] = algorithm
    return table


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


def has_settings(model: str) -> bool:
    """Whether a model brings settings: it is a run's folder, or a shipped base, which has its recipe."""
    return model in SHIPPED_BASES or (Path(model) / "config.toml").is_file()


def config_for(model: str, file: Path | None = None, settings: Sequence[str] = ()) -> RunConfig:
    """Settings to use ``model`` with: those of ``file``, else of the run that it is the folder of, else the defaults.

    The shipped base has its quickstart recipe. ``settings`` are ``section.key=value`` assignments. The engine that a
    run trained with is not taken from its folder: it may be training, and a server would get other weights then.
    """
    is_run = (Path(model) / "config.toml").is_file()
    table: dict[str, Any] = {}
    if file is not None:
        table = read_settings(file)
    elif is_run:
        table = read_toml(Path(model) / "config.toml")
        if isinstance(table.get("generation"), dict):
            table["generation"].pop("engine", None)
    elif model in SHIPPED_BASES:
        table = read_toml(SHIPPED / SHIPPED_BASES[model][1])
    path = str(model_of_run(Path(model))) if is_run else model
    table["model"] = {**table.get("model", {}), "path": path}
    refuse_idle_style(table, settings, str(file) if file is not None else f"the settings of {model}")
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
    today = date.today()
    for name, where in chosen.items():
        loaded, tokenizer = load_model(where, config.generation.temperature)
        prompts = Prompts(tokenizer, dated(config.prompts, tokenizer, today))
        check_tokens(prompts, [problem] if answer else [])
        check_rows(prompts, loaded.model.get_input_embeddings().weight.shape[0], [problem])
        check_lengths(prompts, loaded.context_length, config, [problem])
        engine = TorchGenerator(loaded.model, tokenizer, 2 * n)
        prove(loaded, engine, tokenizer, longest_row(prompts, config, [problem]), where.path)
        replies += ask_model(name, loaded, engine, prompts, question, answer, sampling, n, seed)
    return replies
