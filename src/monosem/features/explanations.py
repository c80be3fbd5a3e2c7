"""Explanations: what latents mean, each in a line, with scores; a file of each explainer beside a store's tables."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from monosem.errors import ConfigError, FileError
from monosem.features.rule import Rule
from monosem.files import fits, open_parquet, parse_json, read_json, replacing, write_json

FOLDER = "explanations"
MOST = 2**30
"""Bytes of a file of them as JSON."""
AGAIN = "delete it, and explain the features again"
PERSON = "person"
"""The explainer of what a person wrote, which stands above all scores."""


class Score(BaseModel):
    """How well an explanation did in one kind of test."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    """On the scorer's scale; 0.5 is chance where it is balanced."""
    low: float
    high: float
    """95 % interval of the value."""
    n: int = Field(ge=0)
    """Test examples."""
    judge: str | None = None
    """The model that judged; None if none was needed."""
    details: dict[str, float] = Field(default_factory=dict)
    """Such as sensitivity, specificity, precision, recall, "level 1" (weak firings) to "level 5"."""


class Explanation(BaseModel):
    """What a latent means, or several together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latents: list[int] = Field(min_length=1)
    """One; several for a group."""
    text: str
    """One plain line."""
    explainer: str
    """Who says so: "rules", the name of a model, "person", "neuronpedia: ..."."""
    side: Literal["input", "output"] = "input"
    """Whether it says what the latent fires on, or what it does to the model's output."""
    sure: float | None = Field(default=None, ge=0, le=1)
    """How sure the explainer is."""
    rule: Rule | None = None
    """The same for a machine: where it holds can be looked up in any text."""
    scores: dict[str, Score] = Field(default_factory=dict)
    """By the scorer's name."""
    seen: list[int] = Field(default_factory=list)
    """Rows of the store's table of examples that the explainer was shown: no scorer may test on them."""
    failure: str | None = None
    """How it fails, if it does."""

    @property
    def value(self) -> float | None:
        """Mean of its scores; None without any."""
        values = [score.value for score in self.scores.values()]
        return sum(values) / len(values) if values else None


class Explanations:
    """Explanations of the latents of one store: of one explainer, or of each latent the best of all."""

    def __init__(self, store: str | Path, explainer: str | None, items: Iterable[Explanation]) -> None:
        """Gather them.

        Args:
            store: the folder of the store.
            explainer: who made them; None: several.
            items: of a latent that has several, the one that says most comes first.
        """
        self.store, self.explainer = Path(store), explainer
        self._items = tuple(items)
        self._of: dict[int, list[Explanation]] = {}
        for item in self._items:
            if len(item.latents) == 1:
                self._of.setdefault(item.latents[0], []).append(item)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Explanation]:
        return iter(self._items)

    def __getitem__(self, latent: int) -> Explanation:
        """The first of a latent.

        Raises:
            KeyError: it has none.
        """
        return self._of[latent][0]

    def get(self, latent: int) -> Explanation | None:
        """The first of a latent; None if it has none."""
        return self._of.get(latent, [None])[0]

    def of(self, latent: int) -> list[Explanation]:
        """All of a latent alone: of both sides, or of several explainers."""
        return list(self._of.get(latent, ()))

    def groups(self) -> list[Explanation]:
        """Those of several latents together."""
        return [item for item in self._items if len(item.latents) > 1]

    def save(self) -> Path:
        """Write them beside the store's tables, in place of what this explainer said before.

        Raises:
            ConfigError: they are of several explainers.
            FileError: they cannot be written.
        """
        if self.explainer is None or any(item.explainer != self.explainer for item in self._items):
            raise ConfigError("these explanations are of several explainers: save those of one")
        path = self.store / FOLDER / f"{_slug(self.explainer)}.parquet"
        with replacing(path) as new:
            pq.write_table(_as_table(self._items), new, compression="zstd")
        return path

    def to_json(self, path: str | Path) -> None:
        """Write them into a file of JSON, a list."""
        write_json(path, [item.model_dump(mode="json") for item in self._items], indent=1)

    @staticmethod
    def from_json(path: str | Path, store: str | Path) -> Explanations:
        """Those of a file that `to_json` wrote.

        Raises:
            FileError: it is damaged.
        """
        items = read_json(path, list[Explanation], MOST)
        makers = {item.explainer for item in items}
        return Explanations(store, makers.pop() if len(makers) == 1 else None, items)

    def __repr__(self) -> str:
        of = self.explainer or "the best of all explainers"
        return f"Explanations({len(self)} of {str(self.store)!r}, {of})"


