"""Why a head looks where it looks: pairs of features add up to the score, in every causal family."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from family_models import FAMILY_MODELS, family_module
from torch import Tensor, nn

import monosem as ms
from monosem.circuits.heads.looks import Look, look
from monosem.errors import ConfigError, DataError
from monosem.models import SubjectModel
from monosem.models.attention import scale_of

CAUSAL = [name for name, spec in FAMILY_MODELS.items() if spec.causal]


LAYER_NORMS = ("gpt2", "gpt_neox", "phi", "gptj", "gpt_neo", "bloom", "opt")


def random_sae(d: int, hook: str, seed: int = 0) -> ms.SAE:
    """With every bias and a centre that is not zero."""
    sae = ms.TopKSAE(d, 48, k=6, seed=seed, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (sae.b_enc, sae.b_dec):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    sae.metadata.hook = hook
    return sae


@pytest.fixture(scope="module", params=CAUSAL)
def found(request: pytest.FixtureRequest) -> tuple[str, SubjectModel, Look]:
    model = SubjectModel(family_module(request.param))
    tokens = FAMILY_MODELS[request.param].inputs(batch=1)
    return request.param, model, look(model, random_sae(model.d_model, "resid_pre.1"), tokens, 1, 2, 7, 5)


def test_pairs_add_up_to_the_score(found: tuple[str, SubjectModel, Look]) -> None:
    """And that is the model's own: of its queries and keys, from which its pattern follows."""
    name, model, split = found
    spec = FAMILY_MODELS[name]
    x = model.capture(spec.inputs(batch=1), ["attn_q.1", "attn_k.1", "attn_pattern.1"])
    q = x["attn_q.1"][0, 7].unflatten(-1, (spec.n_heads, -1))[2]
    keys = x["attn_k.1"][0].unflatten(-1, (-1, spec.head_width))
    keys = keys.repeat_interleave(spec.n_heads // keys.shape[1], dim=1)[:, 2]
    scores = keys @ q * scale_of(model.module.get_submodule(model.hook_point("attn_q.1").path))
    precise = 1e-10 if spec.family in LAYER_NORMS else 1e-4  # RMS norms count in float32
    assert split.score == pytest.approx(float(scores[5]), abs=1e-10)
    assert float(split.pairs.sum()) == pytest.approx(split.score, abs=precise)
    mean = float((x["attn_pattern.1"][0, 2, 7] * scores)[:8].sum())
    assert float(split.against.sum()) == pytest.approx(split.score - mean, abs=precise)
    assert split.attention == pytest.approx(float(x["attn_pattern.1"][0, 2, 7, 5]))
    assert len(split.queries) == split.pairs.shape[0] == 6 + 3
    assert [part.kind for part in split.keys[-3:]] == ["dictionary", "error", "model"]


def test_each_part_is_what_the_score_loses_without_it(found: tuple[str, SubjectModel, Look]) -> None:
    """The partition alone could not catch what is left out everywhere: here each query part's row is found by a
    difference. The part is taken out of the stream, and the norms' scales are put back as they were.
    """
    name, model, split = found
    spec = FAMILY_MODELS[name]
    if spec.family not in ("gpt2", "gpt_neox", "llama", "mistral", "qwen2"):
        pytest.skip("the norm is undone by hand for norms of these families")
    block = model.module.get_submodule(model.hook_point("resid_post.1").path)
    norm: nn.Module = getattr(block, "ln_1", None) or block.input_layernorm
    tokens = spec.inputs(batch=1)
    x = model.capture(tokens, ["resid_pre.1"])["resid_pre.1"][0, 7]
    centred = hasattr(norm, "bias")
    epsilon = getattr(norm, "eps", None) or norm.variance_epsilon
    scale = ((x - x.mean() if centred else x).pow(2).mean() + epsilon).sqrt()
    for i in range(2):
        part = split.queries[i]
        direction = part.activation * split.sae.decoder_directions([part.latent])[0].double()
        out = (direction - direction.mean() if centred else direction) * norm.weight / scale

        def without(_module: nn.Module, _args: object, output: Tensor, out: Tensor = out) -> Tensor:
            output = output.clone()
            output[0, 7] -= out
            return output

        handle = norm.register_forward_hook(without)
        moved = model.capture(tokens, ["attn_q.1", "attn_k.1"])
        handle.remove()
        q = moved["attn_q.1"][0, 7].unflatten(-1, (spec.n_heads, -1))[2]
        keys = moved["attn_k.1"][0].unflatten(-1, (-1, spec.head_width))
        key = keys.repeat_interleave(spec.n_heads // keys.shape[1], dim=1)[5, 2]
        lost = split.score - float(q @ key) * scale_of(model.module.get_submodule(model.hook_point("attn_q.1").path))
        assert lost == pytest.approx(float(split.pairs[i].sum()), abs=1e-6)


def test_where_the_head_looks_most_is_taken_and_said(bundled: SubjectModel) -> None:
    sae = ms.TopKSAE(bundled.d_model, 64, k=4)
    sae.metadata.hook = "resid_post.2"
    text = "The cat sat on the mat. The cat"
    split = look(bundled, sae, text, 3, 3, -1)
    pattern = bundled.capture(text, ["attn_pattern.3"])["attn_pattern.3"][0, 3, -1]
    assert split.key == int(pattern[1:].argmax()) + 1
    assert "head 3.3 at token" in str(split)
    assert "looks for" in str(split)
    first = look(bundled, sae, text, 3, 3, 4, 0)  # the first position is not read by a dictionary: all is error
    assert [part.kind for part in first.keys] == ["error", "model"]
    assert float(first.pairs.sum()) == pytest.approx(first.score, rel=1e-4)


def test_what_does_not_fit_is_refused(bundled: SubjectModel, make_gpt2: Callable[..., nn.Module]) -> None:
    sae = ms.TopKSAE(bundled.d_model, 64, k=4)
    sae.metadata.hook = "resid_post.1"
    with pytest.raises(ConfigError, match=r"reads is resid_pre\.3: the SAE is of resid_post\.1"):
        look(bundled, sae, "A text", 3, 0, -1)
    sae.metadata.hook = "resid_pre.3"
    with pytest.raises(ConfigError, match="heads 0 to 3"):
        look(bundled, sae, "A text", 3, 9, -1)
    for query, key in ((99, None), (1, 2), (2, 99)):
        with pytest.raises(DataError, match="positions 0 to"):
            look(bundled, sae, "A text of some words", 3, 0, query, key)


def test_a_head_s_features_by_weights_are_those_of_whole_matrices(bundled: SubjectModel) -> None:
    """Planted: a latent that the head reads (a row of its matrix), one that it writes (a column), both found first."""
    from monosem.circuits.heads.features import head_features, written_features
    from monosem.circuits.heads.weights import head_weights

    weights = head_weights(bundled, 3)
    d = weights.W_K.shape[1]
    sae = ms.TopKSAE(bundled.d_model, 64, k=4, transform="none")
    with torch.no_grad():
        sae.W_dec[7] = weights.W_K[1].T.cpu() @ torch.randn(d, generator=torch.Generator().manual_seed(0))
        sae.W_enc[9] = torch.linalg.svd(weights.W_O[1]).U[:, 0]
    sae.metadata.hook = "resid_post.2"
    found = head_features(bundled, sae, 3, 1)
    assert found.keys[0][0] == 7
    assert found.writes == []
    direction, matrix = sae.decoder_directions([7])[0].to(bundled.device), weights.W_K[1]
    assert found.keys[0][1] == pytest.approx(float((matrix @ direction).norm() / matrix.norm() / direction.norm()))
    assert found.keys[0][1] > 1.5 * found.chance
    sae.metadata.hook = "resid_post.3"
    behind = head_features(bundled, sae, 3, 1)
    assert behind.writes[0][0] == 9
    assert behind.queries == behind.keys == behind.values == []
    text = "The cat sat on the mat. The cat"
    effects = dict(written_features(bundled, sae, text, 3, 1, -1, n=64))
    with bundled.edit({"attn_z.3": lambda z, _: torch.cat([z[..., :d], 0 * z[..., d : 2 * d], z[..., 2 * d :]], -1)}):
        without = bundled.capture(text, ["attn_out.3"])["attn_out.3"]
    lost = bundled.capture(text, ["attn_out.3"])["attn_out.3"][0, -1] - without[0, -1]
    for latent in (9, 30):
        expected = float(sae.encoder_directions([latent])[0].to(lost) @ lost)
        assert effects[latent] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    sae.metadata.hook = "attn_z.3"
    with pytest.raises(ConfigError, match="residual stream"):
        head_features(bundled, sae, 3, 1)
