"""The widest floating-point numbers of a device."""

from __future__ import annotations

import torch
from torch import Tensor


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on Apple's GPUs (MPS), which have nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64


def wide(tensor: Tensor) -> Tensor:
    """The tensor in the widest numbers of its device."""
    return tensor.to(widest(tensor.device))
