"""A dictionary over several ranks: which latents are here, and how it becomes whole again to be written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from monosem.errors import ConfigError
from monosem.ranks import Division
from monosem.sae import SAE, CrossLayerTranscoder, MatchingPursuitSAE, MatryoshkaSAE, SwitchSAE
from monosem.training.config import TrainingConfig
from monosem.training.optimizer import Adam

OF_ALL = ("b_dec", "W_skip", "W_router", "b_router")
"""Parameters that belong to no latent: every rank has them."""
PIECE_BYTES = 2**26
"""What is gathered at a time of a tensor."""


def by_latent(sae: SAE, name: str) -> bool:
    """Whether a parameter or buffer has a part for every latent, along its first dimension."""
    tensor = sae.get_parameter(name) if name in dict(sae.named_parameters()) else sae.get_buffer(name)
    return tensor.ndim > 0 and name not in OF_ALL and "." not in name


def require_divisible(sae: SAE, config: TrainingConfig, division: Division) -> None:
    """See that a batch and a dictionary can be divided so.

    Raises:
        ConfigError: they cannot.
    """
    rows, parts = division.rows.size, division.latents.size
    if config.batch_size % rows:
        raise ConfigError(
            f"training.batch_size: {config.batch_size:,} rows cannot be dealt equally to {rows} processes: set a "
            f"multiple of {rows}, such as {max(1, config.batch_size // rows) * rows:,}"
        )
    if parts == 1:
        return
    if isinstance(sae, SwitchSAE | MatchingPursuitSAE) or sae.one_matrix:
        what = "relu with tied weights" if sae.one_matrix and not isinstance(sae, MatchingPursuitSAE) else None
        raise ConfigError(
            f"training.latent_ranks: the latents of {what or sae.architecture} cannot be divided among processes: "
            "leave it at 1"
        )
    groups = sae.n_layers if isinstance(sae, CrossLayerTranscoder) else 1
    if sae.n_latents % (parts * groups):
        each = f" in each of {groups} layers" if groups > 1 else ""
        raise ConfigError(
            f"training.latent_ranks: {sae.n_latents // groups:,} latents{each} cannot be dealt equally to {parts} "
            f"processes: make n_latents a multiple of {parts * groups}"
        )
    if config.revival.method not in ("aux_k", "none"):
        raise ConfigError(
            f"training.revival.method: {config.revival.method} needs all latents in one process: choose aux_k or none, "
            "or leave training.latent_ranks at 1"
        )


@torch.no_grad()
def take_own(sae: SAE, optimizer: Adam, division: Division) -> None:
    """Keep of an SAE, and of the moments of its parameters, what belongs to the latents of this rank."""
    if division.latents.size == 1:
        return
    for name, tensor in _tensors(sae).items():
        if by_latent(sae, name):
            tensor.data = division.own(tensor.data).clone()
    for moments in (optimizer.mean, optimizer.square):
        for name in moments:
            if by_latent(sae, name):
                moments[name] = division.own(moments[name]).clone()
    _Sizes.of(sae).own(division).set(sae)


class _Sizes(NamedTuple):
    """How many latents a dictionary has; and of nested ones each."""

    n_latents: int
    widths: list[int] | None

    @staticmethod
    def of(sae: SAE) -> _Sizes:
        return _Sizes(sae.n_latents, sae.widths if isinstance(sae, MatryoshkaSAE) else None)

    def set(self, sae: SAE) -> None:
        sae.n_latents = self.n_latents
        if isinstance(sae, MatryoshkaSAE) and self.widths is not None:
            sae.widths = self.widths

    def own(self, division: Division) -> _Sizes:
        """Of what this rank has."""
        rank, size = division.latents.rank, division.latents.size
        widths = None if self.widths is None else [len(range(rank, width, size)) for width in self.widths]
        return _Sizes(self.n_latents // size, widths)

    def whole(self, division: Division) -> _Sizes:
        """Of what all ranks have."""
        group = division.latents
        widths = None if self.widths is None else group.sum_(torch.tensor(self.widths)).tolist()
        return _Sizes(self.n_latents * group.size, widths)


def _tensors(sae: SAE) -> dict[str, Tensor]:
    return {**dict(sae.named_parameters()), **dict(sae.named_buffers())}


@contextmanager
def whole(sae: SAE, division: Division) -> Iterator[None]:
    """Within this block the dictionary of the first rank is whole, and stands in the memory of the CPU.

    All ranks must enter it; of the others the dictionary stays as it is.
    """
    if division.latents.size == 1:
        yield
        return
    own = {name: tensor.data for name, tensor in _tensors(sae).items() if by_latent(sae, name)}
    found = collected(own, division)
    tensors, sizes = _tensors(sae), _Sizes.of(sae)
    every = sizes.whole(division)
    if division.every.first:
        for name, tensor in found.items():
            tensors[name].data = tensor
        every.set(sae)
    try:
        yield
    finally:
        for name, tensor in own.items():
            tensors[name].data = tensor
        sizes.set(sae)


@torch.no_grad()
def collected(own: Mapping[str, Tensor], division: Division) -> dict[str, Tensor]:
    """Whole tensors of what belongs to latents, at the first rank, in the memory of the CPU; of the others nothing.

    A few rows at a time: no rank holds more of them on its device than its own.
    """
    if division.latents.size == 1:
        return dict(own)
    if division.rows.rank:  # those of the first row of ranks have all
        return {}
    found: dict[str, Tensor] = {}
    for name, tensor in own.items():
        n = len(tensor)
        at_once = max(1, PIECE_BYTES // max(1, tensor[:1].numel() * tensor.element_size()))
        if division.every.first:
            found[name] = torch.empty(n * division.latents.size, *tensor.shape[1:], dtype=tensor.dtype)
        for start in range(0, n, at_once):
            piece = division.whole(tensor[start : start + at_once])
            if division.every.first:
                first = start * division.latents.size
                found[name][first : first + len(piece)] = piece.cpu()
    return found


@torch.no_grad()
def restore(sae: SAE, division: Division) -> None:
    """Make the dictionary whole again on every rank."""
    if division.latents.size == 1:
        return
    for name, tensor in _tensors(sae).items():
        if by_latent(sae, name):
            tensor.data = division.whole(tensor.data)
    _Sizes.of(sae).whole(division).set(sae)
