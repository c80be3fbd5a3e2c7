"""Harvests of several processes, put together at the first."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from monosem.features.state import Harvest
from monosem.ranks import Group


def merge_at_first(own: Harvest, every: Group) -> bool:
    """Put what the others have kept into the harvest of the first process; returns whether this is it.

    The others' should be begun anew: what they have kept is with the first now.
    """
    if every.size == 1:
        return True
    with TemporaryDirectory() as folder:
        path = Path(folder) / "harvest.safetensors"
        if not every.first and own.n_tokens:
            own.save(path)
        for content in every.bring(path.read_bytes() if path.is_file() else b"")[1:]:
            if content:
                path.write_bytes(content)
                own.merge(Harvest.load(path))
    return every.first
