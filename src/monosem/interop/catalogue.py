"""catalogue: the dictionaries that have been published, and the names by which they are loaded."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from pydantic import BaseModel

from monosem.arguments import checked
from monosem.files import fits, opened, parse_json
from monosem.spelling import meant

FILE = Path(__file__).parent / "catalogue.json.gz"
SHOWN = 40
"""Dictionaries that are printed one by one; of more, releases."""


@dataclass(frozen=True)
class PublishedSAE:
    """A published dictionary. What its publisher's names do not tell is None."""

    name: str
    """What `ms.load_sae` takes: repository and path on the Hugging Face hub."""
    release: str
    id: str
    """With the release, what SAELens calls it."""
    model: str
    site: str | None
    """What it reads, a hook point without its layer; of transcoders "what it reads > what it predicts"."""
    layer: int | tuple[int, ...] | None
    """Several of a crosscoder; None of the embedding, and of a set of all layers."""
    width: int | None
    """Latents; of a set, all layers' together."""
    l0: float | None
    architecture: str | None
    licence: str | None
    source: str
    """Where these facts were taken from."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are known."""
        return self.layer if isinstance(self.layer, tuple) else () if self.layer is None else (self.layer,)


class Catalogue(Sequence[PublishedSAE]):
    """Published dictionaries, in the order of their releases; prints as a table."""

    def __init__(self, entries: Sequence[PublishedSAE], taken_from: str, to_add: str) -> None:
        self._entries = list(entries)
        self.taken_from = taken_from
        """Where the catalogue was taken from."""
        self.to_add = to_add
        """How to add to it."""

    @overload
    def __getitem__(self, index: int) -> PublishedSAE: ...

    @overload
    def __getitem__(self, index: slice) -> Catalogue: ...

    def __getitem__(self, index: int | slice) -> PublishedSAE | Catalogue:
        if isinstance(index, slice):
            return Catalogue(self._entries[index], self.taken_from, self.to_add)
        return self._entries[index]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[PublishedSAE]:
        return iter(self._entries)

    @property
    def releases(self) -> dict[str, Catalogue]:
        """The dictionaries of each release, by its name."""
        found: dict[str, list[PublishedSAE]] = {}
        for entry in self:
            found.setdefault(entry.release, []).append(entry)
        return {name: Catalogue(entries, self.taken_from, self.to_add) for name, entries in found.items()}

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """As a table: its columns, and a row for each dictionary, or, where there are many, for each release."""
        if len(self) <= SHOWN:
            first, rows = ["name"], [_row([entry], entry.name) for entry in self]
        else:
            first, rows = ["release"], [_row(list(own), name) for name, own in self.releases.items()]
        columns = [*first, "model", "reads", "layer", "latents", "L0", "architecture", "dictionaries"]
        same = {"model"} if len(self.models) == 1 else set[str]()
        same |= {"dictionaries"} if len(rows) == len(self) else set()
        kept = [number for number, column in enumerate(columns) if column not in same]
        return [columns[number] for number in kept], [[row[number] for number in kept] for row in rows]

    def __str__(self) -> str:
        columns, rows = self.rows()
        widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
        padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in [columns, *rows]]
        return "\n".join([*("  ".join(row).rstrip() for row in padded), self.summary])

    @property
    def models(self) -> list[str]:
        """The models that they are of."""
        return list(dict.fromkeys(entry.model for entry in self))

    @property
    def summary(self) -> str:
        """How many there are, in words."""
        dictionaries = "1 dictionary" if len(self) == 1 else f"{len(self):,} dictionaries"
        releases, models = len(self.releases), self.models
        of = f" of {models[0]}" if len(models) == 1 else f" of {len(models)} models"
        return f"{dictionaries}{of} in {'1 release' if releases == 1 else f'{releases} releases'}"


def _row(entries: list[PublishedSAE], name: str) -> list[str]:
    layers = sorted({layer for entry in entries for layer in entry.layers})
    l0s = sorted({entry.l0 for entry in entries if entry.l0 is not None})
    together = isinstance(entries[0].layer, tuple) and len({entry.layer for entry in entries}) == 1
    return [
        name,
        entries[0].model.rpartition("/")[2],
        _listed({entry.site or "" for entry in entries}),
        " + ".join(map(str, layers)) if together else _ranges(layers),
        " ".join(map(_short, sorted({entry.width for entry in entries if entry.width is not None}))),
        f"{l0s[0]:g}" if len(l0s) == 1 else f"{l0s[0]:g} to {l0s[-1]:g}" if l0s else "",
        _listed({entry.architecture or "" for entry in entries}),
        f"{len(entries):,}",
    ]


