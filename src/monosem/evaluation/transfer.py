"""Do dictionaries of one model serve another? A matrix of dictionaries by models, on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from rich import box
from rich.table import Table
from torch import Tensor

from monosem.activations.inputs import reopened
from monosem.activations.reading import positions_wanted
from monosem.arguments import checked
from monosem.data import Batch
from monosem.data.documents import Text
from monosem.errors import ConfigError, DataError, MismatchError
from monosem.evaluation.downstream import EVALUATING, loss_contexts
from monosem.evaluation.language import LanguageLoss
from monosem.evaluation.metric import Seen
from monosem.evaluation.model_reading import shared_rules
from monosem.evaluation.reconstruction import Reconstruction
from monosem.intervals import Interval
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.work import as_job, doing

METRICS = ("fvu", "l0", "norm_ratio", "loss_recovered_mean", "ce", "kl")
KINDS = ("all", "filtered")
"""Of what the matrix is: every token, or those whose norm is extreme in none of the models."""

Cell = tuple[str, str, str]
"""The dictionary, the model whose activations it reads, and of which tokens."""


@dataclass(frozen=True)
class TransferMatrix:
    """Metrics of every dictionary on every model's activations, each with its interval over documents."""

    cells: dict[Cell, dict[str, Interval]]
    hook: str
    rows: dict[str, int]
    """How many tokens "all" and "filtered" are; the same ones for every model."""
    extreme: dict[str, float]
    """Of each model, the share of tokens whose norm is above the limit."""
    limits: dict[str, float]
    """Of each model, that limit, in its units."""
    clean: dict[str, Interval] = field(repr=False)
    """Of each model, its own cross-entropy."""

    def __getitem__(self, cell: tuple[str, str] | Cell) -> dict[str, Interval]:
        """Metrics of (dictionary, model), of filtered tokens, or of (dictionary, model, "all").

        Raises:
            ConfigError: there is no such cell.
        """
        full = (*cell, "filtered") if len(cell) == 2 else cell
        if full not in self.cells:
            known = ", ".join(map(str, self.cells))
            raise ConfigError(f"no cell {full}; there are {known}")
        return self.cells[full]

    def table(self, metrics: tuple[str, ...] = ("fvu", "loss_recovered_mean", "l0")) -> Table:
        """One row a cell."""
        shown = [metric for metric in metrics if any(metric in one for one in self.cells.values())]
        found = Table(title=f"Dictionaries on activations at {self.hook}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        found.title_justify = found.caption_justify = "left"
        for column in ("dictionary of", "activations of", "tokens"):
            found.add_column(column, no_wrap=True)
        for metric in shown:
            found.add_column(metric, justify="right", no_wrap=True)
        for (name, model, kind), own in self.cells.items():
            found.add_row(name, model, kind, *(_said(own.get(metric)) for metric in shown))
        extreme = ", ".join(f"{share:.2%} of {name}" for name, share in self.extreme.items())
        found.caption = f"{self.rows['all']:,} tokens, {self.rows['filtered']:,} filtered. Extreme norms: {extreme}."
        return found


def _said(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    value, low, high = interval
    return f"{value:.4g}" if low is None else f"{value:.4g} ({low:.4g} - {high:.4g})"


@checked
@as_job
@torch.no_grad()
def transfer_matrix(
    saes: Mapping[str, SAE],
    models: Mapping[str, SubjectModel],
    hook: str | None = None,
    *,
    text: Text = "bundled:held_out",
    tokens: int = 50_000,
    loss_tokens: int = 16_384,
    max_norm_ratio: float = 10.0,
    progress: bool = True,
) -> TransferMatrix:
    """Put every dictionary on the activations of every model, with and without tokens of extreme norm.

    All models read the same contexts, and all cells are of the same tokens. One token of extreme norm, such as the
    first of a context, can outweigh all others in FVU and in loss: so each cell is measured twice, of all tokens, and
    of those whose norm is at most `max_norm_ratio` times the model's median **in every model**. Losses: the chosen
    positions are replaced in the model that is read. A dictionary takes raw activations and applies its own transform,
    that of the model it was trained on.

    Args:
        saes: dictionaries of one place, by name.
        models: related models (a base and its chat model, two checkpoints), by name; their tokenizers must be equal.
        hook: where; the dictionaries' own if not given.
        text: held-out text.
        tokens: to measure reconstruction on.
        loss_tokens: of them, those to measure losses on; 0 leaves losses out.
        max_norm_ratio: times the median norm, above which a token is left out of "filtered".
        progress: show where it is.

    Raises:
        ConfigError: there is no dictionary or model, or nothing says the hook.
        MismatchError: dictionaries of different hooks or widths, or models of different tokenizers.
        DataError: the text has no tokens.
    """
    name_of_hook = _one_place(saes, models, hook)
    first, known = next(iter(models.values())), shared_rules([sae.metadata for sae in saes.values()])
    contexts, _ = reopened(known, first, name_of_hook, text=text)
    size = min(loss_contexts(model, contexts.context_length) for model in models.values())
    sums: dict[tuple[str, str], Reconstruction] = {}
    losses: dict[tuple[str, str], LanguageLoss] = {}
    limits: dict[str, float] = {}
    extreme, counted = dict.fromkeys(models, 0), dict.fromkeys(map(str, KINDS), 0)
    lost = start = 0
    with doing(EVALUATING, tokens, unit="tokens") as stage:
        while counted["all"] < tokens and len(batch := contexts.read(start, start + size)):
            start += len(batch)
            captured = {name: one.capture(batch.inputs, [name_of_hook])[name_of_hook] for name, one in models.items()}
            wanted = positions_wanted(known, batch)
            if not wanted.any():
                continue
            near = wanted.clone()
            for name, x in captured.items():
                norms = x.float().norm(dim=-1).cpu()
                limit = limits.setdefault(name, max_norm_ratio * float(norms[wanted].median()))
                extreme[name] += int((norms > limit)[wanted].sum())
                near &= norms <= limit
            for kind, chosen in zip(KINDS, (wanted, near), strict=True):
                counted[kind] += int(chosen.sum())
                for name, x in captured.items():
                    if chosen.any():
                        _add(sums, (name, kind), saes, x, batch, chosen)
                    if lost < loss_tokens and chosen.any():
                        _lose(losses, (name, kind), saes, models[name], name_of_hook, x, batch, chosen)
            lost += int(wanted.sum())
            stage.advance(int(wanted.sum()))
    if not sums:
        raise DataError("the text has no tokens that the dictionaries read")
    cells: dict[Cell, dict[str, Interval]] = {}
    for kind in KINDS:
        for name in saes:
            for model in models:
                found = sums[model, kind].result(name) if (model, kind) in sums else {}
                if (model, kind) in losses:
                    found |= losses[model, kind].metrics(name)
                cells[name, model, kind] = {key: found[key] for key in METRICS if key in found}
    clean = {model: losses[model, "all"].clean() for model in models if (model, "all") in losses}
    shares = {name: n / max(1, counted["all"]) for name, n in extreme.items()}
    return TransferMatrix(cells, name_of_hook, counted, shares, limits, clean)


def _add(
    sums: dict[tuple[str, str], Reconstruction],
    key: tuple[str, str],
    saes: Mapping[str, SAE],
    x: Float[Tensor, "contexts pos d"],
    batch: Batch,
    chosen: Bool[Tensor, "contexts pos"],
) -> None:
    rows = x[chosen.to(x.device)].float()
    codes = {name: sae.encode(rows.to(sae.W_enc)) for name, sae in saes.items()}
    rebuilt = {name: saes[name].decode(own).to(rows) for name, own in codes.items()}
    metric = sums.setdefault(key, Reconstruction(rows.mean(0), list(saes)))
    metric.add(Seen.of(rows, rebuilt, batch.document[chosen], codes))


def _lose(
    losses: dict[tuple[str, str], LanguageLoss],
    key: tuple[str, str],
    saes: Mapping[str, SAE],
    model: SubjectModel,
    hook: str,
    x: Float[Tensor, "contexts pos d"],
    batch: Batch,
    chosen: Bool[Tensor, "contexts pos"],
) -> None:
    if key not in losses:
        mean = x[chosen.to(x.device)].float().mean(0)
        replacements = {
            name: lambda rows, sae=sae: sae(rows.to(sae.W_enc)).reconstruction.to(rows) for name, sae in saes.items()
        }
        ablations = {"zero": torch.zeros_like, "mean": lambda rows: mean.to(rows).expand_as(rows)}
        losses[key] = LanguageLoss(model, hook, {**replacements, **ablations})
    losses[key].add(batch, chosen)


def _one_place(saes: Mapping[str, SAE], models: Mapping[str, SubjectModel], hook: str | None) -> str:
    """The hook point of all; raises as `transfer_matrix`."""
    if not saes or not models:
        raise ConfigError(
            "a matrix needs dictionaries and models, each by name: transfer_matrix({name: sae}, {name: model})"
        )
    for name in ("zero", "mean", "clean"):
        if name in saes:
            raise ConfigError(f"a dictionary cannot be called {name!r}: that is the name of a control")
    first, *others = models.items()
    for name, model in others:
        if model.tokenizer_fingerprint() != first[1].tokenizer_fingerprint():
            raise MismatchError(
                f"the tokenizers of {first[0]} and {name} differ: position by position they read other tokens"
            )
    own = {name: hook or sae.metadata.hook for name, sae in saes.items()}
    unknown = [name for name, place in own.items() if place is None]
    if unknown:
        raise ConfigError(f"the dictionary {unknown[0]} does not know its hook point: give hook='resid_post.2'")
    places = {name: first[1].hook_point(str(place)).name for name, place in own.items()}
    known = {name: first[1].hook_point(sae.metadata.hook).name for name, sae in saes.items() if sae.metadata.hook}
    if len(set(places.values()) | set(known.values())) > 1:
        said = ", ".join(f"{name}: {place}" for name, place in (places | known).items())
        raise MismatchError(f"the dictionaries are of different hooks ({said}): compare those of one place")
    found = next(iter(places.values()))
    shapes = {name: (sae.in_shape, sae.out_shape) for name, sae in saes.items()}
    widths = {name: model.width(found) for name, model in models.items()}
    for name, (reads, predicts) in shapes.items():
        for model, width in widths.items():
            if reads != (width,) or predicts != (width,):
                raise MismatchError(
                    f"the dictionary {name} reads width {math.prod(reads)}, {found} of {model} has width {width}"
                )
    return found
