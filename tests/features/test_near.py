"""Near misses: the latents that were off but closest to being on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from monosem.features import near_misses
from monosem.sae import SAE, BatchTopKSAE, JumpReLUSAE, ProLUSAE, ReLUSAE, TopKSAE


@pytest.mark.parametrize(
    "make", [lambda: TopKSAE(16, 50, k=5), lambda: ReLUSAE(16, 50), lambda: BatchTopKSAE(16, 50, k=5)]
)
def test_near_misses_are_the_largest_pre_activations_among_those_off(make: Callable[[], SAE]) -> None:
    sae = make()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 16, generator=generator) + 0.5
    sae.initialise(x)
    with torch.no_grad():
        sae.b_dec.copy_(torch.randn(16, generator=generator))
        sae.b_enc.copy_(torch.randn(50, generator=generator))
    codes = sae.encode(x)
    values, latents = near_misses(sae, x, codes, 4)
    pre = (sae.transform(x) - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    off = pre.masked_fill(codes.to_dense() > 0, -torch.inf)
    torch.testing.assert_close(values, off.topk(4).values)
    torch.testing.assert_close(pre.gather(1, latents), values)
    if isinstance(sae, TopKSAE) and not isinstance(sae, BatchTopKSAE):
        torch.testing.assert_close(values, pre.topk(9).values[:, 5:])


def test_where_fewer_are_off_the_rest_is_filled_up() -> None:
    sae = TopKSAE(4, 6, k=4)
    with torch.no_grad():
        sae.b_enc.fill_(5.0)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    values, latents = near_misses(sae, x, sae.encode(x), 6)
    assert ((latents >= 0).sum(1) == 2).all()
    assert torch.isinf(values[latents < 0]).all()
    empty = near_misses(sae, x[:0], sae.encode(x[:0]), 2)
    assert len(empty[0]) == 0


@pytest.mark.parametrize("cls", [JumpReLUSAE, ProLUSAE])
def test_where_each_has_a_limit_of_its_own_they_are_those_nearest_to_theirs(cls: type[SAE]) -> None:
    """Not those of the largest pre-activations: a high one may be far below a higher limit."""
    sae, generator = cls(16, 50), torch.Generator().manual_seed(0)
    limits = 3 * torch.rand(50, generator=generator)
    with torch.no_grad():
        if isinstance(sae, JumpReLUSAE):
            sae.threshold.copy_(limits)
        else:
            sae.b_enc.copy_(-limits)
    x = torch.randn(30, 16, generator=generator)
    codes = sae.encode(x)
    values, latents = near_misses(sae, x, codes, 4)
    pre = (x - sae.b_dec) @ sae.W_enc.T
    off = (pre - limits).masked_fill(codes.to_dense() > 0, -torch.inf)
    assert torch.equal(latents, off.topk(4).indices)
    torch.testing.assert_close(values, pre.gather(1, latents))
