"""Comparison finds the truth where it is known: the same latents in another order, and some that are new."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

import monosem as ms
from monosem.explorer.correlation import FEWEST, Best, correlate, matched
from monosem.explorer.geometry import kinds_of
from monosem.models import SubjectModel


def test_a_shuffled_dictionary_is_matched_latent_by_latent(client: Any, second: Any) -> None:
    found = client.get("/api/compare", a="second", b="small", threshold=0.7, by="decoder")
    side, back = found["sides"]
    kept = len(second.order) - 16
    assert (found["by"], found["caution"]) == (
        "decoder",
        None,
    )  # the same weights in another order: nothing is in place
    pairs = {
        latent: match
        for latent, match, kind in zip(side["latents"], side["matches"], side["kinds"], strict=True)
        if kind == "matched"
    }
    alive = set(side["latents"])
    assert pairs == {latent: second.order[latent] for latent in range(kept) if latent in alive}
    assert set(side["latents"]) - set(pairs) == {latent for latent in alive if latent >= kept}
    assert side["counts"] == {
        "matched": len(pairs),
        "split": 0,
        "merged": 0,
        "missing": len(alive) - len(pairs),
    }
    assert 255 not in alive  # it never fires
    assert side["similarities"] == sorted(side["similarities"], reverse=True)
    assert sum(side["histogram"]["counts"]) == len(alive)
    missing = {latent for latent, kind in zip(back["latents"], back["kinds"], strict=True) if kind == "missing"}
    assert missing <= set(second.order[kept:])


def test_correlation_of_activations_finds_the_same_pairs(client: Any, second: Any) -> None:
    found = client.get("/api/compare", a="second", b="small")
    side = found["sides"][0]
    assert side["too_rare"] + len(side["latents"]) == client.get("/api/d/second")["alive"]
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


@pytest.fixture(scope="module")
def same_seed(run_folder: Path, bundled: SubjectModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that began with the weights of the small run, on what another layer gives."""
    folder = tmp_path_factory.mktemp("same_seed") / "other"
    sae = ms.TopKSAE(256, 256, k=16, seed=0)
    source = ms.activations(bundled, "resid_post.0", "bundled", buffer_tokens=4096)
    ms.train(sae, source, tokens=8_000, config=ms.TrainingConfig(batch_size=512), path=folder, progress=False)
    ms.harvest(sae, folder / "features", bundled, text="bundled:held_out", tokens=4096, progress=False)
    return folder


def test_runs_that_began_with_the_same_weights_are_not_said_to_share_features(
    run_folder: Path, same_seed: Path, serve: Callable[..., Any], tmp_path: Path
) -> None:
    bare = Path(shutil.copytree(same_seed, tmp_path / "bare"))  # nothing but its weights tells of its beginning
    (bare / "identity.json").unlink()
    shutil.copyfile(run_folder / "run.yaml", same_seed / "run.yaml")
    with serve(run_folder, same_seed, bare) as client:
        decoder, found = (client.get("/api/compare", a="small", b="other", **by) for by in ({"by": "decoder"}, {}))
        in_place = {
            latent
            for pair in [decoder["sides"][0]]
            for latent, match in zip(pair["latents"], pair["matches"], strict=True)
            if latent == match
        }
        assert len(in_place) > 0.9 * len(decoder["sides"][0]["latents"])
        start = "Both began from the same weights (seed 0), and decoder matches"
        assert decoder["caution"].startswith(f"{start} measure that, whatever was learned (of ")
        assert decoder["caution"].endswith("): compare by activations.")
        assert found["by"] == "activations"
        assert found["sides"][0]["counts"]["matched"] < 0.5 * decoder["sides"][0]["counts"]["matched"]
        assert found["caution"].startswith(start)
        other, unlabelled = sorted(client.get("/api/d/small/f/4/matches"), key=lambda match: match["dictionary"])[::-1]
        assert other["caution"].startswith(start)
        assert unlabelled["caution"].startswith("Both seem to have begun from the same weights (of 256 decoder rows 25")


def test_activations_that_cannot_be_read_are_the_reason_for_decoder_rows(
    run_folder: Path, second: Any, serve: Callable[..., Any], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(second.folder, tmp_path / "other"))
    index = other / "features/index.json"
    index.write_text(
        index.read_text()
        .replace('"model":"bundled"', '"model":"elsewhere"')
        .replace('"model": "bundled"', '"model": "elsewhere"')
    )
    with serve(run_folder, other) as client:
        found = client.get("/api/compare", a="small", b="other")
        assert found["by"] == "decoder"
        assert "activations cannot be compared: small and other are of different models" in found["method"]
        refused = client.ask("/api/compare", a="small", b="other", by="activations")
        assert refused.status == 409


def test_kinds_of_matches_on_paper() -> None:
    # here: 0, 1 and 2; there: 0 is 0, both 1 and 2 are pieces of 1, 3 is nothing here; 2 is closest to 0 there
    fires = np.ones(4, bool)
    there = Best(np.array([0, 1, 0]), np.array([0.9, 0.8, 0.75], np.float32), fires[:3])
    back = Best(np.array([0, 1, 1, 2]), np.array([0.9, 0.8, 0.8, 0.1], np.float32), fires)
    assert kinds_of(there, back, 0.7, fires).tolist() == [0, 1, 2]
    assert kinds_of(there, back, 0.85, fires).tolist() == [0, 3, 3]
    assert kinds_of(there, back, 0.7, np.array([True, True, False, True])).tolist() == [0, 0, 2]


def test_correlations_are_numpy_s() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 4, generator=generator), torch.randn(50, 3, generator=generator)
    b[:, 1] = 2.0
    wanted = np.corrcoef(a.numpy().T, b.numpy()[:, [0, 2]].T)[:4, 4:]
    found = correlate(sparse.csr_matrix(a.numpy()), sparse.csr_matrix(b.numpy())).toarray()
    assert np.allclose(found[:, [0, 2]], wanted, atol=1e-5)
    assert (found[:, 1] == 0).all()


def test_a_latent_that_fires_once_has_no_match() -> None:
    a = np.zeros((50, 2))
    a[7, 0] = 1.0  # on once, together with one that is on once: they correlate fully
    a[:FEWEST, 1] = 2.0
    there, back = matched(sparse.csr_matrix(a), sparse.csr_matrix(a))
    assert there.measured.tolist() == back.measured.tolist() == [False, True]
    assert (int(there.matches[1]), there.similarities[1]) == (1, pytest.approx(1.0))
    assert there.similarities[0] == 0
