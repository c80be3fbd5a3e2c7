"""A planted law is found again, within its interval; a budget's best split is where theory has it; poor fits say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from monosem.analysis.scaling import ScalingLaw
from monosem.analysis.scaling.fit import Axes, predicted, refitted
from monosem.errors import ConfigError, DataError

FLOOR, A, ALPHA, B, BETA = 0.05, 2.0, 0.35, 60.0, 0.5
WIDTHS, TOKENS = (256, 512, 1024, 2048), (125_000, 250_000, 500_000, 1_000_000)
N, D = (x.ravel() for x in np.meshgrid(WIDTHS, TOKENS, indexing="ij"))


def planted(n: np.ndarray = N, d: np.ndarray = D) -> np.ndarray:
    return FLOOR + A * n ** -float(ALPHA) + B * d ** -float(BETA)


def noisy(seed: int, size: float) -> np.ndarray:
    return planted() * np.exp(size * np.random.default_rng(seed).standard_normal(len(N)))


@pytest.fixture(scope="module")
def exact() -> ScalingLaw:
    return ScalingLaw.fit(N, D, planted())


def test_a_law_without_noise_is_found_exactly(exact: ScalingLaw) -> None:
    n0, d0 = exact.middle
    assert exact.parameters == pytest.approx([FLOOR, A * n0**-ALPHA, ALPHA, B * d0**-BETA, BETA], rel=1e-5)
    assert exact.explained == pytest.approx(1)
    assert exact.held_out_error < 1e-6
    assert exact.too_poor is None
    assert exact.loss(8192, 3e6) == pytest.approx(planted(np.array(8192.0), np.array(3e6)), rel=1e-5)


def test_a_planted_law_lies_within_its_interval() -> None:
    """At 95 %, two of 10 x 4 intervals are expected to miss it, and more than six in one test of thousands."""
    inside = 0
    best = ScalingLaw.fit(N, D, planted()).best_at(2e9).n_latents.value
    for seed in range(10):
        law = ScalingLaw.fit(N, D, noisy(seed, 0.005), seed=seed)
        inside += sum(law[k].low <= v <= law[k].high for k, v in (("floor", FLOOR), ("alpha", ALPHA), ("beta", BETA)))
        width = law.best_at(2e9).n_latents
        inside += width.low <= best <= width.high
        assert 0 < law["alpha"].high - law["alpha"].low < 0.4  # and it is no interval that holds everything
    assert inside >= 34


def test_the_best_split_is_where_both_terms_fall_alike(exact: ScalingLaw) -> None:
    """Hoffmann et al. 2022: N = G C^(beta / (alpha + beta)), G = (alpha A / beta B)^(1 / (alpha + beta))."""
    for compute in (1e9, 8e9):
        found = exact.recommend(compute)
        factor = (ALPHA * A / BETA / B) ** (1 / (ALPHA + BETA))
        assert found.n_latents.value == pytest.approx(factor * compute ** (BETA / (ALPHA + BETA)), rel=1e-4)
        assert found.n_latents.value * found.tokens.value == pytest.approx(compute)
        nearby = found.n_latents.value * np.geomspace(0.1, 10, 201)
        assert found.loss.value <= exact.loss(nearby, compute / nearby).min() + 1e-12
        low, high = found.as_good
        assert exact.loss([low, high], [compute / low, compute / high]) == pytest.approx(
            1.01 * found.loss.value, rel=2e-3
        )


def test_what_a_token_costs_beside_the_dictionary_makes_the_best_one_wider(exact: ScalingLaw) -> None:
    compute, overhead = 2e9, 3000.0
    plain, dear = exact.recommend(compute), exact.recommend(compute, overhead)
    assert dear.n_latents.value > plain.n_latents.value
    assert (dear.n_latents.value + overhead) * dear.tokens.value == pytest.approx(compute)
    widths = np.geomspace(100, 100_000, 20_001)
    losses = exact.loss(widths, compute / (widths + overhead))
    assert dear.n_latents.value == pytest.approx(widths[losses.argmin()], rel=1e-3)


def test_the_fit_is_that_of_a_library() -> None:
    from scipy.optimize import least_squares

    losses = np.stack([noisy(seed, 0.02) for seed in range(12)])
    axes = Axes(*(np.log(x) - np.log(x).mean() for x in (N, D)))
    start = np.tile([0.05, 0.2, 0.3, 0.1, 0.3], (len(losses), 1))
    for own, found in zip(losses, refitted(axes, losses, start), strict=True):
        bounds = ([0, 0, 0.01, 0, 0.01], [own.min(), 9, 3, 9, 3])
        library = least_squares(lambda x, own=own: np.log(predicted(x, *axes) / own), start[0], bounds=bounds)
        cost = 0.5 * np.square(np.log(predicted(found, *axes) / own)).sum()
        assert cost <= library.cost * (1 + 1e-6)


def test_it_does_not_depend_on_order_and_scales_with_the_loss(exact: ScalingLaw) -> None:
    order = np.random.default_rng(0).permutation(len(N))
    other = ScalingLaw.fit(N[order], D[order], 10 * planted()[order])
    assert other["alpha"].value == pytest.approx(exact["alpha"].value, rel=1e-4)
    assert other["floor"].value == pytest.approx(10 * exact["floor"].value, rel=1e-3)
    assert other.best_at(1e9).n_latents.value == pytest.approx(exact.best_at(1e9).n_latents.value, rel=1e-3)


def test_documents_drawn_anew_widen_the_intervals() -> None:
    losses = noisy(0, 0.002)
    common = np.exp(0.05 * np.random.default_rng(1).standard_normal((1, 300)))
    plain, drawn = ScalingLaw.fit(N, D, losses), ScalingLaw.fit(N, D, losses, measured=losses[:, None] * common)
    spans = [law.best_at(2e9).loss.high - law.best_at(2e9).loss.low for law in (plain, drawn)]
    assert spans[1] > 3 * spans[0]


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        (np.exp(np.random.default_rng(0).standard_normal(16)), "variance of log loss|no better than|as a power"),
        (FLOOR + B * D**-0.5, "falls by 0.0% over all the latents"),
        (FLOOR + A * N**-0.35, "falls by 0.0% over all the tokens"),
        (np.where(N * D > 1e9, 1.3, 1.0) * planted(), "foretell|variance|no better"),
    ],
    ids=["noise", "width does nothing", "tokens do nothing", "another law for the largest"],
)
def test_a_poor_fit_recommends_nothing_and_says_why(losses: np.ndarray, says: str, tmp_path: Path) -> None:
    law = ScalingLaw.fit(N, D, losses)
    assert law.too_poor is not None
    with pytest.raises(ConfigError, match=f"too poor to recommend: .*({says})"):
        law.recommend(1e9)
    law.draw(tmp_path / "poor.svg")
    assert "too poor to recommend" in (tmp_path / "poor.svg").read_text() or (tmp_path / "poor.svg").stat().st_size


def test_a_budget_far_from_the_sweep_is_refused(exact: ScalingLaw) -> None:
    with pytest.raises(ConfigError, match="488 times the largest compute of the sweep"):
        exact.recommend(1e12)
    with pytest.raises(ConfigError, match="above 0"):
        exact.recommend(0)


def test_too_little_for_a_fit_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="needs 3 widths, 3 numbers of tokens and 8 dictionaries or more, got 2, 4 and 8"
    ):
        ScalingLaw.fit(N[:8], D[:8], planted()[:8])
    with pytest.raises(DataError, match="no logarithm"):
        ScalingLaw.fit(N, D, planted() - 1)
    with pytest.raises(ConfigError, match="as many widths as tokens"):
        ScalingLaw.fit(N, D[:-1], planted())


def test_the_figure_is_the_same_file_each_time(exact: ScalingLaw, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        exact.draw(tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert predicted(exact.parameters, np.zeros(1), np.zeros(1))[0] == pytest.approx(exact.loss(*exact.middle))
