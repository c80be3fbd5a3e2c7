"""Several models side by side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_models import FAMILY_MODELS

from monosem.errors import ConfigError, MismatchError
from monosem.models import ModelSet, SubjectModel

LLAMA, NEOX = FAMILY_MODELS["llama"], FAMILY_MODELS["gpt_neox"]


@pytest.fixture(scope="module")
def base(letter_tokenizer: Any) -> SubjectModel:
    return SubjectModel(LLAMA.build(), letter_tokenizer(), "base")


@pytest.fixture(scope="module")
def chat(letter_tokenizer: Any) -> SubjectModel:
    return SubjectModel(LLAMA.build(seed=1), letter_tokenizer(), "chat")


def test_sources_stand_side_by_side_token_by_token(base: SubjectModel, chat: SubjectModel) -> None:
    both, tokens, hooks = ModelSet([base, chat]), LLAMA.inputs(), ["resid_post.0", "mlp_mid.1"]
    captured = both.capture(tokens, hooks)
    assert captured["mlp_mid.1"].shape == (2, 9, 2, 20)
    for i, model in enumerate((base, chat)):
        for hook in hooks:
            assert torch.equal(captured[hook][:, :, i], model.capture(tokens, [hook])[hook])
    assert (both.n_sources, both.width("mlp_mid.1"), both.context_length, both.name) == (2, 20, 24, "base + chat")
    assert torch.equal(both.tokens("\x05\x06"), base.tokens("\x05\x06"))
    assert torch.equal(
        both.capture("\x05\x06", hooks)["mlp_mid.1"], both.capture(base.tokens("\x05\x06"), hooks)["mlp_mid.1"]
    )


def test_families_and_precisions_may_differ(base: SubjectModel, letter_tokenizer: Any) -> None:
    other = SubjectModel(NEOX.build().to(torch.bfloat16), letter_tokenizer(), "other")
    captured = ModelSet([base, other]).capture(LLAMA.inputs(), ["resid_post.1"])["resid_post.1"]
    assert captured.dtype == torch.float32
    assert torch.equal(captured[:, :, 1], other.capture(LLAMA.inputs(), ["resid_post.1"])["resid_post.1"].float())


def test_models_of_other_tokenizers_or_widths_are_refused(base: SubjectModel, tokenizer: Any) -> None:
    with pytest.raises(MismatchError, match=r"base \(128 tokens\) and other \(4096 tokens\) differ"):
        ModelSet([base, SubjectModel(LLAMA.build(), tokenizer, "other")])
    with pytest.raises(MismatchError, match=r"base \(128 tokens\) and bare \(none\) differ"):
        ModelSet([base, SubjectModel(LLAMA.build(), None, "bare")])
    wide = SubjectModel(LLAMA.build(hidden_size=32), base.tokenizer, "wide")
    with pytest.raises(MismatchError, match=r"base: \(2, 9, 16\), wide: \(2, 9, 32\)"):
        ModelSet([base, wide]).capture(LLAMA.inputs(), ["resid_post.0"])
    with pytest.raises(ConfigError, match="at least one model"):
        ModelSet([])
