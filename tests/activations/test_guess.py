"""A dictionary without a fingerprint says where it belongs by how well it reconstructs there, in words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import monosem as ms
from monosem.activations.guess import Trial, guess, in_words, looks_like
from monosem.models import SubjectModel
from monosem.sae import SAE

DEMO = Path(__file__).parents[1] / "data" / "demo_sae"


@pytest.fixture
def model(bundled: SubjectModel) -> SubjectModel:
    return bundled


@pytest.fixture
def foreign() -> SAE:
    """The demo's dictionary, as another library's files would give it: without fingerprint and probe."""
    sae = ms.load_sae(DEMO).float()
    assert sae.metadata.hook == "resid_post.2"
    sae.metadata = sae.metadata.model_copy(
        update={"fingerprint": None, "layout": "saelens", "model_fingerprint": None, "tokenizer_fingerprint": None}
    )
    sae.probe = {}
    return sae


def test_where_it_belongs_nothing_is_said_but_how_well_it_does(foreign: SAE, model: SubjectModel) -> None:
    result = ms.check(foreign, model)
    assert result
    assert "on a short text FVU is 0." in str(result)


@pytest.mark.parametrize("hook", ["resid_post.1", "resid_post.3", "mlp_out.2"])
def test_the_hook_where_it_belongs_is_named(hook: str, foreign: SAE, model: SubjectModel) -> None:
    foreign.metadata.hook = hook
    result = ms.check(foreign, model)
    assert not result
    assert f"looks like resid_post.2, you gave {hook}" in str(result)
    with (
        pytest.warns(UserWarning, match=f"looks like resid_post.2, you gave {hook}"),
        model.edit([ms.Splice(foreign, hook)]),
    ):
        model("The old man")


def test_a_beginning_that_it_was_not_trained_with_is_named(foreign: SAE, model: SubjectModel) -> None:
    foreign.metadata.prepend_bos = False
    assert "trained with one" in str(ms.check(foreign, model))


def test_another_scale_is_named(foreign: SAE, model: SubjectModel) -> None:
    norm = guess(foreign, model, "resid_post.2")[0].norm
    factor = 1 / norm
    foreign.transform.mean.mul_(factor)
    foreign.transform.scale.div_(factor)
    assert "scaled to norm 1:" in str(ms.check(foreign, model))


def test_another_models_dictionary_reconstructs_nothing_and_that_is_said(foreign: SAE, model: SubjectModel) -> None:
    with torch.no_grad():
        foreign.W_dec.copy_(foreign.W_dec[torch.randperm(4096, generator=torch.Generator().manual_seed(0))])
    foreign.metadata.model = "another"
    assert "is this the model of another that it was trained on" in str(ms.check(foreign, model))


def test_what_is_tried_is_what_a_loop_finds(foreign: SAE, model: SubjectModel) -> None:
    """FVU of a trial, from the model's own activations, one context after another."""
    from monosem.activations.guess import LENGTH, TEXTS

    rows: list[torch.Tensor] = []
    tokenizer = model.tokenizer
    assert tokenizer is not None
    for text in TEXTS:
        tokens = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]][:LENGTH]
        rows += list(model.capture(torch.tensor([tokens]), ["resid_post.2"])["resid_post.2"][0, 1:])
    x = torch.stack(rows)
    x = x[x.norm(dim=1) <= 10 * x.norm(dim=1).median()]
    error, total = 0.0, 0.0
    for row in x:
        error += (row - foreign(row[None]).reconstruction[0].to(row.device)).pow(2).sum().item()
        total += (row - x.mean(0)).pow(2).sum().item()
    (first, *_) = guess(foreign, model, "resid_post.2")
    assert first.fvu == pytest.approx(error / total, rel=1e-4)
    assert in_words([first], foreign) is None


def test_a_place_where_it_reconstructs_next_to_nothing_is_not_named() -> None:
    """Of garbage everywhere, the least garbage is no guess."""
    sae = ms.TopKSAE(8, 16, k=2, transform="none")
    here, beside = Trial("resid_post.15", True, 1.0, 155.9, 174.0), Trial("resid_mid.15", True, 1.0, 118.0, 164.0)
    assert looks_like([here, beside]) is None
    assert "it reconstructs nothing there" in str(in_words([here, beside], sae))
    good = beside._replace(fvu=0.3)
    assert looks_like([here, good]) == "resid_mid.15"