def _short(width: int) -> str:
    """`16k` of 16,384 and `1m` of 1,048,576, as publishers call them."""
    return f"{width // 1_000_000}m" if width >= 1_000_000 else f"{width // 1000}k"


def _listed(words: set[str]) -> str:
    return ", ".join(sorted(words))


def _ranges(numbers: list[int]) -> str:
    """`0-11 16`, of numbers in order."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


# Reading and searching ----------------------------------------------------------------------------------------------


class _Release(BaseModel):
    release: str
    model: str
    repo: str
    licence: str | None
    source: str
    rows: list[list[Any]]


class _File(BaseModel):
    taken_from: str
    to_add: str
    columns: list[str]
    releases: list[_Release]


@functools.lru_cache(1)
def everything() -> Catalogue:
    """All that is known.

    Raises:
        FileError: the file of this installation is damaged.
    """
    with opened(FILE, "install monosem again") as file:
        found = fits(parse_json(file.read(), FILE), _File, FILE, "install monosem again")
    return Catalogue(
        [entry for one in found.releases for entry in _of(one, found.columns)], found.taken_from, found.to_add
    )


def _of(release: _Release, columns: list[str]) -> Iterator[PublishedSAE]:
    for row in release.rows:
        facts = dict(zip(columns, row, strict=True))
        path, layer = facts.pop("path"), facts.pop("layer")
        yield PublishedSAE(
            name=f"{release.repo}/{path}" if path else release.repo,
            release=release.release,
            model=release.model,
            layer=tuple(layer) if isinstance(layer, list) else layer,
            licence=release.licence,
            source=release.source,
            **facts,
        )


@checked
def catalogue(
    words: str = "",
    *,
    model: str | None = None,
    layer: int | None = None,
    site: str | None = None,
    width: int | None = None,
    architecture: str | None = None,
) -> Catalogue:
    """Published dictionaries that fit all that is asked for, each once; all of them if nothing is.

    Args:
        words: each must occur in the name, release, model, site, architecture or licence, whatever its case.
        model: its name, as on the hub ("google/gemma-2-2b") or without the owner.
        layer: a layer that it reads.
        site: what it reads, as "resid_post", or, of a transcoder, "mlp_in".
        width: latents.
        architecture: a word of it, as "jumprelu" or "transcoder".
    """
    wanted, every = words.lower().split(), everything()
    found = [
        entry
        for entry in every
        if (model is None or _is_model(entry.model, model))
        and (layer is None or layer in entry.layers)
        and (site is None or (entry.site or "").startswith(site))
        and (width is None or entry.width == width)
        and (architecture is None or architecture in (entry.architecture or "").split())
        and (not wanted or all(word in _words(entry) for word in wanted))
    ]
    once = {entry.name: entry for entry in reversed(found)}  # a release may list again what is another's
    return Catalogue(list(once.values())[::-1], every.taken_from, every.to_add)


def nothing_found(words: str = "", model: str | None = None) -> str:
    """What to say where nothing was found."""
    models = {entry.model.rpartition("/")[2]: None for entry in everything()}
    near = meant((model or words).rpartition("/")[2], models)
    return f"no published dictionary that is known here fits{near}"


def published(name: str) -> PublishedSAE | None:
    """The dictionary of that name, or of SAELens's "release/id"; None if none is known."""
    return _by_name().get(name)


@functools.lru_cache(1)
def _by_name() -> dict[str, PublishedSAE]:
    entries = list(everything())[::-1]
    return {f"{entry.release}/{entry.id}": entry for entry in entries} | {entry.name: entry for entry in entries}


def _is_model(name: str, asked: str) -> bool:
    name, asked = name.lower(), asked.lower().replace("gpt2-small", "gpt2")
    return asked in (name, name.rpartition("/")[2])


def _words(entry: PublishedSAE) -> str:
    facts = (entry.name, entry.release, entry.id, entry.model, entry.site, entry.architecture, entry.licence)
    return " ".join(fact for fact in facts if fact).lower()
