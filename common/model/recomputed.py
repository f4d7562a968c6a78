"""Blocks that are computed again on the way back, instead of keeping what they compute.

A step over a long text keeps every block's inner states until the gradients are there. Within
`blocks_recomputed()` a block keeps its inputs alone, and is run once more when its gradients are wanted:
a third more work, for the memory of one block at a time (Chen et al., "Training Deep Nets with Sublinear
Memory Cost", 2016).

By then the call that swapped the factors in is over (`torch.func.functional_call`), and so is the row that
was read. So both are taken along: the second run has the very tensors of the first, and its row.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

__all__ = ["blocks_recomputed", "make_recomputable", "recomputing"]

Surroundings = Callable[[], contextlib.AbstractContextManager[None]]


class _Wanted(threading.local):
    now = False


_wanted = _Wanted()


@contextlib.contextmanager
def blocks_recomputed(wanted: bool = True) -> Iterator[None]:
    """What this thread runs forward in here keeps the blocks' inputs alone, if that is `wanted`."""
    before, _wanted.now = _wanted.now, wanted
    try:
        yield
    finally:
        _wanted.now = before


def recomputing() -> bool:
    """Whether this thread's blocks are to be computed again on the way back."""
    return _wanted.now


def make_recomputable(block: nn.Module, surroundings: Callable[[], Surroundings]) -> None:
    """Let a block obey `blocks_recomputed`, in place.

    surroundings: called while the block runs forward; what it gives is entered around the second run, which
        may be in another thread.
    """
    body = _Body(block, block.forward)
    plain: Callable[..., Any] = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not _wanted.now:
            return plain(*args, **kwargs)
        tensors = {f"block.{name}": tensor for name, tensor in _parameters(block)}
        around, first, names = surroundings(), True, tuple(kwargs)

        def run(*given: Any) -> Any:
            nonlocal first
            named = dict(zip(names, given[len(args) :], strict=True))
            if first:
                first = False
                return plain(*given[: len(args)], **named)
            with around():
                return functional_call(body, tensors, given[: len(args)], named, tie_weights=False)

        # By position: what is handed over by name would be held beside what autograd counts.
        return checkpoint(run, *args, *kwargs.values(), use_reentrant=False, preserve_rng_state=False)

    block.forward = forward


class _Body(nn.Module):
    """A block's own forward, without the hooks that are on its call."""

    def __init__(self, block: nn.Module, plain: Callable[..., Any]) -> None:
        super().__init__()
        self.block = block
        self._plain = plain

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._plain(*args, **kwargs)


def _parameters(block: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Those that are in place now, swapped in or the block's own."""
    yield from block.named_parameters(remove_duplicate=False)
