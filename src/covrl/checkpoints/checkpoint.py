"""Checkpoints: everything that decides the next step, in a directory that is there whole or not at all.

    checkpoints/step-000050/
        model/                 the policy as a Hugging Face folder (with LoRA: the adapter alone)
        NAME/                  each model that follows the policy or is trained (a frozen one is the base)
        optimizer.safetensors  AdamW's two moments and step count of each parameter, by name; of several processes
                               that hold parts of the weights a folder, optimizer/, with a file of each
        optimizer-NAME/        the same of each other model that is trained
        state.json             steps done, the problems' position, the method's memory, the settings, what was read
        manifest.json          format version, and the size and sha256 of every other file

Random numbers need no state: they are keyed by step (see :mod:`covrl.generation.random`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import CheckpointException

from covrl import files
from covrl.distributed.parts import load_parts, names_in, save_parts
from covrl.errors import UserError, first_fault
from covrl.models.policy import save_policy
from covrl.records import Problem
from covrl.training.boundary import Boundary
from covrl.training.memory import take_portions
from covrl.training.optimizer import empty_state, moments_there
from covrl.training.run import Run
from covrl.training.undo import boundary_of

FORMAT = 3
READABLE = (1, 2, 3)
"""Formats that are read. 1 had no manifest, so its files cannot be verified, and no record of its settings;
2 had no optimizer in parts."""

PROOF = 2
"""Which proof decided on the fast paths. 1 compared special tokens, and lost paths on pretrained models."""

DAMAGE = (
    OSError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, SafetensorError, CheckpointException
)  # fmt: skip
"""What reading a file that is not as it was written raises."""

FINGERPRINTED = 16
"""Problems whose prompts' tokens are part of a run's fingerprint."""


class _State(BaseModel):
    """What ``state.json`` must be to be used; somebody else may have written it."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    done: int = Field(ge=0)
    problems: dict[str, int]
    best: list[float] | None = Field(min_length=2, max_length=2)
    algorithm: dict[str, Any] = {}
    guards: dict[str, Any] = {}
    portions: dict[str, int] = {}
    paths: dict[str, list[bool]] = {}
    fingerprint: dict[str, str] | None = None
    config: dict[str, dict[str, Any]] | None = None


def leftovers(root: Path) -> list[Path]:
    """What a kill inside the writing or the deletion of a checkpoint left under ``root``; nobody reads it."""
    return [*root.glob(f"{files.OLD}step-*"), *root.glob(f"{files.NEW}step-*")]


def save_checkpoint(run: Run, root: Path, keep: int, at: Boundary | None = None) -> Path:
    """Write the run's state under ``root`` and drop all but the newest ``keep`` checkpoints; returns its folder.

    ``at`` is the boundary whose tensors the run still has, for a run that was stopped inside a step; without it the
    run is between two steps. The checkpoint has its name only when all of it is on the disk. All
    ranks call it.

    Raises:
        OSError, SafetensorError: it could not be written, on any rank; the earlier ones are as they were.
    """
    at, world = at or boundary_of(run), run.world
    final = root / f"step-{at.done:06d}"
    written = files.beside(final)

    def begin() -> None:
        for leftover in leftovers(root):
            files.discard(leftover)
        files.begin(final)

    def finish() -> None:
        for name in _moving(run):
            run.models[name].save(written / name)
        for name in run.optimizers:  # all but a sharded policy's are whole on every rank
            if name != "policy" or not world.sharded:
                into = _optimizer_folder(written, name)
                into.mkdir(exist_ok=True)
                save_file(_optimizer_tensors(run, name), into / "optimizer.safetensors")
        (written / "state.json").write_text(json.dumps(_state(run, at)), encoding="utf-8")
        files.finish(written, final, {"format": FORMAT, "made_with": made_with()})

    outermost = files.discarded_if_not_done(written) if world.first else nullcontext()
    with outermost, moments_there(run.optimizers.values()):
        world.on_rank0(begin)
        save_trained(run, written / "model")
        if world.sharded:
            save_parts(_optimizer_tensors(run, "policy"), written / "optimizer")
        world.on_rank0(finish)
    world.on_rank0(lambda: [files.remove(old) for old in checkpoints(root)[:-keep]])
    return final


def save_trained(run: Run, folder: Path) -> None:
    """Write the policy as a Hugging Face folder, with LoRA the adapter, and the tokenizer. All ranks call it."""
    save_policy(run.models["policy"], folder, run.world)
    run.world.on_rank0(lambda: run.prompts.tokenizer.save_pretrained(folder))


