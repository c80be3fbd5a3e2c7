"""Regions: at every point stands the latent that is strongest there."""

from __future__ import annotations

import pytest
import torch

from monosem.errors import MismatchError
from monosem.evaluation import claimed_regions
from monosem.sae import ReLUSAE


def test_each_latent_claims_where_it_points() -> None:
    sae = ReLUSAE(2, 4)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]))
        sae.b_enc.fill_(-0.3)
        sae.b_dec.zero_()
    regions = claimed_regions(sae, extent=1.0, points=41)
    assert regions.shape == (41, 41)
    right, left, above, below = regions[20, 38], regions[20, 2], regions[38, 20], regions[2, 20]
    assert [int(latent) for latent in (right, left, above, below)] == [0, 1, 2, 3]
    assert regions[20, 20] == -1
    with pytest.raises(MismatchError):
        claimed_regions(ReLUSAE(3, 4))
