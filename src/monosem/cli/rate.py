"""monosem rate"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from monosem.explorer.ratings import Ratings
    from monosem.explorer.shapes import Share


def rate(
    run: Annotated[Path, typer.Argument(help="A run folder or feature store with explanations.")],
    results: Annotated[bool, typer.Option("--results", help="Print what was rated, and stop.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8321,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
) -> None:
    """Rate explanations blind: which of them fits a feature, or none, and whether the feature fires on one thing.

    Whose an explanation is stays hidden, and their order differs from rater to rater; all get the same features.
    Ratings are kept beside the store, in STORE.ratings.json; stopped, one goes on where one was. --results prints how
    often each explainer was chosen, how raters agree, and the automatic scores of the same features.
    """
    from monosem.cli.console import console
    from monosem.cli.explore import show
    from monosem.explorer import open_dictionaries
    from monosem.explorer.ratings import Ratings

    opened = open_dictionaries([run])
    ((name, dictionary),) = opened.items()
    ratings = Ratings(dictionary)
    if not results:
        ratings.plan(1)
        show([run], port=port, open_page=open_page, at=f"/d/{name}/rate")
        return
    print_results(ratings, console())


def print_results(ratings: Ratings, out: Console) -> None:
    """As a table."""
    from rich.table import Table

    found = ratings.results()
    if not found["ratings"]:
        out.print(f"Nothing is rated yet: monosem rate {ratings.dictionary.path}", highlight=False)
        return
    table = Table("explainer", "chosen", "of", "automatic score", box=None)
    for row in found["explainers"]:
        score = "–" if row["score"] is None else f"{row['score']:.2f}"
        table.add_row(row["explainer"], _share(row["chosen"]), str(row["chosen"]["n"]), score)
    table.add_row("none of them", _share(found["none"]), str(found["none"]["n"]), "")
    out.print(f"{found['ratings']} ratings by {', '.join(found['raters'])}", highlight=False)
    out.print(table)
    out.print(f"fire on one thing: {_share(found['monosemantic'])}", highlight=False)
    for agreement in found["agreement"]:
        same = agreement["same"]
        if same["n"]:
            line = f"raters agree on the {agreement['of']}: {_share(same)} of {same['n']} pairs"
            out.print(f"{line}, {agreement['chance']:.2f} by chance", highlight=False)
    out.print(f"in {found['file']}", highlight=False, soft_wrap=True)


def _share(of: Share) -> str:
    return f"{of['share']:.2f} ({of['low']:.2f} – {of['high']:.2f})"
