"""Features of attention by head and token, and by what has been written there: all parts add up, in every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from family_models import FAMILY_MODELS, family_module
from torch import Tensor, nn

import monosem as ms
from monosem.circuits import direct_attribution, head_shares
from monosem.errors import ConfigError
from monosem.models import SubjectModel
from monosem.sae import SAE, SkipTranscoder, TopKSAE

WIDE = torch.float64
FAMILIES = ["gpt2", "gpt_neox", "llama with biases", "qwen3", "gemma2", "phi", "phi3"]


def subject(name: str) -> tuple[SubjectModel, Tensor]:
    return SubjectModel(family_module(name), None, name), FAMILY_MODELS[name].inputs(1, seed=3)


def dictionary(model: SubjectModel, tokens: Tensor, read: str, write: str | None = None) -> SAE:
    hooks = [read, write] if write else [read]
    x = {hook: v.flatten(0, 1) for hook, v in model.capture(tokens, hooks).items()}
    made = (SkipTranscoder if write else TopKSAE)(x[read].shape[1], 24, k=4, dtype=WIDE, seed=len(read))
    made.initialise(x[read], x[write] if write else None)
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=WIDE))
    made.metadata.hook, made.metadata.target_hook = read, write
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_and_tokens_add_up_to_the_pre_activation(name: str) -> None:
    model, tokens = subject(name)
    sae = dictionary(model, tokens, "attn_z.1")
    z = model.capture(tokens, ["attn_z.1"])["attn_z.1"][0]
    for latent in (0, 7):
        found = direct_attribution(model, sae, tokens, latent)
        pre = (sae.centred(sae.transform(z)) @ sae.W_enc.T + sae.b_enc)[:, latent]
        assert found.parts.shape == (9, 4, 9)
        torch.testing.assert_close(found.pre_activations, pre.detach(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.by_source.sum(1) + found.constant, pre.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.by_head.sum(1), found.by_source.sum(1))
        assert (found.parts.triu(0).transpose(1, 2) == 0).sum() > 0
        for query in range(9):
            assert (found.parts[query, :, query + 1 :] == 0).all(), "nothing comes from later tokens"


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_a_part_is_what_goes_when_a_head_does_not_look_at_that_token(name: str) -> None:
    model, tokens = subject(name)
    sae = dictionary(model, tokens, "attn_z.1")
    found = direct_attribution(model, sae, tokens, 5)
    reader = sae.encoder_directions([5])[0]

    def blind(pattern: Tensor, _: Any) -> Tensor:
        pattern = pattern.clone()
        pattern[0, 2, 6, 3] = 0
        return pattern

    with model.edit({"attn_pattern.1": blind}):
        moved = model.capture(tokens, ["attn_z.1"])["attn_z.1"][0] @ reader
    lost = model.capture(tokens, ["attn_z.1"])["attn_z.1"][0] @ reader - moved
    assert abs(lost[6] - found.parts[6, 2, 3]) < 1e-9
    assert abs(lost[6]) > 1e-4
    assert lost[:6].abs().max() < 1e-12


# What has been written there ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_what_has_written_there_adds_up_to_what_heads_bring_with_and_without_dictionaries(name: str) -> None:
    model, tokens = subject(name)
    sae = dictionary(model, tokens, "attn_z.1")
    found = direct_attribution(model, sae, tokens, 3, position=7)
    brought = found.parts[7]
    near = 1e-9 if name in ("gpt2", "gpt_neox", "phi") else 1e-6  # an RMS norm is worked out in float32
    given: list[list[SAE]] = [
        [],
        [dictionary(model, tokens, "attn_z.0")],
        [dictionary(model, tokens, "attn_z.0"), dictionary(model, tokens, "mlp_in.0", "mlp_out.0")],
        [dictionary(model, tokens, "attn_out.0"), dictionary(model, tokens, "mlp_out.0")],
    ]
    for dictionaries in given:
        parts = found.sources(dictionaries)
        assert abs(parts.total - float(brought.sum())) < near
        table = torch.zeros_like(brought).index_put((parts.heads, parts.tokens), parts.values, accumulate=True)
        torch.testing.assert_close(table, brought, rtol=near, atol=near)
        assert abs(sum(parts.by_place().values()) - parts.total) < 1e-9
        assert bool((parts.latents >= 0).any()) == bool(dictionaries)


def test_a_feature_s_part_is_what_goes_when_it_alone_is_taken_from_what_the_head_reads() -> None:
    """By hand, in a GPT-2: norm of a stream without it, at the norm's own scale, through values of one head."""
    model, tokens = subject("gpt2")
    sae, earlier = dictionary(model, tokens, "attn_z.1"), dictionary(model, tokens, "attn_z.0")
    found = direct_attribution(model, sae, tokens, 3, position=7)
    one = next(s for s in found.sources([earlier]).top(100) if s.latent >= 0)
    blocks: Any = model.module.get_submodule("transformer.h")
    before, block = blocks[0], blocks[1]
    code = earlier.encode(model.capture(tokens, ["attn_z.0"])["attn_z.0"][0]).to_dense()[one.token, one.latent]
    added = code * earlier.decoder_directions([one.latent])[0] @ before.attn.c_proj.weight
    x = model.capture(tokens, ["resid_pre.1"])["resid_pre.1"][0, one.token]
    scale = (x.var(unbiased=False) + block.ln_1.eps).sqrt()
    read = (added - added.mean()) / scale * block.ln_1.weight
    value = (read @ block.attn.c_attn.weight[:, 32:]).unflatten(0, (4, 4))[one.head]
    reader = sae.encoder_directions([3])[0].unflatten(0, (4, 4))[one.head]
    weight = model.capture(tokens, ["attn_pattern.1"])["attn_pattern.1"][0, one.head, 7, one.token]
    assert abs(float((weight * value @ reader).detach()) - one.value) < 1e-9
    assert one.name == f"attn_z.0 {one.latent}"
    after = found.follow(one, [earlier])
    assert (after.hook, after.latent, after.position) == ("attn_z.0", one.latent, one.token)
    assert abs(after.activations[one.token] - code) < 1e-12
    rest = after.sources()
    assert abs(rest.total + after.constant - float(after.pre_activations[one.token])) < 1e-9
    assert set(rest.by_place()) == {"embed", "bias"}, "before the first attention there is nothing else"


