"""Families whose layers are of several kinds: their hook points, and what is done with dictionaries of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import MIXED_MODELS
from torch import Tensor

import monosem as ms
from monosem.errors import ConfigError
from monosem.models import Replay, SubjectModel

POINTS = ("resid_pre", "attn_out", "resid_mid", "mlp_in", "mlp_mid", "mlp_out", "resid_post")


@pytest.fixture(params=MIXED_MODELS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str, tokenizer: Any) -> SubjectModel:
    return SubjectModel(MIXED_MODELS[family].build(), tokenizer, family)


def halved(x: Tensor, _: Any) -> Tensor:
    return 0.5 * x + 0.1


def test_points_lie_where_their_names_say_whatever_the_layer_is(model: SubjectModel, family: str) -> None:
    assert model.family == family
    points = [name for name in POINTS if name != "mlp_mid" or "num_experts" not in MIXED_MODELS[family].sizes]
    expected = [f"{name}.{layer}" for layer in range(4) for name in points]
    assert [name for name in model.hook_points if not name.startswith("model")] == ["embed", *expected, "final_norm"]
    tokens, spec = torch.randint(1, 4096, (2, 12), generator=torch.Generator().manual_seed(0)), MIXED_MODELS[family]
    x = model.capture(tokens, model.hook_points)
    for layer in range(4):
        block = model.module.get_submodule(model.hook_point(f"resid_post.{layer}").path)
        inner = block.get_submodule("self_attn" if layer % 2 else spec.mixes)
        kept: list[Any] = []
        handle = inner.register_forward_hook(lambda *given, kept=kept: kept.append(given[-1]))
        model(tokens)
        handle.remove()
        mixed = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
        added = block.get_submodule(spec.attn_after)(mixed) if spec.attn_after else mixed
        assert torch.equal(x[f"attn_out.{layer}"], added)
        assert torch.allclose(x[f"resid_mid.{layer}"], x[f"resid_pre.{layer}"] + added, atol=1e-6)
        assert torch.allclose(
            x[f"mlp_in.{layer}"], block.get_submodule(spec.mlp_norm)(x[f"resid_mid.{layer}"]), atol=1e-5
        )
        if family != "gemma4_text":  # which adds more, and scales
            assert torch.allclose(x[f"resid_post.{layer}"], x[f"resid_mid.{layer}"] + x[f"mlp_out.{layer}"], atol=1e-5)
        if layer:
            assert torch.equal(x[f"resid_pre.{layer}"], x[f"resid_post.{layer - 1}"])
    with torch.no_grad():
        logits = model.module.get_submodule("lm_head")(x["final_norm"])
    assert torch.allclose(model(tokens), logits, atol=1e-5)


def test_edits_change_what_follows_and_replayed_passes_are_whole_ones(model: SubjectModel) -> None:
    """Layers of Gemma 4 share keys and values with later ones."""
    tokens = torch.randint(1, 4096, (2, 12), generator=torch.Generator().manual_seed(0))
    for hook in ("attn_out.0", "mlp_in.1", "resid_post.2"):
        with Replay(model, [hook], tokens[:1]).of(tokens) as plain, model.edit({hook: halved}):
            found = model(tokens)
        with model.edit({hook: halved}):
            assert torch.equal(found, model(tokens)), hook
        assert not torch.allclose(found, plain)
        assert torch.equal(plain, model(tokens))


def test_what_needs_heads_is_refused_in_words(model: SubjectModel) -> None:
    with pytest.raises(ConfigError, match="whose layers do not all have attention and keys of their own"):
        ms.heads(model)
    with pytest.raises(ConfigError, match="circuits are traced in models of these families"):
        ms.trace(model, ms.TopKSAE(32, 48, k=4), "The king of", progress=False)


def test_a_dictionary_is_trained_measured_harvested_and_steered_with(model: SubjectModel, tmp_path: Path) -> None:
    sae = ms.TopKSAE(model.d_model, 48, k=4)
    ms.train(
        sae, ms.activations(model, "resid_post.1", context_length=32, buffer_tokens=512), tokens=600, progress=False
    )
    report = ms.evaluate(sae, model, tokens=400, loss_tokens=100, progress=False)
    assert report["kl"].value >= 0
    features = ms.harvest(sae, tmp_path / "features", model, tokens=400, progress=False)
    scores = [row["output_score"] for row in features.columns(("output_score",)).to_pylist()]
    assert sum(score is not None for score in scores) > 10
    with model.edit([ms.Add(sae, 3, 5.0)]):
        assert isinstance(model.generate("The king of", max_new_tokens=4), str)
