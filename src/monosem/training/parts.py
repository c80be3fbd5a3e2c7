"""Adam divided over the ranks of one machine that have other rows of a batch.

Each uses up the gradients of all for its part of every parameter, and gives all what it has made of it. There is one
copy of the moments, in memory that the ranks have in common.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from monosem.ranks import Group, common_memory
from monosem.training.optimizer import MOMENTS, Adam

ALIGNED = 64  # bytes


class Parts:
    """Which rows of every parameter are this rank's, and the memory through which gradients and results go.

    A place for every rank is as large as all parameters. Into the rows of others it writes its gradients; into its own,
    once Adam has made them, the new parameters.
    """

    def __init__(self, group: Group, optimizer: Adam, memory: Tensor) -> None:
        self._group, self._parameters = group, optimizer.parameters
        size = _size(optimizer.parameters)
        places = memory[: group.size * size].view(group.size, size)
        self._places = [_views(place, optimizer.parameters) for place in places]
        for number, kind in enumerate(MOMENTS, group.size):
            moments: dict[str, Tensor] = getattr(optimizer, kind)
            common = _views(memory[number * size : (number + 1) * size], optimizer.parameters)
            for name, tensor in common.items():
                if group.first:
                    tensor.copy_(moments[name])
                moments[name] = tensor
        group.meet()

    @staticmethod
    def of(group: Group, optimizer: Adam) -> Parts | None:
        """None where one rank has all rows, or the parameters are on GPUs, or the ranks on several machines."""
        if group.size == 1 or not all(p.is_cpu and p.ndim for p in optimizer.parameters.values()):
            return None
        memory = common_memory(group, (group.size + len(MOMENTS)) * _size(optimizer.parameters))
        return None if memory is None else Parts(group, optimizer, memory)

    def own(self, tensor: Tensor) -> Tensor:
        """The part of a parameter, or of what belongs to it, that is this rank's."""
        return tensor[self._rows(len(tensor), self._group.rank)]

    def _rows(self, n: int, rank: int) -> slice:
        return slice(rank * n // self._group.size, (rank + 1) * n // self._group.size)

    def add_up(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums over all ranks of this rank's parts of the gradients; they stand in the gradients, too."""
        group = self._group
        others = [rank for rank in range(group.size) if rank != group.rank]
        group.meet()  # all have read what stands there
        for name, gradient in gradients.items():
            for rank in others:
                rows = self._rows(len(gradient), rank)
                self._places[group.rank][name][rows].copy_(gradient[rows])
        group.meet()
        sums = {name: self.own(gradient) for name, gradient in gradients.items()}
        for name, total in sums.items():
            for rank in others:
                total.add_(self.own(self._places[rank][name]))
        return sums

    @torch.no_grad()
    def share(self) -> None:
        """Give all ranks this one's parts of the parameters, and take theirs."""
        group = self._group
        for name, parameter in self._parameters.items():
            self.own(self._places[group.rank][name]).copy_(self.own(parameter))
        group.meet()
        for name, parameter in self._parameters.items():
            for rank, place in enumerate(self._places):
                if rank != group.rank:
                    rows = self._rows(len(parameter), rank)
                    parameter[rows].copy_(place[name][rows])


def _size(parameters: Mapping[str, nn.Parameter]) -> int:
    """Bytes of all of them, each from a round address on."""
    return sum(_rounded(parameter.nbytes) for parameter in parameters.values())


def _rounded(size: int) -> int:
    return math.ceil(size / ALIGNED) * ALIGNED


def _views(place: Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Tensors like the parameters, one after the other in a piece of memory."""
    found, start = dict[str, Tensor](), 0
    for name, parameter in parameters.items():
        found[name] = place[start : start + parameter.nbytes].view(parameter.dtype).view(parameter.shape)
        start += _rounded(parameter.nbytes)
    return found
