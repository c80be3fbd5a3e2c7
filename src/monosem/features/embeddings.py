"""Embeddings of what is said of latents and of their passages: made once, kept beside a store, memory-mapped."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from monosem.errors import FileError
from monosem.features.feature import Example, Feature
from monosem.files import read_array, read_json, replacing, write_json
from monosem.models.sentences import SentenceEncoder
from monosem.work import doing

FOLDER = "meaning"
CHUNK = 1_024
"""Latents a file."""
PASSAGES, BEFORE, AFTER = 3, 12, 6
"""Of a latent, the strongest; and tokens around a peak that are read."""
LOW, HIGH = 0.25, 0.75
"""Cosines that mean nothing, and everything."""
AGAIN = "delete it and run `monosem embed` again"


class About(BaseModel):
    """What meaning/index.json says."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = 1
    encoder: str
    """Where it is loaded from."""
    n_latents: int
    width: int
    files: list[str]


class Embeddings:
    """The embeddings of a store. May be used by several threads."""

    def __init__(self, folder: Path, n_latents: int) -> None:
        """Open them.

        Raises:
            FileError: they are damaged, or of another store.
        """
        about = read_json(folder / "index.json", About, remedy=AGAIN)
        if about.n_latents != n_latents or len(about.files) != -(-n_latents // CHUNK):
            raise FileError(f"{folder} has embeddings of {about.n_latents:,} latents, not of {n_latents:,}: {AGAIN}")
        self.about, self.folder = about, folder
        self._chunks = [read_array(folder / Path(name).name, AGAIN) for name in about.files]
        for first, chunk in enumerate(self._chunks):
            shape = (min(CHUNK, n_latents - first * CHUNK), 2, about.width)
            if chunk.shape != shape or chunk.dtype != np.float16:
                raise FileError(f"{folder / about.files[first]} is no embedding of shape {shape}: {AGAIN}")
        self._asked = functools.lru_cache(256)(lambda query: self._encoder([query])[0])

    @functools.cached_property
    def _encoder(self) -> SentenceEncoder:
        return SentenceEncoder(self.about.encoder)

    def find(self, query: str) -> np.ndarray:
        """(n_latents,) from 0 to 1: how close a query is to what is said of a latent, or to its passages.

        Raises:
            FileError: the encoder cannot be loaded.
        """
        wanted = torch.from_numpy(self._asked(query))
        cosines = [(torch.from_numpy(np.array(chunk)).float() @ wanted).numpy() for chunk in self._chunks]
        said, passages = np.concatenate(cosines).T
        close = np.maximum(said, 0.5 * (said + passages))
        return 0.9 * np.clip((close - LOW) / (HIGH - LOW), 0, 1)


def make(
    folder: Path, n_latents: int, encoder: SentenceEncoder, read: Callable[[Sequence[int]], list[tuple[Feature, str]]]
) -> None:
    """Embed every latent; what is there of the same texts and encoder is kept, so that it can be stopped and goes on.

    Args:
        folder: where to.
        n_latents: how many there are.
        encoder: of sentences.
        read: gives latents, and what is said of each.
    """
    files: list[str] = []
    width = encoder(["width"]).shape[1]
    with doing("embedding", n_latents, unit="features") as stage:
        for first in range(0, n_latents, CHUNK):
            latents = range(first, min(n_latents, first + CHUNK))
            texts = [_texts(feature, said) for feature, said in read(latents)]
            digest = hashlib.sha256(repr((encoder.source, texts)).encode(errors="replace")).hexdigest()[:16]
            files.append(f"{first:08d}-{digest}.npy")
            if not (folder / files[-1]).is_file():
                _write(folder / files[-1], _embedded(texts, encoder, width))
            stage.advance(len(latents))
    about = About(encoder=encoder.source, n_latents=n_latents, width=width, files=files)
    write_json(folder / "index.json", about.model_dump())
    for old in folder.glob("*.npy"):
        if old.name not in files:
            old.unlink()


def _write(path: Path, array: np.ndarray) -> None:
    with replacing(path, array.nbytes) as new, new.open("wb") as file:
        np.save(file, array)


def _embedded(texts: list[list[str]], encoder: SentenceEncoder, width: int) -> np.ndarray:
    """(latents, 2, width) of what is said, and of the passages together."""
    vectors = encoder([text for of_latent in texts for text in of_latent])
    made, at = np.zeros((len(texts), 2, width), np.float32), 0
    for i, of_latent in enumerate(texts):
        own = vectors[at : at + len(of_latent)]
        at += len(of_latent)
        made[i, 0] = own[0]
        made[i, 1] = own[1:].sum(0) / max(1e-9, float(np.linalg.norm(own[1:].sum(0))))
    return made.astype(np.float16)


def _texts(feature: Feature, said: str) -> list[str]:
    """What is said of a latent, and its strongest passages."""
    return [said, *(_passage(example) for example in feature.top[:PASSAGES])]


def _passage(example: Example) -> str:
    return "".join(example.texts[max(0, example.peak - BEFORE) : example.peak + AFTER]).strip()


def opened(folder: Path, n_latents: int) -> Embeddings | None:
    """Those of a folder; None if there are none."""
    return Embeddings(folder, n_latents) if (folder / "index.json").is_file() else None
