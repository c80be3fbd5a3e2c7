"""A small store of a random dictionary over real text."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from monosem.data import PackedText, read_documents
from monosem.features import FeatureStore, HarvestSettings, harvest
from monosem.models import SubjectModel
from monosem.sae import SAEMetadata, TopKSAE

HOOK, LENGTH, LATENTS, TOKENS = "resid_post.1", 24, 60, 6000
SETTINGS = HarvestSettings(near_every=2, silent_windows=64)


class Made(NamedTuple):
    """A store, and the dense truth it was made from."""

    store: FeatureStore
    sae: TopKSAE
    model: SubjectModel
    tokens: Tensor
    """(contexts, pos)"""
    kept: Tensor
    document: Tensor
    padding: Tensor
    dense: Tensor
    """(contexts, pos, latents); 0 where not kept"""


def small_sae() -> TopKSAE:
    sae = TopKSAE(32, LATENTS, k=3, seed=3)
    sae.metadata = SAEMetadata(hook=HOOK, context_length=LENGTH)
    with torch.no_grad():
        sae.b_enc[0] = -100.0  # never fires
    return sae


@pytest.fixture(scope="session")
def small_model(tiny_module: nn.Module, tokenizer: Any) -> SubjectModel:
    return SubjectModel(copy.deepcopy(tiny_module), tokenizer, "tiny")


@pytest.fixture(scope="session")
def made(small_model: SubjectModel, tmp_path_factory: pytest.TempPathFactory) -> Made:
    sae = small_sae()
    folder: Path = tmp_path_factory.mktemp("run") / "features"
    store = harvest(sae, folder, small_model, tokens=TOKENS, settings=SETTINGS, progress=False)
    text = PackedText(read_documents("bundled:held_out"), small_model.tokenizer, LENGTH)
    batch = text.read(0, store.index["texts"][0]["stop_context"])
    dense = [
        sae.encode(small_model.capture(part, [HOOK])[HOOK]).to_dense().detach() for part in batch.tokens.split(16)
    ]  # in the batches of the harvest, so that values are the same to the bit
    kept = ~batch.special
    return Made(
        store, sae, small_model, batch.tokens, kept, batch.document, batch.padding, torch.cat(dense) * kept[..., None]
    )
