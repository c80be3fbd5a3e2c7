"""A dictionary of which the truth is known: each latent fires on one token of real text, more or less strongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from monosem.features import FeatureStore, HarvestSettings, harvest
from monosem.features.explanations import Explanation, Explanations
from monosem.models import SubjectModel
from monosem.sae import ReLUSAE, SAEMetadata

WORDS = [" the", " of", " and", " to", " in", " was", " his", " that", " with", " had", " he", " for"]
HOOK = "resid_pre.0"


class Planted(NamedTuple):
    """The store, and what its latents fire on."""

    store: FeatureStore
    words: list[str]
    explanations: Explanations


@pytest.fixture(scope="session")
def planted(make_gpt2: Callable[..., nn.Module], tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Twelve latents, whose strength is the position's."""
    model = SubjectModel(make_gpt2(width=128, layers=1), tokenizer, "tiny")
    tokens = [int(model.tokens(word, prepend_bos=False)[0, 0]) for word in WORDS]
    rows = model.module.get_input_embeddings().weight.detach()[tokens]
    sae = ReLUSAE(128, len(WORDS), seed=0)
    sae.metadata = SAEMetadata(hook=HOOK, context_length=32)
    with torch.no_grad():
        sae.W_enc.copy_(rows / rows.pow(2).sum(1, keepdim=True))
        sae.W_dec.copy_(rows)
        sae.b_dec.zero_()
        sae.b_enc.fill_(-0.75)
    folder: Path = tmp_path_factory.mktemp("planted") / "features"
    settings = HarvestSettings(silent_windows=64, before=8, after=5)
    store = harvest(sae, folder, model, tokens=8000, settings=settings, progress=False)
    items = [
        Explanation(latents=[i], text=f"the word {word.strip()}", explainer="truth") for i, word in enumerate(WORDS)
    ]
    return Planted(store, [word.strip() for word in WORDS], Explanations(store.path, "truth", items))
