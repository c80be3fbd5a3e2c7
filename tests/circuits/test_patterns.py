"""Patterns that are made again in parts: those of the model, and rows the same as with all patterns laid up."""

from __future__ import annotations

import pytest
import torch
from family_models import FAMILY_MODELS, VOCABULARY, D, family_module

from monosem.circuits.frozen import frozen as frozen_module
from monosem.circuits.frozen import pattern as pattern_module
from monosem.circuits.frozen.frozen import Frozen
from monosem.circuits.frozen.steps import Mix
from monosem.circuits.graph.sources import Sources
from monosem.models import SubjectModel
from monosem.models.attention import keeping
from monosem.models.blocks import BLOCKS

CAUSAL = [name for name, one in FAMILY_MODELS.items() if one.family in BLOCKS]
TOKENS = torch.randint(3, VOCABULARY, (1, 9), generator=torch.Generator().manual_seed(1))


def mixes(frozen: Frozen) -> list[Mix]:
    return [step for site in frozen.sites for step in site.steps if isinstance(step, Mix)]


@pytest.mark.parametrize("attention", ["its own", "eager"])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_pattern_made_again_is_the_models(name: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FAMILY_MODELS[name].build()
    if attention == "eager":
        module.set_attn_implementation(attention)  # type: ignore[operator]
    model = SubjectModel(module, None, name)
    monkeypatch.setattr(pattern_module, "BLOCK", 4)
    monkeypatch.setattr(frozen_module, "HELD_BYTES", 0)
    made = mixes(Frozen(model, TOKENS, []))
    # attention written out takes its softmax in float32, whose last bit depends on the processor and the shape
    single = attention == "eager" or name == "gemma2"
    rtol, atol = (0, 3e-7) if single else (1e-12, 1e-15)
    expected = model.capture(TOKENS, ["attn_pattern.0", "attn_pattern.1"])
    for layer, mix in enumerate(made):
        pattern, whole = mix.pattern, expected[f"attn_pattern.{layer}"][0]
        assert pattern.held is None
        torch.testing.assert_close(pattern.square(9), whole, rtol=rtol, atol=atol)
        places = torch.tensor([7, 2, 4])
        torch.testing.assert_close(pattern.rows(places, 8), whole[:, places, :8], rtol=rtol, atol=atol)
        assert [part.shape[2] for _, part in pattern.blocks(9)] == [4, 8, 9]


@pytest.mark.parametrize("name", ["llama with biases", "gemma3_text", "gpt2"])
def test_rows_are_the_same_whether_patterns_are_held_or_made_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SubjectModel(family_module(name), None, name)
    vectors = torch.randn(3, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([8, 3, 5])

    def rows() -> torch.Tensor:
        frozen = Frozen(model, TOKENS, [])
        found = Sources(frozen).rows(frozen.at["final_norm"], positions, vectors)
        moved = frozen.push({0: torch.ones(1, 9, D, dtype=torch.float64)})[frozen.at["final_norm"]]
        return torch.cat([found.flatten(), moved.flatten()])

    held = rows()
    monkeypatch.setattr(pattern_module, "BLOCK", 4)
    in_blocks = rows()
    monkeypatch.setattr(frozen_module, "HELD_BYTES", 0)
    again = rows()
    for found in (in_blocks, again):
        assert (found - held).abs().max() <= 1e-12 * held.abs().max()


def test_nothing_stays_in_the_model() -> None:
    """Neither hooks nor another attention."""
    model = SubjectModel(family_module("gpt2"), None, "gpt2")
    module = model.module.get_submodule(model.hook_point("attn_pattern.0").path)
    before = model(TOKENS)
    hooks = [dict(held) for held in (module._forward_hooks, module._forward_pre_hooks)]  # others may have left theirs
    with keeping({0: module}) as found:
        model(TOKENS)
    assert found[0].heads == 4
    assert [dict(held) for held in (module._forward_hooks, module._forward_pre_hooks)] == hooks
    assert torch.equal(model(TOKENS), before)


def test_a_pattern_that_an_edit_changes_is_the_one_that_is_held() -> None:
    model = SubjectModel(family_module("gpt2"), None, "gpt2")
    with model.edit({"attn_pattern.1": lambda x, _: x * 0.5}):
        changed = mixes(Frozen(model, TOKENS, []))[1].pattern
    plain = mixes(Frozen(model, TOKENS, []))[1].pattern
    assert torch.equal(changed.square(9), plain.square(9) * 0.5)
