"""Firings on text that no rule was made from: a short pass of the model over contexts that the harvest did not see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from monosem.activations import Mapping, Reading, reopened, rows_a_context
from monosem.errors import FileError
from monosem.explain.text import Text
from monosem.features import FeatureStore
from monosem.features.described import ByLatent
from monosem.features.log import FiringLog
from monosem.models import ModelSet, SubjectModel
from monosem.sae import SAE
from monosem.work import as_job, doing

TOKENS = 32_768
ROOM = 2**31


class HeldOut:
    """All firings of a dictionary on some text."""

    def __init__(self, text: Text, firings: ByLatent, n_read: int) -> None:
        self.text, self.firings, self.n_read = text, firings, n_read

    def of(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens at which a latent fires, ascending, and its activations there."""
        part = slice(int(self.firings.first[latent]), int(self.firings.first[latent + 1]))
        return self.firings.at[part].astype(np.int64), self.firings.values[part]


@as_job
@torch.no_grad()
def held_out(
    store: FeatureStore,
    sae: SAE,
    model: SubjectModel | ModelSet,
    hook: str | Sequence[str] | None = None,
    text: str | None = None,
    tokens: int | None = None,
    progress: bool = True,
) -> HeldOut | None:
    """Read on in the text of a harvest, from where it ended; where it is at its end, another text from its beginning.

    Args:
        store: what was harvested.
        sae: its dictionary.
        model: what it is of.
        hook: its hook points, if the SAE does not know them.
        text: the other text.
        tokens: how many to read; 32,768, or a tenth of what was harvested if that is less, if not given.
        progress: show where it is.

    Returns:
        What fires; None if there is nothing more to read, or the texts are not there.
    """
    tokens = tokens or max(1, min(TOKENS, store.n_tokens // 10))
    mapping = Mapping(sae, model, hook)
    span = store.index["texts"][-1]
    for name, start in ((span["text"], span["stop_context"]), (text, 0)):
        if name is None:
            continue
        try:
            contexts, _ = reopened(sae.metadata, model, mapping.hooks[0], text=name, images=None, labels=None)
        except FileError:  # it is not on this machine any more, or not under this path
            continue
        rows_a_context(contexts, sae.metadata)
        log = FiringLog(ROOM, np.dtype(np.int32), np.dtype(np.int32))
        with doing("reading on", tokens, unit="tokens") as stage:
            for piece in Reading(model, contexts, [mapping.wanted_inputs], tokens, start=start):
                kept = piece.found[0].kept
                codes = sae.encode(mapping.inputs(piece.found[0]).to(sae.W_enc.device))
                places = (piece.start + np.arange(len(piece.batch))) << 16
                flat = piece.batch.tokens.reshape(-1).cpu().numpy()
                log.add(places.astype(np.uint64), places, flat, np.flatnonzero(kept.reshape(-1).cpu().numpy()), codes)
                stage.advance(int(kept.sum()))
        found = log.kept()
        if found.read.sum() >= tokens // 2:
            words = Text(found.tokens, found.n_tokens, store.vocabulary, found.read)
            return HeldOut(words, ByLatent.of(found, sae.n_latents), int(found.read.sum()))
    return None
