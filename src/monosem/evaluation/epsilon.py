"""Are the errors of a dictionary worse than they look? The same places with other errors of the same size put in.

Gurnee, SAE reconstruction errors are (empirically) pathological, 2024: KL of 2.2 to 4.5 times that of a random error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from monosem.evaluation.curves import MOST_BINS
from monosem.evaluation.losses import Edit, Losses
from monosem.evaluation.metric import Metric, Seen
from monosem.evaluation.tables import DataTable
from monosem.intervals import Interval

SHORT = 1e-30
"""Lengths below it are those of nothing."""
TOKENS_SHOWN, TIMES_SEEN = 25, 10
"""Of the table of tokens: rows, and how often a token must have been met."""


def same_distance(
    x: Float[Tensor, "rows d"], y: Float[Tensor, "rows d"], noise: Float[Tensor, "rows d"]
) -> Float[Tensor, "rows d"]:
    """A random point as far from x as its reconstruction y is."""
    return x + (y - x).norm(dim=-1, keepdim=True) * _unit(noise)


def same_angle(
    x: Float[Tensor, "rows d"], y: Float[Tensor, "rows d"], noise: Float[Tensor, "rows d"]
) -> Float[Tensor, "rows d"]:
    """A random point as far from x as y is, of the norm of y and at the same angle to x."""
    along = _unit(x)
    across = y - (y * along).sum(-1, keepdim=True) * along
    random = noise - (noise * along).sum(-1, keepdim=True) * along
    return (y - across) + across.norm(dim=-1, keepdim=True) * _unit(random)


def norm_corrected(
    x: Float[Tensor, "rows d"], y: Float[Tensor, "rows d"], noise: Float[Tensor, "rows d"]
) -> Float[Tensor, "rows d"]:
    """The reconstruction at the norm of x: what shrinkage alone costs is gone."""
    return _unit(y) * x.norm(dim=-1, keepdim=True)


def with_error(
    x: Float[Tensor, "rows d"], y: Float[Tensor, "rows d"], noise: Float[Tensor, "rows d"]
) -> Float[Tensor, "rows d"]:
    """The reconstruction and its error, which is x: a test of what is put in, and where."""
    return y + (x - y)


def _ratio(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    return own / np.where(other > 0, other, np.nan)


def _unit(rows: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(SHORT)


EDITS: dict[str, Edit] = {
    "error": with_error,
    "random": same_distance,
    "random_cosine": same_angle,
    "norm_corrected": norm_corrected,
}
"""By the end of their metrics' keys."""
OVER = ("over_random", "over_random_cosine")
ONE_IN = 3
"""They cost as many passes again, and are measured in one of so many contexts."""


class OtherErrors(Metric):
    """KL with other errors put in, beside that of the dictionary's own: means, ratios, by token."""

    def __init__(self, losses: Losses, saes: Sequence[str], length: int, word: Callable[[int], str] | None) -> None:
        """Begin.

        Args:
            losses: what runs the model with them.
            saes: names of the dictionaries.
            length: positions of a context.
            word: tells how a token is written, for the table of tokens.
        """
        super().__init__()
        self.losses, self.saes, self.word = losses, saes, word
        self.width = -(-length // MOST_BINS)
        self.n_bins = -(-length // self.width)

    def add(self, seen: Seen) -> None:
        for found in self.losses.predict(seen).values():
            documents, bins, tokens = found.documents.numpy(), found.places.numpy() // self.width, found.tokens.numpy()
            self.sums.add("predictions", documents, np.ones(len(found)))
            if self.word is not None:
                self.count("token", np.bincount(tokens))
            for name in self.saes:
                self.sums.add(f"loss {name} error", documents, found.loss[f"{name} error"])
                for what in ("", *(f" {one}" for one in EDITS)):
                    self.sums.add(f"kl {name}{what}", documents, found.kl[f"{name}{what}"])
                for what in ("", " random"):
                    kl = found.kl[f"{name}{what}"]
                    self.sums.add_binned(f"place {name}{what}", documents, bins, kl, self.n_bins)
                    if self.word is not None:
                        self.count(f"{name}{what}", np.bincount(tokens, weights=kl))

    def result(self, name: str) -> dict[str, Interval]:
        if name not in self.saes or "predictions" not in self.sums:
            return {}
        found = {"ce_with_error": self.sums.interval(lambda s: s[f"loss {name} error"] / s["predictions"])}
        for what in EDITS:
            key = "kl_with_error" if what == "error" else f"kl_{what}"
            found[key] = self.sums.interval(lambda s, what=what: s[f"kl {name} {what}"] / s["predictions"])
        for what in ("random", "random_cosine"):
            found[f"kl_over_{what}"] = self.sums.interval(
                lambda s, what=what: (
                    s[f"kl {name}"] / np.where(s[f"kl {name} {what}"] > 0, s[f"kl {name} {what}"], np.nan)
                )
            )
        return found

    def notes(self) -> dict[str, str]:
        if self.losses.one_in == 1:
            return {}
        why = f"measured in one of {self.losses.one_in} of the contexts in which losses are"
        return dict.fromkeys(("ce_with_error", *(f"kl_{what}" for what in ("with_error", *OVER, *EDITS))), why)

    def tables(self, name: str) -> dict[str, DataTable]:
        if name not in self.saes or "predictions" not in self.sums:
            return {}
        tables = {"error_by_position": self._by_position(name)}
        return tables | ({} if self.word is None else {"error_tokens": self._tokens(name, self.word)})

    def _by_position(self, name: str) -> DataTable:
        curve = self.sums.curve(lambda s: s[f"place {name}"] / s[f"place {name} random"])
        met = [number for number, ratio in enumerate(curve) if not np.isnan(ratio.value)]
        columns: dict[str, list[Any]] = {"position": [number * self.width for number in met]}
        for end, label in enumerate(("KL over a random error's", "low", "high")):
            columns[label] = [curve[number][end] for number in met]
        return DataTable("KL over that of a random error of the same size, by position", columns)

    def _tokens(self, name: str, word: Callable[[int], str]) -> DataTable:
        times = self.counts["token"]
        with np.errstate(divide="ignore", invalid="ignore"):
            own, random = (self.counts[f"{name}{what}"] / times for what in ("", " random"))
        met = np.flatnonzero(times >= TIMES_SEEN)
        order = met[np.argsort(random[met] - own[met], kind="stable")][:TOKENS_SHOWN]
        columns: dict[str, list[Any]] = {
            "token": [word(int(token)) for token in order],
            "times": times[order].tolist(),
            "KL": own[order].tolist(),
            "KL of a random error": random[order].tolist(),
        }
        title = "Tokens after which the error costs most beyond a random one of the same size"
        return DataTable(title, columns, {"KL": "nats", "KL of a random error": "nats"})
