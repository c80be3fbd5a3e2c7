"""Data of a static site as scripts: a page opened from a file may load scripts, and nothing else that it could read."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

from monosem.explorer.answers import to_json
from monosem.files import reading, write_bytes

LEVEL = 3
"""Of gzip: a level more takes twice the time for 3 % less."""
CALL = b'monosem_data("%s","%s")\n'
_CALLED = re.compile(rb'monosem_data\("([^"]+)","([A-Za-z0-9+/=]+)"\)\n')


def write_chunk(folder: Path, name: str, value: Any) -> None:
    """Write `data/NAME.js`, which hands its value to the page once it is loaded: JSON, gzip, base64.

    Args:
        folder: of the site.
        name: a path of letters, digits and `.-_/`, by which the page asks for it.
        value: as for `to_json`.

    Raises:
        FileError: the disk is full, or the folder cannot be written.
    """
    packed = base64.b64encode(gzip.compress(to_json(value), LEVEL, mtime=0))
    write_bytes(chunk_path(folder, name), CALL % (name.encode(), packed))


def chunk_path(folder: Path, name: str) -> Path:
    """Where a chunk stands in the folder of a site."""
    return folder / f"data/{name}.js"


def read_chunk(folder: Path, name: str) -> Any:
    """The value of a chunk.

    Raises:
        FileError: it is missing or damaged.
    """
    path = chunk_path(folder, name)
    with reading(path, "export the site again"):
        found = _CALLED.fullmatch(path.read_bytes())
        if found is None or found[1].decode() != name:
            raise ValueError("no call of monosem_data with this name")
        return json.loads(gzip.decompress(base64.b64decode(found[2])))
