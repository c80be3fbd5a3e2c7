"""A group of processes, and what they do together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch import distributed as dist

from monosem.errors import RankError
from monosem.ranks.alive import waiting
from monosem.ranks.memory import Exchange

OPERATIONS = {"SUM": torch.add, "MIN": torch.minimum, "MAX": torch.maximum}


@contextmanager
def _together(what: str, size: int = 0) -> Iterator[None]:
    """What the library raises where another process is gone, while so many bytes are exchanged.

    Raises:
        RankError: in its place.
    """
    try:
        with waiting(what, size):
            yield
    except RuntimeError as error:
        raise RankError(
            f"another process of the job has ended, or cannot be reached ({what}): what it said stands above, if it "
            "said anything. The same command, with any number of processes, goes on from what is saved"
        ) from error


class Group:
    """Some of the job's processes. All of them must call the same methods in the same order.

    Of one process everything is as it is: nothing is sent, and `torch.distributed` is not needed.
    """

    def __init__(self, members: dist.ProcessGroup | None = None) -> None:
        self._members = members
        self.size = 1 if members is None else dist.get_world_size(members)
        self.rank = 0 if members is None else dist.get_rank(members)
        self.sent = 0
        """Bytes that this process has handed over so far."""
        self._exchange: Exchange | None = None
        self._asked = False

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes for all."""
        return self.rank == 0

    def _send(self, tensor: Tensor) -> Tensor:
        self.sent += tensor.numel() * tensor.element_size()
        return tensor

    def _near(self, tensor: Tensor | None = None) -> Exchange | None:
        """Memory that the members have in common, for what stands on CPUs; None where they have none."""
        if not self._asked and self.size > 1:
            self._asked = True  # they speak through sockets until they have it
            exchange = Exchange(self)
            self._exchange = exchange if exchange.possible else None
        return None if tensor is not None and not tensor.is_cpu else self._exchange

    def _reduce(self, tensor: Tensor, how: str, what: str) -> Tensor:
        if self.size > 1 and tensor.numel():
            whole = self._send(tensor.detach().contiguous())
            near = self._near(tensor)
            with _together(what, whole.nbytes * self.size):
                if near is None:
                    dist.all_reduce(whole, getattr(dist.ReduceOp, how), group=self._members)
                else:
                    near.reduce(whole.view(-1), OPERATIONS[how])
            if whole.data_ptr() != tensor.data_ptr():
                tensor.copy_(whole)
        return tensor

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over all members, in place; the same bits in all."""
        return self._reduce(tensor, "SUM", "adding up")

    def least_(self, tensor: Tensor) -> Tensor:
        """The least of all members, element by element, in place."""
        return self._reduce(tensor, "MIN", "comparing")

    def most_(self, tensor: Tensor) -> Tensor:
        """The most of all members, element by element, in place."""
        return self._reduce(tensor, "MAX", "comparing")

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """What each member has, of one shape in all."""
        if self.size == 1:
            return [tensor]
        tensor = self._send(tensor.detach().contiguous())
        near = self._near(tensor)
        with _together("gathering", tensor.nbytes * self.size):
            if near is not None:
                return [part.view(tensor.shape) for part in near.gather(tensor.view(-1))]
            found = [torch.empty_like(tensor) for _ in range(self.size)]
            dist.all_gather(found, tensor, group=self._members)
        return found

    def laid_out(self, *own: Tensor, willing: bool = True) -> list[list[Tensor]] | None:
        """Of each member what it lays out on CPUs, of any length in each, in memory that the members have in common.

        It can be read until the next call. None where they have none, or one of them is not willing.
        """
        near = self._near(own[0])
        if near is None:
            return None
        with _together("laying out"):
            return near.laid_out([self._send(tensor.detach()) for tensor in own], willing)

    def gather_ragged(self, tensor: Tensor) -> list[Tensor]:
        """What each member has, of any length in each."""
        if self.size == 1:
            return [tensor]
        lengths = torch.cat(self.gather(torch.tensor([len(tensor)], device=tensor.device))).tolist()
        padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        return [part[:length] for part, length in zip(self.gather(padded), lengths, strict=True)]

    def give(self, tensor: Tensor | None, device: torch.device | str = "cpu") -> Tensor:
        """What the first member has, to all; the others give None."""
        if self.size == 1:
            assert tensor is not None
            return tensor
        about = self.tell(None if tensor is None else [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)])
        if tensor is None:
            tensor = torch.empty(about[1], dtype=getattr(torch, about[0]), device=device)
        tensor = tensor.contiguous()
        if tensor.numel():
            with _together("giving", tensor.nbytes * self.size):
                dist.broadcast(self._send(tensor), group=self._members, group_src=0)
        return tensor

    def bring(self, content: bytes) -> list[bytes]:
        """What each member has, to the first, one after the other; the others get nothing."""
        if self.size == 1:
            return [content]
        lengths, found = self.words(len(content)), list[bytes]()
        with _together("bringing", sum(lengths)):
            if not self.first:
                if content:
                    tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                    dist.send(self._send(tensor), group=self._members, group_dst=0)
                return []
            found.append(content)
            for member in range(1, self.size):
                tensor = torch.empty(lengths[member], dtype=torch.uint8)
                if lengths[member]:
                    dist.recv(tensor, group=self._members, group_src=member)
                found.append(tensor.numpy().tobytes())
        return found

    def tell(self, words: Any) -> Any:
        """What the first member says, to all: anything that JSON holds; what the others say is not heard."""
        return self.words(words if self.first else None)[0]

    def words(self, own: Any) -> list[Any]:
        """What each member says: anything that JSON holds."""
        if self.size == 1:
            return [own]
        content = torch.frombuffer(bytearray(json.dumps(own).encode()), dtype=torch.uint8)
        return [json.loads(bytes(part.tolist())) for part in self.gather_ragged(content)]

    def wait(self) -> None:
        """Until all are here."""
        self.words(None)

    def meet(self) -> None:
        """As `wait`, as fast as can be: what each has written into memory that they have in common, all see."""
        near = self._near()
        if near is None:
            self.wait()
            return
        with _together("meeting"):
            near.wait()

    def subgroup(self, ranks: Sequence[Sequence[int]]) -> Group:
        """Of disjoint lists of members, the group of the one that this process is in; all must call it."""
        own = next(list(members) for members in ranks if self.rank in members)
        if len(own) == 1 or self._members is None:
            return ALONE
        if len(own) == self.size:
            return self
        numbers = [dist.get_global_rank(self._members, member) for member in own]
        return Group(cast(Any, dist.new_group(numbers, use_local_synchronization=True)))


ALONE = Group()
