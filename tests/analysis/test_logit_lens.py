"""Logit lens: the weights are what the output really does with a direction."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from monosem.analysis import logit_lens
from monosem.errors import ConfigError
from monosem.models import SubjectModel
from monosem.sae import TopKSAE


@pytest.fixture
def exact(make_gpt2: Callable[..., nn.Module], tokenizer: object) -> SubjectModel:
    return SubjectModel(make_gpt2(seed=4, dtype=torch.float64), tokenizer, "exact")


@pytest.fixture
def sae() -> TopKSAE:
    return TopKSAE(32, 40, k=4, seed=2, dtype=torch.float64)


def relative(logits: Tensor) -> Tensor:
    return logits - logits.mean(-1, keepdim=True)


def test_weights_are_the_change_of_the_logits_per_length_of_the_direction(exact: SubjectModel, sae: TopKSAE) -> None:
    """A large multiple of the direction, alone in the stream, has logits of sqrt(d) * weight / its norm."""
    latents = [0, 17, 39]
    all_effects = logit_lens(sae, exact, latents, n_tokens=5)
    for latent, effects in zip(latents, all_effects, strict=True):
        direction = sae.W_dec[latent].detach()
        with exact.edit({"resid_post.2": lambda x, _, d=direction: (1e6 * d).expand_as(x)}):
            with_it = exact(torch.tensor([[5]]))[0, 0]
        with exact.edit({"resid_post.2": lambda x, _: torch.zeros_like(x)}):
            without = exact(torch.tensor([[5]]))[0, 0]
        centred = direction - direction.mean()
        weights = relative(with_it - without) * centred.norm() / 32**0.5
        for found, top in ((effects.promoted, weights.topk(5)), (effects.suppressed, weights.topk(5, largest=False))):
            assert [token for token, _ in found] == [exact.tokenizer.decode([i]) for i in top.indices.tolist()]
            torch.testing.assert_close(torch.tensor([w for _, w in found]).double(), top.values, rtol=1e-4, atol=1e-5)


def test_a_direction_equal_to_an_unembedding_row_promotes_its_token(sae: TopKSAE, tiny: SubjectModel) -> None:
    """With gain 1, the strongest weight of row t centred is at a token whose row is as much like it as itself."""
    with torch.no_grad():
        tiny.module.get_parameter("transformer.ln_f.weight").fill_(1)
        rows = tiny.module.get_parameter("transformer.wte.weight")
        rows.copy_(nn.functional.normalize(rows - rows.mean(-1, keepdim=True), dim=-1))
        sae.W_dec[3] = rows[1234]
        sae.W_dec[4] = -rows[77]
    promoted, suppressed = logit_lens(sae, tiny, [3])[0], logit_lens(sae, tiny, [4])[0]
    assert promoted.promoted[0][0] == tiny.tokenizer.decode([1234])
    assert suppressed.suppressed[0][0] == tiny.tokenizer.decode([77])
    assert len(promoted.promoted) == len(promoted.suppressed) == 8
    weights = [w for _, w in promoted.promoted]
    assert weights == sorted(weights, reverse=True)


def test_what_has_no_logits_says_so(tiny: SubjectModel, sae: TopKSAE) -> None:
    with pytest.raises(ConfigError, match="no output embeddings"):
        logit_lens(sae, SubjectModel(nn.Linear(32, 32)), [0])
    with pytest.raises(ConfigError, match="writes width 16"):
        logit_lens(TopKSAE(16, 20, k=2), tiny, [0])
    with pytest.raises(ConfigError, match="no tokenizer"):
        logit_lens(sae, SubjectModel(tiny.module), [0])
