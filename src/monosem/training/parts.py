"""Adam divided over the ranks of one machine that have other rows of a batch.

There is one copy of every matrix and of its moments, in memory that the ranks have in common. Each makes the gradient
of its part of the rows of each matrix, over all rows of the batch, and changes that part. What is no matrix every rank
has and changes itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from monosem.ranks import CommonWeight, Group, common_memory
from monosem.training.optimizer import MOMENTS, Adam

ALIGNED = 64  # bytes


class Parts:
    """Matrices in common, and which of their rows are this rank's.

    Whoever changes a matrix otherwise, on all ranks alike, does so within `each_its_own`.
    """

    def __init__(self, group: Group, optimizer: Adam, memory: Tensor) -> None:
        self._group, self._optimizer = group, optimizer
        matrices = _matrices(optimizer)
        self.weights = {name: CommonWeight(parameter, group) for name, parameter in matrices.items()}
        size = _size(matrices)
        places = [_views(memory[start * size :], matrices) for start in range(1 + len(MOMENTS))]
        self._places = places[0]
        for kind, common in zip((None, *MOMENTS), places, strict=True):
            for name, tensor in common.items():
                moments: dict[str, Tensor] = {} if kind is None else getattr(optimizer, kind)
                if group.first:
                    tensor.copy_(matrices[name].data if kind is None else moments[name])
                if kind is not None:
                    moments[name] = tensor
        group.meet()
        for name, parameter in matrices.items():
            parameter.data = self._places[name]

    @staticmethod
    def of(group: Group, optimizer: Adam) -> Parts | None:
        """None where one rank has all rows, or the parameters are on GPUs, or the ranks on several machines."""
        if group.size == 1 or not all(p.is_cpu for p in optimizer.parameters.values()):
            return None
        memory = common_memory(group, (1 + len(MOMENTS)) * _size(_matrices(optimizer)))
        return None if memory is None else Parts(group, optimizer, memory)

    @property
    def own(self) -> dict[str, slice]:
        """This rank's rows of the matrices."""
        return {name: weight.own for name, weight in self.weights.items()}

    def gradients(self) -> dict[str, Tensor]:
        """Over all rows of the batch; of matrices this rank's rows. From here on nobody reads the parameters."""
        given = {name: p.grad for name, p in self._optimizer.parameters.items() if p.grad is not None}
        found = dict[str, Tensor]()
        for name, weight in self.weights.items():
            own = [] if weight.gradient is None else [weight.gradient]
            if name in given:
                own.append(self._group.sum_(given[name])[weight.own])
            if own:
                found[name] = own[0] if len(own) == 1 else own[0].add_(own[1])
            weight.gradient = None
        others = {name: grad for name, grad in given.items() if name not in self.weights}
        for grads in ([g for g in others.values() if g.dtype == dtype] for dtype in {g.dtype for g in others.values()}):
            total = self._group.sum_(torch.cat([grad.flatten() for grad in grads]))
            for grad, part in zip(grads, total.split([grad.numel() for grad in grads]), strict=True):
                grad.copy_(part.view_as(grad))
        self._group.meet()
        return {**found, **others}

    def changed(self) -> None:
        """Until all have changed their part."""
        self._group.meet()

    @contextmanager
    def each_its_own(self) -> Iterator[None]:
        """Within this block each rank has matrices of its own; they must be changed alike in all."""
        for name, weight in self.weights.items():
            weight.parameter.data = self._places[name].clone()
        self._group.meet()
        yield
        for name, weight in self.weights.items():
            self._places[name][weight.own] = weight.parameter.data[weight.own]
            weight.parameter.data = self._places[name]
        self._group.meet()

    def end(self) -> None:
        """Nothing is in common any more."""
        for name, weight in self.weights.items():
            weight.parameter.data = weight.parameter.data.clone()
            for kind in MOMENTS:
                moments: dict[str, Tensor] = getattr(self._optimizer, kind)
                moments[name] = moments[name].clone()
        self._group.meet()


def _matrices(optimizer: Adam) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in optimizer.parameters.items() if parameter.ndim > 1}


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
