"""Out-of-memory errors in a forward pass in which other ranks take part.

With sharded weights every block begins with a message between all ranks. If a rank left in the middle, the others
would wait for it. So it continues to the end of the pass without computing, and reports the error there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from covrl.errors import OutOfMemoryError

_SAID = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")
"""Messages of allocators: CUDA and MPS; torch's CPU allocator; the system's own message."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator reported that there is no memory left; torch's CPU allocator raises a bare RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _SAID)


def no_room(error: BaseException, what: str) -> OutOfMemoryError:
    """What a rank says that has no memory for ``what``, which all ranks put together: the others wait there."""
    text = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return OutOfMemoryError(
        f"{text}: no room for {what}, put together from the parts of all ranks; lower generation.engine_memory where "
        "vLLM shares the device, or take a device with more memory or a smaller model (docs/many-processes.md#weights)"
    )


class DeferredOOM:
    """Out-of-memory errors of a sharded model's forward passes with gradients.

    ``error`` is the error of a block, until :meth:`taken`; the pass's result is then invalid. ``inside`` is true
    during a forward pass, or if one was aborted: other ranks may wait there.
    """

    def __init__(self) -> None:
        self.error: MemoryError | None = None
        self.inside = False
        self._tuples = False

    def taken(self) -> MemoryError | None:
        """Return the error and forget it."""
        error, self.error = self.error, None
        return error

    def watch(self, trunk: nn.Module) -> None:
        """Track when a forward pass of ``trunk`` begins and ends."""
        trunk.register_forward_pre_hook(lambda *_: setattr(self, "inside", True), prepend=True)
        trunk.register_forward_hook(lambda *_: setattr(self, "inside", False))

    def hold(self, block: Any) -> None:
        """Make a block that runs out of memory return its input. Its ``forward`` is inside of FSDP's hooks."""
        inner = block.forward

        def forward(*given: Any, **named: Any) -> Any:
            if not torch.is_grad_enabled():  # a pass on whole weights: no other rank waits
                found = inner(*given, **named)
                self._tuples = isinstance(found, tuple)
                return found
            if self.error is None:
                try:
                    return inner(*given, **named)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    self.error = MemoryError(str(error) or type(error).__name__)
            states = given[0] if given else named["hidden_states"]
            return (states,) if self._tuples else states

        block.forward = forward
