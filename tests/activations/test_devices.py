"""A model on a GPU and a dictionary made on the CPU: the two meet without a word from the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import monosem as ms
from monosem.activations.views import HookSource
from monosem.kernels import sparse
from monosem.models import default_device
from monosem.runs import run_training

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def made() -> ms.SAE:
    sae = ms.TopKSAE(256, 512, k=8, device="cpu")
    sae.metadata.hook, sae.metadata.model = "resid_post.2", "bundled"
    return sae


def test_models_go_to_the_gpu_where_there_is_one() -> None:
    assert default_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert ms.load_model("bundled").device.type == default_device().type


def test_a_source_knows_where_its_rows_are_made(tmp_path: Path) -> None:
    model = ms.load_model("bundled")
    live = ms.activations(model, ["mlp_in.1", "mlp_out.1"])
    assert isinstance(live, HookSource)
    assert live.device == live.select("mlp_out.1").device == live.pair("mlp_in.1", "mlp_out.1").device == model.device
    assert ms.activations(torch.randn(4, 8)).device is None


@on_a_gpu
def test_an_sae_goes_where_its_model_is(tmp_path: Path) -> None:
    model = ms.load_model("bundled")
    for use in (
        lambda sae: ms.train(sae, ms.activations(model, "resid_post.2"), tokens=8192, progress=False),
        lambda sae: ms.evaluate(sae, model, tokens=2000, progress=False),
        lambda sae: ms.harvest(sae, tmp_path / "store", model, tokens=2000, progress=False),
        lambda sae: ms.check(sae, model),
        lambda sae: ms.effects(model, sae, "The king of the land", 3),
        lambda sae: ms.attribute(model, sae, "The king of the land"),
    ):
        sae = made()
        use(sae)
        assert sae.W_enc.device.type == sae.transform.mean.device.type == "cuda"
    with model.edit([ms.Splice(made()), ms.Add(made(), 3, 1.0)]):
        assert model("The king").device.type == "cuda"


@on_a_gpu
def test_what_it_reads_is_brought_to_it() -> None:
    sae, x = made(), torch.randn(4, 256)
    alone = sae(x).reconstruction
    with sparse.use_backend("plain"):
        there = sae.to("cuda")(x).reconstruction
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), alone, rtol=1e-4, atol=1e-4)


@on_a_gpu
def test_a_run_is_trained_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    step = ms.Trainer.step

    def looked_at(self: ms.Trainer, *given: Any, **options: Any) -> Any:
        seen.append(self.sae.W_enc.device.type)
        return step(self, *given, **options)

    monkeypatch.setattr(ms.Trainer, "step", looked_at)
    config = {"hook": "resid_post.2", "tokens": 8192, "output": str(tmp_path), "sae": {"n_latents": 512, "k": 8}}
    run_training(ms.RunConfig.model_validate(config), progress=False)
    assert set(seen) == {"cuda"}
