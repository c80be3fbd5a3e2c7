"""Explanations of others: files as Neuronpedia gives them, and lists of our own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from monosem.errors import ConfigError, DataError, FileError
from monosem.features.explanations import MOST, Explanation, Explanations
from monosem.files import fits, opened, parse_json, read_json

ANOTHER = "give a file of explanations: JSON as `monosem explain --json` writes it, or as Neuronpedia exports it"
LONGEST = 2**20
"""Bytes of a line."""


class Described(Protocol):
    """What explanations are of."""

    n_latents: int

    @property
    def path(self) -> Path: ...


class Row(BaseModel):
    """An explanation of Neuronpedia; what else it says is not read."""

    model_config = ConfigDict(extra="ignore")

    modelId: str | None = None  # noqa: N815
    layer: str | None = None
    index: int
    description: str | None
    typeName: str | None = None  # noqa: N815
    explanationModelName: str | None = None  # noqa: N815


def import_explanations(
    store: Described, path: str | Path, model: str | None = None, source: str | None = None
) -> list[Explanations]:
    """Read explanations from a file or folder, and keep them beside a store, one file an explainer.

    Args:
        store: whose latents they are of.
        path: JSON that `Explanations.to_json` has written; Neuronpedia's export of a source: a list in JSON, lines of
            JSON, plain or gzipped (explanations/batch-0.jsonl.gz), or a folder of these.
        model: of a file with several models' explanations: which, by its id on Neuronpedia.
        source: of one with several sources': which, such as "6-res-jb".

    Raises:
        FileError: a file is damaged, or holds no explanations.
        ConfigError: it has explanations of several sources, or of latents that the store does not have.
    """
    items = list(_items(Path(path), model, source))
    if not items:
        raise DataError(f"{path} has no explanations{' of ' + source if source else ''}: {ANOTHER}")
    largest = max(latent for item in items for latent in item.latents)
    least = min(latent for item in items for latent in item.latents)
    if least < 0 or largest >= store.n_latents:
        wrong = least if least < 0 else largest
        raise ConfigError(
            f"{path} explains latent {wrong}; the store has 0 to {store.n_latents - 1}: another dictionary?"
        )
    by_maker: dict[str, list[Explanation]] = {}
    for item in items:
        by_maker.setdefault(item.explainer, []).append(item)
    found = [Explanations(store.path, maker, own) for maker, own in by_maker.items()]
    for one in found:
        one.save()
    return found


def _items(path: Path, model: str | None, source: str | None) -> Iterator[Explanation]:
    rows: list[Row] = []
    for file in _files(path):
        for value in _values(file):
            if isinstance(value, dict) and "latents" in value:
                yield fits(value, Explanation, file, ANOTHER)
            else:
                row = fits(value, Row, file, ANOTHER)
                if model in (None, row.modelId) and source in (None, row.layer):
                    rows.append(row)
    origins = sorted({f"{row.modelId} {row.layer}" for row in rows})
    if len(origins) > 1:
        raise ConfigError(f"{path} has explanations of {', '.join(origins[:5])}: say which with model and source")
    yield from _of_neuronpedia(rows)


def _of_neuronpedia(rows: Iterable[Row]) -> Iterator[Explanation]:
    """Each latent's first of each explainer; empty ones say nothing."""
    seen: set[tuple[int, str]] = set()
    for row in rows:
        text = " ".join((row.description or "").split())
        said_by = ", ".join(name for name in (row.explanationModelName, row.typeName) if name) or "unknown"
        explainer = f"neuronpedia: {said_by}"
        if text and (row.index, explainer) not in seen:
            seen.add((row.index, explainer))
            yield Explanation(latents=[row.index], text=text, explainer=explainer)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted([*path.glob("**/explanations/*.jsonl*"), *path.glob("*.jsonl*"), *path.glob("*.json")])
    if not found:
        raise FileError(f"{path} has no explanations/*.jsonl.gz, *.jsonl or *.json: {ANOTHER}")
    return list(dict.fromkeys(found))


def _values(path: Path) -> Iterator[Any]:
    if ".jsonl" in path.suffixes[-2:]:
        with opened(path, ANOTHER) as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), 1):
                if line.strip():
                    yield parse_json(line, f"{path}, line {number},", dict[str, Any], ANOTHER)
        return
    value: Any = read_json(path, most=MOST, remedy=ANOTHER)
    if isinstance(value, dict):
        value = value.get("explanations")
    if not isinstance(value, list):
        raise FileError(f"{path} has no list of explanations: {ANOTHER}")
    yield from value
