"""What a word that is not known was probably meant to be: the end of an error's message."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path

LEAST = 0.65
"""Likeness below which nothing is suggested: "kk" is near "k", "lr" is not near "k"."""
LEAST_OF_PATHS = 0.75
OTHER_SECTION = 0.8
"""What a dotted key keeps of its likeness to the same key of quite another section."""
MOST_ENTRIES = 2_000
"""Of a folder, that a path is compared with."""
RUNS = "runs"
"""The folder that runs are written into unless told otherwise."""


def meant(word: str, known: Iterable[str]) -> str:
    """`. Did you mean n_latents?`, or nothing where no known word is near; to be put at the end of a message."""
    found = nearest(word, known)
    return f". Did you mean {found}?" if found is not None else ""


def listed(word: str, known: Collection[str]) -> str:
    """The known words, and as `meant` which of them was: `topk, relu. Did you mean topk?`"""
    return ", ".join(known) + meant(word, known)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like another one; of dotted keys, the last part counts most. None if none is near."""
    likeness = {other: _alike(word, other) for other in known if other != word}
    best = max(likeness, key=likeness.__getitem__, default=None)
    return best if best is not None and likeness[best] >= LEAST else None


def path_meant(path: str | Path) -> str:
    """As `meant`, of a path that does not exist: what stands beside it, or in `runs/`, under a similar name."""
    path = Path(path)
    if _exists(path):
        return ""
    beside = {other.name: other for other in (*_entries(Path(RUNS)), *_entries(path.parent))}
    near = {name: SequenceMatcher(None, path.name.lower(), name.lower()).ratio() for name in beside}
    stems = {name: SequenceMatcher(None, path.stem.lower(), Path(name).stem.lower()).ratio() for name in beside}
    likeness = {name: min(near[name], stems[name]) for name in beside}
    best = max(likeness, key=likeness.__getitem__, default=None)
    return f". Did you mean {beside[best]}?" if best is not None and likeness[best] >= LEAST_OF_PATHS else ""


def _alike(word: str, other: str) -> float:
    """Between 0 and 1; case, "-" and "_" do not count."""
    (section, _, last), (other_section, _, other_last) = word.rpartition("."), other.rpartition(".")
    same_section = _ratio(section, other_section)
    return _ratio(last, other_last) * (OTHER_SECTION + (1 - OTHER_SECTION) * same_section)


def _ratio(a: str, b: str) -> float:
    a, b = (x.lower().replace("_", "").replace("-", "") for x in (a, b))
    return 1.0 if a == b else SequenceMatcher(None, a, b).ratio()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, a zero byte
        return True


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, as a path from here; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return [folder / entry.name for entry in islice(found, MOST_ENTRIES) if not entry.name.startswith(".")]
    except (OSError, ValueError):
        return []
