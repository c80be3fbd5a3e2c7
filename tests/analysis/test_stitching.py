"""Stitching: the ends are the two dictionaries, what lies between is exact, and planted kinds are told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import monosem as ms
from monosem.errors import ConfigError, MismatchError
from monosem.sae import SAE, convert

D, SMALL, LARGE = 24, 30, 70


def randomised(sae: SAE, seed: int) -> SAE:
    """With every bias non-zero and decoder rows of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        sae.b_enc.add_(0.1 * torch.randn(sae.b_enc.shape, generator=generator))
        sae.b_dec.add_(0.2 * torch.randn(sae.b_dec.shape, generator=generator))
        sae.W_dec.mul_(0.5 + torch.rand(sae.n_latents, 1, generator=generator))
    return sae


def pair(kind: type[SAE], **settings: Any) -> tuple[SAE, SAE, Tensor]:
    """Two dictionaries that have some directions in common, behind transforms of their own, and rows."""
    x = 2 * torch.randn(700, D, generator=torch.Generator().manual_seed(9)) + 0.5
    small, large = kind(D, SMALL, **settings, seed=1), kind(D, LARGE, **settings, seed=2)
    with torch.no_grad():
        large.W_dec[:12] = normalize(small.W_dec[:12] + 0.05 * large.W_dec[:12])
        large.W_dec[12:16] = normalize(small.W_dec[:4] - 0.05 * large.W_dec[12:16])
        large.W_enc[:16] = large.W_dec[:16]
    small.initialise(x[:400])
    large.initialise(x[300:])
    return randomised(small, 3), randomised(large, 4), x


KINDS: list[tuple[type[SAE], dict[str, Any]]] = [
    (ms.BatchTopKSAE, {"k": 5}),
    (ms.JumpReLUSAE, {"transform": "whiten"}),
    (ms.TopKSAE, {"k": 5, "transform": "none"}),
    (ms.ReLUSAE, {"subtract_b_dec": False}),
]


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_the_ends_are_the_two_dictionaries_bit_for_bit(kind: type[SAE], settings: dict[str, Any]) -> None:
    small, large, x = pair(kind, **settings)
    found = ms.stitch(small, large, x, progress=False)
    for order in ("steady", "published", "greedy"):
        path = found.path(order)
        first, last = found.at(path, 0), found.at(path, -1)
        for mixture, whole in ((first, small), (last, large)):
            assert torch.equal(mixture(x).reconstruction, whole(x).reconstruction)
            assert torch.equal(mixture(x).codes.to_dense(), whole.encode(x).to_dense())
        assert (path.n_small[0], path.n_large[0]) == (SMALL, 0)
        assert (path.n_small[-1], path.n_large[-1]) == (0, LARGE)
        come = [latent for move in path.moves for latent in move.large]
        assert sorted(come) == list(range(LARGE))
        assert sorted(latent for move in path.moves for latent in move.small) == list(range(SMALL))


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_error_and_l0_along_the_path_are_those_of_the_mixtures(kind: type[SAE], settings: dict[str, Any]) -> None:
    """One pass and a quadratic form, beside reconstructing every mixture."""
    small, large, x = pair(kind, **settings)
    found = ms.stitch(small, large, x, progress=False)
    variance = float((x - x.mean(0)).double().pow(2).sum(-1).mean())
    path = found.path("published")
    for point in (0, 1, 20, 40, len(path.moves) - 1, len(path.moves)):
        out = found.at(path, point)(x)
        mse = float((x - out.reconstruction).detach().double().pow(2).sum(-1).mean())
        assert path.mse[point] == pytest.approx(mse, rel=1e-5)
        assert path.fvu[point] == pytest.approx(mse / variance, rel=1e-5)
        assert path.l0[point] == pytest.approx(float(out.codes.l0().double().mean()))
        assert out.codes.n_latents == path.n_small[point] + path.n_large[point]


def test_insertions_are_what_a_loop_measures_and_signs_have_their_intervals() -> None:
    small, large, x = pair(ms.TopKSAE, k=5, transform="none")
    found = ms.stitch(small, large, x, progress=False)
    residual = (x - small(x).reconstruction).double().detach()
    codes = large.encode(x).to_dense().double().detach()
    for latent in range(LARGE):
        with_it = residual - codes[:, latent, None] * large.W_dec[latent].double().detach()
        change = with_it.pow(2).sum(-1) - residual.pow(2).sum(-1)
        half = 1.959964 * float(change.pow(2).sum().sqrt()) / len(x)
        assert found.insertions.change[latent] == pytest.approx(float(change.mean()), abs=1e-6)
        assert found.insertions.half[latent] == pytest.approx(half, rel=1e-4)
    signs = found.insertions.signs()
    assert {-1.0, 1.0} <= set(signs.tolist())


def test_a_latent_that_is_there_already_hurts_by_a_known_amount() -> None:
    """E[f^2] |D|^2 - 2 E[f <r, D>]: nearly all of a latent's own energy again where the residual has nothing of it."""
    small, _, x = pair(ms.ReLUSAE)
    both = type(small)(D, 2 * SMALL, seed=5)
    with torch.no_grad():
        for name, tensor in small.state_dict().items():
            own = both.state_dict()[name]
            own.copy_(torch.cat([tensor, tensor]) if own.shape != tensor.shape else tensor)
    found = ms.stitch(small, both, x, progress=False)
    codes, residual = small.encode(x).to_dense().double(), (x - small(x).reconstruction).double()
    rows = small.decoder_directions().double()
    known = (codes**2).mean(0) * (rows**2).sum(-1) - 2 * (codes * (residual @ rows.T)).mean(0)
    assert np.allclose(found.insertions.change, torch.cat([known, known]).detach(), atol=1e-5)
    assert set(found.kinds) == {"split"}


