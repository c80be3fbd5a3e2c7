"""Finding features in a store of images: by the classes that they fire on, and those worth a first look."""

from __future__ import annotations

import pyarrow as pa

from monosem.errors import ConfigError
from monosem.features.lookup import Searched
from monosem.features.pictures import class_name

IMAGES = 8
RARE_ENOUGH, OFTEN_ENOUGH = 0.05, 30


def by_class(store: Searched, words: str, limit: int) -> pa.Table:
    """Features by the share of their strongest images, weighted by activation, whose class is named so."""
    names = _classes(store)
    wanted = [label for label, name in names.items() if words.strip().lower() in name.lower()]
    if not wanted:
        known = ", ".join(names.values()) or "these have none"
        raise ConfigError(f"images are found by their class; none is called {words!r} (there are {known})")
    return store.tables.run(
        "select e.latent, (sum(e.activation) filter (label in "
        f"({', '.join(map(str, wanted))})) / sum(e.activation))::float as score, 'images' as how "
        "from (select * from examples where kind = 'top') e join images i on e.document = i.image "
        f"group by e.latent having score > 0 and count(*) >= {IMAGES} order by score desc, e.latent limit {int(limit)}"
    )


def notable(store: Searched, n: int) -> list[int]:
    """Latents that are sparse and clear: about as strong on all their strongest images, and true to one class."""
    rows = store.tables.run(
        f"select latent from features where count >= {OFTEN_ENOUGH} and rate < {RARE_ENOUGH} "
        f"order by clarity desc, latent limit {int(n)}"
    )
    return rows.column("latent").to_pylist()


def _classes(store: Searched) -> dict[int, str]:
    labels = store.tables.run("select distinct label from images where label is not null order by label")
    known = store.index["images"]["classes"]
    return {i: class_name(i, known) for i in labels.column("label").to_pylist()}
