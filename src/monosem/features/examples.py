"""Top examples: for every latent, the passages on which it is strongest, one per document, from one streaming pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from monosem.codes import SparseCodes
from monosem.data import ContextBatch
from monosem.errors import FileError
from monosem.models import SubjectModel
from monosem.sae import SAE

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Example:
    """A passage around a token on which a latent is strong."""

    activation: float
    """At the peak."""
    tokens: np.ndarray
    """(window,) token ids."""
    activations: np.ndarray
    """(window,) the latent's activation at each of them."""
    peak: int
    """Index of the strongest token in the window."""
    document: int
    position: int
    """Of the peak within its document."""


class ExampleCollector:
    """Keeps the `n_examples` strongest passages of every latent while batches stream by.

    What is kept of any two streams can be merged into what would have been kept of both: a latent's best place in each
    document, the best documents of each latent. Memory is fixed per latent.
    """

    def __init__(self, n_latents: int, n_examples: int = 12, before: int = 20, after: int = 8) -> None:
        """Begin; windows reach from `before` tokens before the peak to `after` tokens after it, within the context."""
        self.n_latents, self.n_examples, self.before, self.after = n_latents, n_examples, before, after
        self.n_tokens = 0
        self.firing = np.zeros(n_latents, np.int64)
        width = before + after + 1
        self._kept: Columns = {
            "latent": np.zeros(0, np.int64),
            "document": np.zeros(0, np.int64),
            "position": np.zeros(0, np.int64),
            "activation": np.zeros(0, np.float32),
            "tokens": np.zeros((0, width), np.int32),
            "activations": np.zeros((0, width), np.float32),
        }

    def __call__(self, batch: ContextBatch, kept: Bool[Tensor, "contexts pos"], codes: SparseCodes) -> None:
        """Take in the codes of the kept positions of a batch: an observer for `evaluate`."""
        cells = kept.reshape(-1).nonzero()[:, 0].numpy()
        rows, latents = codes.rows().cpu().numpy(), codes.indices.cpu().numpy().astype(np.int64)
        values = codes.values.detach().float().cpu().numpy()
        on = values > 0
        rows, latents, values = rows[on], latents[on], values[on]
        self.n_tokens += len(cells)
        self.firing += np.bincount(latents, minlength=self.n_latents)
        document = batch.document.reshape(-1).numpy()[cells[rows]]
        new = _strongest(latents, document, values, self.n_examples, floor=self._floors())
        found: Columns = {
            "latent": latents[new],
            "document": document[new],
            "position": batch.position.reshape(-1).numpy()[cells[rows[new]]],
            "activation": values[new],
        }
        keys = cells[rows] * self.n_latents + latents
        order = np.argsort(keys)
        found |= self._windows(batch, cells[rows[new]], latents[new], keys[order], values[order])
        merged = {name: np.concatenate([self._kept[name], found[name]]) for name in self._kept}
        best = _strongest(merged["latent"], merged["document"], merged["activation"], self.n_examples)
        self._kept = {name: column[best] for name, column in merged.items()}

    def _floors(self) -> np.ndarray:
        """Per latent, the activation that a passage must exceed to be kept at all."""
        floors = np.zeros(self.n_latents, np.float32)
        latents, counts = np.unique(self._kept["latent"], return_counts=True)
        weakest = np.full(self.n_latents, np.inf, np.float32)
        np.minimum.at(weakest, self._kept["latent"], self._kept["activation"])
        full = latents[counts >= self.n_examples]
        floors[full] = weakest[full]
        return floors

    def _windows(
        self, batch: ContextBatch, cells: np.ndarray, latents: np.ndarray, keys: np.ndarray, values: np.ndarray
    ) -> Columns:
        """Tokens around each cell, and the latent's activation at each; -1 and 0 outside the context."""
        length = batch.tokens.shape[1]
        around = np.arange(-self.before, self.after + 1)
        within = (cells % length)[:, None] + around
        inside = (within >= 0) & (within < length)
        places = np.where(inside, cells[:, None] + around, 0)
        tokens = np.where(inside, batch.tokens.reshape(-1).numpy()[places], -1)
        wanted = places * self.n_latents + latents[:, None]
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        hit = inside & (keys[at] == wanted) if len(keys) else np.zeros_like(inside)
        return {
            "tokens": tokens.astype(np.int32),
            "activations": np.where(hit, values[at] if len(keys) else 0, 0).astype(np.float32),
        }

    def examples(self) -> Examples:
        """What has been kept so far."""
        order = np.lexsort((-self._kept["activation"], self._kept["latent"]))
        columns = {name: column[order] for name, column in self._kept.items()}
        return Examples(self.n_latents, self.n_tokens, self.firing.copy(), columns, self.before)


