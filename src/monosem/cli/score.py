"""monosem score"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monosem.cli.judging import JudgeModel, JudgeURL, MaxPrice, Parallel, Prices, Words


def score(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    scorers: Annotated[
        list[str] | None,
        typer.Argument(
            help="By a judge: detection, fuzzing, intruder, simulation. By the run's model: surprisal, rule."
        ),
    ] = None,
    explainer: Annotated[
        str | None, typer.Option(help="Whose explanations; of every latent the best of all if left out.")
    ] = None,
    judge: JudgeURL = None,
    model: JudgeModel = None,
    random: Annotated[
        Path | None,
        typer.Option(help="A run on a model of random weights, explained in the same way: one more floor."),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="How many explanations, drawn at random; 0 for all.")] = 200,
    seed: Annotated[int, typer.Option(help="Of that and of the shuffling.")] = 0,
    prices: Prices = None,
    max_price: MaxPrice = None,
    parallel: Parallel = 8,
    words: Words = False,
) -> None:
    """Test explanations on passages that their explainer has not seen, beside floors; keeps the scores with them.

    Sensitivity and specificity stand apart, and sensitivity by level of activation: L1 the weakest firings, L5 the
    strongest. The floors are the same explanations shuffled among the features, and with --random those of a model
    that knows nothing. Without a judge, rules and surprisal are measured.

    What a judge has answered is kept: the same command goes on after a kill, and never asks twice.
    """
    from monosem.cli.console import console
    from monosem.cli.judging import judge_of, say_estimate
    from monosem.errors import ConfigError
    from monosem.explain import plan
    from monosem.explain import score as measure
    from monosem.explain.score import JUDGED
    from monosem.models import SubjectModel
    from monosem.runs import Run
    from monosem.runs.pipeline import open_model

    asker = judge_of(judge, model, prices, max_price, parallel, words)
    opened = Run(run)
    store = opened.features()
    explained = store.explanations(explainer)
    floor = Run(random).features().explanations(explainer) if random is not None else None
    names = scorers or (["surprisal", "rule"] if asker is None else ["detection", "fuzzing"])
    sae = subject = None
    if {"surprisal", "rule"} & set(names):
        sae, subject = opened.sae(), open_model(opened.config)
        if not isinstance(subject, SubjectModel):
            raise ConfigError(f"{run} is not of one language model: give {', '.join(JUDGED)}, and a judge")
    common = {"random": floor, "limit": limit or None, "seed": seed}
    say_estimate(asker, plan(store, explained, names, **common))
    found = measure(store, explained, names, asker, model=subject, sae=sae, **common)
    out = console()
    out.print(str(found), markup=False, soft_wrap=True)
    if found.explanations.explainer is not None:
        out.print(f"Kept with the explanations: {found.explanations.save()}", soft_wrap=True)
