"""Checkpoints: everything that decides the next step, in a directory that is there whole or not at all.

    checkpoints/step-000050/
        model/                 the policy as a Hugging Face folder
        NAME/                  each model that follows the policy (a frozen one is the base, and is not saved)
        optimizer.safetensors  AdamW's two moments and step count of each parameter, by name
        state.json             steps done, the problems' position, the method's memory, format version

Random numbers need no state: they are keyed by step (see :mod:`covrl.generation.random`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from covrl.errors import UserError

if TYPE_CHECKING:
    from covrl.training.loop import Run

FORMAT = 1


def save_checkpoint(run: Run, root: Path, keep: int) -> Path:
    """Write the run's state under ``root`` and drop all but the newest ``keep`` checkpoints; returns its folder.

    It is written beside its place and moved there by one rename, so a torn one never has a checkpoint's name.
    """
    final = root / f"step-{run.done:06d}"
    partial = root / f".writing-{run.done:06d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    run.save(partial / "model")
    for name in _followers(run):
        run.models[name].model.save_pretrained(partial / name)
    save_file(_optimizer_tensors(run), partial / "optimizer.safetensors")
    state = {"format": FORMAT, "done": run.done, "problems": run.source.state_dict(), "best": run.best}
    state["algorithm"] = run.algorithm.state_dict()
    state["guards"] = run.guard.state_dict()
    (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in checkpoints(root)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoints(root: Path) -> list[Path]:
    """All checkpoints under ``root``, oldest first."""
    return sorted(path for path in root.glob("step-*") if (path / "state.json").is_file())


def load_checkpoint(run: Run, folder: Path) -> None:
    """Put a run that was built from the checkpoint's model where the checkpoint was cut.

    Raises:
        UserError: another format version, or tensors that are not the run's.
    """
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "optimizer.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: the checkpoint is damaged: {error}") from error
    if state.get("format") != FORMAT:
        raise UserError(f"{folder}: checkpoint format {state.get('format')}, this version reads {FORMAT}")
    names = {name: p for name, p in run.models["policy"].model.named_parameters() if p.requires_grad}
    missing = [n for n in names if tensors and f"{n}.exp_avg" not in tensors]
    if missing:
        raise UserError(f"{folder}: the checkpoint has no optimizer state for {missing[0]}; it is of another model")
    for name, parameter in names.items():
        if tensors:
            parts = {part: tensors[f"{name}.{part}"] for part in ("step", "exp_avg", "exp_avg_sq")}
            run.optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter) for k, v in parts.items()}
    for name in _followers(run):
        model = run.models[name].model
        model.load_state_dict(type(model).from_pretrained(folder / name, dtype=model.dtype).state_dict())
    run.source.load_state_dict(state["problems"])
    run.algorithm.load_state_dict(state.get("algorithm", {}))
    run.guard.load_state_dict(state.get("guards", {}))
    run.done, run.best = int(state["done"]), tuple(state["best"]) if state["best"] else None
    run.generator.publish(run.done)


def _followers(run: Run) -> list[str]:
    return [spec.name for spec in run.algorithm.models if spec.follows != "frozen"]


def _optimizer_tensors(run: Run) -> dict[str, torch.Tensor]:
    """AdamW's state as flat names; empty before the first step."""
    return {
        f"{name}.{part}": value.detach().contiguous()
        for name, parameter in run.models["policy"].model.named_parameters()
        for part, value in run.optimizer.state.get(parameter, {}).items()
    }
