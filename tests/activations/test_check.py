"""check: silent when SAE and model belong together, in words when they do not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from family_models import FAMILY_MODELS, family_module
from torch import nn

import monosem as ms
from monosem.activations.check import same_place
from monosem.errors import MismatchError
from monosem.models import SubjectModel
from monosem.sae import SAE, SAEMetadata

HOOK = "resid_post.1"
TEXTS = [
    f"The {word} of the old town was never seen again after that winter." for word in ("bell", "king", "fire", "boat")
]


@pytest.fixture(scope="module")
def model(tiny_module: nn.Module, tokenizer: Any) -> SubjectModel:
    return SubjectModel(copy.deepcopy(tiny_module), tokenizer, "tiny")


@pytest.fixture(scope="module")
def sae(model: SubjectModel) -> SAE:
    source = ms.activations(model, HOOK, TEXTS, context_length=32, buffer_tokens=512)
    config = ms.TrainingConfig(batch_size=64)
    made = ms.TopKSAE(32, 64, k=8, seed=1)
    return ms.train(made, source, tokens=4000, config=config, progress=False).sae


@pytest.fixture
def other(model: SubjectModel, tokenizer: Any) -> SubjectModel:
    """A copy of the model, to be changed."""
    return SubjectModel(copy.deepcopy(model.module), tokenizer, "other")


def test_it_is_silent_for_the_right_model(sae: SAE, model: SubjectModel, other: SubjectModel) -> None:
    for right in (model, other):
        result = ms.check(sae, right)
        assert result
        assert result.problems == result.notes == []
        assert str(result) == "SAE and model fit"
        result.raise_if_bad()


def test_it_is_silent_for_the_hook_by_another_of_its_names(sae: SAE, model: SubjectModel) -> None:
    assert str(ms.check(sae, model, "blocks.1.hook_resid_post")) == "SAE and model fit"


def test_the_check_survives_saving(sae: SAE, model: SubjectModel, tmp_path: Any) -> None:
    sae.save(tmp_path / "sae")
    assert str(ms.check(ms.load_sae(tmp_path / "sae"), model)) == "SAE and model fit"


def test_a_wrong_hook_is_named(sae: SAE, model: SubjectModel) -> None:
    result = ms.check(sae, model, "resid_post.0")
    assert not result
    assert "trained at resid_post.1, not at resid_post.0" in str(result)
    assert "mean norm" in str(result)
    with pytest.raises(MismatchError, match="not at resid_post"):
        result.raise_if_bad()


@pytest.mark.parametrize(
    "place", ["resid_pre.2", "blocks.2.hook_resid_pre", "transformer.h.1", "transformer.h.2:input"]
)
def test_one_place_by_another_name_is_the_same_place(sae: SAE, model: SubjectModel, place: str) -> None:
    assert str(ms.check(sae, model, place)) == "SAE and model fit"


@pytest.mark.parametrize("family", [name for name, spec in FAMILY_MODELS.items() if name != "dinov2 gated"])
def test_places_of_a_family_are_the_same_where_nothing_lies_between(family: str) -> None:
    model = SubjectModel(family_module(family))
    assert same_place(model, "resid_pre.1", "resid_post.0")
    assert not same_place(model, "resid_pre.1", "resid_post.1")
    assert not same_place(model, "attn_out.0", "mlp_out.0")
    assert same_place(model, "resid_pre.0", "embed")
    spec = FAMILY_MODELS[family]
    norms_behind = spec.order == "post-norm" or spec.mlp_norm is None
    assert same_place(model, "resid_mid.1", "mlp_in.1") == norms_behind
    assert not same_place(model, "resid_pre.1", "resid_post.7")


def test_another_beginning_of_contexts_is_named(sae: SAE, other: SubjectModel, tokenizer: Any) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.bos_token = tokenizer.convert_ids_to_tokens(40)
    result = ms.check(sae, SubjectModel(other.module, changed, "other"))
    assert "begin with token 0, the tokenizer of other begins them with 40" in str(result)
    assert not result.fatal
    changed.bos_token = None
    assert "the tokenizer of other has none" in str(ms.check(sae, SubjectModel(other.module, changed, "other")))


def test_wherever_an_sae_joins_a_model_it_is_said_in_words_what_does_not_fit(
    sae: SAE, model: SubjectModel, make_gpt2: Callable[..., nn.Module], tokenizer: Any, tmp_path: Any
) -> None:
    narrow = SubjectModel(make_gpt2(width=16), tokenizer, "narrow")
    changed = copy.deepcopy(tokenizer)
    changed.add_tokens(["whereupon"])
    another = SubjectModel(model.module, changed, "another")
    options: dict[str, Any] = {"text": TEXTS, "tokens": 60, "progress": False}

    def spliced(sae: SAE, model: SubjectModel, hook: str, **_: Any) -> None:
        with model.edit([ms.Splice(sae, hook)]):
            model(TEXTS[0])

    def harvested(sae: SAE, model: SubjectModel, hook: str, **options: Any) -> None:
        ms.harvest(sae, tmp_path / "store", model, hook, **options)

    for use in (ms.evaluate, harvested, spliced):
        use(sae, model, "resid_pre.2", **options)
        with pytest.warns(UserWarning, match=r"trained at resid_post\.1, not at resid_post\.0; .* mean norm"):
            use(sae, model, "resid_post.0", **options)
        with pytest.raises(MismatchError, match=r"reads width 32, resid_post\.1 of narrow has width 16"):
            use(sae, narrow, "resid_post.1", **options)
        with pytest.raises(MismatchError, match="another vocabulary"):
            use(sae, another, "resid_post.1", **options)


def test_a_hook_that_does_not_exist_is_named(sae: SAE, model: SubjectModel) -> None:
    assert "no hook point 'resid_post.9'" in str(ms.check(sae, model, "resid_post.9"))


def test_other_weights_are_named(sae: SAE, other: SubjectModel) -> None:
    with torch.no_grad():
        for parameter in other.module.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    result = ms.check(sae, other)
    assert not result
    assert "the weights of other are not those of tiny" in str(result)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_another_scale_is_named_with_its_factor(
    sae: SAE, model: SubjectModel, other: SubjectModel, factor: float
) -> None:
    """Embeddings and everything that is written to the stream times a factor: the same model, another scale."""
    with torch.no_grad():
        for name, parameter in other.module.named_parameters():
            if "wte" in name or "wpe" in name or "c_proj" in name:
                parameter.mul_(factor)
    same = [m.capture(TEXTS[0], ["final_norm"])["final_norm"] for m in (model, other)]
    torch.testing.assert_close(*same, rtol=1e-3, atol=1e-3)
    result = ms.check(sae, other)
    assert f"(factor {factor:.3g})" in str(result)
    assert "another scale" in str(result)


def test_folded_norms_are_noticed_at_the_input_of_the_mlp(model: SubjectModel, other: SubjectModel) -> None:
    source = ms.activations(model, "mlp_in.1", TEXTS, context_length=32, buffer_tokens=512)
    config = ms.TrainingConfig(batch_size=64)
    sae = ms.train(ms.TopKSAE(32, 64, k=8), source, tokens=1000, config=config, progress=False).sae
    block = other.module.get_submodule("transformer.h.1")
    before = other(TEXTS[0])
    with torch.no_grad():
        block.mlp.c_fc.bias.add_(block.ln_2.bias @ block.mlp.c_fc.weight)
        block.mlp.c_fc.weight.mul_(block.ln_2.weight[:, None])
        block.ln_2.weight.fill_(1)
        block.ln_2.bias.zero_()
    torch.testing.assert_close(other(TEXTS[0]), before, rtol=1e-3, atol=1e-3)
    result = ms.check(sae, other)
    assert "folded norms" in str(result)


def test_a_wrong_width_is_named(sae: SAE, make_gpt2: Callable[..., nn.Module], tokenizer: Any) -> None:
    result = ms.check(sae, SubjectModel(make_gpt2(width=16), tokenizer, "narrow"))
    assert "reads width 32, resid_post.1 of narrow has width 16" in str(result)


def test_another_tokenizer_is_named(sae: SAE, other: SubjectModel, letter_tokenizer: Any) -> None:
    result = ms.check(sae, SubjectModel(other.module, letter_tokenizer(), "letters"))
    assert "tokenizer has another vocabulary" in str(result)


def test_a_smaller_vocabulary_and_a_shorter_context_are_words_and_no_crash(
    sae: SAE, make_gpt2: Callable[..., nn.Module], letter_tokenizer: Any
) -> None:
    few_tokens = SubjectModel(make_gpt2(vocabulary=128), letter_tokenizer(), "letters")
    result = ms.check(sae, few_tokens)
    assert "vocabulary" in str(result)
    assert not result
    short = ms.check(sae, SubjectModel(make_gpt2(positions=16), letter_tokenizer(), "short"))
    assert "context" in str(short)
    assert not short


def test_a_worse_reconstruction_is_named(sae: SAE, model: SubjectModel) -> None:
    spoilt = copy.deepcopy(sae)
    with torch.no_grad():
        spoilt.W_dec.copy_(spoilt.W_dec.flip(0))
    result = ms.check(spoilt, model)
    assert "FVU on the SAE's own probe batch" in str(result)


def test_what_the_sae_does_not_know_is_noted_and_no_problem(sae: SAE, model: SubjectModel) -> None:
    bare = ms.TopKSAE(32, 64, k=8)
    result = ms.check(bare, model)
    assert result
    assert "does not know its hook point" in str(result)
    result = ms.check(bare, model, HOOK)
    assert result
    assert "no probe batch" in str(result)
    vectors = ms.fit(ms.TopKSAE(32, 64, k=8), torch.randn(300, 32), tokens=2048, progress=False).sae
    assert "does not know its hook point" in str(ms.check(vectors, model))
    assert "no probe batch of text" in str(ms.check(vectors, model, HOOK))
    forgetful = copy.deepcopy(sae)
    forgetful.metadata = SAEMetadata(hook=HOOK)
    assert "no probe batch" in str(ms.check(forgetful, model))
