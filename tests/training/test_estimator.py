"""The interface of scikit-learn: codes as a sparse matrix, and back; a copy is trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from written_saes import N, made

import monosem as ms
from monosem.errors import ConfigError, DataError


def test_transform_gives_codes_and_back() -> None:
    sae, x = made("topk, centred and scaled")
    wrapped = ms.SklearnSAE(sae)
    codes = wrapped.transform(x.numpy())
    assert isinstance(codes, csr_matrix)
    assert codes.shape == (len(x), N)
    out = sae(x)
    np.testing.assert_array_equal(codes.toarray(), out.codes.to_dense().detach().numpy())
    np.testing.assert_allclose(
        wrapped.inverse_transform(codes), out.reconstruction.detach().numpy(), rtol=1e-5, atol=1e-4
    )
    np.testing.assert_allclose(wrapped.inverse_transform(codes.toarray()), wrapped.inverse_transform(codes))
    assert wrapped.transform(x.numpy()[:0]).shape == (0, N)
    assert list(wrapped.get_feature_names_out()[:2]) == ["latent0", "latent1"]


def test_fit_trains_a_copy() -> None:
    sae, x = made("topk, centred and scaled")
    x = x[10:]  # without the row of large norm
    before = sae.W_dec.detach().clone()
    wrapped = ms.SklearnSAE(sae, tokens=512)
    codes = wrapped.fit_transform(x.double().numpy())
    assert torch.equal(sae.W_dec, before)
    assert not torch.equal(wrapped.sae_.W_dec, before)
    np.testing.assert_array_equal(codes.toarray(), wrapped.sae_.encode(x).to_dense().detach().numpy())


def test_parameters_are_those_of_the_constructor() -> None:
    sae, _ = made("topk")
    wrapped = ms.SklearnSAE(sae, tokens=5)
    assert wrapped.get_params() == {"sae": sae, "tokens": 5}
    assert wrapped.set_params(tokens=7).tokens == 7
    with pytest.raises(ConfigError, match="no parameter 'k'"):
        wrapped.set_params(k=3)


def test_what_does_not_fit_is_refused() -> None:
    sae, x = made("topk")
    with pytest.raises(DataError, match="rows of width 8"):
        ms.SklearnSAE(sae).transform(x.numpy()[:, :5])
    with pytest.raises(ConfigError, match="several places"):
        ms.SklearnSAE(made("crosscoder")[0]).transform(x.numpy())
    with pytest.raises(DataError, match="42 latents, the codes are of 3"):
        ms.SklearnSAE(sae).inverse_transform(np.ones((2, 3)))


def test_scikit_learn_takes_it_as_a_step() -> None:
    sklearn = pytest.importorskip("sklearn", reason="scikit-learn is not needed, and not installed here")
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-not-found]
    from sklearn.pipeline import make_pipeline  # type: ignore[import-not-found]

    sae, x = made("topk, centred and scaled")
    x = x[10:]
    labels = (x[:, 0] > 1).numpy()
    step = sklearn.clone(ms.SklearnSAE(sae, tokens=512))
    pipeline = make_pipeline(step, LogisticRegression(max_iter=500)).fit(x.numpy(), labels)
    assert pipeline.score(x.numpy(), labels) > 0.7
