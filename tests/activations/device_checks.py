"""What is asked of a model on a GPU and of dictionaries made on the CPU. test_devices.py runs this file.

By hand: `pytest tests/activations/device_checks.py` on a GPU; anywhere `PYTHONPATH=tests pytest -p pretended_gpu ...`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import monosem as ms
from monosem.analysis.cosines import nearest, unit_rows
from monosem.models import ModelSet, SubjectModel

D, HOOK, TEXT = 32, "resid_post.1", "The king of the land went to the city"


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> SubjectModel:
    made = ms.load_model(tiny_folder)
    assert made.device.type != "cpu"
    return made


def dictionary(hook: str = HOOK, n: int = 48, seed: int = 0) -> ms.TopKSAE:
    sae = ms.TopKSAE(D, n, k=4, seed=seed, device="cpu")
    sae.metadata.hook = hook
    return sae


def test_a_dictionary_goes_where_its_model_is(model: SubjectModel, tmp_path: Path) -> None:
    for use in (
        lambda sae: ms.train(sae, ms.activations(model, HOOK, buffer_tokens=2048), tokens=2048, progress=False),
        lambda sae: ms.evaluate(sae, model, tokens=500, loss_tokens=200, progress=False),
        lambda sae: ms.harvest(sae, tmp_path / "store", model, tokens=500, progress=False),
        lambda sae: ms.check(sae, model),
        lambda sae: ms.effects(model, sae, TEXT, 3),
        lambda sae: ms.attribute(model, sae, TEXT),
    ):
        sae = dictionary()
        use(sae)
        assert sae.W_enc.device == sae.transform.mean.device == model.device


def test_an_edit_of_it_is_made_before(model: SubjectModel) -> None:
    sae = dictionary()
    edits = [ms.Ablate(sae, 1), ms.Scale(sae, 2, 3.0), ms.Redirect(sae, [3, 5], torch.randn(2, D)), ms.Splice(sae)]
    with model.edit([*edits, ms.Add(dictionary("resid_post.0"), 3, 1.0)]):
        assert model(TEXT).device == model.device


def test_what_it_reads_is_brought_to_it(model: SubjectModel) -> None:
    rows = model.capture(TEXT * 5, [HOOK])[HOOK].flatten(0, 1)
    for made in (
        dictionary(),
        ms.BatchTopKSAE(D, 48, k=4, device="cpu"),
        ms.JumpReLUSAE(D, 48, target_l0=4.0, device="cpu"),
        ms.TopKSAE(D, 48, k=4, transform="whiten", device="cpu"),
        ms.TopKSAE(D, 48, k=4, transform="layer_norm", device="cpu"),
    ):
        made.initialise(rows)
        assert made(rows).reconstruction.device.type == "cpu"
        back = made.transform.inverse(made.transform(rows), rows)
        torch.testing.assert_close(back, rows.cpu(), rtol=1e-3, atol=1e-3)


def test_analyses_take_rows_and_dictionaries_of_two_devices(model: SubjectModel) -> None:
    rows = model.capture(TEXT, [HOOK])[HOOK].flatten(0, 1)
    sae = dictionary()
    edit = ms.sparse_edit(sae, rows, rows.flip(0), k=2)
    assert edit.change.device == rows.device
    found = nearest(unit_rows(sae.decoder_directions()), unit_rows(rows))
    assert found.cosines.device.type == "cpu"
    small = dictionary(n=16, seed=1).to(rows.device)
    meta = ms.meta_sae(sae, n_latents=12, k=2, tokens=2000, controls=False, progress=False)
    assert "meta-latents" in str(meta.against(sae, small, threshold=0.1))


def test_connections_between_two_places(model: SubjectModel) -> None:
    places = dictionary("resid_post.0"), dictionary("resid_post.1", seed=1)
    found = ms.connections(model, *places, text="bundled:held_out", tokens=2000, progress=False)
    assert found.interference >= 0
    assert len(found.linear(penalties=[0.1], progress=False).latents)


def test_two_models_are_compared(model: SubjectModel, tiny_folder: Path) -> None:
    models = ModelSet([model, ms.load_model(tiny_folder)])
    crosscoder = ms.Crosscoder(D, 24, n_sources=2, k=4, device="cpu")
    found = ms.diff_models(crosscoder, models, HOOK, rows=500, checked=2, contexts=2)
    assert len(found.causal.agreement), "latents were taken out of both"
    assert "latents" in str(found)
