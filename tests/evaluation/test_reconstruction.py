"""Reconstruction metrics: exact at both ends, equal to their closed forms, deaf to how rows are cut into batches."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monosem.codes import SparseCodes
from monosem.evaluation.controls import PCA
from monosem.evaluation.metric import Seen
from monosem.evaluation.reconstruction import Reconstruction
from monosem.evaluation.report import EvaluationReport
from monosem.intervals import Interval
from monosem.sae import SAE, ReLUSAE, TopKSAE
from monosem.sae.control import random_sae

N, D = 400, 12


def data(seed: int = 0, n: int = N, offset: float = 3.0) -> Tensor:
    """Correlated rows, far from the origin, in float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(D, D, generator=generator, dtype=torch.float64)
    return torch.randn(n, D, generator=generator, dtype=torch.float64) @ mix + offset


def documents(n: int = N) -> Tensor:
    return torch.arange(n) // 7


def measured(x: Tensor, rebuilt: Tensor, reference: Tensor | None = None) -> dict[str, Interval]:
    part = Reconstruction(x[:50].mean(0) if reference is None else reference, ["SAE"])
    part.add(Seen.of(x, {"SAE": rebuilt}, documents(len(x))))
    return part.result("SAE")


def test_predicting_the_mean_has_fvu_1_and_explained_variance_0() -> None:
    x = data()
    found = measured(x, x.mean(0).expand_as(x))
    assert found["fvu"].value == pytest.approx(1, abs=1e-13)
    assert found["explained_variance"].value == pytest.approx(0, abs=1e-13)


def test_a_perfect_reconstruction_has_fvu_0_and_explained_variance_1() -> None:
    x = data()
    found = measured(x, x.clone())
    assert found["fvu"] == Interval(0, 0, 0)
    assert found["explained_variance"] == Interval(1, 1, 1)
    assert found["mse"].value == 0
    assert found["cosine"].value == pytest.approx(1, abs=1e-14)
    assert found["norm_ratio"].value == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_their_closed_forms_in_numpy(seed: int) -> None:
    x = data(seed)
    rebuilt = x + 0.3 * data(seed + 10, offset=0.1)
    found = {name: interval.value for name, interval in measured(x, rebuilt).items()}
    a, b = x.numpy(), rebuilt.numpy()
    fvu = ((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum()
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    expected = {
        "fvu": fvu,
        "explained_variance": 1 - fvu,
        "mse": ((a - b) ** 2).mean(),
        "cosine": cosine.mean(),
        "norm_ratio": (np.linalg.norm(b, axis=1) / np.linalg.norm(a, axis=1)).mean(),
        "relative_bias": (b**2).sum() / (a * b).sum(),
    }
    assert found == pytest.approx(expected, rel=1e-11)


def test_the_reference_is_for_precision_alone() -> None:
    x = data()
    rebuilt = 0.9 * x
    near, far = measured(x, rebuilt), measured(x, rebuilt, torch.full((D,), -20.0))
    assert near["fvu"].value == pytest.approx(far["fvu"].value, rel=1e-11)


def test_a_common_offset_a_million_times_the_spread_costs_no_precision() -> None:
    x = data(offset=0.0)
    rebuilt = 0.9 * x
    shifted = measured(x + 1e6, rebuilt + 1e6)
    assert shifted["fvu"].value == pytest.approx(measured(x, rebuilt)["fvu"].value, rel=1e-7)


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 119), max_size=12, unique=True), with_empty=st.booleans())
def test_metrics_do_not_move_with_the_batch_size(cuts: list[int], with_empty: bool) -> None:
    x = data(n=120)
    codes = TopKSAE(D, 24, k=4, dtype=torch.float64, transform="none").encode(x)
    rebuilt = 0.8 * x + 0.1
    bounds = [0, *sorted(cuts), 120]
    whole, parts = (Reconstruction(x[:9].mean(0), ["SAE"]) for _ in range(2))

    def seen(chosen: slice) -> Seen:
        return Seen.of(x[chosen], {"SAE": rebuilt[chosen]}, documents(120)[chosen], {"SAE": codes[chosen]})

    whole.add(seen(slice(120)))
    for first, last in itertools.pairwise(bounds):
        parts.add(seen(slice(first, last)))
        if with_empty:
            parts.add(seen(slice(0)))
    assert parts.n_rows == whole.n_rows == 120
    found = parts.result("SAE")
    for name, interval in whole.result("SAE").items():
        numbers = [value for value in interval if value is not None]
        assert [v for v in found[name] if v is not None] == pytest.approx(numbers, rel=1e-10), name
    assert np.array_equal(parts.firing_rates("SAE"), whole.firing_rates("SAE"))
    assert np.array_equal(parts.l0_counts("SAE"), whole.l0_counts("SAE"))


def test_few_rows_have_a_value_and_an_interval_without_a_warning() -> None:
    """Among the resamples of three rows, some have no variance."""
    x = data(n=3)
    part = Reconstruction(x[0], ["SAE"])
    part.add(Seen.of(x, {"SAE": 0.9 * x}, torch.arange(3)))
    found = part.result("SAE")["fvu"]
    assert found.value == pytest.approx(((0.1 * x) ** 2).sum().item() / (x - x.mean(0)).pow(2).sum().item())
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low <= found.value <= found.high < float("inf")


