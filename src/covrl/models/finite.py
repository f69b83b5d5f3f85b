"""What is said where a model's numbers are not finite: where it was seen, why, and what helps."""

from __future__ import annotations

from typing import Any

import torch

from covrl.distributed.world import local_part
from covrl.errors import BrokenModelError
from covrl.models.compute import computes_in_short_numbers


def broken(model: Any, what: str) -> BrokenModelError:
    """The error to raise for a Hugging Face ``model`` of which ``what`` ("its logits are …") was seen.

    Looks through the weights, so it costs a pass over them.
    """
    named = getattr(model, "name_or_path", "")
    said = f"model {type(model).__name__}{f' ({named})' if named else ''}: {what}"
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(local_part(weight.detach())).all()):
            return BrokenModelError(
                f"{said}, as its weight {name} holds NaN or infinities: take another copy or an earlier checkpoint of "
                "it; where it was trained so, with a lower training.learning_rate"
            )
    if computes_in_short_numbers(model):
        return BrokenModelError(f"{said}, though its weights are: compute in model.dtype = float32")
    return BrokenModelError(f"{said}, though its weights are: compute in model.dtype = float64, or take another model")
