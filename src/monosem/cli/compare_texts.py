"""monosem compare-texts"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare_texts(
    run: Annotated[str, typer.Argument(help="The run folder; or a published dictionary, by name or path.")],
    a: Annotated[str, typer.Argument(help="A text: a file, a folder, bundled, bundled:held_out, hub:owner/name.")],
    b: Annotated[str, typer.Argument(help="Another text.")],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each to read, at most.")] = 100_000,
    level: Annotated[float, typer.Option(help="The largest corrected p at which a latent differs.")] = 0.05,
    top: Annotated[int, typer.Option(min=1, help="How many latents to show towards either text.")] = 10,
    save: Annotated[Path | None, typer.Option(help="Write all latents to this file (JSON).")] = None,
    model: Annotated[str | None, typer.Option(help="The model, where the dictionary's files do not say it.")] = None,
    hook: Annotated[str | None, typer.Option(help="Likewise: the hook point that it reads.")] = None,
) -> None:
    """Which features are on more often in one text than in another, and whether L0 and error tell the two apart.

    For example:

        monosem compare-texts runs/demo ours.jsonl theirs.jsonl
        monosem compare-texts runs/demo bundled:held_out new_data/ --tokens 300000 --save differences.json

    What gives a data set away: its formatting, its topics, what leaks a label. Documents, not tokens, are what is
    compared: give JSON lines with a "text" each, or a folder, for a .txt file is one document. p values are corrected
    for the number of latents (Benjamini and Hochberg). Where the run's features are explained (`monosem explain`), the
    table says what they mean.

    In Python: `ms.compare_texts(sae, "ours.jsonl", "theirs.jsonl")`.
    """
    from monosem.cli.console import console
    from monosem.evaluation.probing import compare_texts as compared
    from monosem.files import require_place
    from monosem.models import load_model
    from monosem.runs import open_run
    from monosem.work import doing, job

    require_place(save)
    opened = open_run(run, model, hook)
    sae = opened.sae()
    with job(), doing("loading the model"):
        subject = load_model(model or opened.model_name())
    labels: dict[int, str] = {}
    if (opened.path / "features" / "index.json").is_file():
        for one in opened.features().explanations():  # of a latent that has several, the best comes first
            labels.setdefault(one.latents[0], one.text)
    found = compared(sae, a, b, model=subject, hook=hook, tokens=tokens, level=level, labels=labels)
    out = console()
    out.print(found.table(top))
    out.print(found.alarms_table())
    if save is not None:
        found.save(save)
        out.print(f"written: {save}", soft_wrap=True, markup=False)
