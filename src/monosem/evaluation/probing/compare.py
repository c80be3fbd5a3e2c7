"""ms.compare_texts: features that differ in rate between two sets of texts; do L0 and error tell the two apart?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from rich import box
from rich.table import Table
from scipy import sparse, stats

from monosem.arguments import checked
from monosem.data.documents import Text
from monosem.errors import ConfigError, DataError
from monosem.evaluation.probing.pooled import Place, PooledCodes, place_of, read_texts
from monosem.evaluation.probing.scores import drawn_auroc, interval_of, weights_of
from monosem.files import write_json
from monosem.intervals import Interval
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.text import printed
from monosem.work import as_job

LEAST_DOCUMENTS = 10
LEAST_ON = 8
"""Documents, of both texts together, in which a latent must be on for its rates to be compared."""
LABEL = 36
"""Characters of a label in the table."""
MOST_DRAWN = 2_000
"""Documents of each text by which the alarms are measured."""
ALARMS = {
    "l0": "L0, mean over a document",
    "error": "squared error, mean over a document",
    "relative_error": "squared error by squared norm, mean over a document",
    "norm": "norm of x, mean over a document",
}
"""The norm needs no dictionary: the control."""


class RateDifference(NamedTuple):
    """A latent's firing rates in two texts."""

    latent: int
    rate_a: float
    rate_b: float
    """Shares of tokens."""
    difference: Interval
    """rate_b less rate_a; documents are what is drawn."""
    p: float
    """Two-sided, that a difference as large comes about where there is none."""
    corrected: float
    """The same among all latents compared: Benjamini and Hochberg's (of those up to 0.05, 1 in 20 is false)."""
    documents_a: int
    documents_b: int
    """In which it is on."""