# By weights, and what is printed --------------------------------------------------------------------------------------


def test_shares_of_heads_by_weights_add_up_to_one_and_find_a_feature_of_one_head() -> None:
    sae = TopKSAE(16, 5, k=2, transform="none", dtype=WIDE)
    with torch.no_grad():
        sae.W_dec[2] = 0
        sae.W_dec[2, 8:12] = 1
    for side in ("decoder", "encoder"):
        torch.testing.assert_close(head_shares(sae, 4, side).sum(1), torch.ones(5, dtype=WIDE))
    assert head_shares(sae, 4)[2].tolist() == [0, 0, 1, 0]
    assert head_shares(sae, 4, latents=[2]).shape == (1, 4)
    with pytest.raises(ConfigError, match="16 must be that of 3 heads"):
        head_shares(sae, 3)


def test_words_name_tokens_and_the_beginning_keeps_its_place(
    make_gpt2: Callable[..., nn.Module], tokenizer: Any
) -> None:
    """Sources count from the beginning-of-sequence token, at 0, as the tokens do."""
    model = SubjectModel(make_gpt2(dtype=WIDE), tokenizer, "wide")
    text = "The king went home"
    sae = dictionary(model, model.tokens(text), "attn_z.2")
    found = ms.direct_attribution(model, sae, text, 4)
    on = found.activations if bool(found.activations.any()) else found.pre_activations
    assert found.position == int(on.argmax())
    assert [found.word(i) for i in range(5)] == ["<|endoftext|>", "The", " king", " went", " home"]
    head, source, value = found.top(k=1)[0]
    assert abs(value) == found.parts[found.position].abs().max()
    assert f"head {head} from token {source} {found.word(source)!r}" in str(found)


def test_questions_that_have_no_answer() -> None:
    model, tokens = subject("gpt2")
    sae, other = dictionary(model, tokens, "attn_z.1"), dictionary(model, tokens, "resid_post.0")
    scaled = TopKSAE(16, 24, k=4, transform="layer_norm", dtype=WIDE)
    scaled.metadata.hook = "attn_z.1"
    cases: list[tuple[SAE, Any, int, dict[str, Any], str]] = [
        (other, tokens, 0, {}, "reads the heads side by side"),
        (scaled, tokens, 0, {}, "another map for every row"),
        (sae, tokens, 24, {}, "latents 0 to 23"),
        (sae, tokens.repeat(2, 1), 0, {}, "of one text, got 2"),
        (sae, tokens, 0, {"position": 9}, "position 9 is outside"),
    ]
    for given, inputs, latent, options, words in cases:
        with pytest.raises(ms.MonosemError, match=words):
            direct_attribution(model, given, inputs, latent, **options)
    found = direct_attribution(model, sae, tokens, 0)
    with pytest.raises(ConfigError, match="nothing that layers before 1 have added"):
        found.sources([other])
    with pytest.raises(ConfigError, match="is no feature of an attention SAE"):
        found.follow(found.sources()[0], [dictionary(model, tokens, "attn_z.0")])
