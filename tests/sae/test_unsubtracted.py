"""Autoencoders that do not subtract b_dec, as some libraries have them, and rows transformed each by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import monosem as ms
from monosem.errors import ConfigError
from monosem.sae import SAE, InputTransform, JumpReLUSAE, ReLUSAE, TopKSAE
from monosem.sae.transform import PER_ROW

X = torch.randn(60, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 3 + 1


@pytest.mark.parametrize("kind", [ReLUSAE, TopKSAE, JumpReLUSAE])
def test_the_encoder_reads_x_and_all_operations_keep_it(
    kind: type[SAE], make_sae: Callable[..., SAE], assert_near: Callable[..., None], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"k": 3} if kind is TopKSAE else {}
    sae = make_sae(kind, subtract_b_dec=False, **options)
    t = sae.transform(X)
    pre = t @ sae.W_enc.T + sae.b_enc
    codes = sae.encode(X).to_dense()
    on = codes > 0
    assert on.any()
    assert_near(codes[on], pre[on])
    assert_near(sae(X).reconstruction, sae.transform.inverse(codes @ sae.W_dec + sae.b_dec))
    sae.save(tmp_path / "sae")
    back = ms.load_sae(tmp_path / "sae")
    assert torch.equal(back(X).reconstruction, sae(X).reconstruction)
    folded = ms.fold(sae, norms=False)
    assert_near(folded(X).reconstruction, sae(X).reconstruction)
    assert_near(folded.encode(X).to_dense(), codes)
    unfolded = ms.unfold(folded, sae.transform, norms=False)
    assert_near(unfolded.encode(X).to_dense(), codes)
    kept = ms.prune(sae, list(range(15)))
    assert not kept.subtract_b_dec
    assert kept.autoencodes
    report = ms.evaluate(sae.float(), X.float(), controls=True)
    assert report["fvu"].value > 0


def test_b_dec_of_what_is_predicted_cannot_be_subtracted() -> None:
    with pytest.raises(ConfigError, match="cannot be subtracted"):
        TopKSAE(7, 20, k=3, d_out=5, subtract_b_dec=True)
    TopKSAE(7, 20, k=3, d_out=5, subtract_b_dec=False)


@pytest.mark.parametrize("kind", PER_ROW)
def test_rows_are_transformed_each_by_itself_and_back(kind: Any) -> None:
    transform = InputTransform(7, kind, dtype=torch.float64)
    t, mean, d = transform(X), X.mean(-1, keepdim=True), X.shape[1]
    deviation = X.std(-1, keepdim=True, correction=1 if kind == "standardise" else 0)
    expected = {
        "layer_norm": (X - mean) / deviation,
        "standardise": (X - mean) / (deviation + 1e-5),
        "row_norm": X * d**0.5 / X.norm(dim=-1, keepdim=True),
        "row_centre": X - mean,
    }[kind]
    assert torch.allclose(t, expected, rtol=1e-9, atol=1e-9)
    tolerance = 1e-4 if kind == "standardise" else 1e-9  # by which it is not undone, as those libraries have it
    assert torch.allclose(transform.inverse(t, X), X, rtol=tolerance, atol=tolerance)
    zeros = torch.zeros(2, 7, dtype=torch.float64)
    assert torch.equal(transform(zeros), zeros)
    assert transform.per_row
    assert transform.fitted
    rows = torch.randn(3, 7, dtype=torch.float64)
    readers = transform.raw_readers(rows)
    if kind != "row_norm":  # what all entries share is not read
        assert torch.allclose(readers.sum(-1), torch.zeros(3, dtype=torch.float64), atol=1e-12)
