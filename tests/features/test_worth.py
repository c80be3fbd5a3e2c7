"""Steering worth: what is stored is what raising each latent by itself does to the model's next token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models import MIXED_MODELS
from torch import nn

import monosem as ms
from monosem.features.log import UNREAD, Logged
from monosem.features.state import HarvestSettings
from monosem.features.statistics import Ranked
from monosem.features.worth import LENGTH, contexts_of, steering_worth
from monosem.models import SubjectModel
from monosem.sae import TopKSAE


@pytest.mark.parametrize(
    ("transform", "family"),
    [
        ("centre_scale", None),
        ("layer_norm", None),
        ("whiten", None),
        ("centre_scale", "gemma4_text"),
        ("centre_scale", "qwen3_5_text"),
    ],
)
def test_worth_is_what_raising_one_latent_at_the_last_token_does(
    make_gpt2: Callable[..., nn.Module], tokenizer: Any, transform: str, family: str | None
) -> None:
    """Beside whole forward passes with `ms.Add`, latent by latent; a number of latents that fills no last batch."""
    model = SubjectModel(MIXED_MODELS[family].build() if family else make_gpt2(), tokenizer)
    hook = "resid_post.1"
    contexts = torch.randint(1, 4096, (4, 9), generator=torch.Generator().manual_seed(0))
    sae = TopKSAE(32, 50, k=5, transform=transform, seed=1)
    sae.initialise(model.capture(contexts, [hook])[hook].reshape(-1, 32))
    sae.metadata.hook = hook
    largest = np.linspace(0.5, 3, 50)
    largest[7] = 0
    promoted = Ranked(np.random.default_rng(0).integers(0, 4096, (50, 6)), np.zeros((50, 6)))
    found = steering_worth(sae, model, hook, contexts, largest, promoted)
    assert found is not None
    assert np.flatnonzero(np.isnan(found.output_score)).tolist() == [7]
    assert np.flatnonzero(np.isnan(found.confidence_change)).tolist() == [7]
    plain = model(contexts)[:, -1].softmax(-1)
    for latent in range(50):
        if latent == 7:
            continue
        with model.edit([ms.Add(sae, latent, largest[latent], where=ms.Where(positions=-1))]):
            raised = model(contexts)[:, -1].softmax(-1)
        among = torch.from_numpy(promoted.indices[latent])
        score = (raised[:, among] - plain[:, among]).sum(-1).mean().item()
        assert found.output_score[latent] == pytest.approx(score, rel=1e-3, abs=1e-5)
        confidence = (raised.amax(-1) - plain.amax(-1)).mean().item()
        assert found.confidence_change[latent] == pytest.approx(confidence, rel=1e-3, abs=1e-5)


def test_contexts_are_the_beginnings_of_those_long_enough_and_read_at_their_end() -> None:
    lengths = np.array([LENGTH + 3, 5, LENGTH, LENGTH + 1])
    tokens = np.arange(lengths.sum())
    fired = np.ones(len(tokens), np.uint32)
    fired[LENGTH - 1] = UNREAD  # the first is not read where it would be edited
    logged = Logged(*(np.zeros(4, int),) * 2, lengths, *(np.zeros(4, int),), tokens, fired, *(np.zeros(0, int),) * 2)
    found = contexts_of(logged, 5)
    assert found is not None
    starts = np.cumsum([0, *lengths])
    assert found[:, 0].tolist() == starts[2:4].tolist()
    assert found.shape == (2, LENGTH)
    assert contexts_of(logged.taken(np.array([False, True, False, False])), 5) is None


def test_a_store_has_the_worth_of_its_latents(bundled: SubjectModel, small_run: Path, tmp_path: Path) -> None:
    """As the run's own; left out where that is asked for, and then the columns are empty."""
    store = ms.FeatureStore(small_run / "features")
    rows = store.columns(("latent", "count", "output_score", "confidence_change")).to_pylist()
    assert all((row["output_score"] is not None) == (row["count"] > 0) for row in rows)
    latent = max((row for row in rows if row["count"]), key=lambda row: row["output_score"])["latent"]
    feature = store[latent]
    assert feature.output_score == rows[latent]["output_score"] > 0
    assert feature.confidence_change == rows[latent]["confidence_change"]
    sae = ms.load_sae(small_run)
    without = ms.harvest(sae, tmp_path, bundled, tokens=500, settings=HarvestSettings(worth=0), progress=False)
    assert without[latent].output_score is None
