"""Shares of variance by position and token: as plain loops have them, exact where planted, even under the null."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import nn

import monosem as ms
from monosem.activations.inputs import open_text
from monosem.analysis.position_shares import PositionSums, beyond_chance, corrected, p_values
from monosem.analysis.positions import of_token_and_position
from monosem.codes import SparseCodes
from monosem.errors import ConfigError, DataError, HookError
from monosem.models import SubjectModel
from monosem.sae import SAE

WORDS = ["the", "king", "of", "France", "was", "bald", "and", "sat", "on", "a", "chair", "by", "night"]
TEXT = [" ".join(WORDS[(i * j + j + i) % len(WORDS)] for j in range(60)) for i in range(30)]
EASY: dict[str, Any] = {"text": TEXT, "turns": 10, "progress": False}


@pytest.fixture
def planted(tiny_module: nn.Module, tokenizer: Any) -> tuple[SubjectModel, SAE]:
    """Tokens write 16 dimensions, positions others; half of the latents read each, and one reads both.

    Codes are what latent i of a TopK with k of all latents reads: the positive part of dimension i.
    """
    module = copy.deepcopy(tiny_module).double()
    with torch.no_grad():
        module.transformer.wte.weight[:, 16:] = 0  # type: ignore[union-attr]
        module.transformer.wpe.weight[:, :16] = 0  # type: ignore[union-attr]
    sae = ms.TopKSAE(32, 33, k=33, transform="none", subtract_b_dec=False, dtype=torch.float64)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(33, 32))
        sae.W_enc[32, [0, 16]] = 1
        sae.W_dec.copy_(torch.eye(33, 32) + 1e-9)
        sae.b_enc.zero_()
        sae.b_enc[32] = 1.0
    sae.metadata.hook, sae.metadata.context_length, sae.metadata.prepend_bos = "resid_pre.0", 32, True
    return SubjectModel(module, tokenizer, "planted"), sae


def test_where_they_add_up_planted_latents_are_told_apart(planted: tuple[SubjectModel, SAE]) -> None:
    model, sae = planted
    found = ms.positional(sae, model, **EASY)
    assert found.exact
    assert found.coverage == 1
    fires = np.isfinite(found.position)
    tokens, positions = fires[:16], fires[16:32]
    assert tokens.sum() > 8
    assert positions.sum() > 8
    np.testing.assert_allclose(found.token[:16][tokens], 1, atol=1e-5)
    np.testing.assert_allclose(found.position[:16][tokens], 0, atol=1e-5)
    np.testing.assert_allclose(found.position[16:32][positions], 1, atol=1e-5)
    assert set(found.latents("positional")) == set(16 + np.flatnonzero(positions))
    assert set(found.latents("semantic")) == set(np.flatnonzero(tokens))
    assert list(found.latents("mixed")) == [32]
    assert "positional" in str(found)


def test_exact_shares_are_those_of_a_plain_loop(planted: tuple[SubjectModel, SAE]) -> None:
    """By hand: every token of the text at every position, weighed by its frequency; the parts add up to 1."""
    model, sae = planted
    found = ms.positional(sae, model, **EASY)
    contexts, _ = open_text(model, TEXT, context_length=32, prepend_bos=True)
    batch = contexts.read(0, 10_000)
    read = batch.document >= 0
    ids, counts = batch.tokens[read].unique(return_counts=True)
    weights = (counts / counts.sum()).double().numpy()
    places = torch.nonzero(read.any(0)).flatten()
    wte, wpe = (model.module.get_parameter(f"transformer.{n}.weight").detach() for n in ("wte", "wpe"))
    for latent in (3, 20, 32):
        cells = np.zeros((len(ids), len(places)))
        for i, token in enumerate(ids):
            for j, place in enumerate(places):
                pre = (wte[token] + wpe[place]) @ sae.W_enc.detach()[latent] + sae.b_enc.detach()[latent]
                cells[i, j] = max(0.0, pre.item())
        mean = (weights[:, None] * cells).sum() / len(places)
        variance = (weights[:, None] * (cells - mean) ** 2).sum() / len(places)
        by_place = (((weights[:, None] * cells).sum(0) - mean) ** 2).mean() / variance
        by_token = (weights * (cells.mean(1) - mean) ** 2).sum() / variance
        both = cells - cells.mean(1)[:, None] - (weights[:, None] * cells).sum(0)[None] + mean
        rest = (weights[:, None] * both**2).sum() / len(places) / variance
        assert found.position[latent] == pytest.approx(by_place, abs=1e-5)
        assert found.token[latent] == pytest.approx(by_token, abs=1e-5)
        assert by_place + by_token + rest == pytest.approx(1)
        profile = (weights[:, None] * cells).sum(0)
        np.testing.assert_allclose(found.profiles[places.numpy(), latent], profile, atol=1e-5)


def test_fewer_rows_take_the_most_frequent_tokens_and_say_so(planted: tuple[SubjectModel, SAE]) -> None:
    model, sae = planted
    found = ms.positional(sae, model, most_rows=200, **EASY)
    assert found.n_rows <= 200
    assert 0.1 < found.coverage < 1


def random_sums(latents: int, together: float, seed: int = 0) -> PositionSums:
    """Codes that know nothing of their position; neighbours in a context are alike if `together` is above 0."""
    generator = torch.Generator().manual_seed(seed)
    sums, contexts, length = PositionSums(16, latents), 96, 16
    noise = torch.randn(contexts, length, latents, generator=generator)
    x = noise.clone()
    for place in range(1, length):
        x[:, place] = together * x[:, place - 1] + (1 - together**2) ** 0.5 * noise[:, place]
    rows = x.flatten(0, 1).relu()
    context, place = (
        each.flatten() for each in torch.meshgrid(torch.arange(contexts), torch.arange(length), indexing="ij")
    )
    tokens = torch.randint(0, 30, (len(rows),), generator=generator)
    sums.add(SparseCodes.from_dense(rows), context, place, tokens, torch.ones(len(rows)))
    return sums


@pytest.mark.parametrize("together", [0.0, 0.8])
def test_under_the_null_p_values_are_even(together: float) -> None:
    """Also where neighbours are alike, which would fool a null that shuffles rows."""
    sums = random_sums(400, together)
    p = p_values(sums.position_share(), sums.null(100, 0))
    assert kstest(p, "uniform").pvalue > 0.01
    assert (corrected(p) < 0.05).mean() < 0.02
    share, even = sums.position_share(), random_sums(400, 0.0, seed=1).position_share()
    if together:  # spread as no shuffling of rows would have it
        assert float(share.std() / share.mean()) > 1.3 * float(even.std() / even.mean())


def test_by_chance_shares_are_zero() -> None:
    sums = random_sums(400, 0.0)
    position = beyond_chance(sums.position_share(), 16, sums.rows)
    token = beyond_chance(sums.token_share(), 30, sums.rows)
    for share in (position, token):
        assert abs(float(share.mean())) < 4 * float(share.std()) / 400**0.5
        assert float(share.abs().max()) < 0.05


def test_turned_all_together_nothing_changes() -> None:
    sums = random_sums(20, 0.5)
    together = torch.full((sums.groups,), 5)
    torch.testing.assert_close(sums.position_share(together), sums.position_share(), rtol=1e-5, atol=1e-6)


def test_in_how_many_pieces_rows_come_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 8, generator=generator).relu()
    context, place = torch.arange(60) // 6, torch.arange(60) % 6
    tokens, weights = torch.randint(0, 5, (60,), generator=generator), torch.rand(60, generator=generator)
    one, many = PositionSums(6, 8), PositionSums(6, 8)
    one.add(SparseCodes.from_dense(rows), context, place, tokens, weights)
    for part in torch.arange(60).split(7):
        many.add(SparseCodes.from_dense(rows[part]), context[part], place[part], tokens[part], weights[part])
    torch.testing.assert_close(many.position_share(), one.position_share(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(many.token_share(), one.token_share())


def test_only_before_attention_is_it_token_and_position_alone(tiny: SubjectModel) -> None:
    contexts, _ = open_text(tiny, TEXT, context_length=16)
    for hook, alone in (("embed", True), ("resid_pre.0", True), ("attn_v.0", True), ("resid_mid.0", False)):
        assert of_token_and_position(tiny, hook, contexts) == alone


def test_after_attention_it_is_of_text_with_the_error_by_position(planted: tuple[SubjectModel, SAE]) -> None:
    """The dictionary lacks a vector that is bound to the position: all of its error could be mended by position."""
    model, _ = planted
    sae = ms.TopKSAE(32, 64, k=64, transform="none", subtract_b_dec=False, dtype=torch.float64)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(32), -torch.eye(32)]))
        sae.W_dec.copy_(sae.W_enc)
        sae.b_enc.zero_()
        sae.W_dec[16:20] = 0  # these dimensions are of positions
        sae.W_dec[48:52] = 0
    sae.metadata.hook, sae.metadata.context_length, sae.metadata.prepend_bos = "embed", 16, True
    found = ms.positional(sae, model, exact=False, context_length=32, tokens=800, **EASY)
    assert not found.exact
    assert found.error is not None
    assert found.error.trained_to == 16
    assert found.error.by_position.min() > 0.999
    assert "past its training context of 16" in str(found) or "past" in str(found)
    assert set(found.latents("positional")) >= {20, 21}


def test_what_cannot_be_done_is_one_clear_line(planted: tuple[SubjectModel, SAE]) -> None:
    model, sae = planted
    unknown = ms.TopKSAE(32, 40, k=4)
    with pytest.raises(ConfigError, match="dictionary of one hook point"):
        ms.positional(unknown, model)
    with pytest.raises(ConfigError, match="depends on other tokens"):
        ms.positional(unknown, model, "resid_post.1", exact=True, **EASY)
    with pytest.raises(DataError, match="too few for 64 positions"):
        ms.positional(unknown, model, "resid_post.1", tokens=5, **{**EASY, "text": TEXT[:1]})
    with pytest.raises(ConfigError, match="turns"):
        ms.positional(sae, model, **{**EASY, "turns": 1})
    with pytest.raises(HookError):
        ms.positional(sae, model, "resid_post.9", **EASY)
    found = ms.positional(sae, model, **EASY)
    with pytest.raises(ConfigError, match="positional, semantic, mixed"):
        found.latents("other")


def test_false_discoveries_are_corrected_as_by_hand() -> None:
    p = np.array([0.01, 0.5, 0.02, 0.04])
    np.testing.assert_allclose(corrected(p), [0.04, 0.5, 0.04, 0.04 * 4 / 3])


def test_a_dictionary_of_rotary_positions_has_none(tokenizer: Any) -> None:
    """Where positions are not added to the stream, no latent before attention knows them."""
    from family_models import FAMILY_MODELS

    model = SubjectModel(FAMILY_MODELS["llama"].build(vocab_size=4096), tokenizer, "llama")
    sae = ms.TopKSAE(16, 40, k=8)
    found = ms.positional(sae, model, "resid_pre.0", context_length=16, **EASY)
    assert found.exact
    assert np.nanmax(np.abs(found.position)) < 1e-6
    assert len(found.latents("positional")) == 0
