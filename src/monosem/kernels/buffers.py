# pyright: basic
"""Memory that is used again: on CPU, touching fresh memory costs more than what a sparse kernel writes into it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class Buffers:
    """Memory that nobody needs any more, by size and type.

    It takes back what it has lent and nothing else: for what others have made, such as gradients of dense matmuls,
    nobody would ask here, and it would grow with every step.
    """

    def __init__(self) -> None:
        self._spare: defaultdict[tuple[int, torch.dtype], list[Tensor]] = defaultdict(list)
        self._lent: dict[int, StorageWeakRef] = {}

    def give(self, tensor: Tensor) -> None:
        """Hand in a tensor. Nobody else may hold it."""
        memory = tensor.untyped_storage()
        whole = memory.nbytes() == tensor.nbytes and tensor.is_contiguous()
        if whole and self._lent.pop(StorageWeakRef(memory).cdata, None) is not None:
            self._spare[tensor.numel(), tensor.dtype].append(tensor.view(-1))

    def take(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """One of that shape and type, with anything in it."""
        spare = self._spare[shape.numel(), dtype]
        taken = spare.pop() if spare else torch.empty(shape.numel(), dtype=dtype)
        self._lent = {key: reference for key, reference in self._lent.items() if not reference.expired()}
        reference = StorageWeakRef(taken.untyped_storage())
        self._lent[reference.cdata] = reference
        return taken.view(shape)

    @property
    def held(self) -> int:
        """Bytes that are here for those who ask next."""
        return sum(tensor.nbytes for spare in self._spare.values() for tensor in spare)

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
    return torch.empty(shape, dtype=dtype) if buffers is None else buffers.take(torch.Size(shape), dtype)


def done_with(tensor: Tensor) -> None:
    """Give a tensor that `empty` has made to the buffers in use."""
    buffers = _current.get()
    if buffers is not None:
        buffers.give(tensor)