_SCHEMA = pa.schema(
    {
        "latent": pa.int32(),
        "latents": pa.list_(pa.int32()),
        "text": pa.string(),
        "explainer": pa.string(),
        "side": pa.string(),
        "sure": pa.float32(),
        "value": pa.float32(),
        "rule": pa.string(),
        "scores": pa.string(),
        "seen": pa.list_(pa.int64()),
        "failure": pa.string(),
    }
)
"""`latent`: None of a group. `value`: mean of the scores. `rule`, `scores`: as JSON."""


def _as_table(items: Iterable[Explanation]) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for item in items:
        row = item.model_dump(mode="json", exclude={"rule", "scores"})
        said = item.model_dump_json(include={"scores"})
        latent = item.latents[0] if len(item.latents) == 1 else None
        rule = None if item.rule is None else item.rule.model_dump_json(exclude_defaults=True)
        rows.append(row | {"latent": latent, "value": item.value, "rule": rule, "scores": said})
    return pa.Table.from_pylist(rows, _SCHEMA)


def files_of(store: Path) -> list[Path]:
    """The files of explanations of a store, one an explainer."""
    return sorted((store / FOLDER).glob("*.parquet"))


def read(store: Path, explainer: str | None) -> Explanations:
    """Those of one explainer; or of every latent, group and side the best: a person's, or else of highest score.

    Raises:
        FileError: a file is damaged.
    """
    if explainer is not None:
        path = store / FOLDER / f"{_slug(explainer)}.parquet"
        return Explanations(store, explainer, _items(path) if path.exists() else ())
    best: dict[tuple[tuple[int, ...], str], Explanation] = {}
    for path in files_of(store):
        for item in _items(path):
            key = (tuple(item.latents), item.side)
            best[key] = max(best.get(key, item), item, key=_rank)
    return Explanations(store, None, sorted(best.values(), key=lambda item: item.latents))


def explainers(store: Path) -> list[str]:
    """Who has explained latents of a store."""
    found: set[str] = set()
    for path in files_of(store):
        with open_parquet(path, AGAIN) as file:
            found |= set(file.read(["explainer"]).column("explainer").to_pylist())
    return sorted(found)


def _rank(item: Explanation) -> tuple[bool, float]:
    return item.explainer == PERSON, -1.0 if item.value is None else item.value


def _items(path: Path) -> list[Explanation]:
    with open_parquet(path, AGAIN) as file:
        if file.schema_arrow.names != _SCHEMA.names:
            raise FileError(f"{path} holds no explanations: {AGAIN}")
        rows = file.read().to_pylist()
    items: list[Explanation] = []
    for row in rows:
        del row["latent"], row["value"]
        scores = parse_json(row["scores"] or "{}", path, dict[str, Any], AGAIN)
        rule = None if row["rule"] is None else parse_json(row["rule"], path, dict[str, Any], AGAIN)
        items.append(fits(row | {"rule": rule} | scores, Explanation, path, AGAIN))
    return items


def _slug(explainer: str) -> str:
    """A name for a file; other names have other slugs."""
    plain = re.sub(r"[^a-z0-9.]+", "-", explainer.lower()).strip("-.")[:60]
    return plain if plain == explainer else f"{plain}-{hashlib.sha256(explainer.encode()).hexdigest()[:8]}"
