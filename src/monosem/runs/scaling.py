"""Sweeps of width and tokens from one pass over the activations, and the scaling law that they show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from rich import box
from rich.table import Table
from torch import Tensor

from monosem.activations import FILLING, ActivationSource
from monosem.analysis.scaling import Recommendation, ScalingLaw
from monosem.analysis.scaling.law import require_enough
from monosem.analysis.scaling.show import WIDTH
from monosem.arguments import checked
from monosem.errors import ConfigError, MismatchError
from monosem.evaluation import EVALUATING, EvaluationReport, evaluate
from monosem.evaluation.definitions import DEFINITIONS
from monosem.files import read_json, write_json
from monosem.intervals import Drawn, Interval
from monosem.ranks import first_alone_in
from monosem.runs.config import RunConfig
from monosem.runs.pipeline import KEPT, held_out_rows, run_training
from monosem.sae import SAE
from monosem.spelling import listed
from monosem.training import TrainingConfig, train_together
from monosem.work import as_job, job

FILE, FIGURE = "scaling.json", "scaling.svg"
HALVINGS = 4
"""Widths, and numbers of tokens, of a sweep that names none: those of the description, and halves of them."""


class _Row(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    n_latents: Annotated[int, Field(ge=1)]
    tokens: Annotated[int, Field(ge=1)]
    loss: list[float | None] = Field(min_length=3, max_length=3)
    draws: list[float | None]


class _Saved(BaseModel):
    model_config = ConfigDict(strict=True)

    metric: str
    measured: dict[str, Any]
    dictionaries: dict[str, _Row]


@dataclass(frozen=True)
class Sweep:
    """Dictionaries of several widths, each trained on several numbers of tokens, and their law."""

    law: ScalingLaw
    metric: str
    """What the loss is."""
    losses: dict[str, Interval]
    """Of each dictionary, by name: `512x250000` has 512 latents and 250,000 tokens."""
    saes: dict[str, SAE] = field(repr=False)

    def recommend(self, compute: float, overhead: float = 0.0) -> Recommendation:
        """As `ScalingLaw.recommend`."""
        return self.law.recommend(compute, overhead)

    def table(self) -> Table:
        """The losses: a row for each width, a column for each number of tokens."""
        lengths = sorted(set(self.law.tokens.tolist()))
        found = Table(
            title=f"{self.metric} on held-out data, by latents (down) and tokens (across)",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            min_width=WIDTH,
        )
        found.title_justify = "left"
        found.add_column("latents", justify="right")
        for length in lengths:
            found.add_column(f"{length:,}", justify="right", no_wrap=True)
        values = {name: f"{one.value:.4f}" for name, one in self.losses.items()}
        for width in sorted(set(self.law.n_latents.tolist())):
            found.add_row(f"{width:,}", *(values.get(f"{width}x{length}", "-") for length in lengths))
        return found


def pairs_of(widths: Sequence[int], tokens: Sequence[int], most: float | None = None) -> dict[str, tuple[int, int]]:
    """Every width with every number of tokens, at most so much compute, by name.

    Raises:
        ConfigError: they are too few for a law.
    """
    if most is not None and not most > 0:
        raise ConfigError(f"the most compute, latents x tokens, must be above 0, got {most}")
    every = [(n, d) for n in dict.fromkeys(widths) for d in dict.fromkeys(tokens) if most is None or n * d <= most]
    require_enough([n for n, _ in every], [d for _, d in every])
    return {f"{n}x{d}": (n, d) for n, d in every}


def numbers(words: str, where: str) -> list[int]:
    """Whole numbers, as in `512,1024`, `1e6` or `1_000_000`.

    Raises:
        ConfigError: one is none.
    """
    found: list[int] = []
    for word in words.split(","):
        try:
            value = float(word)
        except ValueError:
            value = float("nan")
        if not (1 <= value < float("inf") and value == int(value)):
            raise ConfigError(f"{where}: write whole numbers with commas, such as 512,1024,2048, got {word[:60]!r}")
        found.append(int(value))
    return found


def halved(largest: int) -> list[int]:
    """A number and its halves, from small to large."""
    return [largest >> i for i in reversed(range(HALVINGS)) if largest >> i]


@checked
@as_job
def scaling(
    make: Callable[[int], SAE],
    source: ActivationSource,
    *,
    widths: Sequence[int],
    tokens: Sequence[int],
    held_out: ActivationSource | Tensor | np.ndarray,
    held_out_tokens: int = 100_000,
    most: float | None = None,
    config: TrainingConfig | None = None,
    metric: str = "fvu",
    path: str | Path | None = None,
    progress: bool = True,
) -> Sweep:
    """Train dictionaries of several widths on several numbers of tokens, from one pass, and fit their scaling law.

    Each has a schedule of its own, warm-up to decay, on its own number of tokens: a checkpoint of a longer run, whose
    rate has not been lowered, is worse than a run that ends there, and would make tokens look more worth than they are.
    All read the same batches of one pass; with tokens that double, this costs twice the steps of the longest alone.

    Args:
        make: an untrained dictionary of so many latents.
        source: what `activations` returns.
        widths: numbers of latents, three at least.
        tokens: numbers of tokens, three at least.
        held_out: other activations, on which the loss is measured.
        held_out_tokens: rows of them to measure.
        most: leave out what has more compute, latents times tokens.
        config: the settings of training; rates follow the width where none is given.
        metric: the loss, of `evaluate` on rows.
        path: a folder, `path/512x250000` and so on in it; the same call goes on from it.
        progress: show where it is.

    Raises:
        ConfigError: too few widths or tokens, or more tokens than the source has rows.
        MismatchError: the held-out rows have another width.
    """
    pairs = pairs_of(widths, tokens, most)
    require_rows(source, max(d for _, d in pairs.values()))
    _require_falling(metric)
    shape = held_out.shape[1:] if isinstance(held_out, Tensor | np.ndarray) else None
    saes = {name: make(n) for name, (n, _) in pairs.items()}
    first = next(iter(saes.values()))
    if shape is not None and tuple(shape) != first.in_shape:
        raise MismatchError(f"held_out has rows of shape {tuple(shape)}, the dictionaries read {first.in_shape}")
    wrong = [name for name, sae in saes.items() if sae.n_latents != pairs[name][0]]
    if wrong:
        raise ConfigError(f"make({pairs[wrong[0]][0]}) gives a dictionary of {saes[wrong[0]].n_latents} latents")
    lengths = {name: d for name, (_, d) in pairs.items()}
    train_together(saes, source, tokens=lengths, config=config, path=path, progress=progress)
    report = evaluate(saes, held_out, tokens=held_out_tokens, controls=False, progress=progress)
    return _fitted(saes, pairs, report, metric, {"rows": report.facts["rows"]}, Path(path) if path else None)


@as_job
def run_scaling(
    config: RunConfig,
    widths: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    most: float | None = None,
    metric: str = "fvu",
    progress: bool = True,
) -> Sweep:
    """The sweep around the dictionary that a file describes, into its folder: `scaling.json` and `scaling.svg`.

    Its `n_latents` and `tokens` are the largest where no others are named. The same call goes on where one was stopped.

    Raises:
        ConfigError: the file describes several dictionaries, or too few would be swept.
    """
    if config.several:
        raise ConfigError("a sweep varies width and tokens of one dictionary: leave out hooks, grid and dictionaries")
    _require_falling(metric)
    pairs = pairs_of(widths or halved(config.sae.n_latents), tokens or halved(config.tokens), most)
    content = config.model_dump()
    content["tokens"] = max(d for _, d in pairs.values())
    content["dictionaries"] = {name: {"sae": {"n_latents": n}, "tokens": d} for name, (n, d) in pairs.items()}
    swept, folder = RunConfig.of(content), Path(config.output)
    own = swept.evaluation
    about = {"metric": metric, **own.model_dump(include={"text", "images", "vectors", "tokens", "loss_tokens"})}
    with job(progress) as shown, first_alone_in(folder):
        shown.expect(EVALUATING, own.tokens, like=FILLING)
        run, model = run_training(swept, progress, accept=lambda source: require_rows(source, content["tokens"]))
        saes = {name: run.members[name].sae() for name in pairs}
        saved = _read(folder, metric, about, pairs)
        if saved is not None:
            return _fit(saes, pairs, saved, metric)
        options: dict[str, Any] = {"tokens": own.tokens, "controls": False, "progress": progress}
        if swept.vectors is not None:
            report = evaluate(saes, held_out_rows(swept, own), **options)
        else:
            data = {"images": own.images} if swept.images is not None else {"text": own.text}
            options |= {"loss_tokens": 0 if metric == "fvu" else own.loss_tokens, "keep": folder / KEPT, **data}
            report = evaluate(saes, model, **options)
        return _fitted(saes, pairs, report, metric, about, folder)


def require_rows(source: ActivationSource, tokens: int) -> None:
    """See that no row is to be trained on twice: a law of repeated data is another one.

    Raises:
        ConfigError: the source has fewer rows.
    """
    rows = source.whole.n_rows
    if rows is None:
        rows = getattr(getattr(source.whole, "contexts", None), "n_tokens", None)
    if rows is not None and tokens > rows:
        raise ConfigError(
            f"the longest schedule has {tokens:,} tokens, and the data about {rows:,}: rows that come again are no new "
            "tokens. Give more data, or fewer tokens"
        )


def _require_falling(metric: str) -> None:
    falling = [key for key, one in DEFINITIONS.items() if one.direction == "down"]
    if metric not in falling:
        raise ConfigError(f"metric: a law is of a loss, which falls; {metric!r} is none of {listed(metric, falling)}")


def _fitted(
    saes: dict[str, SAE],
    pairs: dict[str, tuple[int, int]],
    report: EvaluationReport,
    metric: str,
    about: dict[str, Any],
    folder: Path | None,
) -> Sweep:
    report.of(next(iter(pairs)))[metric]  # says which there are, if it is not among them
    losses = {name: report.columns[name][metric] for name in pairs}
    found = _fit(saes, pairs, losses, metric)
    if folder is not None:
        rows = {
            name: {
                "n_latents": n,
                "tokens": d,
                "loss": list(losses[name]),
                "draws": [float(f"{x:.6g}") for x in getattr(losses[name], "draws", [])],
            }
            for name, (n, d) in pairs.items()
        }
        write_json(folder / FILE, {"metric": metric, "measured": about, "dictionaries": rows})
        found.law.draw(folder / FIGURE)
    return found


def _fit(saes: dict[str, SAE], pairs: dict[str, tuple[int, int]], losses: dict[str, Interval], metric: str) -> Sweep:
    drawn = [one.draws for one in losses.values() if isinstance(one, Drawn)]
    widths, lengths = zip(*pairs.values(), strict=True)
    values = [one.value for one in losses.values()]
    measured = np.stack(drawn) if len(drawn) == len(values) else None
    return Sweep(ScalingLaw.fit(widths, lengths, values, measured=measured), metric, losses, saes)


def _read(
    folder: Path, metric: str, about: dict[str, Any], pairs: dict[str, tuple[int, int]]
) -> dict[str, Interval] | None:
    """The losses that an earlier call has measured in the same way.

    Raises:
        FileError: the file is damaged.
    """
    if not (folder / FILE).is_file():
        return None
    saved = read_json(folder / FILE, _Saved, remedy="delete it to measure again")
    if saved.metric != metric or saved.measured != about or set(saved.dictionaries) != set(pairs):
        return None
    found: dict[str, Interval] = {}
    for name in pairs:
        row = saved.dictionaries[name]
        own = Drawn(*(float("nan") if x is None else x for x in row.loss))
        own.draws, own.documents = np.array([np.nan if x is None else x for x in row.draws]), ""
        found[name] = own
    return found
