"""Replace and Splice: what is replaced, and that nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from monosem.errors import ConfigError
from monosem.interventions import Replace, Splice
from monosem.models import SubjectModel
from monosem.sae import ReLUSAE, SAEMetadata, TopKSAE

HOOK = "resid_post.1"


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(1, 4096, (4, 15), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def sae(tiny: SubjectModel, tokens: Tensor) -> TopKSAE:
    made = TopKSAE(32, 64, k=5, seed=1)
    made.initialise(tiny.capture(tokens, [HOOK])[HOOK].reshape(-1, 32))
    with torch.no_grad():
        made.b_enc.normal_(std=0.1)
        made.b_dec.normal_(std=0.1)
    return made


def test_replacing_by_the_same_changes_no_bit(tiny: SubjectModel, tokens: Tensor) -> None:
    before = tiny(tokens)
    where = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    for options in ({}, {"where": where}, {"keep_tokens": tokens[0].tolist()}):
        with tiny.edit([Replace(HOOK, torch.clone, **options)]):
            assert torch.equal(tiny(tokens), before)


def test_only_the_positions_asked_for_are_replaced(tiny: SubjectModel, tokens: Tensor) -> None:
    where = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    x = tiny.capture(tokens, [HOOK])[HOOK]
    with tiny.edit([Replace(HOOK, lambda rows: 2 * rows + 1, where=where)]):
        replaced = tiny.capture(tokens, [HOOK])[HOOK]
    assert torch.equal(replaced[~where], x[~where])
    assert torch.equal(replaced[where], 2 * x[where] + 1)


def test_padding_and_the_tokens_to_keep_are_left_alone(tiny: SubjectModel, tokens: Tensor) -> None:
    mask = torch.ones_like(tokens)
    mask[2, 9:] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask}
    keep = [int(tokens[0, 3]), int(tokens[1, 0])]
    x = tiny.capture(inputs, [HOOK])[HOOK]
    with tiny.edit([Replace(HOOK, torch.zeros_like, keep_tokens=keep)]):
        replaced = tiny.capture(inputs, [HOOK])[HOOK]
    left = (mask == 0) | (tokens == keep[0]) | (tokens == keep[1])
    assert left.sum() >= 8
    assert torch.equal(replaced[left], x[left])
    assert (replaced[~left] == 0).all()


def test_the_function_sees_the_rows_replaced_and_is_not_called_for_none(tiny: SubjectModel, tokens: Tensor) -> None:
    seen: list[Tensor] = []

    def note(rows: Tensor) -> Tensor:
        seen.append(rows)
        return rows

    where = torch.zeros_like(tokens, dtype=torch.bool)
    with tiny.edit([Replace(HOOK, note, where=where)]):
        tiny(tokens)
    assert seen == []
    where[1, 4] = where[3, 2] = True
    x = tiny.capture(tokens, [HOOK])[HOOK]
    with tiny.edit([Replace(HOOK, note, where=where)]):
        tiny(tokens)
    assert torch.equal(seen[0], torch.stack([x[1, 4], x[3, 2]]))


def test_the_captured_activations_themselves_are_never_written_to(tiny: SubjectModel, tokens: Tensor) -> None:
    x = tiny.capture(tokens, [HOOK])[HOOK]
    with tiny.edit([Replace(HOOK, torch.zeros_like)]):
        seen = tiny.capture(tokens, ["mlp_out.1", "resid_mid.1", HOOK])
    torch.testing.assert_close(seen["resid_mid.1"] + seen["mlp_out.1"], x)
    assert (seen[HOOK] == 0).all()


def test_a_splice_puts_the_reconstruction_there(tiny: SubjectModel, tokens: Tensor, sae: TopKSAE) -> None:
    x = tiny.capture(tokens, [HOOK])[HOOK]
    with tiny.edit([Splice(sae, HOOK)]):
        spliced = tiny.capture(tokens, [HOOK])[HOOK]
        logits = tiny(tokens)
    torch.testing.assert_close(spliced, sae(x).reconstruction, rtol=1e-5, atol=1e-5)
    with tiny.edit({HOOK: lambda x, _: sae(x).reconstruction}):
        torch.testing.assert_close(logits, tiny(tokens), rtol=1e-4, atol=1e-4)
    assert (logits - tiny(tokens)).abs().max() > 1e-2


def test_a_splice_of_a_dictionary_that_loses_nothing_changes_nothing(tiny: SubjectModel, tokens: Tensor) -> None:
    """Latents +e_i and -e_i with ReLU rebuild every vector."""
    sae = ReLUSAE(32, 64, transform="none")
    eye = torch.cat([torch.eye(32), -torch.eye(32)])
    with torch.no_grad():
        sae.W_enc.copy_(eye)
        sae.W_dec.copy_(eye)
    sae.metadata = SAEMetadata(hook=HOOK)
    with tiny.edit([Splice(sae)]):
        torch.testing.assert_close(tiny(tokens), tiny.module(tokens).logits)
        assert torch.equal(tiny.capture(tokens, [HOOK])[HOOK], tiny.capture(tokens, ["resid_pre.2"])["resid_pre.2"])


def test_a_splice_works_while_text_is_generated(
    make_gpt2: Callable[..., nn.Module], tiny: SubjectModel, sae: TopKSAE
) -> None:
    sae.metadata = SAEMetadata(hook=HOOK)
    with tiny.edit([Splice(sae, keep_tokens=[tiny.tokenizer.bos_token_id])]):
        tokens = tiny.tokens("One day")
        text = tiny.generate("One day", max_new_tokens=5, temperature=0)
        for _ in range(5):
            tokens = torch.cat([tokens, tiny(tokens)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert text == tiny.tokenizer.decode(tokens[0], skip_special_tokens=True)


def test_a_splice_needs_to_know_its_place() -> None:
    with pytest.raises(ConfigError, match="does not know its hook point"):
        Splice(TopKSAE(8, 16, k=2))
