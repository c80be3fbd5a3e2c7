"""The table of features: filters, pages, histograms of columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monosem.errors import ConfigError
from monosem.explorer.dictionary import Dictionary
from monosem.explorer.shapes import Column, ColumnHistogram, Named, Page, Row
from monosem.features.search import OFTEN_ENOUGH
from monosem.features.store import NEVER
from monosem.spelling import listed
from monosem.sql import condition

MOST_ROWS, MOST_BINS = 500, 400
WORD_COLUMNS = ("name", "top_token_text", "promoted_text")


@dataclass(frozen=True)
class Filters:
    """What must hold of a row; docs/explorer_api.md says what each means."""

    ranges: Sequence[str] = ()
    where: str | None = None
    contains: str | None = None
    latents: str | None = None
    starred: bool = False
    labelled: bool = False
    on_list: str | None = None
    dead: bool = True

    @property
    def asked(self) -> str | None:
        """The condition that somebody has written; None if there is none."""
        return self.where if self.where and self.where.strip() else None

    def condition(self, dictionary: Dictionary) -> tuple[str, list[Any]]:
        """As SQL on `features`, with the values for its question marks."""
        parts: list[str] = []
        values: list[Any] = []
        notes = dictionary.notes.all()
        for given in self.ranges:
            parts += _range(given, numbers_of(dictionary))
        if self.latents is not None:
            parts.append(_among(_numbers(self.latents, dictionary.n_latents)))
        if self.starred:
            parts.append(_among(latent for latent, note in notes.items() if note["starred"]))
        if self.labelled:
            parts.append(_among(latent for latent, note in notes.items() if note["label"]))
        if self.on_list is not None:
            parts.append(_among(latent for latent, note in notes.items() if self.on_list in note["lists"]))
        if not self.dead:
            parts.append("count > 0")
        if self.contains:
            words = self.contains.lower()
            labelled = [latent for latent, label in dictionary.notes.labels().items() if words in label.lower()]
            labelled += [
                item.latents[0]
                for item in dictionary.explanations()
                if len(item.latents) == 1 and words in item.text.lower()
            ]
            found = [f"contains(lower(coalesce({column}, '')), ?)" for column in WORD_COLUMNS]
            parts.append(f"({' or '.join([*found, _among(labelled)])})")
            values += [words] * len(WORD_COLUMNS)
        if self.asked:
            parts.append(condition(self.asked))
        return " and ".join(parts) or "true", values


def page_of(dictionary: Dictionary, filters: Filters, sort: str = "latent", limit: int = 50, offset: int = 0) -> Page:
    """Some rows, filtered and sorted.

    Raises:
        ConfigError: a column is unknown or the condition is none.
    """
    wanted, values = filters.condition(dictionary)
    order = _order(dictionary, sort)
    limit = min(max(0, limit), MOST_ROWS)
    total = dictionary.n_latents
    if wanted != "true":
        found = dictionary.ask(f"select count(*) as n from features where {wanted}", values, filters.asked)
        total = int(found["n"][0])
    page = f"select latent from features where {wanted} order by {order} limit {limit} offset {max(0, offset)}"
    chosen = dictionary.ask(page, values, filters.asked)
    return Page(total=total, offset=offset, rows=rows_of(dictionary, chosen["latent"]))


def rows_of(dictionary: Dictionary, latents: Sequence[int]) -> list[Row]:
    """The rows of some latents, in the order given."""
    if not latents:
        return []
    low, high = min(latents), max(latents)  # a range lets whole row groups be skipped
    found = dictionary.store.tables.run(
        f"select * from features where latent between {low} and {high} and {_among(latents)}"
    ).to_pylist()
    by_latent = {row["latent"]: row for row in found}
    names = dictionary.all_named(by_latent)
    return [_row(dictionary, by_latent[latent], names[latent]) for latent in latents]


def _row(dictionary: Dictionary, row: dict[str, Any], named: Named) -> Row:
    more = {
        "name_piece": row.get("name_piece"),
        "output_score": row.get("output_score"),
        "confidence_change": row.get("confidence_change"),
        "name": row["name"] if row["count"] else NEVER,
        "label": named["label"],
        "explanation": named["explanation"],
        "starred": dictionary.notes[row["latent"]]["starred"],
    }
    return {**row, **more}  # pyright: ignore[reportReturnType]


def histogram_of(
    dictionary: Dictionary, filters: Filters, column: str, bins: int = 40, log: bool = False
) -> ColumnHistogram:
    """How many of the rows that the filters leave have a column within each of some bins.

    Raises:
        ConfigError: the column is unknown or holds text, or the condition is none.
    """
    if column not in numbers_of(dictionary):
        raise ConfigError(f"histogram of {column!r}: choose one of {listed(column, numbers_of(dictionary))}")
    bins = min(max(1, bins), MOST_BINS)
    wanted, values = filters.condition(dictionary)
    known = f"{column} is not null and not isnan({column}::double)" + (f" and {column} > 0" if log else "")
    value = f"log10({column}::double)" if log else f"{column}::double"
    span = dictionary.ask(
        f"select count(*) as total, min(v) as low, max(v) as high, count(v) as n from "
        f"(select case when {known} then {value} end as v from features where {wanted})",
        values,
        filters.asked,
    )
    ((total, low, high, n),) = zip(*(span[name] for name in ("total", "low", "high", "n")), strict=True)
    if not n:
        return ColumnHistogram(column=column, log=log, edges=[], counts=[], total=total, left_out=total)
    room = max(1e-6 * (high - low), 1e-6 * abs(high), 1e-9)  # so that both ends are inside also once rounded
    low, high = low - room, high + room
    found = dictionary.ask(
        f"select least({bins - 1}, floor(({value} - ({low!r})) * {bins / (high - low)!r})::int) as bin, count(*) as n "
        f"from features where {wanted} and {known} group by bin",
        values,
        filters.asked,
    )
    counts = np.zeros(bins, np.int64)
    counts[found["bin"]] = found["n"]
    edges = np.linspace(low, high, bins + 1)
    edges = 10**edges if log else edges
    return ColumnHistogram(
        column=column,
        log=log,
        edges=edges.tolist(),
        counts=counts.tolist(),
        total=total,
        left_out=total - n,
    )


def columns_of(dictionary: Dictionary) -> list[Column]:
    """The table's columns and their extents."""
    kinds, numbers = dictionary.columns, numbers_of(dictionary)
    extents = ", ".join(f"min({name}) as min_{name}, max({name}) as max_{name}" for name in numbers)
    found = dictionary.store.tables.run(f"select {extents} from features").to_pylist()[0]
    return [
        Column(name=name, kind="number", min=found[f"min_{name}"], max=found[f"max_{name}"])
        if kind == "number"
        else Column(name=name, kind="text", min=None, max=None)
        for name, kind in kinds.items()
    ]


