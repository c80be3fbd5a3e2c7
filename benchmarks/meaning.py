"""How long a search by meaning takes over many features: those of a run, repeated until there are so many.

python benchmarks/meaning.py runs/demo --features 100000 [--encoder FOLDER]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from monosem.features import Explanation, Explanations, FeatureStore
from monosem.features.embeddings import CHUNK, About, Embeddings
from monosem.features.files import PART
from monosem.features.meaning import Meanings
from monosem.files import write_json
from monosem.sql import Tables

QUERIES = (
    "negation", "past tense", "countries", "numbers", "names of women", "bodies of water", "the end of a sentence",
    "fear and anger", "war", "computers",
)  # fmt: skip


class Peaks:
    """The words at the peaks of a part of the features."""

    def __init__(self, words: list[str], latents: np.ndarray, strengths: np.ndarray) -> None:
        self._all = words, latents, strengths

    def peak_words(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """As of `WordIndex`."""
        return self._all


class Repeated:
    """A store's features again and again."""

    def __init__(self, store: FeatureStore, n: int, embeddings: Embeddings | None) -> None:
        self.n_latents, self.things, self.index, self.embeddings = n, "tokens", store.index, embeddings
        self._store = store
        names = store.tables.run("select name from features order by latent")
        folder = Path(tempfile.mkdtemp())
        rows = np.arange(n) % store.n_latents
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({"latent": pa.array(np.arange(n), pa.int32()), "name": names.column("name").take(rows)})
        pq.write_table(table, folder / "features.parquet")
        self.tables = Tables(folder, {"features": ["features.parquet"]})
        words, latents, strengths = store.word_index(0).peak_words()
        first = np.searchsorted(latents, np.arange(PART + 1))
        self._words, self._strengths, self._first = np.array(words, object), strengths, first
        said = list(store.explanations())
        own = {item.latents[0]: item for item in said if len(item.latents) == 1}
        items = [own[latent % store.n_latents] for latent in range(n) if latent % store.n_latents in own]
        places = [latent for latent in range(n) if latent % store.n_latents in own]
        made = [
            Explanation(latents=[place], text=item.text, explainer=item.explainer, sure=item.sure)
            for place, item in zip(places, items, strict=True)
        ]
        self._explanations = Explanations(folder, None, made)

    def word_index(self, part: int) -> Peaks:
        """Of a part of the latents."""
        wanted = np.arange(part * PART, min(self.n_latents, (part + 1) * PART))
        spans = [slice(self._first[i % PART], self._first[i % PART + 1]) for i in wanted]
        rows = np.concatenate([np.arange(span.start, span.stop) for span in spans])
        latents = np.repeat(wanted, [span.stop - span.start for span in spans])
        return Peaks(self._words[rows].tolist(), latents, self._strengths[rows])

    def explanations(self, explainer: str | None = None) -> Explanations:
        """Of all."""
        return self._explanations


def random_embeddings(folder: Path, n: int, encoder: str, width: int) -> Embeddings:
    """Embeddings of random directions."""
    generator, files = np.random.default_rng(0), list[str]()
    for first in range(0, n, CHUNK):
        rows = generator.standard_normal((min(CHUNK, n - first), 2, width)).astype(np.float32)
        files.append(f"{first}.npy")
        np.save(folder / files[-1], (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float16))
    about = About(encoder=encoder, n_latents=n, width=width, files=files)
    write_json(folder / "index.json", about.model_dump())
    return Embeddings(folder, n)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--features", type=int, default=100_000)
    parser.add_argument("--encoder", help="folder of MiniLM: search embeddings too, made of random numbers")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        embeddings = None
        if given.encoder:
            embeddings = random_embeddings(Path(folder), given.features, given.encoder, 384)
        begun = time.perf_counter()
        meanings = Meanings(Repeated(FeatureStore(given.run), given.features, embeddings))  # pyright: ignore
        print(f"{given.features:,} features indexed in {time.perf_counter() - begun:.1f} s")
        meanings.find("warm up")
        wall, processor = list[float](), list[float]()
        for query in QUERIES:
            begun, spent = time.perf_counter(), time.process_time()
            meanings.find(query)
            wall.append(time.perf_counter() - begun)
            processor.append(time.process_time() - spent)
        for what, times in (("wall clock", wall), ("processor", processor)):
            print(f"a search, {what}: median {1e3 * np.median(times):.0f} ms, longest {1e3 * max(times):.0f} ms")


if __name__ == "__main__":
    main()
