"""Memory that is used again: on CPU, touching fresh memory costs more than what a sparse kernel writes into it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor


class Buffers:
    """Tensors that nobody needs any more, by shape and type."""

    def __init__(self) -> None:
        self._spare: defaultdict[tuple[torch.Size, torch.dtype], list[Tensor]] = defaultdict(list)

    def give(self, tensor: Tensor) -> None:
        """Hand in a tensor. Nobody else may hold it."""
        if tensor.device.type == "cpu" and tensor.is_contiguous():
            self._spare[tensor.shape, tensor.dtype].append(tensor)

    def take(self, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
        """One of that shape and type, with anything in it."""
        spare = self._spare[shape, dtype]
        return spare.pop() if spare else None

    @contextmanager
    def in_use(self) -> Generator[None]:
        """Within this block the kernels take their memory from here."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


_current: ContextVar[Buffers | None] = ContextVar("buffers", default=None)


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on CPU, from the buffers in use if they have one."""
    buffers = _current.get()
    spare = buffers.take(torch.Size(shape), dtype) if buffers is not None else None
    return torch.empty(*shape, dtype=dtype) if spare is None else spare


def done_with(tensor: Tensor) -> None:
    """Give a tensor that `empty` has made to the buffers in use."""
    buffers = _current.get()
    if buffers is not None:
        buffers.give(tensor)