def numbers_of(dictionary: Dictionary) -> list[str]:
    """Columns that hold numbers."""
    return [name for name, kind in dictionary.columns.items() if kind == "number"]


def _order(dictionary: Dictionary, sort: str) -> str:
    column, down = sort.removeprefix("-"), sort.startswith("-")
    way = "desc" if down else "asc"
    if column == "latent":
        return f"latent {way}"
    if column == "starred":
        starred = [latent for latent, note in dictionary.notes.all().items() if note["starred"]]
        return f"{_among(starred)} {way}, latent" if starred else "latent"  # SQL sorts by no constant
    if column == "name":
        return f"lower(name) {way} nulls last, latent"
    if column == "label":
        labels = dictionary.notes.labels()
        ranked = sorted(labels, key=lambda latent: labels[latent].lower(), reverse=down)
        places = " ".join(f"when {latent} then {i}" for i, latent in enumerate(ranked))
        return f"case latent {places} end nulls last, latent" if ranked else "latent"
    if column not in dictionary.columns:
        raise ConfigError(
            f"sort={sort}: features have no column {column!r}; there are {listed(column, dictionary.columns)}"
        )
    # A name is a share of few firings where there are few: it says little, however clear.
    often = f"count >= {OFTEN_ENOUGH} desc, " if column == "clarity" and down else ""
    return f"{often}{column} {way} nulls last, latent"


def _range(given: str, columns: Sequence[str]) -> list[str]:
    parts = given.split(",")
    if len(parts) != 3 or parts[0] not in columns:
        raise ConfigError(f"range={given}: write COLUMN,LOW,HIGH with a column among {', '.join(columns)}")
    column, *ends = parts
    conditions: list[str] = []
    for end, sign in zip(ends, (">=", "<="), strict=True):
        if end.strip():
            try:
                conditions.append(f"{column} {sign} {float(end)!r}::double")
            except ValueError:
                raise ConfigError(f"range={given}: {end!r} is no number") from None
    if any("inf" in condition or "nan" in condition for condition in conditions):
        raise ConfigError(f"range={given}: leave an end empty that has no bound")
    return conditions


def _numbers(given: str, stop: int) -> list[int]:
    try:
        found = [int(number) for number in given.split(",") if number.strip()]
        return [number for number in found if 0 <= number < stop]
    except ValueError:
        raise ConfigError(f"latents={given}: write numbers with commas between") from None


def _among(latents: Iterable[int]) -> str:
    listed = ", ".join(map(str, latents))
    return f"latent in ({listed})" if listed else "false"
