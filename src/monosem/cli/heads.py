"""monosem heads"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from monosem.circuits import Heads


def heads(
    model: Annotated[str, typer.Argument(help="The model: 'bundled', a folder, a GGUF file, a Hugging Face id.")],
    text: Annotated[str, typer.Option(help="Documents: 'bundled', a file, a folder, hub:owner/name.")] = "bundled",
    documents: Annotated[int, typer.Option(min=1, help="How many to read, in random order.")] = 100,
    context_length: Annotated[int | None, typer.Option(min=16, help="Tokens of each; 256 if not given.")] = None,
    by: Annotated[str | None, typer.Option(help="List heads by this score, all scores of each.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many heads to list.")] = 5,
    compose: Annotated[bool, typer.Option("--compose", help="Also which heads read what others write.")] = False,
    save: Annotated[Path | None, typer.Option(help="Write all scores and examples to this file (JSON).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of documents and of the probes.")] = 0,
) -> None:
    """What each attention head of a model does, measured on its attention patterns.

    For example:

        monosem heads bundled
        monosem heads bundled --by induction --top 16 --compose --save heads.json

    Heads are named LAYER.HEAD, both from 0. Every document is read as it is, and once more as some of its tokens in
    random order, twice in a row. Scores:

        induction   attention, in the repeated sequence, to the token after this one's earlier occurrence
        duplicate   attention, in the repeated sequence, to this token's earlier occurrence
        previous    attention to the token before
        beginning   attention to the first position
        entropy     entropy of the pattern, in nats: how widely the head attends
        copying     by how many standard deviations over the vocabulary what it writes of a token raises that token
        norm        length of what it writes, as a share of the length of the residual stream
        successor   how often, of one, two, ... or Monday, Tuesday, ..., it raises the next most, of all in the row

    After ± stands half of a 95 % interval over documents (for successors, over pairs of words); chance is what
    attention alike to all that is visible gives. `--compose` tells from the weights alone which heads read what earlier
    heads write, by their queries, keys or values (1 is all of it).

    In Python: `ms.heads(model, texts)`. On the page: `monosem explore RUN`, the model's heads.
    """
    from monosem.circuits import MEANING, composition
    from monosem.circuits import heads as measured
    from monosem.cli.console import console
    from monosem.errors import ConfigError
    from monosem.files import require_place
    from monosem.models import load_model
    from monosem.spelling import nearest
    from monosem.work import doing, job

    if by is not None and by not in MEANING:
        near = nearest(by, list(MEANING))
        raise ConfigError(f"there is no score {by!r}: {'did you mean ' + near if near else ', '.join(MEANING)}")
    require_place(save)
    with job(), doing(f"loading {model}"):
        subject = load_model(model)
    found = measured(subject, text, documents=documents, context_length=context_length, seed=seed)
    out = console()
    title = f"{found.model}: {found.n_layers} layers of {found.n_heads} heads"
    out.print(f"{title}, on {found.documents:,} documents of {found.tokens:,} tokens", soft_wrap=True, markup=False)
    out.print()
    out.print(_kinds(found, top) if by is None else _list(found, by, top))
    if compose:
        between = composition(subject)
        out.print()
        out.print(f"composition, by weights (two matrices at random: {between.chance:.2f})")
        for kind in ("query", "key", "value"):
            pairs = "  ".join(
                f"{w[0]}.{w[1]} → {r[0]}.{r[1]} {score:.2f}" for r, w, score in between.strongest(kind, top)
            )
            out.print(f"  {kind:6} {pairs}", soft_wrap=True, markup=False)
    if save is not None:
        found.save(save)
        out.print(f"written: {save}", soft_wrap=True, markup=False)


def _kinds(found: Heads, top: int) -> Table:
    """Of each score the heads that have most of it."""
    import math

    table = _table("score")
    for place in range(top):
        table.add_column("most" if place == 0 else "", justify="left", no_wrap=True)
    table.add_column("chance", justify="right")
    for name, score in found.scores.items():
        cells: list[str] = []
        for layer, head in found.top(name, top):
            value, low, high = (float(x[layer, head]) for x in (score.value, score.low, score.high))
            half = (high - low) / 2
            cells.append("" if math.isnan(value) else f"[bold]{layer}.{head}[/bold] {value:.2f} [dim]±{half:.2f}[/dim]")
        table.add_row(name, *cells, *[""] * (top - len(cells)), _short(score.chance))
    return table


def _list(found: Heads, by: str, top: int) -> Table:
    """The heads that have most of one score, with all their scores."""
    names = [by, *(name for name in found.scores if name != by)]
    table = _table("head")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for layer, head in found.top(by, top):
        table.add_row(f"{layer}.{head}", *(_short(float(found[name].value[layer, head])) for name in names))
    table.add_row("chance", *(_short(found[name].chance) for name in names), style="dim")
    return table


def _table(first: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first, no_wrap=True)
    return table


def _short(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.2f}"
