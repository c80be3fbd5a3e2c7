"""monosem probe"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer


def probe(
    run: Annotated[str, typer.Argument(help="The run folder; or a published dictionary, by name or path.")],
    data: Annotated[str, typer.Argument(help="Labelled texts: .jsonl, .csv (also .gz, .zst) or .parquet.")],
    k: Annotated[str, typer.Option(help="How many latents a probe reads; several with commas.")] = "1,2,5,10,20",
    test: Annotated[str | None, typer.Option(help="Other labelled texts to be tried on.")] = None,
    leave_out: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="A column of sources, each of which is left out in turn.")
    ] = None,
    text_column: Annotated[str, typer.Option(metavar="COLUMN", help="Where the text stands.")] = "text",
    label_column: Annotated[str, typer.Option(metavar="COLUMN", help="Where the label stands.")] = "label",
    pool: Annotated[Literal["mean", "max", "last"], typer.Option(help="What of a text's tokens is read.")] = "mean",
    choose: Annotated[
        Literal["greedy", "difference"], typer.Option(help="How latents are chosen; see below.")
    ] = "greedy",
    examples: Annotated[int | None, typer.Option(min=1, help="Take so many texts at most.")] = None,
    test_share: Annotated[float, typer.Option(help="The share of texts for the test, where no --test is given.")] = 0.2,
    controls: Annotated[bool, typer.Option(help="Measure what stands beside the dictionary too.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the shuffled labels and the random SAEs.")] = 0,
    save: Annotated[Path | None, typer.Option(help="Write everything to this file (JSON).")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the bars into this file (.svg, .png).")] = None,
    model: Annotated[str | None, typer.Option(help="The model, where the dictionary's files do not say it.")] = None,
    hook: Annotated[str | None, typer.Option(help="Likewise: the hook point that it reads.")] = None,
) -> None:
    """How well a few latents tell the labels of texts apart, beside what else could.

    For example:

        monosem probe runs/demo reviews.csv
        monosem probe runs/demo bundled:held_out --label-column source --examples 400
        monosem probe runs/demo prompts.jsonl --leave-out source --k 5 --test-share 0.5

    On training texts, k latents are chosen and a logistic regression is fitted; AUROC and balanced accuracy are of test
    texts, which nothing was chosen on, with 95 % intervals over them. Each of more than two labels is told from all
    others. Beside it, by the same rule: frozen random SAEs, the neurons of the same layer, channels and principal
    components of the activations, and the SAE with all labels shuffled, which must come to 0.5; and a logistic
    regression on all of the activations.

    `--choose greedy` takes each latent as the one that most helps those before it, `difference` those whose means
    differ most, as SAEBench does. Stopped or killed, the same command goes on where it was.
    In Python: `ms.probe(sae, "reviews.csv", k=(1, 5))`.
    """
    from monosem.cli.console import console
    from monosem.errors import ConfigError
    from monosem.evaluation.probing import probe as probed
    from monosem.files import require_place
    from monosem.models import load_model
    from monosem.runs import open_run
    from monosem.work import doing, job

    if not all(re.fullmatch(r"\s*[0-9]{1,9}\s*", part) for part in k.split(",")):
        raise ConfigError(f"--k is whole numbers with commas between them, as 1,5,20; got {k[:40]!r}")
    for place in (save, figure):
        require_place(place)
    opened = open_run(run, model, hook)
    sae = opened.sae()
    with job(), doing("loading the model"):
        subject = load_model(model or opened.model_name())
    found = probed(
        sae,
        data,
        [int(part) for part in k.split(",")],
        model=subject,
        hook=hook,
        test=test,
        leave_out=leave_out,
        text_column=text_column,
        label_column=label_column,
        pool=pool,
        choose=choose,
        test_share=test_share,
        examples=examples,
        controls=controls,
        seed=seed,
        keep=opened.path / "probing.state",
    )
    out = console()
    for table in found.tables():
        out.print(table)
    for path, write in ((save, found.save), (figure, found.draw)):
        if path is not None:
            write(path)
            out.print(f"written: {path}", soft_wrap=True, markup=False)