def test_planted_nested_dictionaries_classify_whole() -> None:
    """One for one, one for three, three for one, two for two, none: each of its kind, and families whole."""
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(64, 64, generator=generator))[0]

    def near(direction: Tensor, n: int) -> Tensor:
        return normalize(direction + 0.3 * normalize(torch.randn(n, 64, generator=generator)))

    small = [basis[:20], near(basis[20], 3), near(basis[21], 2), basis[40:44]]
    large = [basis[:10], *(near(basis[i], 3) for i in range(10, 20)), basis[20:21], near(basis[21], 2), basis[50:60]]
    kinds = ["similar"] * 10 + ["split"] * 30 + ["merged"] + ["tangled"] * 2 + ["novel"] * 10
    saes: list[SAE] = []
    for rows in (torch.cat(small), torch.cat(large)):
        sae = ms.TopKSAE(64, len(rows), k=4, transform="none")
        with torch.no_grad():
            sae.W_dec.copy_(rows * (0.5 + torch.rand(len(rows), 1, generator=generator)))
            sae.W_enc.copy_(rows)
        saes.append(sae)
    found = ms.stitch(saes[0], saes[1], torch.randn(200, 64, generator=generator), progress=False)
    assert found.kinds.tolist() == kinds
    assert sum(len(family.small) for family in found.families if family.kind == "lost") == 4
    assert found.grouped.by_chance == 0
    assert found.grouped.chance < 0.65
    split = next(family for family in found.families if family.small == (10,))
    assert split.large == (10, 11, 12)
    assert any(move.small == split.small and move.large == split.large for move in found.path("greedy").moves)
    assert "4 of the small one are near to none" in " ".join(str(found).split())


def test_a_steady_path_never_goes_back_and_greedy_goes_lowest() -> None:
    small, large, x = pair(ms.BatchTopKSAE, k=5)
    found = ms.stitch(small, large, x, progress=False)
    paths = {order: found.path(order) for order in ("steady", "published", "greedy")}
    for path in paths.values():
        points = path.monotone
        assert points[0] == 0
        assert points[-1] == len(path.moves)
        steps = np.diff(path.mse[points])
        assert (steps <= 0).all() if path.mse[-1] <= path.mse[0] else (steps >= 0).all()
    assert len(paths["steady"].monotone) > len(paths["greedy"].monotone)
    assert paths["greedy"].mse.min() <= paths["published"].mse.min() + 1e-9
    assert paths["greedy"].mse.min() < min(paths["greedy"].mse[0], paths["greedy"].mse[-1])
    kinds = [move.kind for move in paths["published"].moves]
    assert all(kind == "novel" for kind in kinds[: kinds.count("novel")])


@pytest.mark.parametrize(("kind", "settings"), [one for one in KINDS if one[0] is not ms.TopKSAE])
def test_a_mixture_is_one_sae_and_the_last_is_the_large_one(kind: type[SAE], settings: dict[str, Any]) -> None:
    small, large, x = pair(kind, **settings)
    found = ms.stitch(small, large, x, progress=False)
    path = found.path()
    for point in (0, 25, 60, len(path.moves)):
        mixture = found.at(path, point)
        one = mixture.to_sae()
        assert torch.allclose(one(x).reconstruction, mixture(x).reconstruction, atol=2e-3)
        assert one.n_latents == mixture.n_latents
    same = large if large.architecture == "jumprelu" else convert(large, "jumprelu")
    assert torch.equal(one(x).reconstruction, same(x).reconstruction)
    assert torch.equal(one(x).reconstruction, large(x).reconstruction)


def test_what_is_wrong_is_one_clear_line() -> None:
    small, large, x = pair(ms.TopKSAE, k=5)
    with pytest.raises(MismatchError, match="width 16 and 24"):
        ms.stitch(ms.TopKSAE(16, 8, k=2), large, x)
    with pytest.raises(MismatchError, match="the activations have 10"):
        ms.stitch(small, large, x[:, :10])
    small.metadata = small.metadata.model_copy(update={"hook": "resid_post.1"})
    large.metadata = large.metadata.model_copy(update={"hook": "resid_post.2"})
    with pytest.raises(MismatchError, match=r"different hook points, resid_post\.1 and resid_post\.2"):
        ms.stitch(small, large, x)
    large.metadata = small.metadata
    with pytest.raises(ConfigError, match="threshold is a cosine"):
        ms.stitch(small, large, x, threshold=1.5)
    with pytest.raises(ConfigError, match="units of each row's own"):
        ms.stitch(small, ms.TopKSAE(D, 40, k=5, transform="layer_norm"), x)
    found = ms.stitch(small, large, x, progress=False)
    with pytest.raises(ConfigError, match="order must be one of 'steady'"):
        found.path("quickest")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not on by themselves"):
        found.at(found.path(), 3).to_sae()
    with pytest.raises(ConfigError, match="the path has"):
        found.at(found.path(), 10_000)
