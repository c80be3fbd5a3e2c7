"""monosem explain"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monosem.cli.judging import JudgeModel, JudgeURL, MaxPrice, Parallel, Prices

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monosem.features import Explanation, Explanations, FeatureStore


def explain(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    latents: Annotated[list[int] | None, typer.Argument(help="Latents to explain; all if left out.")] = None,
    count: Annotated[int, typer.Option(min=0, help="How many to print, if none are named.")] = 20,
    measure: Annotated[
        bool,
        typer.Option(help="Measure rules on text that the harvest did not see; else on the store's own samples."),
    ] = True,
    json: Annotated[Path | None, typer.Option("--json", help="Write all of them into a file as well.")] = None,
    others: Annotated[
        Path | None,
        typer.Option("--import", help="Take in explanations from this file, ours or Neuronpedia's, and stop."),
    ] = None,
    judge: JudgeURL = None,
    model: JudgeModel = None,
    prices: Prices = None,
    max_price: MaxPrice = None,
    parallel: Parallel = 8,
) -> None:
    """Say what features mean: a plain line for each, without any model or network, and how well it holds.

    A line names words and pieces of words, kinds of words (countries, negation, past tense ...), what stands before,
    and what is promoted at the output. `*…il…*` is a piece within words, `*let·ter*` the word of which `ter` is meant.

    Behind it stands a rule that can be looked up in any text. F1 says how well it foretells firings on text that the
    harvest did not see: 1 is all of them and nothing else, 0 none; weak firings count as much as strong ones. "sure" is
    the share of strong firings for which the line holds, among those that it was made from.

    With --judge a language model writes the lines instead, from passages of which others are left for `monosem score`.
    What it has answered is kept: the same command goes on after a kill, and never asks twice.

    They are kept in RUN/features/explanations: `monosem explore` shows them, `store.explanations()` reads them.
    """
    from monosem.cli.console import console
    from monosem.cli.judging import judge_of, say_estimate
    from monosem.explain import explain as explain_store
    from monosem.explain.written import questions
    from monosem.features.exchange import import_explanations
    from monosem.files import require_place
    from monosem.runs import Run, explain_run

    require_place(json)
    out, asker = console(), judge_of(judge, model, prices, max_price, parallel)
    for member in Run(run).members.values():
        store = member.features()
        if others is not None:
            for one in import_explanations(store, others):
                out.print(f"{len(one):,} explanations by {one.explainer}", highlight=False)
            continue
        if asker is not None:
            asked = questions(store, range(store.n_latents) if latents is None else latents)
            say_estimate(asker, [question for question, _ in asked.values()])
            found = explain_store(store, latents, asker)
        else:
            found = explain_run(member, latents) if measure else explain_store(store, latents)
        print_explanations(out, store, _chosen(store, found, latents, count))
        out.print(_summary(store, found), highlight=False)
        if json is not None:
            own = member.path.name if member.path != run else ""
            found.to_json(json.with_stem(f"{json.stem}-{own}") if own else json)


def _chosen(store: FeatureStore, found: Explanations, latents: Sequence[int] | None, count: int) -> list[Explanation]:
    wanted = latents or store.notable(count)
    return [item for latent in wanted for item in found.of(latent)]


def print_explanations(console: Any, store: FeatureStore, items: Sequence[Explanation]) -> None:
    """A table of explanations."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in ("latent", "F1", "95 %", "sure"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("explanation", overflow="fold")
    for item in items:
        score = item.scores.get("rule")
        said = ("", "") if score is None else (f"{score.value:.2f}", f"{score.low:.2f}-{score.high:.2f}")
        sure = "" if item.sure is None else f"{item.sure:.2f}"
        table.add_row(str(item.latents[0]), *said, sure, Text(item.text))
    console.print(table)


def _summary(store: FeatureStore, found: Explanations) -> str:
    import numpy as np

    scores = [item.scores["rule"] for item in found if "rule" in item.scores]
    line = f"{len(found):,} explanations of {store.n_latents:,} features"
    if scores:
        own = any("own text" in score.details for score in scores)
        where = "samples of the store that were left to tests" if own else "text that the harvest did not see"
        line += f", mean F1 {np.mean([score.value for score in scores]):.3f} of {len(scores):,} on {where}"
    return f"{line}: {store.path / 'explanations'}"
