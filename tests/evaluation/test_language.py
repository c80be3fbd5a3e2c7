"""Losses of the language model: closed forms, and the two ends of the scale."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monosem.data import ContextBatch, Document, PackedText
from monosem.evaluation.language import LanguageLoss
from monosem.models import SubjectModel

HOOK = "resid_post.1"
VALUE = torch.linspace(-1, 1, 32)


def at_mean(x: Tensor) -> Tensor:
    return VALUE.to(x).expand_as(x)


def shrink(x: Tensor) -> Tensor:
    return 0.7 * x


@pytest.fixture
def exact(make_gpt2: Callable[..., nn.Module], letter_tokenizer: type) -> SubjectModel:
    return SubjectModel(make_gpt2(seed=6, vocabulary=128, dtype=torch.float64), letter_tokenizer(), "exact")


@pytest.fixture
def batch(letter_tokenizer: type) -> ContextBatch:
    texts = ["the cat sat on the mat", "a", "dogs bark at night", "rain", "it was late and nobody came"]
    return PackedText([Document(t) for t in texts], letter_tokenizer(), 16).read(0, 100)


def measured(model: SubjectModel, batch: ContextBatch, **more: Callable[[Tensor], Tensor]) -> LanguageLoss:
    loss = LanguageLoss(model, HOOK, {"zero": torch.zeros_like, "mean": at_mean, "same": torch.clone, **more})
    loss.add(batch, ~batch.special)
    return loss


def by_hand(model: SubjectModel, batch: ContextBatch, function: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Cross-entropy and KL, position by position, one context at a time, with a plain hook."""
    losses, divergences = list[Tensor](), list[Tensor]()
    for i in range(len(batch)):
        tokens, real = batch.tokens[i], ~batch.special[i]
        clean = model.module(tokens[None]).logits[0]

        def replace(_module: nn.Module, _args: object, out: Tensor, real: Tensor = real) -> Tensor:
            rows = out.clone()
            for position in range(len(real)):
                if real[position]:
                    rows[0, position] = function(out[0, position])
            return rows

        handle = model.module.get_submodule("transformer.h.1").register_forward_hook(replace)
        replaced = model.module(tokens[None]).logits[0]
        handle.remove()
        for position in range(len(tokens) - 1):
            if real[position] and not batch.padding[i, position + 1]:
                losses.append(F.cross_entropy(replaced[position], tokens[position + 1]))
                p, q = clean[position].softmax(-1), replaced[position].softmax(-1)
                divergences.append((p * (p / q).log()).sum())
    return torch.stack(losses).mean().item(), torch.stack(divergences).mean().item()


def test_cross_entropy_and_kl_equal_the_sums_by_hand(exact: SubjectModel, batch: ContextBatch) -> None:
    loss = measured(exact, batch, shrink=shrink)
    for name, function in (("shrink", shrink), ("zero", torch.zeros_like), ("mean", at_mean)):
        cross_entropy, kl = by_hand(exact, batch, function)
        assert loss.metrics(name)["ce"].value == pytest.approx(cross_entropy, rel=1e-6)
        assert loss.metrics(name)["kl"].value == pytest.approx(kl, rel=1e-5)
    assert loss.clean().value == pytest.approx(by_hand(exact, batch, torch.clone)[0], rel=1e-6)


def test_every_prediction_from_a_replaced_position_counts_once(exact: SubjectModel, batch: ContextBatch) -> None:
    counted = sum(
        not batch.special[i, p] and not batch.padding[i, p + 1]
        for i in range(len(batch))
        for p in range(batch.tokens.shape[1] - 1)
    )
    loss = measured(exact, batch)
    assert loss.n_predictions == loss.sums.total("predictions") == counted


def test_replacing_by_the_same_recovers_all_the_loss(exact: SubjectModel, batch: ContextBatch) -> None:
    loss = measured(exact, batch)
    found = loss.metrics("same")
    assert found["ce"] == loss.clean()
    assert found["loss_recovered_mean"].value == found["loss_recovered_zero"].value == 1
    assert found["kl"].value == 0


def test_the_ablations_recover_nothing_of_themselves(exact: SubjectModel, batch: ContextBatch) -> None:
    loss = measured(exact, batch)
    assert loss.metrics("mean")["loss_recovered_mean"].value == 0
    assert loss.metrics("zero")["loss_recovered_zero"].value == 0
    assert loss.metrics("zero")["kl"].value > 0


def test_loss_recovered_is_linear_between_ablated_and_clean(exact: SubjectModel, batch: ContextBatch) -> None:
    loss = measured(exact, batch, shrink=shrink)
    clean, found = loss.clean().value, loss.metrics("shrink")
    for base in ("mean", "zero"):
        ablated = loss.metrics(base)["ce"].value
        expected = (ablated - found["ce"].value) / (ablated - clean)
        assert found[f"loss_recovered_{base}"].value == pytest.approx(expected, rel=1e-12)


def test_losses_do_not_move_with_the_batch_size(exact: SubjectModel, batch: ContextBatch) -> None:
    whole = measured(exact, batch, shrink=shrink)
    single = LanguageLoss(exact, HOOK, whole.replacements)
    for i in range(len(batch)):
        part = ContextBatch(
            *(getattr(batch, name)[i : i + 1] for name in ("tokens", "document", "position", "padding"))
        )
        single.add(part, ~part.special)
    for name in whole.replacements:
        for metric, interval in whole.metrics(name).items():
            assert single.metrics(name)[metric].value == pytest.approx(interval.value, rel=1e-6, abs=1e-9)
