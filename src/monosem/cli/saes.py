"""monosem saes"""

from __future__ import annotations

from typing import Annotated

import typer


def saes(
    words: Annotated[
        list[str] | None,
        typer.Argument(help="Words that must occur: of a release, model, site, architecture, licence."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Of this model, such as gemma-2-2b.")] = None,
    layer: Annotated[int | None, typer.Option(help="Of this layer.")] = None,
    site: Annotated[str | None, typer.Option(help="Of this place, such as resid_post.")] = None,
    width: Annotated[int | None, typer.Option(help="Of so many latents.")] = None,
) -> None:
    """List published dictionaries: releases, or, where few are left, each with the name that loads it.

    Nothing is asked of the network. A name goes wherever an SAE does: monosem harvest NAME.
    """
    from monosem.cli.console import console
    from monosem.interop import catalogue
    from monosem.interop.catalogue import SHOWN, nothing_found

    asked = " ".join(words or [])
    found, out = catalogue(asked, model=model, layer=layer, site=site, width=width), console()
    if not found:
        out.print(nothing_found(asked, model), soft_wrap=True, highlight=False)
        return
    more = "" if len(found) <= SHOWN else " Say more words to see them one by one."
    words_of_it = f"{found}.{more}\nFrom {found.taken_from}; to add: {found.to_add}."
    out.print(words_of_it, soft_wrap=True, highlight=False, markup=False)
