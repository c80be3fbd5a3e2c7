"""Feature suppression: L1 shrinks codes by c d / 2, and fitting strengths anew gives them back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from monosem.sae import SAE, BatchTopKSAE, ReLUSAE, TopKSAE, fix_suppression, fold
from monosem.sae.base import TrainingContext
from monosem.sae.suppression import least_squares

MakeSAE = Callable[..., SAE]
D, C = 8, 0.1
"""Width, and the weight of L1: features shrink by C D / 2 = 0.4."""


@pytest.fixture(scope="module")
def suppressed() -> tuple[ReLUSAE, Tensor, Tensor]:
    """An SAE trained to the end on orthogonal features, one at a time; the rows; and the features' strengths."""
    features = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    strengths = torch.linspace(1.0, 2.75, D, dtype=torch.float64)
    x = strengths[:, None] * features
    sae = ReLUSAE(D, D, coefficient=C, transform="none", dtype=torch.float64)
    with torch.no_grad():
        sae.W_enc.copy_(features)
        sae.W_dec.copy_(features)
    sae.b_dec.requires_grad_(False)
    optimizer = torch.optim.LBFGS([sae.b_enc], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = sae.training_loss(x, x, TrainingContext()).loss
        value.backward()
        return value

    optimizer.step(loss)  # pyright: ignore[reportArgumentType]
    return sae.requires_grad_(False), x, strengths


def lengths(sae: SAE, x: Tensor) -> Tensor:
    """How long the part of every feature is in the reconstruction."""
    return (sae.encode(x).to_dense() * sae.W_dec.norm(dim=1)).diagonal()


def test_l1_shrinks_an_isolated_feature_by_c_d_over_2(suppressed: tuple[ReLUSAE, Tensor, Tensor]) -> None:
    sae, x, strengths = suppressed
    assert torch.allclose(strengths - lengths(sae, x), torch.full((D,), C * D / 2, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("decoder", [False, True])
def test_after_the_fix_features_have_the_strength_that_they_have(
    suppressed: tuple[ReLUSAE, Tensor, Tensor], decoder: bool
) -> None:
    sae, x, strengths = suppressed
    fixed = fix_suppression(sae, x, decoder=decoder)
    assert torch.allclose(lengths(fixed, x), strengths, rtol=1e-3, atol=0)
    assert torch.allclose(fixed(x).reconstruction, x, atol=1e-8)
    before, after = sae.encode(x), fixed.encode(x)
    assert torch.equal(before.values, after.values)
    assert torch.equal(before.indices, after.indices)
    assert torch.allclose(fold(fixed).encode(x).to_dense().diagonal(), strengths, rtol=1e-3, atol=0)


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize(
    ("cls", "options"), [(ReLUSAE, {}), (TopKSAE, {"k": 4}), (TopKSAE, {"k": 4, "d_out": 5}), (BatchTopKSAE, {"k": 4})]
)
def test_strengths_are_the_least_squares_solution(
    cls: type[SAE], options: dict[str, int], decoder: bool, make_sae: MakeSAE
) -> None:
    """Against the normal equations of the dense problem; latents that are never on stay as they are."""
    sae = make_sae(cls, 7, 12, **options)
    with torch.no_grad():
        sae.b_enc[3] = -100
    x = torch.randn(200, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = torch.randn(200, sae.d_out, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    fixed = fix_suppression(sae, x, None if sae.subtract_b_dec else target, decoder=decoder, steps=500)
    codes = sae.encode(x).to_dense().detach()
    wanted = sae.target_transform(x if sae.subtract_b_dec else target) - sae.b_dec.detach()
    on = codes.any(0)
    assert not on[3]
    if decoder:
        expected = torch.linalg.lstsq(codes[:, on], wanted).solution
    else:
        parts = (codes[:, on].T[:, :, None] * sae.W_dec.detach()[on][:, None]).flatten(1)
        s = torch.linalg.lstsq(parts.T, wanted.reshape(-1, 1)).solution
        expected = s * sae.W_dec.detach()[on]
    assert torch.allclose(fixed.W_dec.detach()[on], expected, atol=1e-6)
    assert torch.equal(fixed.W_dec[~on], sae.W_dec[~on])


def test_conjugate_gradients_end_where_there_is_nothing_to_do() -> None:
    zeros = torch.zeros(3)
    assert torch.equal(least_squares(lambda u: 2 * u, zeros, zeros, 5), zeros)
    assert torch.allclose(least_squares(lambda u: 2 * u, zeros, torch.ones(3), 5), torch.full((3,), 0.5))
