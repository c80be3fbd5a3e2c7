"""Metrics of a dictionary alone: each equals a plain loop, and knows its limiting cases."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from monosem.analysis import cosines
from monosem.errors import ConfigError, MismatchError
from monosem.evaluation import directions
from monosem.evaluation.directions import direction_metrics, max_cosines, one_way, rare_metrics, unit_rows
from monosem.evaluation.firing import alive_by_budget, alive_share, firing_metrics, rate_histogram
from monosem.evaluation.neurons import neuron_directions, neuron_metrics
from monosem.evaluation.stability import jackknife_of_pairs, seed_stability
from monosem.models import SubjectModel
from monosem.sae import SAE, Crosscoder, ReLUSAE, TopKSAE, Transcoder


def draw(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return unit_rows(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


def test_max_cosines_are_those_of_a_plain_loop_tile_by_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, others = draw(37, 5), draw(23, 5, 1)
    monkeypatch.setattr(cosines, "TILE_ENTRIES", 100)
    within = [max(float(a @ b) for j, b in enumerate(rows) if j != i) for i, a in enumerate(rows)]
    across = [max(float(a @ b) for b in others) for a in rows]
    unsigned = [max(abs(float(a @ b)) for b in others) for a in rows]
    assert max_cosines(rows).tolist() == pytest.approx(within, abs=1e-6)
    assert max_cosines(rows, others).tolist() == pytest.approx(across, abs=1e-6)
    assert max_cosines(rows, others, sign=False).tolist() == pytest.approx(unsigned, abs=1e-6)


def test_of_a_large_dictionary_a_sample_is_measured_and_says_so(
    make_sae: Callable[..., SAE], monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = make_sae(TopKSAE, d_in=9, n_latents=500, k=2, transform="none", dtype=torch.float32)
    whole = direction_metrics(sae, [sae])
    monkeypatch.setattr(directions, "MEASURED", 400)
    monkeypatch.setattr(directions, "SAMPLE", 200)
    part = direction_metrics(sae, [sae])
    assert part["cross_max_cosine"].value == pytest.approx(1, abs=1e-5)
    for key in ("decoder_max_cosine", "encoder_max_cosine"):
        assert whole[key].low is None
        low, high = part[key].low, part[key].high
        assert low is not None
        assert high is not None
        assert low - 0.01 < whole[key].value < high + 0.01


def test_one_way_is_the_mean_cosine_of_all_pairs() -> None:
    rows = draw(9, 4)
    pairs = [float(rows[i] @ rows[j]) for i in range(9) for j in range(9) if i != j]
    assert one_way(rows) == pytest.approx(np.mean(pairs))
    assert one_way(rows[:1].repeat(5, 1)) == pytest.approx(1)
    assert math.isnan(one_way(rows[:1]))


def test_a_latent_that_reads_what_it_writes_is_aligned_and_a_repeated_one_is_near_another(
    make_sae: Callable[..., SAE],
) -> None:
    sae = make_sae(TopKSAE, k=3)
    before = direction_metrics(sae)
    with torch.no_grad():
        sae.W_enc.copy_(3 * sae.W_dec)
        sae.W_dec[1::2] = sae.W_dec[::2]
    after = direction_metrics(sae)
    assert after["decoder_max_cosine"].value == pytest.approx(1)
    assert before["decoder_max_cosine"].value < 0.95
    assert direction_metrics(sae, [sae])["cross_max_cosine"].value == pytest.approx(1)
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_dec)
    assert direction_metrics(sae)["encoder_decoder_cosine"].value == pytest.approx(1)
    assert abs(before["encoder_decoder_cosine"].value) < 0.4


def test_dictionaries_of_other_kinds_and_sizes_have_defined_values(make_sae: Callable[..., SAE]) -> None:
    assert "encoder_decoder_cosine" not in direction_metrics(make_sae(Transcoder, d_out=5, k=2))
    crosscoder = Crosscoder(6, 10, n_sources=3, k=2)
    assert 0 < direction_metrics(crosscoder)["decoder_max_cosine"].value < 1
    alone = make_sae(ReLUSAE, n_latents=1)
    assert math.isnan(direction_metrics(alone)["decoder_max_cosine"].value)
    with pytest.raises(MismatchError, match="width 7 and 6"):
        direction_metrics(alone, [make_sae(ReLUSAE, d_in=6)])


def test_rare_latents_that_point_one_way_are_seen(make_sae: Callable[..., SAE]) -> None:
    sae = make_sae(ReLUSAE, d_in=16, n_latents=400)
    rates = np.full(400, 0.01)
    rates[:100] = 0
    apart = rare_metrics(sae, rates, 1_000_000)
    with torch.no_grad():
        sae.W_enc[:100] = sae.W_enc[0] + 0.01 * sae.W_enc[:100]
    together = rare_metrics(sae, rates, 1_000_000)
    assert apart["ultra_rare_share"].value == 0.25
    assert abs(apart["ultra_rare_encoder_cosine"].value) < 0.05
    assert together["ultra_rare_encoder_cosine"].value > 0.99
    assert together["ultra_rare_decoder_cosine"].value == apart["ultra_rare_decoder_cosine"].value
    none = rare_metrics(sae, np.full(400, 0.01), 1_000_000)
    assert none["ultra_rare_share"].value == 0
    assert math.isnan(none["ultra_rare_encoder_cosine"].value)


@pytest.mark.parametrize("site", ["resid_mid.1", "mlp_in.1", "resid_post.1", "mlp_out.1", "mlp_mid.1"])
def test_latents_that_are_neurons_are_found_as_such(
    site: str, tiny: SubjectModel, make_sae: Callable[..., SAE]
) -> None:
    before = site.split(".")[0] in ("resid_mid", "mlp_in")
    if site == "mlp_mid.1":
        neurons = torch.eye(128)
    else:
        found = neuron_directions(tiny, 1, "reads" if before else "writes", normed=site == "mlp_in.1")
        assert found is not None
        neurons = found
    sae = make_sae(TopKSAE, d_in=neurons.shape[1], n_latents=20, k=2, transform="none", dtype=torch.float32)
    chance = neuron_metrics(sae, tiny, site)
    with torch.no_grad():
        sae.W_dec.copy_(unit_rows(neurons[7:27]))
        sae.W_enc.copy_(-2 * neurons[7:27])
    like = neuron_metrics(sae, tiny, site)
    for key in ("neuron_encoder_cosine", "neuron_decoder_cosine"):
        assert like[key].value == pytest.approx(1, abs=1e-5)
        assert chance[key].value < 0.8


def test_what_neurons_read_before_their_norm_moves_them(tiny: SubjectModel) -> None:
    """A small step along the row of a neuron, as read before the norm, moves its pre-activation as the row says."""
    rows = neuron_directions(tiny, 1, "reads")
    assert rows is not None
    block = tiny.module.get_submodule("transformer.h.1")
    x = torch.randn(32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    block.mlp.c_fc(block.ln_2(x))[5].backward()  # type: ignore[operator, union-attr]
    assert x.grad is not None
    centred = x.detach() - x.detach().mean()
    scale = centred.pow(2).mean().sqrt()
    radial = centred / centred.norm()
    across = (rows[5] - (rows[5] @ radial) * radial) / scale  # a norm takes away what points along x
    torch.testing.assert_close(x.grad, across, rtol=1e-3, atol=1e-4)


def test_places_without_neurons_have_no_alignment(tiny: SubjectModel, make_sae: Callable[..., SAE]) -> None:
    sae = make_sae(TopKSAE, d_in=32, k=2)
    assert neuron_metrics(sae, tiny, "attn_out.1") == {}
    assert neuron_metrics(sae, tiny, "embed") == {}


def test_the_share_alive_by_a_budget_is_that_of_rows_drawn_at_random() -> None:
    rng = np.random.default_rng(0)
    fires = rng.random((400, 60)) < rng.random(60) * 0.03
    counts = fires.sum(0)
    expected = alive_share(counts, 400, [1, 50, 400])
    drawn = [np.mean([fires[rng.permutation(400)[:b]].any(0).mean() for _ in range(500)]) for b in (1, 50, 400)]
    assert expected == pytest.approx(drawn, abs=0.01)
    assert expected[2] == pytest.approx((counts > 0).mean())
    curve = alive_by_budget(counts * 100, 40_000)
    assert curve["tokens"] == [1000, 2000, 5000, 10000, 20000, 40000]
    assert np.all(np.diff(curve["alive_share"]) >= 0)


def test_clusters_of_firing_rates_are_counted() -> None:
    counts = np.array([0, 0, 1, 5, 20, 200, 600, 900])
    found = firing_metrics(counts, 1000)
    assert found["dense_share"].value == 3 / 8
    assert found["often_share"].value == 4 / 8
    assert found["dense_firings"].value == pytest.approx(1700 / 1726)
    assert found["firing_rate_median"].value == pytest.approx(0.11)
    histogram = rate_histogram(counts, 1000)
    assert sum(histogram["latents"]) == 6
    for rate, place in ((0.001, 0), (0.9, -1)):
        assert histogram["rate_from"][place] <= rate * (1 + 1e-9)
        assert rate <= histogram["rate_to"][place]
    dead = firing_metrics(np.zeros(4), 1000)
    assert dead["dense_share"].value == 0
    assert math.isnan(dead["dense_firings"].value)
    assert math.isnan(firing_metrics(np.zeros(0), 0)["dense_share"].value)


def test_the_same_dictionary_in_another_order_is_stable_and_random_ones_are_as_chance(
    make_sae: Callable[..., SAE],
) -> None:
    saes = [make_sae(TopKSAE, d_in=12, n_latents=60, k=2, seed=seed) for seed in range(3)]
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    twin = make_sae(TopKSAE, d_in=12, n_latents=60, k=2, seed=0)
    with torch.no_grad():
        twin.W_dec.copy_(saes[0].W_dec[order])
    same = seed_stability({"a": saes[0], "b": twin})
    assert same.cosine.value == pytest.approx(1)
    assert same.shared.value == 1
    assert same.over == "latents"
    other = seed_stability(saes)
    assert other.over == "seeds"
    assert other.cosine.value == pytest.approx(other.chance, abs=0.03)
    assert other.cosine.low is not None
    assert other.cosine.high is not None
    assert other.cosine.low <= other.cosine.value <= other.cosine.high
    keep = torch.zeros(60, dtype=torch.bool)
    keep[:10] = True
    assert len(seed_stability(saes[:2], alive=[keep, keep]).pairs["0", "1"]) == 10


def test_one_latent_is_matched_once_only(make_sae: Callable[..., SAE]) -> None:
    a, b = (make_sae(TopKSAE, d_in=12, n_latents=20, k=2, seed=seed, transform="none") for seed in (0, 1))
    with torch.no_grad():
        b.W_dec.copy_(a.W_dec[:1].expand(20, -1))  # each finds its best in the same one, yet one alone is it
    assert seed_stability([a, b]).shared.value == 1 / 20


def test_the_interval_over_seeds_covers_the_truth() -> None:
    """Pairs that share a seed are alike: an interval that took them for independent would cover too rarely."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        own = rng.normal(size=5)
        values = np.array([own[i] + own[j] + 0.3 * rng.normal() for i in range(5) for j in range(i + 1, 5)])
        interval = jackknife_of_pairs(values, 5)
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 0 <= interval.high
    assert 0.92 <= covered / 400 <= 0.99


def test_stability_refuses_what_it_cannot_match(make_sae: Callable[..., SAE], monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = make_sae(TopKSAE, k=2), make_sae(TopKSAE, d_in=6, k=2)
    with pytest.raises(ConfigError, match="two or more"):
        seed_stability([a])
    with pytest.raises(MismatchError, match="one hook point"):
        seed_stability([a, b])
    monkeypatch.setattr("monosem.evaluation.stability.MOST_LATENTS", 10)
    with pytest.raises(ConfigError, match="alive="):
        seed_stability([a, make_sae(TopKSAE, k=2, seed=1)])
