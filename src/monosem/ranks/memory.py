"""Memory that the processes of one machine have in common: what they exchange through it, nobody sends."""

from __future__ import annotations

import mmap
import os
import secrets
import select
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from monosem.errors import RankError

TOKEN = 32
"""Bytes by which the others know that they have found the same memory."""
PIECE = 4 * 2**20
"""Bytes that are added up at a time."""
ALIGNED = 64
"""Bytes, of whose multiples tensors begin at one."""
SPINS = 100
"""Looks for others before sleep: some 50 microseconds."""


class Members(Protocol):
    """What a `Group` does without memory in common."""

    rank: int
    size: int

    def words(self, own: Any) -> list[Any]: ...


def common_memory(group: Members, size: int) -> Tensor | None:
    """So many bytes, zero at first, that all members see; none has a name, and they end with the processes.

    None where the members are on several machines, or the system has no memory without a name (as Linux has).
    """
    own = -1
    if group.rank == 0 and hasattr(os, "memfd_create"):
        own = os.memfd_create("monosem")
        os.ftruncate(own, size + TOKEN)
    token = secrets.token_bytes(TOKEN)
    if own >= 0:
        os.pwrite(own, token, size)
    pid, descriptor, said = group.words([os.getpid(), own, token.hex()])[0]
    found = None if descriptor < 0 else _mapped(f"/proc/{pid}/fd/{descriptor}", size, bytes.fromhex(said))
    alike = all(group.words(found is not None))
    if own >= 0:
        os.close(own)
    return found if alike else None


def _mapped(path: str, size: int, token: bytes) -> Tensor | None:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_size != size + TOKEN or os.pread(descriptor, TOKEN, size) != token:
            return None
        return torch.frombuffer(mmap.mmap(descriptor, size + TOKEN), dtype=torch.uint8)[:size]
    except OSError:
        return None
    finally:
        os.close(descriptor)


class Bell:
    """Members of one machine wait for each other, and hear of the end of one: a byte through pipes without a name.

    In every round each tells one other, twice as far away as in the round before, and hears from one. The last has
    then heard of all.
    """

    def __init__(self, group: Members) -> None:
        rounds = [2**number for number in range((group.size - 1).bit_length())]
        pipes = [os.pipe() for _ in rounds]
        own = [[write, os.fstat(write).st_ino] for _, write in pipes]
        said, told = group.words([os.getpid(), own]), list[int | None]()
        for number, distance in enumerate(rounds):
            pid, theirs = said[(group.rank + distance) % group.size]
            told.append(_pipe(f"/proc/{pid}/fd/{theirs[number][0]}", theirs[number][1]))
        self.possible = all(group.words(None not in told))
        self._ends = [(write, read) for write, (read, _) in zip(told, pipes, strict=True) if write is not None]
        for read, write in pipes:
            os.close(write)  # the end of whoever rings it is heard, now
            os.set_blocking(read, False)

    def wait(self) -> None:
        """Until all members are here; what they have written before, all see.

        Raises:
            RuntimeError: one has ended.
        """
        for write, read in self._ends:
            try:
                os.write(write, b".")
            except BrokenPipeError as error:
                raise RuntimeError("a process of this machine has ended") from error
            if not _heard(read):
                raise RuntimeError("a process of this machine has ended")


def _heard(read: int) -> bytes:
    """A byte; nothing where whoever should write it has ended. Waking up takes longer than most waits."""
    for _ in range(SPINS):
        try:
            return os.read(read, 1)
        except BlockingIOError:
            os.sched_yield()
    waits = select.poll()
    waits.register(read, select.POLLIN)
    waits.poll()
    return os.read(read, 1)


def _pipe(path: str, number: int) -> int | None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None
    if os.fstat(descriptor).st_ino == number:
        return descriptor
    os.close(descriptor)
    return None


class Exchange:
    """Sums and copies of tensors on CPUs, through common memory.

    Two places a member are used in turn: who writes into one has waited since for all who have read it.
    """

    def __init__(self, group: Members) -> None:
        self._group = group
        self._memory = common_memory(group, 2 * group.size * (PIECE + ALIGNED))
        self._bell = Bell(group) if self._memory is not None else None
        self._turn = 0
        self._shelves: Tensor | None = None

    @property
    def possible(self) -> bool:
        return self._bell is not None and self._bell.possible

    def wait(self) -> None:
        """Until all members are here; what they have written before, all see."""
        assert self._bell is not None
        self._bell.wait()

    def _pieces(self, flat: Tensor, what: str) -> Iterator[tuple[slice, Tensor]]:
        """Some numbers at a time, of all members, one a row; all must be at the same thing.

        Raises:
            RankError: one is at another.
        """
        assert self._memory is not None
        at_once = PIECE // flat.element_size()
        said = zlib.crc32(f"{what} {flat.numel()} {flat.dtype}".encode())
        for start in range(0, len(flat), at_once):
            part = flat[start : start + at_once]
            self._turn = 1 - self._turn
            whole = self._memory.view(2, self._group.size, PIECE + ALIGNED)[self._turn]
            things = whole[:, PIECE : PIECE + 8].view(torch.int64)
            places = whole[:, :PIECE].view(flat.dtype)[:, : len(part)]
            places[self._group.rank].copy_(part)
            things[self._group.rank] = said
            self.wait()
            if not (things == said).all():
                raise RankError(
                    f"the processes are not at the same thing: this one is {what} {flat.numel():,} numbers, another is "
                    "not. A callback must be called by all processes, and do in all of them the same"
                )
            yield slice(start, start + len(part)), places

    def reduce(self, flat: Tensor, how: Callable[..., Tensor]) -> None:
        """What `how` makes of all members' numbers, two at a time, in place."""
        for part, places in self._pieces(flat, f"adding up or comparing ({how.__name__})"):
            how(places[0], places[1], out=flat[part])
            for other in places[2:]:
                how(flat[part], other, out=flat[part])

    def gather(self, flat: Tensor) -> Tensor:
        """What each member has, one a row."""
        found = flat.new_empty(self._group.size, len(flat))
        for part, places in self._pieces(flat, "gathering"):
            found[:, part] = places
        return found

    def laid_out(self, own: Sequence[Tensor], willing: bool) -> list[list[Tensor]] | None:
        """Of each member what it lays out, to be read until the next call; None where one is not willing.

        Tensors of the same number, types and widths in all, of any length in each.
        """
        about = self.gather(torch.tensor([willing, *(tensor.numel() for tensor in own)]))
        if not about[:, 0].all():
            return None
        ends = [
            [0, *accumulate(_rounded(n * t.element_size()) for n, t in zip(each, own, strict=True))]
            for each in about[:, 1:].tolist()
        ]
        most = max(each[-1] for each in ends)
        if self._shelves is None or most > self._shelves.shape[1]:
            size = _rounded(most + most // 4)
            memory = common_memory(self._group, self._group.size * size)
            self._shelves = None if memory is None else memory.view(self._group.size, size)
        if self._shelves is None:
            return None
        found = list[list[Tensor]]()
        for shelf, numbers, starts in zip(self._shelves, about[:, 1:].tolist(), ends, strict=True):
            places = zip(own, numbers, starts, strict=False)
            found.append([_place(shelf[start:], n, like) for like, n, start in places])
        for place, tensor in zip(found[self._group.rank], own, strict=True):
            place.copy_(tensor)
        self.wait()
        return found


def _place(memory: Tensor, n: int, like: Tensor) -> Tensor:
    return memory[: n * like.element_size()].view(like.dtype).view(-1, *like.shape[1:])


def _rounded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
