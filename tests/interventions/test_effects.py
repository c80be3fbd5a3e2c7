"""What an ablation does, exactly; and by gradients, for all features at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monosem as ms
from monosem.errors import ConfigError, DataError
from monosem.models import SubjectModel
from monosem.sae import SAE, ReLUSAE, TopKSAE

HOOK, LATER = "resid_post.0", "resid_post.1"
WIDE = torch.float64


@pytest.fixture(scope="module")
def model(make_gpt2: Callable[..., nn.Module], tokenizer: Any) -> SubjectModel:
    """In float64."""
    return SubjectModel(make_gpt2(dtype=WIDE), tokenizer, "wide")


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(1, 4096, (3, 12), generator=torch.Generator().manual_seed(0))


def fitted(model: SubjectModel, tokens: Tensor, hook: str, transform: str = "centre_scale") -> TopKSAE:
    sae = TopKSAE(32, 64, k=7, transform=transform, dtype=WIDE, seed=1)
    sae.initialise(model.capture(tokens, [hook])[hook].reshape(-1, 32))
    with torch.no_grad():
        sae.b_enc.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
        sae.b_dec.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    sae.metadata.hook, sae.metadata.skip_first = hook, 1
    return sae


@pytest.fixture(scope="module", params=["centre_scale", "layer_norm", "whiten"])
def sae(request: pytest.FixtureRequest, model: SubjectModel, tokens: Tensor) -> TopKSAE:
    return fitted(model, tokens, HOOK, request.param)


def on(sae: SAE, model: SubjectModel, tokens: Tensor) -> tuple[int, int, int]:
    """Context, position and latent of one firing that has something after it."""
    codes = sae.encode(model.capture(tokens, [HOOK])[HOOK]).to_dense()
    codes[:, 0] = codes[:, -1] = 0
    found = (codes.amax((0, 1)) * ((codes > 0).sum((0, 1)) < 10)).argmax()
    row, position = divmod(int(codes[..., found].argmax()), tokens.shape[1])
    return row, position, int(found)


# Exact effects --------------------------------------------------------------------------------------------------------


def test_effects_are_those_of_two_forward_passes_token_by_token(
    model: SubjectModel, tokens: Tensor, sae: TopKSAE
) -> None:
    latent = on(sae, model, tokens)[2]
    found = ms.effects(model, sae, tokens, latent)
    plain = model(tokens)
    with model.edit([ms.Ablate(sae, latent)]):
        ablated = model(tokens)
    for row in range(3):
        assert found.change[row, 0] == 0
        for i in range(1, 12):
            token = tokens[row, i]
            before, after = (logits[row, i - 1].log_softmax(-1)[token] for logits in (plain, ablated))
            assert abs(found.change[row, i] - (after - before)) < 1e-10
            assert abs(found.log_likelihood[row, i] - before) < 1e-10
    first = int((found.activations[0] != 0).long().argmax())
    assert (found.change[0, : first + 1] == 0).all(), "nothing before it is moved"
    assert found.did_something
    assert str(found).startswith(f"ablating latent {latent}, on at ")
    torch.testing.assert_close(found.total, found.change.sum(1))


def test_texts_of_any_lengths_have_the_effects_that_they_have_alone(model: SubjectModel) -> None:
    texts = ["One day the girl went", "The cat", "and then it was the end of the day"]
    sae = fitted(model, model.padded(texts)["input_ids"], HOOK)
    latent = int(sae.encode(model.capture(texts[2], [HOOK])[HOOK]).firing_counts().argmax())
    together = ms.effects(model, sae, texts, latent)
    for row, text in enumerate(texts):
        alone = ms.effects(model, sae, text, latent)
        n = alone.tokens.shape[1]
        assert together.tokens[row, :n].tolist() == alone.tokens[0].tolist()
        torch.testing.assert_close(together.change[row, :n], alone.change[0], rtol=1e-9, atol=1e-9)
        assert (together.change[row, n:] == 0).all()


def test_a_latent_that_is_never_on_changes_nothing_and_says_so(model: SubjectModel, tokens: Tensor) -> None:
    sae = fitted(model, tokens, HOOK)
    with torch.no_grad():
        sae.b_enc[5] = -1e6
    found = ms.effects(model, sae, tokens, 5)
    assert not found.did_something
    assert (found.change == 0).all()
    assert str(found) == "latent 5 is never on here: its ablation changes nothing"
    with pytest.raises(ConfigError, match="no latent 64"):
        ms.effects(model, sae, tokens, 64)
    with pytest.raises(ConfigError, match="inputs must be"):
        ms.effects(model, sae, 3, 5)  # type: ignore[arg-type]


# Attribution ----------------------------------------------------------------------------------------------------------


def test_scores_are_codes_times_derivatives(model: SubjectModel, tokens: Tensor, sae: TopKSAE) -> None:
    """Beside differences of the number when one entry is scaled a little up and down."""
    row, position, latent = on(sae, model, tokens)
    for of in ("loss", 17, (17, 23), lambda out: out.logits[:, 5].softmax(-1)[:, 3]):
        found = ms.attribute(model, sae, tokens, of)
        score = found.scores[row, position].to_dense()[latent]
        numbers: list[Tensor] = []
        for factor in (1 + 1e-5, 1 - 1e-5):
            place = ms.Where(rows=row, positions=position)
            with model.edit([ms.Scale(sae, latent, factor, where=place)]):
                numbers.append(ms.attribute(model, sae, tokens, of).metric[row])
        assert abs(score - (numbers[0] - numbers[1]) / 2e-5) < 1e-6, of
        assert found.scores.l0()[:, 0].sum() == 0, "where the SAE does not read there is nothing"


def test_where_the_number_is_linear_gradient_integral_and_ablation_agree(
    model: SubjectModel, tokens: Tensor, sae: TopKSAE
) -> None:
    row, _, latent = on(sae, model, tokens)
    v = torch.randn(32, dtype=WIDE, generator=torch.Generator().manual_seed(4))
    x = model.capture(tokens, [HOOK])[HOOK]
    for position in range(1, 4):
        gradient, integral = (
            ms.attribute(model, sae, tokens, (HOOK, v), position=position, method=method, steps=3)
            for method in ("gradient", "integrated")
        )
        torch.testing.assert_close(gradient.metric, x[:, position] @ v)
        torch.testing.assert_close(gradient.scores.values, integral.scores.values)
        assert integral.incompleteness.abs().max() < 1e-10
        with model.edit([ms.Ablate(sae, latent)]):
            moved = model.capture(tokens, [HOOK])[HOOK][:, position] @ v
        scores = gradient.scores.to_dense()[..., latent].sum(1)
        torch.testing.assert_close(scores, gradient.metric - moved, rtol=1e-9, atol=1e-9)
        explained = (x - sae(x).reconstruction)[:, position] @ v
        torch.testing.assert_close(gradient.errors.sum(1), explained, rtol=1e-9, atol=1e-9)
    assert row in range(3)


def test_integrated_gradients_are_complete_to_second_order(model: SubjectModel, tokens: Tensor, sae: TopKSAE) -> None:
    left = [
        ms.attribute(model, sae, tokens, "loss", method="integrated", steps=steps).incompleteness.abs().max()
        for steps in (32, 128)
    ]
    change = ms.attribute(model, sae, tokens, "loss", method="integrated", steps=1)
    assert (change.metric - change.baseline).abs().max() > 0.05
    assert left[1] < 1e-3
    assert left[1] < left[0] / 8


def test_an_sae_is_compared_with_its_model_once_until_it_changes(
    model: SubjectModel, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To compare them is to run the model, which on a large one takes longer than what is asked."""
    sae, asked = fitted(model, tokens, HOOK), list[str]()
    monkeypatch.setattr("monosem.interventions.base.join", lambda _sae, _model, hook: asked.append(hook))
    for _ in range(3):
        ms.attribute(model, sae, tokens, of=17)
    assert asked == [HOOK]
    with torch.no_grad():
        sae.b_dec.add_(1)
    ms.attribute(model, sae, tokens, of=17)
    assert asked == [HOOK, HOOK]