def test_l0_firing_rates_and_dead_latents_count_what_is_not_zero() -> None:
    dense = torch.tensor([[0.0, 1, 0, 2, 0], [0, 3, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 1, 1.5]])
    stored = SparseCodes.from_dense(torch.where(dense == 0, 9.0, dense))
    stored.values[stored.values == 9] = 0  # entries of 0 may be stored, and do not count
    for codes in (SparseCodes.from_dense(dense), stored):
        part = Reconstruction(torch.zeros(3), ["SAE"])
        part.add(Seen.of(torch.randn(4, 3), {"SAE": torch.randn(4, 3)}, torch.arange(4), {"SAE": codes}))
        found = part.result("SAE")
        assert found["l0"].value == pytest.approx(6 / 4)
        assert found["dead_share"].value == pytest.approx(2 / 5)
        assert (part.firing_rates("SAE") * 4).tolist() == [0, 3, 0, 2, 1]
        assert part.l0_counts("SAE").tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("k", [1, 3, 7, D - 1])
def test_pca_leaves_exactly_the_tail_of_the_eigenvalues(k: int) -> None:
    x = data()
    pca = PCA(x, k)
    values = torch.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0)))
    found = measured(x, pca(x))["fvu"].value
    assert found == pytest.approx((values[: D - k].sum() / values.sum()).item(), rel=1e-9)


def test_pca_of_all_directions_loses_nothing_and_k_is_cut_to_the_width() -> None:
    x = data()
    for k in (D, D + 5):
        pca = PCA(x, k)
        assert pca.k == D
        assert measured(x, pca(x))["fvu"].value < 1e-25


def test_pca_beats_every_other_projection_of_its_rank() -> None:
    x = data()
    centred = x - x.mean(0)
    best = (x - PCA(x, 3)(x)).pow(2).sum()
    for seed in range(20):
        basis = torch.linalg.qr(torch.randn(D, 3, generator=torch.Generator().manual_seed(seed)).double()).Q
        assert (centred - centred @ basis @ basis.T).pow(2).sum() > best


@pytest.mark.parametrize(("kind", "setting"), [(TopKSAE, {"k": 3}), (ReLUSAE, {"coefficient": 0.07})])
def test_the_random_control_is_of_the_same_kind_and_has_learnt_nothing(
    kind: type[SAE], setting: dict[str, float]
) -> None:
    x = data().float()
    sae = kind(D, 30, transform="centre", seed=4, **setting)
    sae.initialise(x)
    with torch.no_grad():
        sae.W_dec.add_(1)
    control = random_sae(sae, x)
    assert type(control) is kind
    assert control.settings == sae.settings
    assert control.transform.kind == "centre"
    torch.testing.assert_close(control.transform.mean, x.mean(0))
    assert not torch.allclose(control.W_dec, sae.W_dec)
    torch.testing.assert_close(control.W_dec.norm(dim=1), torch.ones(30))
    assert torch.equal(control.W_dec, random_sae(sae, x).W_dec)


# What is not defined ----------------------------------------------------------------------------------------------


def test_rows_of_zeros_have_neither_cosine_nor_norm_ratio_and_leave_those_of_the_others_alone() -> None:
    x, rebuilt = data(), 0.5 * data(1)
    with_zeros, theirs = torch.cat([x, torch.zeros(90, D)]), torch.cat([rebuilt, torch.ones(90, D)])
    found, expected = measured(with_zeros, theirs), measured(x, rebuilt)
    for metric in ("cosine", "norm_ratio"):
        assert found[metric].value == pytest.approx(expected[metric].value, rel=1e-12)
    assert found["norm_ratio"].high is not None
    assert found["norm_ratio"].high < 10


def test_what_zeros_alone_have_not_is_undefined_and_said_so() -> None:
    zeros = torch.zeros(30, D)
    found = measured(zeros, torch.ones(30, D))
    assert found["mse"].value == 1
    for metric in ("fvu", "explained_variance", "cosine", "norm_ratio", "relative_bias"):
        assert math.isnan(found[metric].value)
        assert found[metric][1:] == (None, None)
    report = EvaluationReport(
        {"SAE": found}, {"rows": 30, "data": "zeros"}, {"SAE": np.zeros(3)}, {"SAE": np.zeros(1, dtype=np.int64)}
    )
    assert str(report).count("undefined") == 5


@pytest.mark.parametrize("offset", [0.0, 0.1, 1e6])
def test_rows_that_are_all_the_same_have_no_fvu(offset: float) -> None:
    x = torch.full((50, D), offset)
    for rebuilt in (x, x + 1, x - 1e-7):
        assert math.isnan(measured(x, rebuilt)["fvu"].value)
    one = data(n=1)
    assert math.isnan(measured(one, one + 1)["fvu"].value)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_the_scale_of_activations_changes_no_ratio(scale: float) -> None:
    x, rebuilt = data(), data() + 0.3 * data(1)
    found, expected = measured(scale * x, scale * rebuilt), measured(x, rebuilt)
    for metric in ("fvu", "explained_variance", "cosine", "norm_ratio"):
        assert found[metric].value == pytest.approx(expected[metric].value, rel=1e-9)
