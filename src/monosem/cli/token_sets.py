"""monosem token-sets"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from monosem.analysis import TokenSets


def token_sets(
    run: Annotated[str, typer.Argument(help="The run folder; or a published dictionary, by name or path.")],
    latents: Annotated[list[int] | None, typer.Argument(help="Only these latents; all if left out.")] = None,
    sets: Annotated[Path | None, typer.Option(help="A file of sets: YAML, or a word a line. Else monosem's.")] = None,
    of: Annotated[str | None, typer.Option("--set", help="List the latents that promote or suppress this set.")] = None,
    permutations: Annotated[
        int | None, typer.Option(min=1, help="Of the tokens, for p; if not given, the exact distribution.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many to list.")] = 20,
    save: Annotated[Path | None, typer.Option(help="Write all that is found to this file (CSV).")] = None,
) -> None:
    """Which sets of tokens each latent promotes or suppresses at the output (logit lens).

    For example:

        monosem token-sets runs/demo
        monosem token-sets runs/demo 1572 --sets my_sets.yaml
        monosem token-sets runs/demo --set countries --save found.csv

    A set scores 1 where all its tokens are what the latent promotes most, -1 where they are what it suppresses most.
    It is called if its score is further from 0 than those of random sets of its size, and its tokens' mean logit
    further from the mean than random directions bring it (z, in standard deviations); both at a false discovery rate of
    5 % over all sets and latents that are tested. A file of sets holds lines such as

        fruits: apple orange banana lemon cherry
        numbers: /^ ?[0-9]+$/
        units: [second, minute, hour, day, week]

    Words in small letters stand for any case, those with a capital for themselves; words must be whole tokens.

    In Python: `ms.token_sets(sae, model)`. On the page: `monosem explore RUN`, token sets.
    """
    from monosem.analysis import token_sets as tested
    from monosem.cli.console import console
    from monosem.files import require_place
    from monosem.models import load_model
    from monosem.runs import open_run
    from monosem.work import doing, job

    require_place(save)
    opened = open_run(run)
    with job():
        with doing("loading the dictionary and its model"):
            sae, model = opened.sae(), load_model(opened.model_name())
        found = tested(sae, model, sets, latents=latents, permutations=permutations)
    out = console()
    called = (found.enriched != 0).any(1).mean()
    tested_on = f"{len(found.tokens)} sets, {len(found.latents):,} latents, {found.n_tokens:,} tokens"
    out.print(
        tested_on if latents else f"{tested_on}; {called:.1%} of latents promote or suppress a set", soft_wrap=True
    )
    if found.left_out:
        names = ", ".join(f"{name} {n}" for name, n in list(found.left_out.items())[:6])
        more = f" and {len(found.left_out) - 6} more" if len(found.left_out) > 6 else ""
        out.print(f"[dim]not tested, for want of tokens: {names}{more}[/dim]", soft_wrap=True)
    out.print()
    if of is not None:
        out.print(_of_set(found, of, top))
    elif latents:
        out.print(_of_latents(found, latents, top))
    else:
        classes, by_chance = found.classes, found.classes_by_chance
        for name, share in by_chance.items():
            out.print(
                f"{name:12} {classes.count(name) / len(classes):6.1%} of latents  [dim]{share:.1%} of random "
                "directions[/dim]"
            )
        out.print()
        out.print(_all_sets(found, top))
    if save is not None:
        found.save(save)
        out.print(f"written: {save}", soft_wrap=True, markup=False)


def _all_sets(found: TokenSets, top: int) -> Table:
    """Sets by how many latents are called."""
    table = _table("set", "tokens", "promoted by", "suppressed by")
    table.add_column("most")
    counts = [(int((column > 0).sum()), int((column < 0).sum())) for column in found.enriched.T]
    order = sorted(range(len(counts)), key=lambda i: -sum(counts[i]))[:top]
    for i in order:
        name = found.names[i]
        if not any(counts[i]):
            break
        most = "  ".join(f"{latent} {each.score:.2f}" for latent, each in found.top(name, 3))
        table.add_row(name, str(len(found.tokens[name])), *map(str, counts[i]), most)
    return table


def _of_set(found: TokenSets, name: str, top: int) -> Table:
    table = _table("latent", "score", "p", "q", "z", "q directions")
    for suppressed in (False, True):
        for latent, each in found.top(name, top, suppressed):
            table.add_row(str(latent), *_numbers(each))
    return table


def _of_latents(found: TokenSets, latents: list[int], top: int) -> Table:
    table = _table("latent", "set", "score", "p", "q", "z", "q directions")
    classes = dict(zip(found.latents.tolist(), found.classes, strict=True))
    for latent in latents:
        for i, each in enumerate(found.of(latent)[:top]):
            table.add_row(str(latent) if i == 0 else "", each.name, *_numbers(each))
        if not found.of(latent):
            table.add_row(str(latent), f"[dim]none; class: {classes[latent]}[/dim]")
    return table


def _numbers(each: tuple[str, float, float, float, float, float]) -> list[str]:
    _, score, p, q, z, q_directions = each
    return [f"{score:+.2f}", f"{p:.1e}", f"{q:.1e}", f"{z:+.1f}", f"{q_directions:.1e}"]


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        table.add_column(name, justify="left" if name == "set" else "right", no_wrap=True)
    return table
