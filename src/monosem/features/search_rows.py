"""Finding features in a store of ready vectors: by the labels of rows that they fire on, and those to begin with."""

from __future__ import annotations

import pyarrow as pa

from monosem.errors import ConfigError
from monosem.features.lookup import Searched

RARE_ENOUGH, OFTEN_ENOUGH = 0.25, 3


def by_label(store: Searched, words: str, limit: int) -> pa.Table:
    """Features by the share of their strongest rows, weighted by activation, whose label has the words.

    Raises:
        ConfigError: the rows have no labels.
    """
    if "rows" not in store.index["tables"]:
        raise ConfigError("rows are found by their labels; these have none: harvest(sae, path, vectors=x, labels=...)")
    return store.tables.run(
        "select latent, (sum(activation) filter (contains(lower(label), ?)) / sum(activation))::float as score, "
        "'rows' as how from (select * from examples where kind = 'top') e join rows r on e.document = r.row "
        f"group by latent having score > 0 order by score desc, latent limit {int(limit)}",
        [words.strip().lower()],
    )


def notable(store: Searched, n: int) -> list[int]:
    """Latents that fire on some rows of a few, true to one label if there are any, the strongest first."""
    rows = store.tables.run(
        f"select latent from features where count >= {OFTEN_ENOUGH} and rate < {RARE_ENOUGH} "
        f"order by clarity desc, max desc, latent limit {int(n)}"
    )
    return rows.column("latent").to_pylist()
