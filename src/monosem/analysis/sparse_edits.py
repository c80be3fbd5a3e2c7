"""Editing by k features: of the features that differ between two activations, those that lead from one to the other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.sae import SAE


class SparseEdit(NamedTuple):
    """What to add to activations, and the features that do it."""

    change: Float[Tensor, "n d"]
    latents: Int[Tensor, "n k"]
    """In the order in which they were taken; -1 where no further feature leads nearer."""
    distance: Float[Tensor, "n k+1"]
    """To the target after 0, 1, ... k features, as a share of the distance without any."""


@checked
@torch.no_grad()
def sparse_edit(sae: SAE, x: Float[Tensor, "n d"], target: Float[Tensor, "n d"], k: int) -> SparseEdit:
    """Set k features to what they are in a target, those first that lead nearest to it; the error stays as it is.

    Each step takes the feature that shortens |x + change - target| most, and stops where none does.

    Source: Makelov, Lange & Nanda, Towards Principled Evaluations of Sparse Autoencoders, 2024, where k are removed
    and k are added; here a feature that is set to another value counts once.

    Args:
        sae: an SAE of the hook point at which the activations stand.
        x: activations, raw.
        target: where each is to go.
        k: features at most.

    Raises:
        ConfigError: k is no number of features, the shapes differ, or the SAE does not rebuild what it reads.
    """
    if k < 1 or x.shape != target.shape:
        raise ConfigError(
            f"give k of 1 or more and as many targets, got k = {k}, {tuple(x.shape)}, {tuple(target.shape)}"
        )
    if not sae.autoencodes or len(sae.in_shape) > 1 or sae.transform.per_row:
        raise ConfigError(
            f"a {sae.architecture} with transform {sae.transform.kind!r} cannot be edited feature by feature"
        )
    change, latents, distances = torch.zeros_like(x), [], []
    left = target - x
    first = left.norm(dim=1).clamp_min(1e-30)
    moves, numbers = _moves(sae, x, target)
    sizes = moves.pow(2).sum(-1)
    distances.append(left.norm(dim=1) / first)
    rows = torch.arange(len(x), device=x.device)
    for _ in range(k):
        gains = 2 * torch.einsum("nmd,nd->nm", moves, left) - sizes
        gain, which = gains.max(1)
        useful = gain > 0
        step = moves[rows, which] * useful[:, None]
        change, left = change + step, left - step
        latents.append(torch.where(useful, numbers[rows, which], -1))
        distances.append(left.norm(dim=1) / first)
        taken = rows[useful], which[useful]
        moves[taken], sizes[taken] = 0, 0
    return SparseEdit(change, torch.stack(latents, 1), torch.stack(distances, 1))


def _moves(
    sae: SAE, x: Float[Tensor, "n d"], target: Float[Tensor, "n d"]
) -> tuple[Float[Tensor, "n m d"], Int[Tensor, "n m"]]:
    """What each feature that differs would add, and its number; zeros and -1 where a row has fewer than others."""
    difference = sae.encode(target).to_dense() - sae.encode(x).to_dense()
    most = max(1, int((difference != 0).sum(1).max()))
    numbers = difference.abs().topk(most, 1).indices
    amounts = difference.gather(1, numbers)
    moves = amounts[..., None] * sae.decoder_directions()[numbers]
    return moves.to(x), torch.where(amounts != 0, numbers, -1).to(x.device)
