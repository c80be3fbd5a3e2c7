"""Decoder directions: features as points of a map, and matches between dictionaries."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from monosem.activations import Wanted, read_rows, rows_a_context
from monosem.errors import ConfigError
from monosem.explorer.dictionary import Dictionary, Unavailable
from monosem.explorer.layout import Layout, neighbourhoods
from monosem.explorer.shapes import Comparison, Histogram, Kind, Map, Match, Side
from monosem.explorer.subject import Subjects

MOST_POINTS = MOST_LISTED = 20_000
TILE_ENTRIES = 2**24
THRESHOLD = 0.7
BINS = 40
CORRELATED_TOKENS, CORRELATED_CONTEXTS = 4_096, 8
WIDEST_CORRELATION = 2**25
"""Entries of the table of correlations: 128 MiB."""
MAP_METHOD = (
    "Features whose decoder rows point the same way are drawn together (as UMAP does, on the 5 nearest of each by "
    "cosine). Only what lies close means something: where a group stands, and what lies far off, does not."
)


class Best(NamedTuple):
    """Every latent's best match in another dictionary."""

    matches: np.ndarray
    similarities: np.ndarray


class Geometry:
    """Maps and comparisons of some dictionaries, each computed once."""

    def __init__(self, dictionaries: dict[str, Dictionary], subjects: Subjects) -> None:
        self.dictionaries, self.subjects = dictionaries, subjects
        self._known: dict[tuple[Any, ...], Any] = {}
        self._locks: defaultdict[tuple[Any, ...], threading.Lock] = defaultdict(threading.Lock)

    def _once(self, key: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        with self._locks[key]:
            if key not in self._known:
                self._known[key] = compute()
            return self._known[key]

    # Map ---------------------------------------------------------------------------------------------------------

    def map(self, dictionary: Dictionary) -> Map:
        """The features that fire as points; of more than 20,000 a random sample, always the same."""
        latents, layout, total = self._once(("map", dictionary.name), lambda: _lay_out(dictionary))
        return Map(
            method=MAP_METHOD,
            kept=layout.kept,
            points=len(latents),
            total=total,
            latents=latents.tolist(),
            x=layout.places[:, 0].tolist(),
            y=layout.places[:, 1].tolist(),
            rates=dictionary.rates[latents].tolist(),
            names=dictionary.short_names(latents),
        )

    # Matches -----------------------------------------------------------------------------------------------------

    def matches(self, dictionary: Dictionary, latent: int) -> list[Match]:
        """A latent's best match in every other dictionary of the same width, best first."""
        dictionary.check(latent)
        found: list[Match] = []
        for other in self.dictionaries.values():
            if other is dictionary or other.can["map"] or dictionary.can["map"] or not _same_width(dictionary, other):
                continue
            cosines = other.directions() @ dictionary.directions()[latent]
            best = int(cosines.argmax())
            found.append(Match(**other.named(best), dictionary=other.name, cosine=float(cosines[best])))
        return sorted(found, key=lambda match: -match["cosine"])

    def best(self, a: Dictionary, b: Dictionary) -> Best:
        """Every latent's best match by decoder cosine, tile by tile."""
        return self._once(("best", a.name, b.name), lambda: _closest(a.directions(), b.directions()))

    def compare(
        self,
        a: Dictionary,
        b: Dictionary,
        threshold: float = THRESHOLD,
        by: Literal["decoder", "activations"] | None = None,
    ) -> Comparison:
        """Two dictionaries: which features are in both, split, merged or missing.

        Raises:
            ConfigError: they are the same one.
            Unavailable: they cannot be compared in this way.
        """
        if a is b:
            raise ConfigError("compare two different dictionaries: a= and b= are the same")
        by = by or ("decoder" if _same_width(a, b) else "activations")
        if by == "decoder":
            if not _same_width(a, b):
                raise Unavailable(f"decoder rows have {a.width} and {b.width} numbers: by=activations")
            there, back = self.best(a, b), self.best(b, a)
            method = "Cosine of decoder rows."
        else:
            there, back, n = self._once(("correlated", a.name, b.name), lambda: self._correlated(a, b))
            method = f"Correlation of activations over {n:,} tokens of {a.index['texts'][0]['text']}."
        sides = _side(a, b, there, back, threshold), _side(b, a, back, there, threshold)
        return Comparison(a=a.name, b=b.name, by=by, method=method, threshold=threshold, sides=sides)

    def _correlated(self, a: Dictionary, b: Dictionary) -> tuple[Best, Best, int]:
        if a.model_name != b.model_name or a.index.get("model_fingerprint") != b.index.get("model_fingerprint"):
            raise Unavailable(f"{a.name} and {b.name} are of different models: their features cannot be compared")
        if a.n_latents * b.n_latents > WIDEST_CORRELATION:
            raise Unavailable("these dictionaries are too wide for correlations of activations")
        codes_a, kept_a, tokens_a = self._codes(a, a)
        codes_b, kept_b, tokens_b = self._codes(b, a)
        if not torch.equal(tokens_a, tokens_b):
            raise Unavailable(f"{a.name} and {b.name} read text cut differently: in length, beginnings or packing")
        both = kept_a & kept_b
        correlations = correlate(codes_a[both[kept_a]], codes_b[both[kept_b]])
        there, back = correlations.max(1), correlations.max(0)
        n = int(both.sum())
        return (
            Best(there.indices.numpy(), there.values.numpy()),
            Best(back.indices.numpy(), back.values.numpy()),
            n,
        )

    def _codes(self, dictionary: Dictionary, reader: Dictionary) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, n_latents) activations on the text of `reader`; where these stand, and the tokens of all contexts.

        Of the contexts that were harvested, those in which `reader` reads a few thousand tokens.
        """
        text, rules = reader.index["texts"][0], reader.sae().metadata

        def work(sae: Any, model: Any) -> tuple[Tensor, Tensor, Tensor]:
            contexts = self.subjects.contexts(dictionary, sae, model, text["text"])
            hook, first = str(dictionary.hook), text["first_context"]
            n = max(1, int(CORRELATED_TOKENS / rows_a_context(contexts, rules)))
            stop = min(text["stop_context"], first + n)
            dense: list[Tensor] = []
            kept: list[Tensor] = []
            tokens: list[Tensor] = []
            for start in range(first, stop, CORRELATED_CONTEXTS):
                batch = contexts.read(start, min(stop, start + CORRELATED_CONTEXTS))
                (found,) = read_rows(model, batch, [Wanted(sae.metadata, [hook])])
                dense.append(sae.encode(found.rows[hook].to(sae.W_enc.device)).to_dense().detach().cpu())
                kept.append(found.kept)
                tokens.append(batch.tokens)
            return torch.cat(dense), torch.cat(kept), torch.cat(tokens)

        return self.subjects.ask(dictionary, work)


def _same_width(a: Dictionary, b: Dictionary) -> bool:
    """Whether decoder rows, those of several sources as one, can be compared."""
    return a.width == b.width and not a.can["map"] and not b.can["map"]


def _lay_out(dictionary: Dictionary) -> tuple[np.ndarray, Layout, int]:
    """Latents, their places, and how many latents fire."""
    alive = np.flatnonzero(dictionary.rates > 0)
    latents = alive
    if len(alive) > MOST_POINTS:
        latents = np.sort(np.random.default_rng(0).choice(alive, MOST_POINTS, replace=False))
    return latents, neighbourhoods(dictionary.directions()[torch.from_numpy(latents)]), len(alive)


@torch.no_grad()
def _closest(a: Tensor, b: Tensor) -> Best:
    matches, similarities = np.zeros(len(a), np.int64), np.zeros(len(a), np.float32)
    step = max(1, TILE_ENTRIES // len(b))
    for start in range(0, len(a), step):
        best = (a[start : start + step] @ b.T).max(1)
        matches[start : start + step] = best.indices.numpy()
        similarities[start : start + step] = best.values.numpy()
    return Best(matches, similarities)


@torch.no_grad()
def correlate(a: Tensor, b: Tensor) -> Tensor:
    """(n_a, n_b) Pearson correlations between the columns of (rows, n_a) and (rows, n_b); 0 where one never varies."""

    def standard(x: Tensor) -> Tensor:
        x = x - x.mean(0)
        norm = x.norm(dim=0)
        return torch.where(norm > 1e-12, x / norm.clamp_min(1e-12), torch.zeros_like(x))

    return standard(a).T @ standard(b)


def _side(a: Dictionary, b: Dictionary, there: Best, back: Best, threshold: float) -> Side:
    alive = np.flatnonzero(a.rates > 0)
    kinds = kinds_of(there, back, threshold, b.rates > 0)[alive]
    similarities = there.similarities[alive]
    order = np.argsort(-similarities, kind="stable")[:MOST_LISTED]
    latents, matches = alive[order], there.matches[alive][order]
    counts, edges = np.histogram(np.clip(similarities, 0, 1), bins=BINS, range=(0, 1))
    names: tuple[Kind, ...] = ("matched", "split", "merged", "missing")
    return Side(
        dictionary=a.name,
        other=b.name,
        counts={name: int((kinds == i).sum()) for i, name in enumerate(names)},
        mean=float(similarities.mean()) if len(similarities) else 0.0,
        histogram=Histogram(edges=edges.tolist(), counts=counts.tolist()),
        latents=latents.tolist(),
        matches=matches.tolist(),
        similarities=similarities[order].tolist(),
        kinds=[names[kind] for kind in kinds[order]],
        names=a.short_names(latents),
        match_names=b.short_names(matches),
    )


def kinds_of(there: Best, back: Best, threshold: float, other_fires: np.ndarray) -> np.ndarray:
    """Of every latent: 0 matched, 1 split, 2 merged, 3 missing, as docs/explorer_api.md says.

    Args:
        there: best matches in the other dictionary.
        back: the other's best matches here.
        threshold: similarity below which nothing matches.
        other_fires: which of the other's latents fire; only these can be pieces of a split.
    """
    close = (back.similarities >= threshold) & other_fires
    pieces = np.bincount(back.matches[close], minlength=len(there.matches))
    mutual = back.matches[there.matches] == np.arange(len(there.matches))
    kinds = np.where(mutual, 0, 2)
    kinds[pieces >= 2] = 1
    kinds[there.similarities < threshold] = 3
    return kinds
