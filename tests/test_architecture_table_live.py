"""The cells of the table that need a model: all architectures behind all transforms, trained from one pass of it."""

from __future__ import annotations

import copy
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from architecture_table import ARCHITECTURES, made, refusal
from torch import nn

from monosem.activations import ActivationSource, LiveActivations, check
from monosem.errors import MonosemError, TrainingInterrupted
from monosem.explorer.card import features_json
from monosem.explorer.dictionary import open_dictionaries
from monosem.explorer.geometry import Geometry
from monosem.explorer.subject import Subjects
from monosem.features import harvest
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.training import TrainingConfig, train_together

N, STEPS, BATCH, WIDTH = 24, 4, 64, 32
TEXTS = [f"Number {i} of the documents says {'much ' * (i % 7)}about {'tea' if i % 2 else 'rain'}." for i in range(60)]
CONFIG = TrainingConfig(batch_size=BATCH, log_every=STEPS, matmul="float32")


LIVE_CELLS = [f"{architecture}-{transform}" for architecture in ARCHITECTURES for transform in made(architecture)]
SHOWN = [name for name in LIVE_CELLS if name.endswith("-centre_scale") or name.startswith("topk-")]
"""Every architecture, and every transform once."""


class Members(NamedTuple):
    """Dictionaries by name, and what each reads."""

    saes: dict[str, SAE]
    sources: dict[str, ActivationSource]


def members(model: SubjectModel, names: Sequence[str] = LIVE_CELLS) -> Members:
    """Every architecture behind every transform, or some of them, untrained."""
    layers = range(3)
    hooks = [*(f"mlp_in.{i}" for i in layers), *(f"mlp_out.{i}" for i in layers), "resid_post.0", "resid_post.1"]
    whole = LiveActivations(model, hooks, TEXTS, context_length=32, buffer_tokens=1024)
    saes: dict[str, SAE] = {}
    sources: dict[str, ActivationSource] = {}
    views = {
        "one": whole.select("resid_post.1"),
        "pair": whole.pair("mlp_in.1", "mlp_out.1"),
        "layers": whole.pair(hooks[:3], hooks[3:6]),
        "sources": whole.stack(hooks[6:]),
    }
    for architecture, (name, options) in ARCHITECTURES.items():
        kind = {"cross_layer_transcoder": "layers", "crosscoder": "sources"}.get(name, "one")
        kind = "pair" if kind == "one" and "d_out" in options else kind
        own: dict[str, Any] = {**options, "d_out": WIDTH} if "d_out" in options else dict(options)
        for transform in made(architecture):
            if (cell := f"{architecture}-{transform}") in names:
                saes[cell] = SAE.registry[name](WIDTH, N, transform=transform, **own)
                sources[cell] = views[kind]
    return Members(saes, sources)


@pytest.fixture(scope="module")
def model(tiny_module: nn.Module, tokenizer: Any) -> SubjectModel:
    return SubjectModel(copy.deepcopy(tiny_module), tokenizer, "tiny")


@pytest.fixture(scope="module")
def trained(model: SubjectModel) -> dict[str, SAE]:
    """Trained together without a stop."""
    saes, sources = members(model)
    train_together(saes, sources, tokens=STEPS * BATCH, config=CONFIG, progress=False)
    return saes


def test_trained_together_each_learns_and_remembers_where_it_is_of(trained: dict[str, SAE]) -> None:
    for name, sae in trained.items():
        assert sae.metadata.tokens_trained == STEPS * BATCH, name
        assert sae.transform.fitted, name
        assert sae.target_transform.fitted, name
        assert all(parameter.isfinite().all() for parameter in sae.parameters()), name
        assert sae.metadata.fingerprint is not None
        assert 0 < sae.metadata.fingerprint.l0 <= N, name


def test_stopped_in_the_middle_all_go_on_to_the_same_bits(
    model: SubjectModel, trained: dict[str, SAE], tmp_path: Path
) -> None:
    """Every architecture and every transform once: they end in what they are when all train together."""
    begun = members(model, SHOWN)
    last, count = len(begun.saes), 0

    def stop(*_: object) -> None:
        nonlocal count
        count += 1
        if count == 2 * last:
            os.kill(os.getpid(), signal.SIGINT)

    run: dict[str, Any] = {"tokens": STEPS * BATCH, "config": CONFIG, "path": tmp_path, "progress": False}
    with pytest.raises(TrainingInterrupted):
        train_together(*begun, callbacks=[stop], **run)
    again = members(model, SHOWN)
    train_together(*again, **run)
    for name in SHOWN:
        for key, tensor in trained[name].state_dict().items():
            assert torch.equal(again.saes[name].state_dict()[key], tensor), (name, key)


def test_all_fit_the_model_that_they_are_of(model: SubjectModel, trained: dict[str, SAE]) -> None:
    """And none fits another: transcoders by what they predict, several sources side by side."""
    other = SubjectModel(copy.deepcopy(model.module), model.tokenizer, "other")
    with torch.no_grad():
        other.module.get_parameter("transformer.wte.weight").mul_(3)
    for name, sae in trained.items():
        found = check(sae, model)
        assert (found.problems, found.notes) == ([], []), name
    for name in SHOWN:
        assert not check(trained[name], other), name


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_harvested_is_explored(name: str, model: SubjectModel, trained: dict[str, SAE], tmp_path: Path) -> None:
    """Every architecture, and every transform once: cards, neighbours of raw rows, a match with itself."""
    sae, known = trained[name], refusal("harvest", *name.rsplit("-", 1))  # pyright: ignore[reportArgumentType]
    sae.save(tmp_path / "a" / "sae")
    if known is not None:
        with pytest.raises(MonosemError, match=known.words):
            harvest(sae, tmp_path / "a" / "features", model, text=TEXTS, tokens=320, progress=False)
        return
    harvest(sae, tmp_path / "a" / "features", model, text=TEXTS, tokens=320, progress=False)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    opened = open_dictionaries([tmp_path / "a", tmp_path / "b"])
    geometry = Geometry(opened, Subjects())
    first, second = opened.values()
    card = features_json(first, [0])[0]
    rows = torch.nn.functional.normalize(sae.decoder_directions().flatten(1), dim=-1)
    nearest = (rows @ rows[0]).index_fill(0, torch.tensor([0]), -2).argmax()
    assert card["neighbours"][0]["latent"] == nearest
    best = geometry.best(first, second)
    assert best.similarities == pytest.approx(1, abs=1e-4)
