"""Editing one fact: latents and meta-latents that are the same do the same; attributions are those of ms.attribute."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import monosem as ms
from monosem.analysis import Fact, FactEdits, MetaSAE
from monosem.codes import SparseCodes
from monosem.errors import ConfigError, DataError, MismatchError
from monosem.models import SubjectModel
from monosem.sae.identity import dictionary_hash

HOOK = "resid_post.0"
PROMPTS = ("abcdefg", "hijklm", "nopqrs")
OPTIONS: dict[str, Any] = {"text": ["the quick brown fox jumps over it all day"] * 3, "contexts": 2, "length": 8}


def fact(model: SubjectModel, prompt: str) -> Fact:
    """What the model takes to be likeliest, beside what it takes to be least likely, of letters."""
    with torch.no_grad():
        last = model(model.tokens(prompt))[0, -1]
    letters = {chr(97 + i): float(last[int(model.tokens(chr(97 + i), prepend_bos=False)[0, 0])]) for i in range(26)}
    order = sorted(letters, key=lambda letter: letters[letter])
    return Fact(prompt, order[-1], order[0])


def its_own(sae: ms.SAE) -> MetaSAE:
    """Meta-latents that are the latents."""
    n = sae.n_latents
    made = ms.TopKSAE(sae.d_in, n, k=1, transform="none")
    with torch.no_grad():
        made.W_dec.copy_(torch.nn.functional.normalize(sae.decoder_directions(), dim=-1))
    return MetaSAE(made, SparseCodes.from_dense(torch.eye(n)), torch.ones(n), {}, {}, dictionary_hash(sae), HOOK)


@pytest.fixture
def sae(tiny: SubjectModel) -> ms.SAE:
    made = ms.TopKSAE(tiny.d_model, 40, k=6, seed=3)
    made.metadata.hook = HOOK
    made.initialise(tiny.capture(PROMPTS[0], [HOOK])[HOOK][0])
    return made


@pytest.fixture
def found(tiny: SubjectModel, sae: ms.SAE) -> FactEdits:
    own, *others = (fact(tiny, prompt) for prompt in PROMPTS)
    return ms.edit_fact(tiny, sae, own, others, meta=its_own(sae), sizes=(1, 2), draws=2, progress=False, **OPTIONS)


def test_meta_latents_that_are_the_latents_do_the_same(found: FactEdits) -> None:
    for size in (1, 2):
        one, other = found.edits["latents", size][0], found.edits["meta-latents", size][0]
        assert one.chosen == other.chosen
        assert len(one.chosen) == size
        assert one.fact == pytest.approx(other.fact, abs=1e-4)
        torch.testing.assert_close(one.neighbours, other.neighbours, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.loss, other.loss, atol=1e-4, rtol=1e-4)
        assert len(found.edits["random latents", size]) == 2
    assert found.forgotten("latents", 1) != 0
    assert found.neighbours("latents", 2).shape == (2,)
    assert found.loss("random meta-latents", 2).shape == (2,)
    assert "random latents" in str(found)


def test_the_latents_are_those_of_the_largest_attribution(tiny: SubjectModel, sae: ms.SAE, found: FactEdits) -> None:
    scores = ms.attribute(tiny, sae, found.fact.prompt, of=(found.fact.answer, found.fact.foil)).by_latent()
    assert set(found.edits["latents", 2][0].chosen) == set(scores.topk(2).indices.tolist())


def test_an_edit_is_what_ablation_does(tiny: SubjectModel, sae: ms.SAE, found: FactEdits) -> None:
    (edit,) = found.edits["latents", 2]
    pair = [int(tiny.tokens(text, prepend_bos=False)[0, 0]) for text in (found.fact.answer, found.fact.foil)]
    with torch.no_grad(), tiny.edit([ms.Ablate(sae, edit.chosen)]):
        last = tiny(tiny.tokens(found.fact.prompt))[0, -1]
    assert edit.fact == pytest.approx(float(last[pair[0]] - last[pair[1]]), abs=1e-5)


def test_what_cannot_be_edited_is_refused(tiny: SubjectModel, sae: ms.SAE) -> None:
    own, *others = (fact(tiny, prompt) for prompt in PROMPTS)
    wrong = own._replace(answer=own.foil, foil=own.answer)
    for one, beside, options, says in (
        (own, [], {}, "needs a neighbour"),
        (own, others, {"sizes": ()}, "sizes"),
        (own, others, {"sizes": (0,)}, "sizes"),
        (own, others, {"draws": 0}, "draws"),
        (own, others, {"length": 1}, "2 tokens or more"),
        (wrong, others, {}, "does not know"),
        (own, [wrong], {}, "does not know"),
        (own._replace(foil=own.answer), others, {}, "same token"),
    ):
        with pytest.raises(ConfigError, match=says):
            ms.edit_fact(tiny, sae, one, beside, progress=False, **{**OPTIONS, **options})
    with pytest.raises(DataError, match="empty"):
        ms.edit_fact(tiny, sae, own._replace(foil=""), others, progress=False, **OPTIONS)
    with pytest.raises(ConfigError, match="one hook point"):
        ms.edit_fact(tiny, ms.Crosscoder(tiny.d_model, 8, k=2), own, others, hook=HOOK, progress=False, **OPTIONS)
    strange = ms.TopKSAE(tiny.d_model, 40, k=6, seed=4)
    with pytest.raises(MismatchError, match="another dictionary"):
        ms.edit_fact(tiny, sae, own, others, meta=its_own(strange), progress=False, **OPTIONS)
    with pytest.raises(MismatchError):
        ms.edit_fact(tiny, ms.TopKSAE(7, 8, k=2), own, others, hook=HOOK, progress=False, **OPTIONS)
