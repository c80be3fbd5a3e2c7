"""monosem export"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Library(StrEnum):
    """What an SAE can be written for."""

    SAELENS = "saelens"
    DICTIONARY_LEARNING = "dictionary_learning"
    SPARSIFY = "sparsify"
    GEMMA_SCOPE = "gemma_scope"
    CIRCUIT_TRACER = "circuit_tracer"
    MONOSEM = "monosem"


def export(
    sae: Annotated[str, typer.Argument(help="A run folder, an SAE folder, or the name of a published one.")],
    output: Annotated[Path, typer.Argument(help="The folder to write into, made if need be.")],
    to: Annotated[Library, typer.Option(help="The library that is to read it.")] = Library.SAELENS,
    fold: Annotated[
        bool, typer.Option("--fold", help="Move into the weights what the format has no place for: transform, b_dec.")
    ] = False,
) -> None:
    """Write an SAE in the files of another library, which gives the same codes and reconstructions there.

    What a format cannot hold exactly is refused, with what to do instead; nothing is written then. (A static site of
    features is written by monosem explore --export.)
    """
    from monosem import load_sae
    from monosem.cli.console import console
    from monosem.interop import export_sae
    from monosem.interop.export import LOADS
    from monosem.work import doing, job

    with job(), doing("reading"):
        loaded = load_sae(sae)
    with job(), doing("writing"):
        folder = export_sae(loaded, output, to.value, fold=fold)
    read_by = LOADS[to.value].format(path=str(folder))
    console().print(f"Written: {folder}. Read it there: {read_by}", soft_wrap=True, highlight=False, markup=False)
