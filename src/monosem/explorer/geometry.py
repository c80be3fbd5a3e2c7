"""Decoder directions: features as points of a map, and matches between dictionaries."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from monosem.errors import ConfigError
from monosem.explorer.correlation import FEWEST, Best, correlated
from monosem.explorer.dictionary import Dictionary, Unavailable
from monosem.explorer.layout import Layout, neighbourhoods
from monosem.explorer.origin import shared_start
from monosem.explorer.shapes import Comparison, Histogram, Kind, Map, Match, Side
from monosem.explorer.subject import Subjects

MOST_POINTS = MOST_LISTED = 20_000
TILE_ENTRIES = 2**24
THRESHOLD = 0.7
BINS = 40
REMEMBER = "decoder matches measure that, whatever was learned"
MAP_METHOD = (
    "Features whose decoder rows point the same way are drawn together (as UMAP does, on the 5 nearest of each by "
    "cosine). Only what lies close means something: where a group stands, and what lies far off, does not."
)


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
            if other is dictionary or not _same_width(dictionary, other):
                continue
            cosines = other.directions() @ dictionary.directions()[latent]
            best, start = int(cosines.argmax()), self.start(dictionary, other)
            caution = None if start is None else f"{_sentence(start)}, and {REMEMBER}: compare by activations"
            named = other.named(best)
            found.append(Match(**named, dictionary=other.name, cosine=float(cosines[best]), caution=caution))
        return sorted(found, key=lambda match: -match["cosine"])

    def start(self, a: Dictionary, b: Dictionary) -> str | None:
        """How the weights of two dictionaries of the same width began together, in words; None if nothing says so."""
        a, b = sorted((a, b), key=lambda each: each.name)
        hashes = a.index.get("dictionary"), b.index.get("dictionary")
        return self._once(
            ("start", a.name, b.name),
            lambda: shared_start(a.origin, b.origin, hashes, (a.directions(), b.directions())),
        )

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

        Args:
            a: the one.
            b: the other.
            threshold: similarity below which nothing matches.
            by: what is compared; if not given, activations, or decoder rows where those cannot be had.

        Raises:
            ConfigError: they are the same one.
            Unavailable: they cannot be compared in this way.
        """
        if a is b:
            raise ConfigError("compare two different dictionaries: a= and b= are the same")
        why_not = None
        if by != "decoder":
            try:
                return self._by_activations(a, b, threshold)
            except Unavailable as error:
                if by == "activations" or not _same_width(a, b):
                    raise
                why_not = str(error)
        if not _same_width(a, b):
            raise Unavailable(_not_the_same_width(a, b))
        there, back = self.best(a, b), self.best(b, a)
        method = "Cosine of decoder rows."
        if why_not is not None:
            method = f"Cosine of decoder rows, for activations cannot be compared: {why_not}."
        return self._compared(a, b, "decoder", method, threshold, there, back)

    def _by_activations(self, a: Dictionary, b: Dictionary, threshold: float) -> Comparison:
        there, back, n = self._once(("correlated", a.name, b.name), lambda: correlated(self.subjects, a, b))
        text = a.index["texts"][0]["text"]
        method = f"Correlation of activations over {n:,} tokens of {text}, of features that fire on {FEWEST} or more."
        return self._compared(a, b, "activations", method, threshold, there, back)

    def _compared(
        self,
        a: Dictionary,
        b: Dictionary,
        by: Literal["decoder", "activations"],
        method: str,
        threshold: float,
        there: Best,
        back: Best,
    ) -> Comparison:
        sides = _side(a, b, there, back, threshold), _side(b, a, back, there, threshold)
        caution, start = None, self.start(a, b) if _same_width(a, b) else None
        if start is not None:
            pairs = zip(sides[0]["latents"], sides[0]["matches"], sides[0]["kinds"], strict=True)
            matched = [latent == match for latent, match, kind in pairs if kind == "matched"]
            same = f"of {len(matched):,} matched here, {sum(matched):,} have the same number in both"
            means = (
                f"{REMEMBER} ({same}): compare by activations."
                if by == "decoder"
                else f"decoder matches would measure that; activations only where training has moved little ({same})."
            )
            caution = f"{_sentence(start)}, and {means}"
        return Comparison(a=a.name, b=b.name, by=by, method=method, caution=caution, threshold=threshold, sides=sides)


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]


def _not_the_same_width(a: Dictionary, b: Dictionary) -> str:
    for each in (a, b):
        if each.can["map"]:
            return f"{each.name}: {each.can['map']}"
    return f"decoder rows have {a.width} and {b.width} numbers: by=activations"


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
    return Best(matches, similarities, np.ones(len(a), bool))


def _side(a: Dictionary, b: Dictionary, there: Best, back: Best, threshold: float) -> Side:
    fires, other_fires = a.rates > 0, b.rates > 0
    alive = np.flatnonzero(fires & there.measured)
    kinds = kinds_of(there, back, threshold, other_fires & back.measured)[alive]
    similarities = there.similarities[alive]
    order = np.argsort(-similarities, kind="stable")[:MOST_LISTED]
    latents, matches = alive[order], there.matches[alive][order]
    counts, edges = np.histogram(np.clip(similarities, 0, 1), bins=BINS, range=(0, 1))
    names: tuple[Kind, ...] = ("matched", "split", "merged", "missing")
    return Side(
        dictionary=a.name,
        other=b.name,
        counts={name: int((kinds == i).sum()) for i, name in enumerate(names)},
        too_rare=int((fires & ~there.measured).sum()),
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