def checkpoints(root: Path) -> list[Path]:
    """All checkpoints under ``root``, oldest first; whether they are whole is for :func:`damage_of` to say."""
    return sorted(path for path in root.glob("step-*") if (path / "state.json").is_file())


def step_of(folder: Path) -> int:
    """The number of steps that a checkpoint's name says."""
    digits = folder.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1


def newest_whole(root: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest checkpoint that is as it was written, and the damaged ones that are newer, with what is wrong.

    Raises:
        UserError: the newest is of a format that this version does not read.
    """
    damaged: list[tuple[Path, str]] = []
    for folder in sorted(root.glob("step-*"), reverse=True):
        trouble = damage_of(folder)
        if trouble is None:
            return folder, damaged
        damaged.append((folder, trouble))
    return None, damaged


def identity(folder: Path) -> tuple[str, str]:
    """A checkpoint's name, and a hash of what says what is in it."""
    for name in (files.MANIFEST, "state.json"):  # format 1 has no manifest
        if (folder / name).is_file():
            return folder.name, hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return folder.name, ""


def damage_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None. Reads every byte.

    Raises:
        UserError: another format version: it may be whole, but this version cannot tell.
    """
    if not (folder / files.MANIFEST).exists() and (folder / "state.json").is_file():
        return _damage_without_manifest(folder)
    try:
        found = files.manifest(folder)
    except ValueError as error:
        return str(error)
    _check_format(folder, found.get("format"))
    return files.damage(folder)


def _damage_without_manifest(folder: Path) -> str | None:
    """Format 1: what can be parsed is taken for whole."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        load_file(folder / "optimizer.safetensors")
        if not isinstance(state, dict):
            raise ValueError("state.json is not a table")
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        return str(error)
    _check_format(folder, state.get("format"))
    return None if state.get("format") == 1 else f"{files.MANIFEST} is missing"


def _check_format(folder: Path, found: object) -> None:
    if found not in READABLE:
        raise UserError(f"{folder}: checkpoint format {found}, this version reads 1 to {FORMAT}")


def load_checkpoint(run: Run, folder: Path) -> None:
    """Put a run that was built from the checkpoint's model where the checkpoint was cut.

    Raises:
        UserError: another format version, damaged, or tensors that are not the run's.
    """
    state = read_state(folder)
    try:
        _load(run, folder, state)
    except DAMAGE as error:
        raise UserError(f"{folder}: the checkpoint is damaged: {_what(error)}") from error


def _what(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    said = (str(error).splitlines() or [""])[0][:300]
    return said if isinstance(error, (OSError, SafetensorError)) else f"{type(error).__name__}: {said}"


def _load(run: Run, folder: Path, state: Mapping[str, Any]) -> None:
    with moments_there(run.optimizers.values()):
        for name in run.optimizers:
            _load_optimizer(run, folder, name)
    for name in _moving(run):
        run.models[name].load(folder / name)
    run.source.load_state_dict(state["problems"])
    run.algorithm.load_state_dict(state.get("algorithm", {}))
    run.guard.load_state_dict(state.get("guards", {}))
    take_portions(run, state.get("portions", {}), state.get("config") or {})
    run.done, run.best = int(state["done"]), tuple(state["best"]) if state["best"] else None
    _take_paths(run, state)
    run.generator.publish(run.done)


def _load_optimizer(run: Run, folder: Path, model: str) -> None:
    """AdamW's state of each parameter of a model, or of this rank's part of it; none before the first step."""
    source = _optimizer_folder(folder, model)
    known = names_in(source)
    if not known:
        return
    names = run.models[model].named_trained()
    missing = [n for n in names if f"{n}.exp_avg" not in known]
    if missing:
        raise UserError(f"{folder}: the checkpoint has no optimizer state for {missing[0]}; it is of another model")
    state = {name: empty_state(run.optimizers[model], p) for name, p in names.items()}
    load_parts({f"{name}.{part}": v for name, parts in state.items() for part, v in parts.items()}, source)
    for name, parameter in names.items():
        run.optimizers[model].state[parameter] = state[name]
        taken = float(state[name]["step"])
        if not (math.isfinite(taken) and taken >= 0):
            raise UserError(f"{folder}: the optimizer state of {name} has step {taken}")


def read_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's ``state.json``.

    Raises:
        UserError: damaged, or another format version.
    """
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            raise ValueError("state.json is not a table")
        _check_format(folder, state.get("format"))
        _State.model_validate(state)
    except ValidationError as error:
        raise UserError(f"{folder}: the checkpoint is damaged: state.json: {first_fault(error)}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder}: the checkpoint is damaged: {error}") from error
    return state


def made_with() -> dict[str, Any]:
    """What results depend on beside the settings: versions, and the numbers of threads and processes."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    threads = torch.get_num_threads()
    return {"covrl": version("covrl"), "torch": torch.__version__, "threads": threads, "processes": processes}


def fingerprint(run: Run) -> dict[str, str]:
    """Hashes of what a run reads: its training and held-out problems, and the tokens of their first prompts."""
    problems, prompts = run.source.problems, run.prompts
    tokens = [(prompts.prior(p), prompts.posterior(p), prompts.answer(p)) for p in problems[:FINGERPRINTED]]
    return {
        "problems.train": _hash((p.id, p.question, p.answer, p.accepted, p.hint, *_around(p)) for p in problems),
        "problems.held_out": _hash((p.id, p.question, p.answer, p.accepted, *_around(p)) for p in run.held_out),
        "tokenizer": _hash(tokens),
    }


def _around(problem: Problem) -> list[Any]:
    """What stands around a question, and its foil; nothing where nothing does, as in checkpoints of older versions."""
    turns, options = [tuple(turn) for turn in problem.turns], sorted(problem.template_options.items())
    return [*([turns, options] if turns or options else ()), *(() if problem.foil is None else (problem.foil,))]


def _hash(values: Iterator[Any] | list[Any]) -> str:
    found = hashlib.sha256()
    for value in values:
        found.update(repr(value).encode("utf-8", "surrogatepass") + b"\n")
    return found.hexdigest()


def _state(run: Run, at: Boundary) -> dict[str, Any]:
    boundary = {name: value for name, value in asdict(at).items() if name != "updates"}  # the optimizer's file has it
    settings = {"fingerprint": fingerprint(run), "config": run.config.model_dump(mode="json")}
    return {"format": FORMAT} | boundary | {"paths": _paths(run), "proof": PROOF} | settings


def _carriers(run: Run) -> dict[str, Any]:
    """What holds fast paths that were chosen by probing the base; trained weights might choose others, which round."""
    holders = {"scoring": run.models["policy"], "decoding": run.generator}
    return {name: holder for name, holder in holders.items() if hasattr(holder, "paths")}


def _paths(run: Run) -> dict[str, list[bool]]:
    return {name: list(holder.paths) for name, holder in _carriers(run).items()}


def _take_paths(run: Run, state: Mapping[str, Any]) -> None:
    """Go on with the checkpoint's fast paths, as far as they hold here; what is lost was said when they were proved.

    Paths that an older proof gave up are taken where they hold now, which is noted, as rounding differs.
    """
    known = state.get("paths", {})
    for name, holder in _carriers(run).items():
        if name not in known:
            continue
        before = {path: bool(on) for path, on in zip(holder.paths._fields, known[name], strict=False)}
        if state.get("proof") == PROOF:
            holder.paths = holder.paths._replace(**{p: on and getattr(holder.paths, p) for p, on in before.items()})
        elif gained := [path for path, on in before.items() if getattr(holder.paths, path) and not on]:
            lost = f"{', '.join(gained)} of {name}"
            run.notes = (
                *run.notes,
                f"resumed, but not bit for bit: takes fast paths that an older proof lost ({lost})",
            )


def _moving(run: Run) -> list[str]:
    """Models beside the policy that are not what they were at the beginning."""
    return [spec.name for spec in run.algorithm.models if spec.follows != "frozen" or spec.trainable]


def _optimizer_folder(folder: Path, model: str) -> Path:
    """Where a model's optimizer is in a checkpoint; the policy's is one file in ``folder`` itself."""
    if model != "policy":
        return folder / f"optimizer-{model}"
    return folder / "optimizer" if (folder / "optimizer").is_dir() else folder


def _optimizer_tensors(run: Run, model: str) -> dict[str, torch.Tensor]:
    """AdamW's state as flat names; empty before the first step."""
    return {
        f"{name}.{part}": value.detach().contiguous()
        for name, parameter in run.models[model].named_trained().items()
        for part, value in run.optimizers[model].state.get(parameter, {}).items()
    }
