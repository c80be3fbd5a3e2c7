"""The features of a static site, by two processes: one writes from the first file on, a second from the last."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monosem.explorer.answers import Ready
from monosem.explorer.card import features_json
from monosem.explorer.chunks import chunk_path, write_chunk
from monosem.explorer.dictionary import Dictionary
from monosem.explorer.site import Site
from monosem.features import FeatureStore
from monosem.features.files import PART
from monosem.work import doing

FEATURES_A_FILE = 32
WORTH_A_PROCESS = 2048
"""Features from which on a second process saves more than it takes to begin."""
SECOND = f"import json, sys; from {__name__} import write_from_the_last; write_from_the_last(**json.loads(sys.argv[1]))"
ASIDE = ".second"
"""Where the second process writes a file before it moves it to its place: both may write the same one."""
OF_PASSAGES = ("texts", "before", "after", "text", "context")
"""What the table of passages says of an example; a site holds it once, not with each of the examples there."""
SOURCES = Path(__file__).parents[2]


@contextmanager
def second_process(dictionaries: dict[str, Dictionary], folder: Path) -> Iterator[None]:
    """Within this block another process writes features too. What it has not written when it ends is nobody's loss."""
    if sum(dictionary.n_latents for dictionary in dictionaries.values()) < WORTH_A_PROCESS:
        yield
        return
    asked = {"folder": str(folder), "stores": {name: str(each.store.path) for name, each in dictionaries.items()}}
    path = os.pathsep.join(filter(None, [str(SOURCES), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", SECOND, json.dumps(asked)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder / ASIDE, ignore_errors=True)


def write_features(site: Site, dictionary: Dictionary, folder: Path) -> None:
    """Write the files from the first on, until all that are left are written."""
    firsts, last, before = _firsts(dictionary), len(_firsts(dictionary)), 0
    with doing(f"writing {dictionary.name}", dictionary.n_latents, unit="features") as made:
        for i, first in enumerate(firsts):
            while last > i and _path(dictionary, folder, firsts[last - 1]).exists():
                last -= 1
            if last == i:
                break
            _write(site, dictionary, folder, first)
            written = min(dictionary.n_latents, FEATURES_A_FILE * (i + 1 + len(firsts) - max(last, i + 1)))
            made.advance(written - before)
            before = written


def _firsts(dictionary: Dictionary) -> range:
    return range(0, dictionary.n_latents, FEATURES_A_FILE)


def _path(dictionary: Dictionary, folder: Path, first: int) -> Path:
    return chunk_path(folder, _name(dictionary, first))


def _name(dictionary: Dictionary, first: int) -> str:
    return f"d/{dictionary.name}/f/{first // FEATURES_A_FILE}"


def _write(site: Site, dictionary: Dictionary, folder: Path, first: int) -> None:
    latents = range(first, min(dictionary.n_latents, first + FEATURES_A_FILE))
    features: list[Any] = features_json(dictionary, latents)
    for feature in features:
        feature["matches"] = site.geometry.matches(dictionary, feature["latent"])
        if dictionary.store.rows is None:
            for kind in ("top", "samples", "near_misses", "silent"):
                feature[kind] = [_placed(example) for example in feature[kind]]
    write_chunk(folder, _name(dictionary, first), {"first": first, "passages": first // PART, "features": features})


def _placed(example: dict[str, Any]) -> dict[str, Any]:
    """An example that says where its window stands in the passages, in place of its texts."""
    placed = Ready(example)
    for name in OF_PASSAGES:
        del placed[name]
    placed["length"] = len(example["texts"])
    return placed


def write_from_the_last(folder: str, stores: dict[str, str]) -> None:
    """What the second process does: the files from the last on, until all that are left are written."""
    home = Path(folder)
    dictionaries = {name: Dictionary(name, Path(path), FeatureStore(path)) for name, path in stores.items()}
    site = Site(dictionaries)
    for dictionary in dictionaries.values():
        for first in reversed(_firsts(dictionary)):
            path = _path(dictionary, home, first)
            if path.exists():
                break
            _write(site, dictionary, home / ASIDE, first)
            path.parent.mkdir(parents=True, exist_ok=True)
            _path(dictionary, home / ASIDE, first).replace(path)
