"""Surrogates keep exactly what is said of them, and what latents are worth is what taking them out does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import monosem as ms
from monosem.analysis.surrogates import causal_importance, latent_properties, surrogates
from monosem.errors import ConfigError, DataError
from monosem.models import SubjectModel
from monosem.sae import SAE


@pytest.fixture(scope="module")
def rows() -> Tensor:
    """Skewed, correlated, with a mean."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    return torch.randn(500, 6, generator=generator, dtype=torch.float64).exp() @ mixing + 3


def covariance(x: Tensor) -> Tensor:
    return torch.cov(x.T, correction=0)


def test_gaussian_rows_have_the_same_mean_and_covariance_and_no_skew(rows: Tensor) -> None:
    gaussian = surrogates(rows)["gaussian"]
    torch.testing.assert_close(gaussian.mean(0), rows.mean(0))
    torch.testing.assert_close(covariance(gaussian), covariance(rows))

    def kurtosis(x: Tensor) -> Tensor:
        z = (x - x.mean(0)) / x.std(0)
        return z.pow(4).mean(0) - 3

    assert float(kurtosis(rows).max()) > 3
    assert float(kurtosis(gaussian).abs().max()) < 1


def test_shuffled_coordinates_have_the_same_values_and_nothing_to_do_with_each_other(rows: Tensor) -> None:
    shuffled = surrogates(rows)["shuffled"]
    torch.testing.assert_close(shuffled.sort(0).values, rows.sort(0).values, rtol=0, atol=0)
    among = torch.corrcoef(shuffled.T) - torch.eye(6, dtype=torch.float64)
    assert float(among.abs().max()) < 0.2
    assert float((torch.corrcoef(rows.T) - torch.eye(6, dtype=torch.float64)).abs().max()) > 0.5


def test_whitened_rows_are_the_rows_with_all_directions_as_large(rows: Tensor) -> None:
    whitened = surrogates(rows)["whitened"]
    torch.testing.assert_close(covariance(whitened), torch.eye(6, dtype=torch.float64))
    back = torch.linalg.lstsq(whitened, rows - rows.mean(0)).solution
    torch.testing.assert_close(whitened @ back, rows - rows.mean(0))


def test_the_same_seed_gives_the_same_rows(rows: Tensor) -> None:
    for name, x in surrogates(rows, seed=3).items():
        assert torch.equal(x, surrogates(rows, seed=3)[name])
    assert not torch.equal(surrogates(rows, seed=4)["gaussian"], surrogates(rows, seed=3)["gaussian"])


def test_rows_that_cannot_be_used_are_refused(rows: Tensor) -> None:
    with pytest.raises(DataError, match="twice as many rows as columns"):
        surrogates(rows[:8])
    with pytest.raises(DataError, match="not finite"):
        surrogates(torch.cat([rows, torch.full((1, 6), torch.inf, dtype=torch.float64)]))


def test_properties_are_those_of_dense_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=generator, dtype=torch.float64)
    tokens = torch.randint(0, 5, (300,), generator=generator)
    sae, other = (ms.TopKSAE(6, 12, k=2, seed=seed, dtype=torch.float64) for seed in (0, 1))
    found = latent_properties(sae, x, other=other, tokens=tokens)
    dense = sae.encode(x).to_dense().detach()
    fires = (dense != 0).any(0)
    rate = (dense != 0).double().mean(0)[fires]
    z = (dense[:, fires] - dense[:, fires].mean(0)) / dense[:, fires].std(0, correction=0)
    error = (x - sae(x).reconstruction.detach()).pow(2).sum()
    assert found.fvu == pytest.approx(float(error / (x - x.mean(0)).pow(2).sum()))
    assert found.l0 == pytest.approx(float(rate.sum()))
    assert found.dense == pytest.approx(float((rate > 0.1).double().mean()))
    assert found.dead == pytest.approx(1 - float(fires.double().mean()))
    assert found.kurtosis == pytest.approx(float((z.pow(4).mean(0) - 3).median()))
    assert abs(found.token) < 0.05  # tokens that have nothing to do with the rows
    assert latent_properties(sae, x, other=sae).stability == pytest.approx(1)
    assert np.isnan(latent_properties(sae, x).token)


@pytest.fixture
def dictionary(tiny: SubjectModel) -> SAE:
    sae = ms.TopKSAE(32, 40, k=8, seed=1)
    sae.metadata.hook = "resid_post.2"
    return sae


def test_what_a_latent_is_worth_is_what_taking_it_out_does(tiny: SubjectModel, dictionary: SAE) -> None:
    tokens = torch.randint(1, 4096, (2, 12), generator=torch.Generator().manual_seed(0))
    found = causal_importance(dictionary, tiny, tokens, range(40))
    x = tiny.capture(tokens, ["resid_post.2"])["resid_post.2"][:, 1:].flatten(0, 1)
    dense = dictionary.encode(x).to_dense().detach()
    rebuilt = dictionary(x).reconstruction.detach()
    total = (x - x.mean(0)).pow(2).sum()
    for latent in (0, 7, 21):
        part = dense[:, latent, None] * dictionary.decoder_directions([latent])[0].detach()
        grown = ((x - rebuilt + part).pow(2).sum() - (x - rebuilt).pow(2).sum()) / total
        assert found.variance[latent] == pytest.approx(float(grown), abs=1e-5)
    silent = ~(dense != 0).any(0).numpy()
    assert (found.kl[silent] == 0).all()
    assert (found.variance[silent] == 0).all()
    assert (found.kl > -1e-6).all()


def test_a_direction_that_nothing_reads_explains_variance_and_changes_nothing(
    tiny: SubjectModel, dictionary: SAE
) -> None:
    """Before the last norm, which centres, all coordinates together are never read."""
    with torch.no_grad():
        dictionary.W_dec[5] = torch.ones(32) / 32**0.5
        dictionary.b_enc[5] = 50.0  # it is on everywhere
    tokens = torch.randint(1, 4096, (2, 12), generator=torch.Generator().manual_seed(0))
    found = causal_importance(dictionary, tiny, tokens, [5, *range(6, 16)])
    assert abs(found.variance[0]) > 1e-2
    assert found.kl[0] < 1e-5
    assert found.kl[1:].max() > 1e-3


def test_what_cannot_be_measured_is_said(tiny: SubjectModel, dictionary: SAE) -> None:
    tokens = torch.tensor([[1, 2, 3]])
    with pytest.raises(ConfigError, match="latents are 0 to 39"):
        causal_importance(dictionary, tiny, tokens, [40])
    dictionary.metadata.hook = None
    with pytest.raises(ConfigError, match="hook="):
        causal_importance(dictionary, tiny, tokens, [0])
