"""Neighbours and cosines are those in the model's own space, whatever transform the SAE stands behind."""

from __future__ import annotations

import pytest
import torch

from monosem.evaluation import recovery
from monosem.features.statistics import decoder_neighbours, encoder_cosines
from monosem.sae import TopKSAE, fold
from monosem.sae.transform import TransformKind


@torch.no_grad()
@pytest.mark.parametrize("kind", ["whiten", "whiten_pca", "centre_scale", "none"])
def test_neighbours_and_cosines_are_those_of_raw_activations(kind: TransformKind) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 8, generator=generator, dtype=torch.float64) * 1.7 ** torch.arange(8)
    sae = TopKSAE(8, 30, k=4, transform=kind, dtype=torch.float64)
    sae.transform.fit(x)
    truth = torch.randn(30, 8, generator=generator, dtype=torch.float64)
    truth = truth / truth.norm(dim=1, keepdim=True)
    sae.W_dec.copy_(sae.transform(truth) - sae.transform(0 * truth))
    cosines = (truth @ truth.T).fill_diagonal_(-2)
    found = decoder_neighbours(sae, 3)
    assert found.indices.tolist() == cosines.topk(3).indices.tolist()
    torch.testing.assert_close(torch.from_numpy(found.values).double(), cosines.topk(3).values, atol=1e-5, rtol=0)
    assert recovery(sae, truth).matched.value == 1
    own, raw = encoder_cosines(sae), encoder_cosines(fold(sae, norms=False))
    assert own == pytest.approx(raw, abs=1e-5)
