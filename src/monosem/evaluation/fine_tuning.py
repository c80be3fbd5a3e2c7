"""What it costs to bring a dictionary of one model to another: trained on for a few tokens, beside a fresh one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table
from torch import Tensor

from monosem.activations import ActivationSource
from monosem.arguments import checked
from monosem.errors import ConfigError, MismatchError
from monosem.evaluation.evaluate import evaluate
from monosem.intervals import Interval
from monosem.sae import SAE
from monosem.training import TrainingConfig, train_together
from monosem.work import as_job


@dataclass(frozen=True)
class FineTuningCurve:
    """FVU on the other model's activations, by tokens trained on there."""

    before: Interval
    """Of the dictionary as it is."""
    tuned: dict[int, Interval]
    """Trained on for so many tokens, each with a schedule of its own."""
    fresh: dict[int, Interval]
    """The control: a new dictionary of the same kind, trained on as many tokens of the same batches."""
    native: Interval | None
    """Of a dictionary that was trained on the other model alone."""
    saes: dict[str, SAE]
    """`tuned 10000` and so on."""

    @property
    def recovered(self) -> int | None:
        """The fewest tokens after which it is as good as the native dictionary; None where none of them suffices."""
        if self.native is None:
            return None
        enough = [tokens for tokens, one in sorted(self.tuned.items()) if one.value <= self.native.value]
        return enough[0] if enough else None

    def table(self) -> Table:
        """One row a budget."""
        found = Table(title="FVU after training on", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), min_width=72)
        found.title_justify = found.caption_justify = "left"
        for column in ("tokens", "the dictionary, trained on", "a fresh one"):
            found.add_column(column, justify="right", no_wrap=True)
        found.add_row("0", _said(self.before), "-")
        for tokens, one in sorted(self.tuned.items()):
            found.add_row(f"{tokens:,}", _said(one), _said(self.fresh[tokens]))
        if self.native is not None:
            after = "none of these" if self.recovered is None else f"{self.recovered:,} tokens"
            found.caption = f"Native dictionary: {_said(self.native)}; reached after {after}."
        return found


def _said(interval: Interval) -> str:
    value, low, high = interval
    return f"{value:.4f}" if low is None else f"{value:.4f} ({low:.4f} - {high:.4f})"


@checked
@as_job
def fine_tuning_curve(
    sae: SAE,
    source: ActivationSource,
    *,
    budgets: Sequence[int],
    held_out: ActivationSource | Tensor | np.ndarray,
    native: SAE | None = None,
    held_out_tokens: int = 50_000,
    config: TrainingConfig | None = None,
    path: str | Path | None = None,
    progress: bool = True,
) -> FineTuningCurve:
    """Train a dictionary on, on another model's activations, for each of several numbers of tokens.

    Copies are trained, in one pass for all budgets; the dictionary keeps its input transform. A fresh one of the same
    kind has the same batches: what fine-tuning saves is what lies between the two.

    Args:
        sae: a dictionary of the one model; it is not changed.
        source: activations of the other, at the same place.
        budgets: numbers of tokens.
        held_out: other activations of the other model, on which FVU is measured.
        native: a dictionary that was trained on the other model.
        held_out_tokens: rows of `held_out` to measure.
        config: the settings of training.
        path: a folder; the same call goes on from it.
        progress: show where it is.

    Raises:
        ConfigError: no budgets, or one below 1, or beyond the rows that there are.
        MismatchError: the source, or the native dictionary, has another width.
    """
    if not budgets or min(budgets) < 1:
        raise ConfigError(f"budgets: give numbers of tokens of 1 or more, got {list(budgets)}")
    rows = source.whole.n_rows
    if rows is not None and max(budgets) > rows:
        raise ConfigError(
            f"the longest schedule has {max(budgets):,} tokens, and the data {rows:,}: give fewer, or more data"
        )
    for what, shape in (("native dictionary reads", native and native.in_shape), ("activations have", (source.d_in,))):
        if shape is not None and shape != sae.in_shape:
            raise MismatchError(f"the {what} width {shape}, the dictionary {sae.in_shape}: compare those of one place")
    each = dict.fromkeys(int(n) for n in budgets)
    saes: dict[str, SAE] = {f"tuned {n}": copy.deepcopy(sae).float() for n in each}
    for n in each:
        new = type(sae)(sae.d_in, sae.n_latents, **sae.settings)
        saes[f"fresh {n}"] = new.to(sae.W_enc.device)
    lengths = {name: int(name.split()[1]) for name in saes}
    train_together(saes, source, tokens=lengths, config=config, path=path, progress=progress)
    columns = {"before": sae, **saes}
    if native is not None:
        columns["native"] = native
    report = evaluate(columns, held_out, tokens=held_out_tokens, controls=False, progress=progress)
    fvu = {name: report.columns[name]["fvu"] for name in columns}
    return FineTuningCurve(
        fvu["before"],
        {n: fvu[f"tuned {n}"] for n in each},
        {n: fvu[f"fresh {n}"] for n in each},
        fvu.get("native"),
        saes,
    )
