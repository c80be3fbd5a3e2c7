"""Comparison finds the truth where it is known: the same latents in another order, and some that are new."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from monosem.explorer.geometry import Best, correlate, kinds_of


def test_a_shuffled_dictionary_is_matched_latent_by_latent(client: Any, second: Any) -> None:
    found = client.get("/api/compare", a="second", b="small", threshold=0.7)
    side, back = found["sides"]
    kept = len(second.order) - 16
    assert found["by"] == "decoder"
    matched = {
        latent: match
        for latent, match, kind in zip(side["latents"], side["matches"], side["kinds"], strict=True)
        if kind == "matched"
    }
    alive = set(side["latents"])
    assert matched == {latent: second.order[latent] for latent in range(kept) if latent in alive}
    assert set(side["latents"]) - set(matched) == {latent for latent in alive if latent >= kept}
    assert side["counts"] == {
        "matched": len(matched),
        "split": 0,
        "merged": 0,
        "missing": len(alive) - len(matched),
    }
    assert 255 not in alive  # it never fires
    assert side["similarities"] == sorted(side["similarities"], reverse=True)
    assert sum(side["histogram"]["counts"]) == len(alive)
    missing = {latent for latent, kind in zip(back["latents"], back["kinds"], strict=True) if kind == "missing"}
    assert missing <= set(second.order[kept:])


def test_correlation_of_activations_finds_the_same_pairs(client: Any, second: Any) -> None:
    found = client.get("/api/compare", a="second", b="small", by="activations")
    side = found["sides"][0]
    assert found["by"] == "activations"
    assert "Correlation of activations over" in found["method"]
    sure = [
        second.order[latent] == match
        for latent, match, kind in zip(side["latents"], side["matches"], side["kinds"], strict=True)
        if kind == "matched"
    ]
    assert len(sure) > 150
    assert np.mean(sure) > 0.98


def test_a_feature_knows_its_match_in_the_other_dictionary(client: Any, second: Any) -> None:
    (match,) = client.get("/api/d/second/f/4/matches")
    assert (match["dictionary"], match["latent"]) == ("small", second.order[4])
    assert match["cosine"] == pytest.approx(1, abs=1e-5)
    assert match["name"] == client.get(f"/api/d/small/f/{second.order[4]}")["name"]


def test_kinds_of_matches_on_paper() -> None:
    # here: 0, 1 and 2; there: 0 is 0, both 1 and 2 are pieces of 1, 3 is nothing here; 2 is closest to 0 there
    there = Best(np.array([0, 1, 0]), np.array([0.9, 0.8, 0.75], np.float32))
    back = Best(np.array([0, 1, 1, 2]), np.array([0.9, 0.8, 0.8, 0.1], np.float32))
    fires = np.ones(4, bool)
    assert kinds_of(there, back, 0.7, fires).tolist() == [0, 1, 2]
    assert kinds_of(there, back, 0.85, fires).tolist() == [0, 3, 3]
    assert kinds_of(there, back, 0.7, np.array([True, True, False, True])).tolist() == [0, 0, 2]


def test_correlations_are_numpy_s() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 4, generator=generator), torch.randn(50, 3, generator=generator)
    b[:, 1] = 2.0
    wanted = np.corrcoef(a.numpy().T, b.numpy()[:, [0, 2]].T)[:4, 4:]
    found = correlate(a, b).numpy()
    assert np.allclose(found[:, [0, 2]], wanted, atol=1e-5)
    assert (found[:, 1] == 0).all()
