"""monosem compare"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[
        list[str], typer.Argument(help="Folders of evaluated runs; the others are compared with the first.")
    ],
    metric: Annotated[
        list[str] | None, typer.Option(help='Which metrics, by key (repeat it), or "all"; the main ones if not given.')
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="A folder for figures.")] = None,
) -> None:
    """Show the metrics of several runs side by side, with 95 % intervals and paired differences to the first.

    Runs that were evaluated on the same text are compared document by document: what is hard for both cancels. The last
    column says which difference a text of this size could have shown.

    Figures (PNG): `pareto`, `firing_rates`, `loss_by_position`, `probing` (of full evaluations), `clusters`, and
    `stability` of runs at one place, whose latents are matched one to one.
    """
    from monosem.cli.console import console
    from monosem.files import require_place
    from monosem.runs.comparison import compare_runs

    require_place(figures, "folder")
    comparison = compare_runs(runs)
    console().print(comparison.table(metric or ()))
    if figures is not None:
        from monosem.runs.comparison_figures import draw_comparison

        for path in draw_comparison(comparison, figures):
            console().print(f"wrote {path}")
