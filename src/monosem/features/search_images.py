"""Finding features in a store of images: by the classes that they fire on, and those worth a first look."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from monosem.errors import ConfigError

if TYPE_CHECKING:
    from monosem.features.store import FeatureStore

IMAGES = 8
RARE_ENOUGH, OFTEN_ENOUGH = 0.05, 30
CANDIDATES = 20_000


def by_class(store: FeatureStore, words: str, limit: int) -> pa.Table:
    """Features by the share of their strongest images, weighted by activation, whose class is named so."""
    names = _classes(store)
    wanted = [label for label, name in names.items() if words.strip().lower() in name.lower()]
    if not wanted:
        known = ", ".join(names.values()) or "these have none"
        raise ConfigError(f"images are found by their class; none is called {words!r} (there are {known})")
    return store.sql(
        "select e.latent, (sum(e.activation) filter (label in "
        f"({', '.join(map(str, wanted))})) / sum(e.activation))::float as score, 'images' as how "
        "from (select * from examples where kind = 'top') e join images i on e.document = i.image "
        f"group by e.latent having score > 0 and count(*) >= {IMAGES} order by score desc, e.latent limit {int(limit)}"
    )


def notable(store: FeatureStore, n: int) -> list[int]:
    """Latents that are sparse, about as strong on their eighth image as on their first, and true to one class."""
    rows = store.sql(
        "select e.latent, e.activation, coalesce(i.label, 0) as label "
        "from (select * from examples where kind = 'top') e join images i on e.document = i.image where e.latent in "
        f"(select latent from features where count >= {OFTEN_ENOUGH} and rate < {RARE_ENOUGH} order by latent "
        f"limit {CANDIDATES}) order by e.latent, e.activation desc, e.document"
    )
    latent, activation, label = (column.to_numpy() for column in rows.columns)
    starts = np.flatnonzero(np.r_[True, latent[1:] != latent[:-1]]) if len(latent) else np.zeros(0, int)
    starts = starts[np.diff(np.r_[starts, len(latent)]) >= IMAGES]
    first = starts[:, None] + np.arange(IMAGES)
    strength, labels = activation[first].astype(float), label[first]
    purity = (labels[:, :, None] == labels[:, None, :]).sum(2).max(1, initial=0) / IMAGES
    score = strength[:, -1] / strength[:, 0] * purity
    return latent[starts[np.argsort(-score, kind="stable")[:n]]].tolist()


def _classes(store: FeatureStore) -> dict[int, str]:
    labels = store.sql("select distinct label from images where label is not null order by label")
    known = store.index["images"]["classes"] or []
    return {i: known[i] if i < len(known) else str(i) for i in labels.column("label").to_pylist()}