def _strongest(
    latents: np.ndarray, documents: np.ndarray, values: np.ndarray, n: int, floor: np.ndarray | None = None
) -> np.ndarray:
    """Entries to keep: of each latent the strongest in each document, and of those the n strongest."""
    chosen = np.arange(len(values)) if floor is None else np.flatnonzero(values > floor[latents])
    order = chosen[np.lexsort((-values[chosen], documents[chosen], latents[chosen]))]
    first = np.ones(len(order), bool)
    first[1:] = (latents[order][1:] != latents[order][:-1]) | (documents[order][1:] != documents[order][:-1])
    order = order[first]
    order = order[np.lexsort((-values[order], latents[order]))]
    starts = np.flatnonzero(np.r_[True, latents[order][1:] != latents[order][:-1]]) if len(order) else np.zeros(0, int)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    return order[rank < n]


@dataclass(frozen=True)
class Examples:
    """The strongest passages of every latent."""

    n_latents: int
    n_tokens: int
    """Tokens that were read."""
    firing: np.ndarray
    """(n_latents,) on how many tokens each latent was on."""
    columns: Columns
    before: int

    def __getitem__(self, latent: int) -> list[Example]:
        """A latent's passages, strongest first."""
        if not 0 <= latent < self.n_latents:
            raise IndexError(f"latent {latent} is not among 0 to {self.n_latents - 1}")
        first, last = np.searchsorted(self.columns["latent"], [latent, latent + 1])
        return [self._example(i) for i in range(first, last)]

    def _example(self, i: int) -> Example:
        inside = self.columns["tokens"][i] >= 0
        return Example(
            float(self.columns["activation"][i]),
            self.columns["tokens"][i][inside],
            self.columns["activations"][i][inside],
            int(inside[: self.before].sum()),
            int(self.columns["document"][i]),
            int(self.columns["position"][i]),
        )

    def firing_rate(self, latent: int) -> float:
        return float(self.firing[latent] / max(1, self.n_tokens))

    def notable(self, n: int, telling: Callable[[Example], bool] | None = None) -> list[int]:
        """Latents worth looking at first: sparse, and about as strong on their eighth passage as on their first.

        Every latent has a commonest peak token; of those that share it, the best is taken.

        Args:
            n: how many.
            telling: which passages say something by themselves; latents of which fewer than six of eight do are
                left out.
        """
        rate = self.firing / max(1, self.n_tokens)
        scored: list[tuple[float, int, int]] = []
        for latent in np.flatnonzero((self.firing >= 30) & (rate < 0.01)).tolist():
            found = self[latent][:8]
            if len(found) < 8 or (telling is not None and sum(telling(e) for e in found) < 6):
                continue
            strength = np.array([e.activation for e in found])
            peaks = [int(e.tokens[e.peak]) for e in found]
            score = float(strength[-1] / strength[0] * strength.mean())
            scored.append((score, latent, max(set(peaks), key=peaks.count)))
        scored.sort(reverse=True)
        best: dict[int, int] = {}
        for _, latent, token in scored:
            best.setdefault(token, latent)
        return list(best.values())[:n]

    def save(self, folder: str | Path) -> None:
        """Write `examples.parquet` and `latents.parquet`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {}
        for name, column in self.columns.items():
            arrays[name] = pa.array(list(column)) if column.ndim == 2 else pa.array(column)
        facts = {b"n_tokens": str(self.n_tokens).encode(), b"before": str(self.before).encode()}
        pq.write_table(pa.table(arrays).replace_schema_metadata(facts), folder / "examples.parquet", compression="zstd")
        latents = pa.table({"latent": np.arange(self.n_latents), "firing": self.firing})
        pq.write_table(latents, folder / "latents.parquet", compression="zstd")

    @staticmethod
    def load(folder: str | Path) -> Examples:
        """Read what `save` has written.

        Raises:
            FileError: it is missing or damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = Path(folder)
        try:
            table = pq.read_table(folder / "examples.parquet")
            firing = pq.read_table(folder / "latents.parquet").column("firing").to_numpy()
            columns = {name: np.array(table.column(name).to_pylist()) for name in ("tokens", "activations")}
            scalars = ("latent", "document", "position", "activation")
            columns |= {name: table.column(name).to_numpy() for name in scalars}
            facts = table.schema.metadata or {}
            return Examples(len(firing), int(facts[b"n_tokens"]), firing, columns, int(facts[b"before"]))
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise FileError(
                f"{folder} holds no readable feature examples ({error}): run monosem eval on the run"
            ) from error


@torch.no_grad()
def top_examples(
    sae: SAE, model: SubjectModel, batches: Any, hook: str | None = None, n_examples: int = 12
) -> Examples:
    """The strongest passages of every latent over batches of contexts (`PackedText.in_batches`)."""
    place = hook or sae.metadata.hook or ""
    collector = ExampleCollector(sae.n_latents, n_examples)
    for batch in batches:
        kept = ~(batch.special | batch.padding)
        x = model.capture(batch.tokens, [place])[place][kept.to(model.device)]
        collector(batch, kept, sae.encode(x.float()))
    return collector.examples()
