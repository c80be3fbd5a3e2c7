"""Steering vectors, what they are made of, and their doses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import monosem as ms
from monosem.errors import ConfigError, DataError
from monosem.interventions.fluency import repetition
from monosem.models import SubjectModel
from monosem.sae import SAE, TopKSAE
from monosem.steering import DoseResponse, SteeringVector
from monosem.steering.dose import Dose

MakeSAE = Callable[..., SAE]
HIGH, LOW = ["A big red dog ran.", "The red house is big and red."], ["One two three four.", "He went home to sleep."]


def direction(d: int = 16, seed: int = 3) -> Tensor:
    return torch.randn(d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_vector_of_features_is_the_sum_of_their_raw_directions(make_sae: MakeSAE) -> None:
    sae = make_sae(TopKSAE, 16, 50, k=3)
    sae.metadata.hook = "resid_post.1"
    rows = sae.decoder_directions([4, 9])
    vector = ms.steering_vector(sae, {4: 2.0, 9: -0.5})
    torch.testing.assert_close(vector.vector, 2 * rows[0] - 0.5 * rows[1])
    torch.testing.assert_close(ms.steering_vector(sae, [4, 9]).vector, rows.sum(0))


def test_steering_with_a_feature_is_adding_to_it(tiny: SubjectModel) -> None:
    sae = TopKSAE(32, 64, k=4, transform="none")
    sae.metadata.hook, sae.metadata.exclude_special = "resid_post.1", False
    tokens = torch.arange(5, 15)[None]
    with tiny.edit([ms.steering_vector(sae, 7).edit(3.0)]):
        steered = tiny(tokens)
    with tiny.edit([ms.Add(sae, 7, 3.0)]):
        added = tiny(tokens)
    torch.testing.assert_close(steered, added)
    assert not torch.allclose(steered, tiny(tokens))


def test_a_contrast_is_the_difference_of_the_means_by_hand(tiny: SubjectModel) -> None:
    found = ms.steering_vector(tiny, positive=HIGH, negative=LOW, hook="resid_post.1", at="last")

    def last(text: str) -> Tensor:
        return tiny.capture(text, ["resid_post.1"])["resid_post.1"][0, -1]

    by_hand = sum(map(last, HIGH)) / 2 - sum(map(last, LOW)) / 2  # type: ignore[operator]
    torch.testing.assert_close(found.vector, by_hand, atol=1e-4, rtol=1e-4)


def test_a_probe_points_to_the_positive_side_and_is_as_long_as_the_contrast(tiny: SubjectModel) -> None:
    options = {"positive": HIGH, "negative": LOW, "hook": "resid_post.1"}
    mean, probe = ms.steering_vector(tiny, **options), ms.steering_vector(tiny, method="probe", **options)
    assert probe.norm == pytest.approx(mean.norm, rel=1e-4)
    assert mean.vector @ probe.vector > 0


@pytest.mark.parametrize("of", ["direction", "activation"])
@pytest.mark.parametrize("method", ["encoder", "pursuit", "omp"])
def test_features_offset_and_rest_make_the_vector(method: str, of: str, make_sae: MakeSAE) -> None:
    sae, x = make_sae(TopKSAE, 16, 50, k=5), direction()
    found = ms.decompose(x, sae, method, k=6, of=of)  # pyright: ignore
    rows = sae.decoder_directions(found.latents)
    made = torch.tensor(found.amounts, dtype=x.dtype) @ rows
    torch.testing.assert_close(found.offset + made + found.left, x)
    if of == "direction":
        assert not found.offset.any()


def test_shares_of_least_squares_add_up_to_what_is_explained(make_sae: MakeSAE) -> None:
    sae, x = make_sae(TopKSAE, 16, 50, k=5), direction()
    found = ms.decompose(x, sae, "omp", k=6)
    assert sum(found.shares) == pytest.approx(found.explained, abs=1e-9)
    assert found.shares == sorted(found.shares, reverse=True)
    assert 0 < found.explained < 1


def test_a_planted_sum_of_features_is_found() -> None:
    sae = TopKSAE(64, 32, k=4, dtype=torch.float64)
    with torch.no_grad():
        sae.W_dec.copy_(torch.linalg.qr(torch.randn(64, 32, dtype=torch.float64))[0].T)
    planted = 3 * sae.decoder_directions([5])[0] + 1.5 * sae.decoder_directions([20])[0]
    found = ms.decompose(planted, sae, "omp", k=2)
    assert found.latents == [5, 20]
    assert found.amounts == pytest.approx([3, 1.5])
    assert found.explained == pytest.approx(1)


def test_cleaning_keeps_what_the_loss_needs_and_a_larger_penalty_keeps_no_more() -> None:
    """Of six features that a vector has, the loss looks at the three planted ones."""
    sae = TopKSAE(64, 32, k=6, transform="none", dtype=torch.float64)
    with torch.no_grad():
        rows = torch.linalg.qr(torch.randn(64, 32, dtype=torch.float64))[0].T
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows)
    planted, noise = [2, 11, 17], [4, 8, 30]
    wanted = rows[planted]
    vector = rows[planted].sum(0) + 0.7 * rows[noise].sum(0)

    def loss(x: Tensor) -> Tensor:
        return (x @ wanted.T - 1).pow(2).sum() + 0.2

    assert set(ms.decompose(vector, sae, "encoder").latents) == {*planted, *noise}
    counts = []
    for penalty in (0.0, 0.3, 50.0):
        found = ms.decompose(vector, sae, "task", loss=loss, penalty=penalty, steps=200)
        counts.append(len(found.latents))
        if penalty == 0.3:
            assert sorted(found.latents) == planted
            assert loss(found.reconstruction) < loss(torch.zeros(64, dtype=torch.float64)) / 2
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 6


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((torch.zeros(16),), {}, "nothing to decompose"),
        ((torch.ones(5),), {}, "width 16"),
        ((torch.ones(16), "nearest"), {}, "method must be"),
        ((torch.ones(16), "task"), {}, "loss"),
    ],
)
def test_what_cannot_be_decomposed_is_refused(arguments: tuple, options: dict, words: str, make_sae: MakeSAE) -> None:
    sae = make_sae(TopKSAE, 16, 50, k=3)
    with pytest.raises((ConfigError, DataError), match=words):
        ms.decompose(arguments[0], sae, *arguments[1:], **options)


def test_no_texts_or_a_latent_that_is_not_there_are_refused(tiny: SubjectModel, make_sae: MakeSAE) -> None:
    with pytest.raises(DataError, match="list of texts"):
        ms.steering_vector(tiny, positive=HIGH, negative=[], hook="resid_post.1")
    sae = make_sae(TopKSAE, 16, 50, k=3)
    sae.metadata.hook = "resid_post.1"
    with pytest.raises(ConfigError, match="latents 0 to 49"):
        ms.steering_vector(sae, 50)


def test_a_dose_of_nothing_is_no_steering_and_a_great_one_breaks_fluency(bundled: SubjectModel, tmp_path: Path) -> None:
    vector = SteeringVector(
        "resid_post.2", bundled.module.get_output_embeddings().weight[300].detach().clone(), "a row"
    )
    word = bundled.tokenizer.decode([300])
    found = ms.dose_response(
        bundled,
        vector,
        ["The history of", "He said that"],
        [word] if word.strip() else ["the"],
        strengths=[1.0, 400.0],
        max_new_tokens=12,
        progress=False,
    )
    plain, _, great = found.doses
    unsteered = ms.generate(bundled, ["The history of", "He said that"], max_new_tokens=12)
    assert plain.text == unsteered[0].text
    assert not found.fluent(great)
    assert found.knee is not great
    assert found.at_surprise(plain.surprise) == pytest.approx(plain.effect)
    assert found.figure(tmp_path / "dose.png").stat().st_size > 1000
    assert "knee" in str(found)


def response(*doses: tuple[float, float]) -> DoseResponse:
    """Of one prompt: surprise and effect of each dose."""
    vector = SteeringVector("resid_post.1", torch.ones(4), "ones")
    made = [Dose(i, i / 10, [effect], [surprise], [0.0], ["text"]) for i, (surprise, effect) in enumerate(doses)]
    return DoseResponse(vector, made, "effect", 0.5, 0.1)


def test_at_equal_surprise_the_first_crossing_counts_not_a_loop_that_is_likely_again() -> None:
    found = response((2.0, 0.1), (2.4, 0.3), (3.4, 0.5), (1.0, 0.9))
    assert found.at_surprise(2.4) == pytest.approx(0.3)
    assert found.at_surprise(2.9) == pytest.approx(0.4)
    assert found.at_surprise(1.5) == pytest.approx(0.1)
    assert found.at_surprise(9.0) == pytest.approx(0.9)


def test_a_response_of_some_prompts_is_that_of_their_own_numbers() -> None:
    vector = SteeringVector("resid_post.1", torch.ones(4), "ones")
    dose = Dose(1.0, 0.1, [0.1, 0.5], [2.0, float("nan")], [0.0, 0.4], ["a", "b"])
    whole = DoseResponse(vector, [dose], "effect", 0.5, 0.1)
    assert (dose.effect, dose.surprise, dose.repetition) == pytest.approx((0.3, 2.0, 0.2))
    drawn = whole.of([1, 1, 0]).doses[0]
    assert (drawn.effect, drawn.surprise) == pytest.approx((1.1 / 3, 2.0))
    assert (dose.text, drawn.text) == ("a", "b")
    assert whole.of([1]).doses[0].surprise == 0.0
    assert whole.of([0]).doses[0].effects == [0.1]


def test_repetition_counts_runs_that_stood_before() -> None:
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repetition([7] * 10) == pytest.approx(6 / 7)
