"""A model gives what it is, whatever its owner is doing with it, and stays as its owner has left it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monosem.evaluation import evaluate
from monosem.models import SubjectModel
from monosem.sae import SAEMetadata, TopKSAE

TOKENS = torch.arange(1, 31).reshape(2, 15)
HOOK = "resid_post.1"


@pytest.fixture
def owned(make_gpt2: Callable[..., nn.Module], tokenizer: Any) -> SubjectModel:
    """A model whose dropout would be seen."""
    module = copy.deepcopy(make_gpt2())
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.5
    return SubjectModel(module, tokenizer, "owned")


def outcomes(model: SubjectModel) -> dict[str, Any]:
    """Everything that runs a model."""
    with model.edit({HOOK: lambda x, _: 2 * x}):
        edited = model(TOKENS)
        direct = model.module(TOKENS).logits
    sae = TopKSAE(32, 40, k=4)
    sae.metadata = SAEMetadata(hook=HOOK, context_length=24)
    report = evaluate(sae, model, tokens=200, loss_tokens=100, progress=False)
    return {
        "capture": model.capture(TOKENS, [HOOK])[HOOK],
        "forward": model(TOKENS),
        "edited": edited,
        "called by its owner within an edit": direct,
        "generate": model.generate("The cat", max_new_tokens=8),
        "losses": report["ce"].value,
    }


def test_in_training_mode_it_gives_the_same_and_stays_in_training_mode(owned: SubjectModel) -> None:
    expected = outcomes(owned)
    part = owned.module.get_submodule("transformer.h.1")
    for trained in (owned.module, part):
        owned.module.eval()
        trained.train()
        found = outcomes(owned)
        for name, value in expected.items():
            same = torch.equal(found[name], value) if isinstance(value, Tensor) else found[name] == value
            assert same, name
        assert owned.module.training == (trained is owned.module)
        assert part.training
        with pytest.raises(RuntimeError, match="broken"), owned.edit({HOOK: _broken}):
            owned(TOKENS)
        assert part.training


def _broken(*_: Any) -> Tensor:
    raise RuntimeError("broken")


def test_its_owner_can_train_on(make_gpt2: Callable[..., nn.Module], tokenizer: Any) -> None:
    module = make_gpt2().train()
    model = SubjectModel(module, tokenizer)
    model.capture(TOKENS, [HOOK])
    assert module.training
    module(input_ids=TOKENS, labels=TOKENS).loss.backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_with_gradient_checkpointing_it_gives_the_same(owned: SubjectModel) -> None:
    expected = owned.capture(TOKENS, [HOOK])[HOOK]
    owned.module.activation_checkpointing_enable()  # pyright: ignore[reportCallIssue]
    owned.module.train()
    assert torch.equal(owned.capture(TOKENS, [HOOK])[HOOK], expected)


def test_within_autocast_it_computes_in_its_own_precision(owned: SubjectModel) -> None:
    expected = owned.capture(TOKENS, [HOOK])[HOOK]
    with torch.autocast("cpu", torch.bfloat16):
        found = owned.capture(TOKENS, [HOOK])[HOOK]
        logits = owned(TOKENS)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(found, expected)
    assert torch.equal(logits, owned(TOKENS))


def test_running_statistics_do_not_run(make_gpt2: Callable[..., nn.Module]) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    before = module[1].running_mean.clone()
    SubjectModel(module).capture(torch.randn(5, 4), ["1:output"])
    assert torch.equal(module[1].running_mean, before)
