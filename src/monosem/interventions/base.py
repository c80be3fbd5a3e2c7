"""What all interventions share: where they work, that they leave the rest alone, and how they are told of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosem.activations.reading import within_norm
from monosem.errors import ConfigError, DataError
from monosem.interventions.where import Condition, Where, met, positions_of, rows_of
from monosem.models import EditContext, SubjectModel
from monosem.sae import SAE
from monosem.sae.metadata import SAEMetadata


class Places(NamedTuple):
    """Where the rows stand that an intervention is given."""

    rows: Int[Tensor, " chosen"]
    """Of the batch."""
    positions: Int[Tensor, " chosen"]
    context: EditContext
    chosen: Bool[Tensor, "batch pos"]


class Intervention(ABC):
    """At some positions of its hook points, other activations than the model's own: a value, which can be composed.

    with model.edit([ms.Ablate(sae, [12]), ms.AddVector("resid_post.2", vector)]) as reports:
        logits = model(tokens)

    Padding is left alone. What it did stands in the report.
    """

    unchanged = "what it gives is what was there"
    """Why nothing changed, in words, where it met positions."""

    def __init__(self, hooks: list[str], where: Condition = None) -> None:
        if where is not None and not isinstance(where, Where | Tensor) and not callable(where):
            raise ConfigError(f"where is ms.Where(...), a tensor of bools or a function, got a {type(where).__name__}")
        self.hooks, self.where = hooks, where

    @property
    def reader(self) -> SAE | None:
        """Of which SAE a condition on a latent is."""
        return None

    @abstractmethod
    def replace(self, rows: Float[Tensor, "chosen d"], places: Places) -> Float[Tensor, "chosen d"]:
        """Raw activations to raw activations, row by row."""

    def allowed(self, x: Float[Tensor, "batch pos d"], context: EditContext) -> Bool[Tensor, "batch pos"]:
        """The positions at which it may work at all: those that are no padding."""
        if context.mask is not None:
            return context.mask
        return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)

    def chosen(self, x: Float[Tensor, "batch pos d"], context: EditContext) -> Bool[Tensor, "batch pos"]:
        """The positions at which it works."""
        allowed = self.allowed(x, context)
        wanted = met(self.where, x, context, self.reader)
        return allowed if wanted is None else allowed & wanted

    def apply(self, x: Float[Tensor, "batch pos d"], context: EditContext) -> Float[Tensor, "batch pos d"]:
        """The activations with those in its places replaced; the very same tensor where it has none."""
        if x.ndim == 2:
            return self.apply(x[:, None], context)[:, 0]
        chosen = self.chosen(x, context)
        if context.report is not None:
            context.report.note_met(chosen, context.rows)
        if not chosen.any():
            return x
        rows = x[chosen]
        numbers = rows_of(x, context)[:, None].expand_as(chosen)[chosen]
        places = Places(numbers, positions_of(x, context)[chosen], context, chosen)
        new = self.replace(rows, places)
        factor = self.where.factor(x, context) if isinstance(self.where, Where) else None
        if factor is not None:
            new = rows + factor[chosen][:, None].to(new.dtype) * (new - rows)
        replaced = x.to(new.dtype, copy=True)
        replaced[chosen] = new
        return replaced


def reads(known: SAEMetadata, x: Float[Tensor, "batch pos d"], context: EditContext) -> Bool[Tensor, "batch pos"]:
    """The positions that an SAE reads, by its rules: special tokens, first positions, norms, last tokens; no padding.

    Every text given to the model counts as a document.
    """
    chosen = within_norm(known, context.hook, x)
    if context.mask is not None:
        chosen = chosen & context.mask
    if context.special is not None and known.exclude_special is not False:
        chosen = chosen & ~context.special
    if known.last_only:
        chosen = chosen & (chosen.flip(1).cumsum(1).flip(1) == 1)
    if context.positions is not None and known.skip_first:
        chosen = chosen & (context.positions >= known.skip_first)
    return chosen


class Amount:
    """Numbers of a setting: one, one for each latent, or one (or one for each latent) for each row of the batch."""

    def __init__(self, value: Any, n: int, name: str) -> None:
        """Take `value` for n latents.

        Raises:
            ConfigError: it is not numbers, not finite, or of another shape than 1, (n,), (batch, 1) or (batch, n).
        """
        try:
            numbers = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{name} must be numbers, got {value!r}") from error
        if isinstance(value, bool) or not bool(numbers.isfinite().all()):
            raise ConfigError(f"{name} must be finite numbers, got {_short(value)}")
        if numbers.ndim in (1, 2) and numbers.shape[-1] not in (1, n):
            raise ConfigError(
                f"{name} has shape {tuple(numbers.shape)} for {n} latents: give one number, one for each latent, or "
                f"one or {n} for each row of the batch"
            )
        if numbers.ndim > 2 or numbers.numel() == 0:
            raise ConfigError(f"{name} has shape {tuple(numbers.shape)}: give numbers, (latents,), or (batch, latents)")
        self.numbers, self.name = numbers, name

    def at(self, places: Places, like: Tensor) -> Tensor:
        """Broadcastable to (chosen, latents).

        Raises:
            DataError: it is for another number of rows than the batch has.
        """
        numbers = self.numbers.to(like)
        if numbers.ndim < 2:
            return numbers
        if places.rows.numel() and int(places.rows.max()) >= len(numbers):
            raise DataError(
                f"{self.name} is for {len(numbers)} rows, the batch has more: give one setting for all, or one a row"
            )
        if places.context.rows is None and len(places.chosen) != len(numbers):
            raise DataError(f"{self.name} is for {len(numbers)} rows, the batch has {len(places.chosen)}")
        return numbers[places.rows.to(numbers.device)]

    def to_json(self) -> Any:
        return self.numbers.tolist()

    def __repr__(self) -> str:
        return f"{self.numbers.item():g}" if self.numbers.numel() == 1 else _short(self.numbers.tolist())


def _short(value: Any) -> str:
    words = str(value)
    return words if len(words) <= 60 else words[:57] + "..."


def joined_once(edit: Any, sae: SAE, model: SubjectModel, hook: str | list[str]) -> None:
    """Ask whether an SAE fits a model, once for each model and edit.

    Raises:
        MismatchError: it does not.
    """
    from monosem.activations.check import join

    fingerprint = model.fingerprint()
    if getattr(edit, "_joined", None) != fingerprint:
        join(sae, model, hook)
        edit._joined = fingerprint