@dataclass(frozen=True)
class TextComparison:
    """Two texts, seen by a dictionary."""

    facts: dict[str, str | int | float]
    features: list[RateDifference] = field(repr=False)
    """All latents compared, the smallest p first."""
    alarms: dict[str, Interval] = field(repr=False)
    """How often a document of `b` has more of it than one of `a` (AUROC); 0.5 where nothing tells the two apart."""
    level: float
    labels: Mapping[int, str] = field(default_factory=dict, repr=False)

    @property
    def differing(self) -> list[RateDifference]:
        """Those whose corrected p is at most the level."""
        return [feature for feature in self.features if feature.corrected <= self.level]

    def table(self, top: int = 10) -> Table:
        """The latents that differ most, towards either text."""
        table = Table(title=self._title(), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.title_justify = table.caption_justify = "left"
        for name in ("latent", "rate in a", "rate in b", "b less a", "corrected p", "documents"):
            table.add_column(name, justify="right", no_wrap=True)
        if self.labels:
            table.add_column("label")
        for sign, words in ((1, "more in b"), (-1, "more in a")):
            chosen = [f for f in self.differing if sign * f.difference.value > 0][:top]
            if chosen:
                table.add_row(words, *[""] * (5 + bool(self.labels)), style="dim")
            for f in chosen:
                table.add_row(
                    str(f.latent),
                    f"{f.rate_a:.2%}",
                    f"{f.rate_b:.2%}",
                    f"{f.difference.value:+.2%} ±{((f.difference.high or 0) - (f.difference.low or 0)) / 2:.2%}",
                    f"{f.corrected:.1g}",
                    f"{f.documents_a:,} / {f.documents_b:,}",
                    *([_short(self.labels.get(f.latent, ""))] if self.labels else []),
                )
        table.caption = (
            f"{len(self.differing):,} of {len(self.features):,} latents differ (corrected p <= {self.level:g}); "
            f"{self.facts['not_compared']:,} are on in fewer than {LEAST_ON} documents."
        )
        return table

    def alarms_table(self) -> Table:
        """AUROC of every alarm."""
        table = Table(title="Does b stand out from a? AUROC, document by document", box=box.SIMPLE_HEAD)
        table.title_justify = "left"
        for name in ("", "AUROC", "95 % interval"):
            table.add_column(name, justify="left" if not name else "right", no_wrap=True)
        for name, found in self.alarms.items():
            span = "" if found.low is None else f"{found.low:.3f} - {found.high:.3f}"
            table.add_row(ALARMS[name], f"{found.value:.3f}", span)
        return table

    def _title(self) -> str:
        f = self.facts
        return (
            f"a: {f['documents_a']:,} documents of {f['a']} ({f['tokens_a']:,} tokens); "
            f"b: {f['documents_b']:,} of {f['b']} ({f['tokens_b']:,}); {f['hook']} of {f['model']}"
        )

    def __str__(self) -> str:
        return printed(self.table(), self.alarms_table(), width=110)

    def save(self, path: str | Path) -> None:
        """Write JSON: all latents compared."""
        content: dict[str, Any] = {
            "facts": self.facts,
            "alarms": {name: found._asdict() for name, found in self.alarms.items()},
            "features": [{**f._asdict(), "difference": f.difference._asdict()} for f in self.features],
        }
        write_json(path, content)


class Side(NamedTuple):
    """A text, document by document."""

    firing: Any
    """(documents, latents) on how many tokens."""
    tokens: Float[np.ndarray, " documents"]
    alarms: dict[str, Float[np.ndarray, " documents"]]


@checked
@as_job
@torch.no_grad()
def compare_texts(
    sae: SAE,
    a: Text,
    b: Text,
    *,
    model: SubjectModel | None = None,
    hook: str | None = None,
    tokens: int = 100_000,
    level: float = 0.05,
    labels: Mapping[int, str] | None = None,
    progress: bool = True,
) -> TextComparison:
    """The features that are on more often in one text than in another, and whether L0 and error tell the two apart.

    found = ms.compare_texts(sae, "ours.jsonl", "theirs.jsonl")
    print(found); found.differing[0].latent; found.alarms["error"]

    A rate is the share of tokens on which a latent is on. Documents, not tokens, are what is drawn: a latent that is on
    a hundred times in one document is one observation. p values are of a score test (the variance that documents have
    about the rate of both together), corrected for the number of latents by Benjamini and Hochberg's rule.

    Args:
        sae: the SAE.
        a: one text: what `read_documents` takes. A .txt file is one document: give JSON lines, or a folder.
        b: the other.
        model: its model; the SAE's own if not given.
        hook: what it reads; the SAE's own if not given.
        tokens: how many tokens of each to read, at most.
        level: the largest corrected p at which a latent is said to differ.
        labels: words for latents, for the table.
        progress: show where it is.

    Raises:
        ConfigError: model or hook are not known, or `level` is out of range.
        DataError: a text has too few documents, or activations are not finite.
        MismatchError: the SAE does not fit the model.
    """
    if not 0 < level < 1 or tokens < 1:
        raise ConfigError(f"level is between 0 and 1 and tokens at least 1, got {level} and {tokens}")
    place = place_of({"the SAE": sae}, model, hook)
    names = [str(text) if isinstance(text, str | Path) else f"{len(text):,} texts given" for text in (a, b)]
    one, other = (_side(sae, place, text, tokens, name) for text, name in zip((a, b), names, strict=True))
    features, skipped = _differences(one, other)
    facts: dict[str, str | int | float] = {
        "a": names[0],
        "b": names[1],
        "documents_a": len(one.tokens),
        "documents_b": len(other.tokens),
        "tokens_a": int(one.tokens.sum()),
        "tokens_b": int(other.tokens.sum()),
        "model": place.model.name,
        "hook": place.hook,
        "not_compared": skipped,
    }
    alarms = {name: _alarm(one.alarms[name], other.alarms[name]) for name in ALARMS}
    return TextComparison(facts, features, alarms, level, labels or {})


def _side(sae: SAE, place: Place, text: Text, tokens: int, name: str) -> Side:
    """Read one text."""
    firing, sums, n = PooledCodes(sae.n_latents, "mean"), dict[str, np.ndarray](), np.zeros(0)
    for read in read_texts(place, text, rows=tokens, what=f"reading {name}"):
        if not len(read.texts):
            continue
        documents, x = read.texts.cpu().numpy(), read.x[place.hook]
        codes = sae.encode(x)
        firing.add(replace(codes, values=(codes.values != 0).to(codes.values.dtype)), read.texts)
        error = (x - sae.decode(codes, x).to(x)).double().pow(2).sum(-1)
        norm = x.double().norm(dim=-1)
        n = _added(n, documents, np.ones(len(documents)))
        found = {"l0": codes.l0(), "error": error, "relative_error": error / norm.pow(2).clamp_min(1e-30), "norm": norm}
        for key, values in found.items():
            sums[key] = _added(sums.get(key, np.zeros(0)), documents, values.double().cpu().numpy())
    used = np.flatnonzero(n)
    if len(used) < LEAST_DOCUMENTS:
        raise DataError(
            f"{name} has {len(used)} documents, fewer than {LEAST_DOCUMENTS}: documents are what is compared, and a "
            ".txt file is one: give JSON lines, a list of texts, or a folder"
        )
    counts = firing.columns(np.ones(len(n))).values[used]
    return Side(counts, n[used], {key: values[used] / n[used] for key, values in sums.items()})


def _short(label: str) -> str:
    return label if len(label) <= LABEL else f"{label[: LABEL - 1]}…"


def _added(sums: np.ndarray, documents: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums of documents, of which there may be more now."""
    more = np.bincount(documents, values, minlength=len(sums))
    more[: len(sums)] += sums
    return more


def _differences(a: Side, b: Side) -> tuple[list[RateDifference], int]:
    """Of every latent that is on in enough documents; and how many are not."""
    on = [np.bincount(side.firing.indices, minlength=side.firing.shape[1]) for side in (a, b)]
    compared = np.flatnonzero(on[0] + on[1] >= LEAST_ON)
    totals = [np.asarray(side.firing.sum(0)).ravel()[compared] for side in (a, b)]
    sizes = [side.tokens.sum() for side in (a, b)]
    rates = [total / size for total, size in zip(totals, sizes, strict=True)]
    pooled_rate = (totals[0] + totals[1]) / (sizes[0] + sizes[1])
    null = _variance(a, pooled_rate, compared) + _variance(b, pooled_rate, compared)
    own = _variance(a, rates[0], compared) + _variance(b, rates[1], compared)
    freedom = min(len(a.tokens), len(b.tokens)) - 1
    apart = rates[1] - rates[0]
    p = 2 * stats.t.sf(np.abs(apart) / np.sqrt(np.maximum(null, 1e-300)), freedom)
    corrected = stats.false_discovery_control(p) if len(p) else p
    half = stats.t.ppf(0.975, freedom) * np.sqrt(own)
    found = [
        RateDifference(
            int(latent),
            float(rates[0][i]),
            float(rates[1][i]),
            Interval(float(apart[i]), float(apart[i] - half[i]), float(apart[i] + half[i])),
            float(p[i]),
            float(corrected[i]),
            int(on[0][latent]),
            int(on[1][latent]),
        )
        for i, latent in enumerate(compared)
    ]
    return sorted(found, key=lambda f: (f.p, -abs(f.difference.value))), len(on[0]) - len(compared)


def _variance(side: Side, rate: np.ndarray, latents: np.ndarray) -> np.ndarray:
    """Of a rate, over documents drawn anew: of each, what it has more than the rate lets expect, squared."""
    counts = sparse.csc_array(side.firing)[:, latents]
    squares = counts.copy()
    squares.data = squares.data**2
    n = len(side.tokens)
    second = np.asarray(squares.sum(0)).ravel() - 2 * rate * (counts.T @ side.tokens)
    return (second + rate**2 * (side.tokens**2).sum()) / side.tokens.sum() ** 2 * n / (n - 1)


def _alarm(a: np.ndarray, b: np.ndarray) -> Interval:
    """AUROC of b above a, documents of each drawn anew."""
    a, b = (values[:MOST_DRAWN] for values in (a, b))
    weights = np.concatenate([weights_of(len(a), 0), weights_of(len(b), 1)])
    positive = np.arange(len(a) + len(b)) >= len(a)
    return interval_of(drawn_auroc(np.concatenate([a, b]), positive, weights))
