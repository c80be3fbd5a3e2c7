"""Logit lens: the weights are what the output really does with a direction."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from family_models import FAMILY_MODELS, LAYERS, D
from torch import Tensor, nn

from monosem.analysis import logit_lens
from monosem.analysis.logit_lens import logit_weights, norm_of
from monosem.codes import SparseCodes
from monosem.errors import ConfigError
from monosem.models import SubjectModel
from monosem.sae import TopKSAE, fold
from monosem.sae.transform import TransformKind

LANGUAGE_MODELS = sorted(name for name, spec in FAMILY_MODELS.items() if spec.causal)
CENTRING = ("bloom", "cohere", "cohere2", "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "phi", "starcoder2")


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


@torch.no_grad()
@pytest.mark.parametrize("kind", ["whiten", "whiten_pca", "layer_norm", "centre_scale"])
def test_behind_a_transform_they_are_those_of_what_a_code_adds_to_the_stream(
    exact: SubjectModel, kind: TransformKind
) -> None:
    """So strong a code that nothing else counts has the logits of its direction: cosine 1, whatever the transform."""
    sae = TopKSAE(32, 40, k=4, seed=2, transform=kind, dtype=torch.float64)
    stream = exact.capture(torch.arange(400).reshape(8, 50), ["resid_post.2"])["resid_post.2"].flatten(0, 1)
    mixed = stream @ torch.diag(1.2 ** torch.arange(32)).double()
    sae.transform.fit(mixed)
    weights = relative(logit_weights(sae, exact, range(40)))
    like = mixed[:1].expand(40, 32)
    added = sae.decode(SparseCodes.from_dense(1e8 * torch.eye(40).double()), like)
    for direction, found in zip(added, weights, strict=True):
        with exact.edit({"resid_post.2": lambda x, _, d=direction: d.expand_as(x)}):
            with_it = exact(torch.tensor([[5]]))[0, 0]
        with exact.edit({"resid_post.2": lambda x, _: torch.zeros_like(x)}):
            without = exact(torch.tensor([[5]]))[0, 0]
        assert torch.cosine_similarity(relative(with_it - without), found, dim=0) > 1 - 1e-6
    if kind != "layer_norm":
        torch.testing.assert_close(relative(logit_weights(fold(sae, norms=False), exact, range(40))), weights)


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_in_every_family_they_are_what_the_model_s_own_head_makes_of_a_direction(family: str) -> None:
    """RMSNorm does not centre, Gemma's gain is 1 + weight: nothing of it is said by hand."""
    kind = FAMILY_MODELS[family]
    capped = {"final_logit_softcapping": None} if family.startswith("gemma") else {}
    model = SubjectModel(kind.build(**capped), None, family)
    sae = TopKSAE(D, 12, k=4, seed=2, dtype=torch.float64)
    found = logit_weights(sae, model, [0, 5, 11])
    last = f"resid_post.{LAYERS - 1}"
    for direction, weights in zip(sae.W_dec[[0, 5, 11]].detach(), found, strict=True):
        with model.edit({last: lambda x, _, d=direction: (1e6 * d).expand_as(x)}):
            with_it = model(torch.tensor([[5]]))[0, 0]
        with model.edit({last: lambda x, _: torch.zeros_like(x)}):
            without = model(torch.tensor([[5]]))[0, 0]
        _, centres = norm_of(model.module.get_submodule(model.hook_point("final_norm").path), D)
        assert centres == (family in CENTRING)
        length = (direction - direction.mean() if centres else direction).norm()
        torch.testing.assert_close((with_it - without) * length / D**0.5, weights, rtol=1e-5, atol=1e-6)


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
