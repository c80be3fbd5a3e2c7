"""A store of latents that fire by known rules on real text, and what they do on more of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from monosem.analysis.kinds import lists
from monosem.codes import SparseCodes
from monosem.data import PackedText, read_documents
from monosem.explain import HeldOut, Text
from monosem.features import FeatureStore, HarvestSettings, Vocabulary, new_harvest, write_store
from monosem.features.described import ByLatent
from monosem.models import SubjectModel
from monosem.sae import SAEMetadata, TopKSAE

LENGTH, HARVESTED, NEW = 64, 700, 250
NEVER, NOISE = 10, 9


class Place(NamedTuple):
    """A token of a text: its word in small letters, what stands before, and which of its word's tokens it is."""

    text: str
    word: str
    before: str
    piece: int
    last: bool
    position: int
    """In its context."""


TRUTH: dict[int, Callable[[Place], bool]] = {
    0: lambda p: p.before == "the" and p.word in ("first", "second", "last", "other", "same"),
    1: lambda p: p.word in lists()["countries"] and p.piece == 0,
    2: lambda p: p.word.endswith("ing") and len(p.word) > 3 and p.last and p.piece > 0,
    3: lambda p: p.text in (" with", " for"),
    4: lambda p: p.word in lists()["modal verbs"] and p.piece == 0,
    5: lambda p: p.word.isdigit() and p.piece == 0,
    6: lambda p: p.before == "of" and p.piece == 0,
    7: lambda p: "\n" in p.before and p.piece == 0,
    8: lambda p: p.position < 5,
}


class Ruled(NamedTuple):
    """The store, and held-out firings by the same rules."""

    store: FeatureStore
    held_out: HeldOut
    places: list[Place]
    """Of the held-out text."""


def read_places(tokens: np.ndarray, vocabulary: Vocabulary) -> Iterator[Place]:
    """A plain loop over one context."""
    words: list[list[int]] = []
    texts = [vocabulary.text(token) for token in tokens.tolist()]
    for i, text in enumerate(texts):
        inside = bool(words) and text[:1].isalnum() and texts[i - 1][-1:].isalnum()
        if inside and int(tokens[i - 1]) not in vocabulary.special:
            words[-1].append(i)
        else:
            words.append([i])
    before = ""
    for of in words:
        whole = "".join(texts[i] for i in of)
        word = "" if int(tokens[of[0]]) in vocabulary.special else (whole.strip() or whole).lower()
        for piece, i in enumerate(of):
            yield Place(texts[i], word, before, piece, i == of[-1], i)
        before = word


@pytest.fixture(scope="session")
def ruled(make_gpt2: Callable[..., nn.Module], tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Ruled:
    """Ten latents that fire by the rules above, or at random; one that never does."""
    model = SubjectModel(make_gpt2(width=32, layers=1), tokenizer, "tiny")
    sae = TopKSAE(32, NEVER + 1, k=2, seed=0)
    sae.metadata = SAEMetadata(hook="resid_post.0", context_length=LENGTH)
    text = PackedText(read_documents("bundled:held_out"), tokenizer, LENGTH)
    settings = HarvestSettings(silent_windows=64)
    harvest = new_harvest(sae, model, "resid_post.0", "bundled:held_out", settings)
    vocabulary, random = Vocabulary.of(tokenizer), np.random.default_rng(0)
    batch = text.read(0, HARVESTED)
    kept = ~batch.special
    dense, _ = _codes(batch.tokens.numpy(), kept.numpy(), vocabulary, random)
    harvest.add(batch, kept, SparseCodes.from_dense(torch.from_numpy(dense)[kept]))
    folder: Path = tmp_path_factory.mktemp("ruled") / "features"
    store = FeatureStore(write_store(harvest, folder, sae, model))
    batch = text.read(HARVESTED, HARVESTED + NEW)
    read = ~batch.special.numpy()
    dense, places = _codes(batch.tokens.numpy(), read, vocabulary, random)
    at, latent = np.nonzero(dense.reshape(-1, NEVER + 1))
    order = np.argsort(latent, kind="stable")
    first = np.searchsorted(latent[order], np.arange(NEVER + 2))
    firings = ByLatent(first, at[order], dense.reshape(-1, NEVER + 1)[at, latent][order])
    new = Text(batch.tokens.numpy().reshape(-1), np.full(NEW, LENGTH), vocabulary, read.reshape(-1))
    return Ruled(store, HeldOut(new, firings, int(read.sum())), places)


def _codes(
    tokens: np.ndarray, read: np.ndarray, vocabulary: Vocabulary, random: np.random.Generator
) -> tuple[np.ndarray, list[Place]]:
    """(contexts, pos, latents) activations; and the places."""
    dense = np.zeros((*tokens.shape, NEVER + 1), np.float32)
    places: list[Place] = []
    for context, row in enumerate(tokens):
        for position, place in enumerate(read_places(row, vocabulary)):
            places.append(place)
            for latent, holds in TRUTH.items():
                if read[context, position] and holds(place):
                    dense[context, position, latent] = random.uniform(1, 5)
            if read[context, position] and random.random() < 0.01:
                dense[context, position, NOISE] = random.uniform(1, 5)
    return dense, places