def test_a_context_has_the_scores_that_it_has_alone(model: SubjectModel) -> None:
    texts = ["One day the girl went", "The cat", "and then it was the end"]
    sae = fitted(model, model.padded(texts)["input_ids"], HOOK)
    for of in ("loss", " the"):
        together = ms.attribute(model, sae, texts, of)
        for row, text in enumerate(texts):
            alone = ms.attribute(model, sae, text, of)
            n = alone.codes.batch_shape[1]
            torch.testing.assert_close(together.metric[row], alone.metric[0], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(
                together.scores.to_dense()[row, :n], alone.scores.to_dense()[0], rtol=1e-8, atol=1e-9
            )


def test_what_runs_through_later_reconstructions_and_what_through_their_errors(
    model: SubjectModel, tokens: Tensor, sae: TopKSAE
) -> None:
    later = fitted(model, tokens, LATER)
    found = ms.attribute(model, sae, tokens, "loss", through=[later])
    assert found.through_reconstructions is not None
    assert found.through_errors is not None
    torch.testing.assert_close(found.through_reconstructions.values + found.through_errors.values, found.scores.values)
    row, position, latent = on(sae, model, tokens)
    x = model.capture(tokens, [LATER])[LATER]
    error = x - later(x).reconstruction
    numbers: list[Tensor] = []
    for factor in (1 + 1e-5, 1 - 1e-5):  # the later SAE's error stays as it is

        def frozen(now: Tensor, _: Any) -> Tensor:
            rebuilt = later(now).reconstruction + error
            rebuilt[:, 0] = x[:, 0]
            return rebuilt

        edit = ms.Scale(sae, latent, factor, where=ms.Where(rows=row, positions=position))
        with model.edit([edit]), model.edit({LATER: frozen}):
            numbers.append(ms.attribute(model, sae, tokens, "loss").metric[row])
    through = found.through_reconstructions[row, position].to_dense()[latent]
    assert abs(through - (numbers[0] - numbers[1]) / 2e-5) < 1e-6


def test_through_a_dictionary_that_loses_nothing_runs_everything(
    model: SubjectModel, tokens: Tensor, sae: TopKSAE
) -> None:
    whole = ReLUSAE(32, 64, transform="none", dtype=WIDE)
    eye = torch.cat([torch.eye(32), -torch.eye(32)]).to(WIDE)
    with torch.no_grad():
        whole.W_enc.copy_(eye)
        whole.W_dec.copy_(eye)
    whole.metadata.hook = LATER
    found = ms.attribute(model, sae, tokens, "loss", through=[whole])
    assert found.through_errors is not None
    assert found.through_errors.values.abs().max() < 1e-10


def test_the_sums_of_latents_and_what_is_printed(model: SubjectModel, tokens: Tensor, sae: TopKSAE) -> None:
    found = ms.attribute(model, sae, tokens, "loss")
    torch.testing.assert_close(found.by_latent(), found.scores.to_dense().sum((0, 1)))
    torch.testing.assert_close(found.total().sum(), found.by_latent().sum())
    (first, score), *_ = found.top(3)
    assert abs(score) == found.by_latent().abs().max()
    assert f"{first} {score:+.3g}" in str(found)
    with pytest.raises(ConfigError, match="no baseline"):
        _ = found.incompleteness
    assert not any(p.grad is not None for p in [*model.module.parameters(), *sae.parameters()])
    assert torch.is_grad_enabled()


def test_questions_that_have_no_answer(model: SubjectModel, tokens: Tensor, sae: TopKSAE) -> None:
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (" the cat", {}, "is 2 tokens, not one"),
        ((1, 2, 3), {}, "of must be"),
        (1.5, {}, "of must be"),
        (1, {"position": 12}, "position 12 is outside the text, which has 12 tokens"),
        ((LATER, torch.ones(5)), {}, "width 5"),
        (lambda out: out.logits, {}, "one number"),
        (lambda out: torch.zeros(3), {}, "does not depend"),
        ("loss", {"method": "slopes"}, "method must be"),
        (("resid_post.9", torch.ones(32)), {}, "resid_post.9"),
    ]
    for of, options, words in cases:
        with pytest.raises(ms.MonosemError, match=words):
            ms.attribute(model, sae, tokens, of, **options)
    with pytest.raises(DataError, match="reads nothing"):
        ms.attribute(model, sae, tokens[:, :1], "loss")
