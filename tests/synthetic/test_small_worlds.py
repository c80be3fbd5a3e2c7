"""Compositions, clusters and toy models: the rows are what is said, and a toy model does what toy models do."""

from __future__ import annotations

import pytest
import torch

from monosem.errors import ConfigError
from monosem.synthetic import Clusters, Compositions, ToyModel


def test_a_composition_is_one_of_each_kind() -> None:
    planted = Compositions(12, likelier=4.0)
    x, codes = planted.sample(6000, seed=1)
    dense = codes.to_dense()
    assert torch.allclose(x, dense @ planted.features, atol=1e-5)
    on = dense > 0
    assert (on[:, :3].sum(1) == 1).all()
    assert (on[:, 3:].sum(1) == 1).all()
    assert ((on.float().mean(0) - planted.probabilities).abs() < 0.03).all()
    together = (on[:, 0] & on[:, 3]).float().mean().item()
    assert together == pytest.approx(4 / 12, abs=0.03)
    assert planted.name_of(0) == "red triangle"
    assert planted.shares[0].item() == pytest.approx(4 / 12)
    assert torch.allclose(planted.features @ planted.features.T, torch.eye(6), atol=1e-5)
    assert torch.equal(next(planted.batches(10, seed=1)).x, planted.sample(10, seed=1).x)
    assert Compositions(20, sizes=("big", "small"), shapes=("a", "b"), colours=("c", "d")).combinations.shape == (8, 3)


def test_clusters_lie_around_their_middles() -> None:
    planted = Clusters(6, noise=0.1, skew=1.0)
    x, codes = planted.sample(20_000, seed=2)
    of = codes.to_dense().argmax(1)
    counts = torch.bincount(of, minlength=6) / 20_000
    assert torch.allclose(planted.probabilities / planted.probabilities[0], torch.arange(1.0, 7) ** -1)
    assert ((counts - planted.probabilities).abs() < 0.02).all()
    for cluster in range(6):
        rows = x[of == cluster]
        assert torch.allclose(rows.mean(0), planted.features[cluster], atol=0.02)
        assert rows.std(0).mean().item() == pytest.approx(0.1, abs=0.01)
    assert (planted.features.norm(dim=1) - 1).abs().max() < 1e-6
    apart = (planted.features @ planted.features.roll(1, 0).T).diag()
    assert torch.allclose(apart, torch.full((6,), 0.5), atol=1e-5)  # evenly: 60 degrees


def test_sparse_features_share_dimensions_as_a_pentagon_and_dense_ones_do_not() -> None:
    sparse = ToyModel(5, 2, density=0.05, steps=1200, seed=1)
    assert (sparse.features.norm(dim=1) > 0.7).all()
    assert sparse.dimensionality().sum().item() == pytest.approx(2, abs=0.15)
    angles = torch.atan2(sparse.features[:, 1], sparse.features[:, 0]).sort().values
    assert torch.allclose(angles.diff(), torch.full((4,), 2 * torch.pi / 5), atol=0.25)
    dense = ToyModel(5, 2, density=1.0, decay=0.7, steps=1000, seed=1)
    of_each = dense.dimensionality().sort(descending=True).values  # two have a dimension each, the others none
    assert torch.allclose(of_each, torch.tensor([1.0, 1, 0, 0, 0]), atol=0.1)
    x, codes = sparse.sample(100, seed=3)
    assert torch.allclose(x, codes.to_dense() @ sparse.features, atol=1e-6)
    assert torch.equal(ToyModel(5, 2, density=0.05, steps=3).features, ToyModel(5, 2, density=0.05, steps=3).features)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Compositions(4),
        lambda: Compositions(12, shapes=("a", "b")),
        lambda: Clusters(0),
        lambda: Clusters(3, noise=-1),
        lambda: ToyModel(5, 2, density=0),
        lambda: ToyModel(5, 2, density=0.1, steps=0),
    ],
)
def test_what_cannot_be_is_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # pyright: ignore
