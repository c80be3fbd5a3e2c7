"""Prompts read and mended by features; lists that stand; tasks taken from examples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import monosem as ms
from monosem.errors import ConfigError, DataError
from monosem.models import SubjectModel
from monosem.sae import TopKSAE
from monosem.steering import Form
from monosem.steering.tasks import Questions, put, split

HOOK = "resid_post.1"
PROMPT = "The old king went to the river and saw a red boat."


def made() -> TopKSAE:
    sae = TopKSAE(32, 64, k=4, transform="none")
    sae.metadata.hook, sae.metadata.exclude_special = HOOK, False
    return sae.requires_grad_(False)


def codes_of(model: SubjectModel, sae: TopKSAE, text: str, *edits: object) -> Tensor:
    return ms.generate(model, text, edits=edits, features=sae, max_new_tokens=4, temperature=0).features.to_dense()


def test_what_may_never_fire_does_not_and_what_must_does_and_both_are_told(tiny: SubjectModel) -> None:
    sae = made()
    before = codes_of(tiny, sae, PROMPT)
    never = int(before.sum(0).argmax())
    always = int((before.sum(0) == 0).nonzero()[0])
    rules = ms.Standing(sae, never=[never], always={always: 2.0})
    tokens = tiny.tokens(PROMPT)
    x = tiny.capture(tokens, [HOOK])[HOOK]
    with tiny.edit([rules]):
        edited = tiny.capture(tokens, [HOOK])[HOOK]
    old = sae.encode(x).to_dense()[0]
    change = 2.0 * sae.W_dec[always] - old[:, never, None] * sae.W_dec[never]
    torch.testing.assert_close(edited[0] - x[0], change.detach(), atol=1e-4, rtol=1e-4)
    acted = [event for event in rules.events if event.latent == never]
    assert [event.position for event in acted] == (old[:, never] > 0).nonzero()[:, 0].tolist()
    assert all(event.is_now == 0 and event.was > 0 for event in acted)
    assert sum(event.latent == always for event in rules.events) == tokens.shape[1]


def test_events_tell_prompt_and_generation_apart_and_a_list_without_work_says_so(tiny: SubjectModel) -> None:
    sae = made()
    silent = int((codes_of(tiny, sae, PROMPT).sum(0) == 0).nonzero()[0])
    rules = ms.Standing(sae, always={silent: 1.0})
    ms.generate(tiny, PROMPT, edits=[rules], max_new_tokens=4, temperature=0)
    n = tiny.tokens(PROMPT).shape[1]
    assert [event.generated for event in rules.events] == [event.position >= n for event in rules.events]
    assert any(event.generated for event in rules.events)
    idle = ms.Standing(sae, never=[silent])
    out = ms.generate(tiny, PROMPT, edits=[idle], max_new_tokens=4, temperature=0)
    assert not idle.events
    assert "nothing to do" in idle.report()
    assert "changed nothing" in out.said()[0]


def test_lists_that_contradict_themselves_are_refused() -> None:
    for options in ({}, {"never": [3], "always": {3: 1.0}}, {"always": {3: -1.0}}, {"never": [64]}):
        with pytest.raises(ConfigError):
            ms.Standing(made(), **options)


def test_a_feature_that_fires_everywhere_is_unusual_only_against_a_low_baseline(tiny: SubjectModel) -> None:
    sae = made()
    ids = tiny.tokens(PROMPT)
    codes = sae.encode(tiny.capture(ids, [HOOK])[HOOK]).to_dense()[0]
    rates = (codes > 0).double().mean(0)
    usual = ms.diagnose(tiny, sae, PROMPT, answers=1, baseline=rates, max_new_tokens=5)
    most = int(rates.argmax())
    odd = rates.clone()
    odd[most] = 1e-4
    unusual = ms.diagnose(tiny, sae, PROMPT, answers=1, baseline=odd, max_new_tokens=5)
    top = unusual.prompt[0]
    assert top.latent == most
    assert top.surprise > usual.prompt[0].surprise
    assert top.by_token == [
        (i, pytest.approx(float(codes[i, most]), rel=1e-3)) for i in codes[:, most].nonzero()[:, 0].tolist()
    ]
    assert len(unusual.answers) == 1
    assert unusual.texts[0] in str(unusual) or unusual.texts[0].strip()[:20] in str(unusual)
    given = ms.diagnose(tiny, sae, PROMPT, answers=unusual.texts, baseline=odd)
    assert given.prompt[0].latent == most


def test_a_baseline_of_another_dictionary_is_refused(tiny: SubjectModel) -> None:
    with pytest.raises(ConfigError, match="64 firing rates"):
        ms.diagnose(tiny, made(), PROMPT, baseline=[0.1] * 10)


def test_candidates_lower_the_feature_as_reading_them_shows(tiny: SubjectModel) -> None:
    sae = made()

    def activation(text: str, latent: int) -> float:
        x = tiny.capture(tiny.tokens(text), [HOOK])[HOOK]
        return float(sae.encode(x).to_dense()[0, :, latent].sum())

    latent = int(sae.encode(tiny.capture(tiny.tokens(PROMPT), [HOOK])[HOOK]).to_dense()[0].sum(0).argmax())
    found = ms.avoid(tiny, sae, PROMPT, latent, words=2, alternatives=2, progress=False)
    assert {t.word for t in found.triggers} == set(PROMPT.split())
    assert sum(abs(t.share) for t in found.triggers) == pytest.approx(1)
    assert found.activation == pytest.approx(activation(PROMPT, latent), rel=1e-4)
    assert found.candidates
    for candidate in found.candidates:
        wanted = 1 - activation(candidate.prompt, latent) / found.activation
        assert candidate.lowered == pytest.approx(wanted, abs=1e-3)
    assert [c.worth for c in found.candidates] == sorted((c.worth for c in found.candidates), reverse=True)


def test_a_feature_that_never_fires_has_nothing_to_avoid(tiny: SubjectModel) -> None:
    sae = made()
    silent = int((sae.encode(tiny.capture(tiny.tokens(PROMPT), [HOOK])[HOOK]).to_dense()[0].sum(0) == 0).nonzero()[0])
    assert "nothing to avoid" in str(ms.avoid(tiny, sae, PROMPT, silent, progress=False))


def test_the_loss_of_answers_is_that_of_the_model_by_hand(tiny: SubjectModel) -> None:
    asked = Questions(tiny, ["hot ->", "big and tall ->"], [" cold", " small"])
    nll, _ = asked.asked()
    for i, (prompt, answer) in enumerate((("hot ->", " cold"), ("big and tall ->", " small"))):
        whole, n = tiny.tokens(prompt + answer), tiny.tokens(prompt).shape[1]
        log_p = tiny(whole)[0, :-1].log_softmax(-1).gather(-1, whole[0, 1:, None])[:, 0]
        assert nll[i].item() == pytest.approx(-float(log_p[n - 1 :].sum()), rel=1e-4)


def test_what_is_not_computed_anew_changes_no_answer_and_no_gradient(tiny: SubjectModel) -> None:
    asked = Questions(tiny, ["hot ->", "big and tall ->"], [" cold", " small"])
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def told() -> tuple[Tensor, Tensor]:
        nll, _ = asked.asked(HOOK, put(vector, "replace"))
        return nll, torch.autograd.grad(nll.sum(), vector)[0]

    expected = told()
    ran: list[int] = []
    handle = tiny.module.transformer.h[0].attn.register_forward_hook(lambda *_: ran.append(1))
    with asked.again(HOOK):
        ran.clear()
        again = told()
    handle.remove()
    assert not ran, "what comes before the hook point is not run"
    assert all(map(torch.equal, again, expected))


def test_a_task_is_cleaned_and_compared_on_pairs_of_their_own(tiny: SubjectModel) -> None:
    pairs = [(f"word {i}", f"thing {i}") for i in range(20)]
    parts = split(pairs, [4, 4, 4], 2, 0)
    assert sorted(pair for part in parts for pair in part) == sorted(pairs)
    found = ms.clean_task_vector(
        tiny, made(), pairs, shots=2, train=4, held_out=4, penalties=(0.1, 0.5), steps=4, progress=False
    )
    assert list(found.scores) == [
        "nothing", "examples", "vector", "its reconstruction", "vector of reconstructions", "pursuit", "cleaned",
    ]  # fmt: skip
    assert set(found.cleaned.latents) <= set(found.encoded.latents)
    assert "fewer features" in str(found)
    with pytest.raises(DataError, match="too few"):
        ms.clean_task_vector(tiny, made(), pairs[:5], progress=False)


def test_replacing_by_its_own_activation_changes_no_answer(tiny: SubjectModel) -> None:
    asked = Questions(tiny, [Form().asked("hot")], [" cold"])
    own = tiny.capture("hot ->", [HOOK])[HOOK][0, -1]
    same = asked.score(HOOK, lambda rows: own.expand_as(rows))
    assert same.nll == pytest.approx(asked.score().nll, rel=1e-5)
    vector = ms.task_vector(tiny, [(f"a{i}", f"b{i}") for i in range(8)], HOOK, shots=2, prompts=3)
    assert vector.vector.shape == (32,)
