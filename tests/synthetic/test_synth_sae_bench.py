"""SynthSAEBench: the rows are what the published laws say, whatever the batch they are drawn in."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch

from monosem.errors import ConfigError
from monosem.synthetic import Laws, SynthSAEBench
from monosem.synthetic.laws import directions, forest, overlap_gradient, under_parents, zipf

SIZE: dict[str, Any] = {"n_features": 120, "d": 24, "roots": 4, "branching": 3, "depth": 2, "rates": (0.4, 0.02)}
SIZE["spread_steps"] = 2


def test_activations_are_sums_of_the_planted_features() -> None:
    bench = SynthSAEBench("small", **SIZE, mean_norm=2.0)
    x, codes = bench.sample(1000)
    assert torch.allclose(x, codes.to_dense() @ bench.features + bench.mean, atol=1e-4)
    assert bench.mean.norm().item() == pytest.approx(2)
    assert codes.values.min() > 0
    assert (bench.features.norm(dim=1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("exclusive", [False, True])
def test_every_feature_is_on_as_often_as_said(exclusive: bool) -> None:
    bench = SynthSAEBench("small", **SIZE, exclusive=exclusive, correlation=0.0, deviations=(0.3, 0.0))
    rows = 40_000
    p = bench.probabilities
    found = bench.sample(rows).codes.firing_counts() / rows
    assert ((found - p).abs() < 5 * (p * (1 - p) / rows).sqrt()).all()


def test_rates_are_zipfs_where_no_hierarchy_takes_its_share() -> None:
    bench = SynthSAEBench("small", **{**SIZE, "roots": 0})
    wanted = zipf(120, 0.4, 0.02, 0.5)
    assert bench.probabilities[0].item() == pytest.approx(0.4)
    assert bench.probabilities[-1].item() == pytest.approx(0.02)
    above = (wanted - wanted[-1]) / (wanted[0] - wanted[-1])
    power = torch.arange(1.0, 121, dtype=torch.float64) ** -0.5
    assert torch.allclose(above, (power - power[-1]) / (1 - power[-1]))
    found = bench.sample(40_000).codes.firing_counts() / 40_000  # correlation does not move a rate
    assert (found - wanted).abs().max() < 0.012


def test_children_fire_under_their_parents_and_one_of_siblings() -> None:
    bench = SynthSAEBench("small", **SIZE)
    on = bench.sample(5000).codes.to_dense() > 0
    for feature, parent in enumerate(bench.parents.tolist()):
        if parent >= 0:
            assert not (on[:, feature] & ~on[:, parent]).any()
            siblings = (bench.parents == parent).nonzero()[:, 0]
            assert on[:, siblings].sum(1).max() <= 1
    assert on[:, bench.parents >= 0].any()
    several = SynthSAEBench("small", **SIZE, exclusive=False).sample(5000).codes.to_dense() > 0
    assert several[:, (bench.parents == 0).nonzero()[:, 0]].sum(1).max() > 1


def test_a_forest_is_numbered_level_by_level() -> None:
    assert forest(20, 2, 3, 2).tolist() == [-1, -1, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]
    assert forest(12, 2, 2, 1).tolist() == [-1, -1, 0, 0, 1, 1, *[-1] * 6]
    assert forest(3, 0, 4, 3).tolist() == [-1] * 3


def test_a_child_is_as_strong_as_its_parent_beyond_the_mean() -> None:
    bench = SynthSAEBench("small", **SIZE, deviations=(1.0, 0.0), magnitudes=(5.0, 4.0))
    dense = bench.sample(40_000).codes.to_dense()
    child, parent = dense[:, 4], dense[:, int(bench.parents[4])]
    both = child > 0
    own = child[both] / (parent[both] / 5.0)
    assert own.mean().item() == pytest.approx(5 - 4 / 119, abs=0.1)
    assert own.std().item() == pytest.approx(1.0, abs=0.1)
    assert abs(torch.corrcoef(torch.stack([own, parent[both]]))[0, 1]) < 0.08
    binary = SynthSAEBench("small", **SIZE, deviations=(1.0, 0.0), scaled=False).sample(40_000).codes.to_dense()
    alike = torch.corrcoef(torch.stack([binary[both, 4], binary[both, int(bench.parents[4])]]))[0, 1]
    assert abs(alike) < 0.08


def test_shared_variables_bring_features_together_and_apart() -> None:
    bench = SynthSAEBench("small", n_features=30, d=8, roots=0, rates=(0.3, 0.2), rank=2, correlation=0.6)
    on = (bench.sample(20_000).codes.to_dense() > 0).double()
    together, shared = torch.corrcoef(on.T), (bench._factor @ bench._factor.T).double()
    assert (bench._factor.pow(2).sum(1) + bench._own**2 - 1).abs().max() < 1e-6
    apart = ~torch.eye(30, dtype=torch.bool)
    assert torch.corrcoef(torch.stack([together[apart], shared[apart]]))[0, 1] > 0.95
    alone = SynthSAEBench("small", n_features=30, d=8, roots=0, rates=(0.3, 0.2), correlation=0.0).sample(20_000)
    assert torch.corrcoef((alone.codes.to_dense() > 0).double().T)[apart].abs().max() < 0.04


def test_a_row_is_the_same_in_whatever_batch() -> None:
    bench, again = SynthSAEBench("small", **SIZE), SynthSAEBench("small", **SIZE)
    whole = bench.sample(1100, seed=3)
    parts = [again.sample(rows, seed=3, start=start) for start, rows in ((0, 1), (1, 699), (700, 400))]
    assert torch.equal(whole.x, torch.cat([part.x for part in parts]))
    assert torch.equal(whole.codes.indices, torch.cat([part.codes.indices for part in parts]))
    first, second = islice(bench.batches(10, seed=3), 2)
    assert torch.equal(torch.cat([first.x, second.x]), whole.x[:20])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert torch.equal(bench.sample(1100, seed=3).x, whole.x)
    torch.set_num_threads(threads)
    assert not torch.equal(bench.sample(10, seed=4).x, whole.x[:10])
    other = SynthSAEBench("small", **SIZE, seed=1)
    assert not torch.equal(other.features, bench.features)
    assert not torch.equal(other.sample(10, seed=3).codes.to_dense(), bench.sample(10, seed=3).codes.to_dense())


def test_directions_are_pushed_apart_along_the_gradient_of_their_overlaps() -> None:
    rows = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    products = rows @ rows.T
    loss = products.fill_diagonal_(0).pow(2).sum() + 7 * (rows.pow(2).sum(1) - 1).pow(2).sum()
    loss.backward()
    assert rows.grad is not None
    assert torch.allclose(overlap_gradient(rows.detach()), rows.grad)

    def overlap(steps: int) -> float:
        features = directions(60, 12, steps, torch.Generator().manual_seed(0))
        return (features @ features.T).fill_diagonal_(0).pow(2).sum().item()

    assert overlap(100) < 0.97 * overlap(0)


def test_the_16k_setting_is_the_published_one() -> None:
    """What SAELens 6.54.12 makes of the published settings: its firing probabilities, and a mean L0 of about 34."""
    laws = Laws()
    rates = zipf(laws.n_features, *laws.rates, laws.exponent)
    parents = forest(laws.n_features, laws.roots, laws.branching, laws.depth)
    given, reached = under_parents(rates, parents, laws.exclusive)
    places = [0, 1, 127, 128, 200, 639, 640, 2688, 10_879, 10_880, 16_383]
    theirs = [0.4, 0.282067806, 0.032943517, 0.102025002, 0.532852113, 0.890525758, 0.893207014, 0.833121717]
    theirs += [0.406007975, 0.001214343, 0.0005]
    assert given[places].tolist() == pytest.approx(theirs, rel=1e-6)
    assert (parents < 0).sum().item() == 128 + (16_384 - 128 * 85)
    assert reached.sum().item() == pytest.approx(34.5, abs=0.1)  # 10,000 rows of SAELens's have 34.55
    assert reached[:4096].sum().item() == pytest.approx(25.2, abs=0.1)  # published: about 25


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        ("32k", {}, "size must be one of '16k'"),
        ("small", {"features": 3}, "Laws has no field"),
        ("small", {"rates": (1.2, 0.1)}, "rates must be"),
        ("small", {"rates": (0.1, 0.2)}, "rates must be"),
        ("small", {"roots": 3000}, "no forest"),
        ("small", {"magnitudes": (5.0, 0.0)}, "mean activations"),
        ("small", {"d": 0}, "cannot plant"),
    ],
)
def test_what_cannot_be_is_refused(size: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SynthSAEBench(size, **changes)
