"""What all interventions share: where they work, that they leave the rest alone, and how they are told of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosem.activations.check import join
from monosem.activations.reading import within_norm
from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.interventions.amounts import Places
from monosem.interventions.plain import plain, sae_hash
from monosem.interventions.where import Condition, Where, met, positions_of, rows_of
from monosem.models import EditContext, SubjectModel
from monosem.sae import SAE
from monosem.sae.metadata import SAEMetadata


class Intervention(ABC):
    """At some positions of its hook points, other activations than the model's own: a value, which can be composed.

    with model.edit([ms.Ablate(sae, [12]), ms.AddVector("resid_post.2", vector)]) as reports:
        logits = model(tokens)

    Padding is left alone. What it did stands in the report.
    """

    unchanged = "what it gives is what was there"
    """Why nothing changed, in words, where it met positions."""

    fields: ClassVar[tuple[str, ...]] = ()
    """What its constructor takes and it keeps under the same names: what it is, as data."""
    required: ClassVar[tuple[str, ...]] = ()
    """Of these, what must be given."""

    @checked
    def __init__(self, hooks: list[str], where: Condition = None) -> None:
        if where is not None and not isinstance(where, Where | Tensor) and not callable(where):
            raise ConfigError(f"where is ms.Where(...), a tensor of bools or a function, got a {type(where).__name__}")
        self.hooks, self.where = hooks, where

    @property
    def hook(self) -> str:
        """The first of its hook points."""
        return self.hooks[0]

    def to_json(self) -> dict[str, Any]:
        """As data, which `ms.edit_from_json` reads; an SAE is named by the hash of its weights.

        Raises:
            ConfigError: it has a part that is no data, as a function.
        """
        kind = type(self)
        if "fields" not in vars(kind):
            raise ConfigError(f"{kind.__name__} is no data: it holds code")
        given = {name: getattr(self, name) for name in self.fields}
        return {
            "edit": kind.__name__,
            **{name: plain(value, name) for name, value in given.items() if value is not None},
        }

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

    def read(self, x: Float[Tensor, "batch pos d"], context: EditContext) -> Float[Tensor, "batch pos *source d"]:
        """What a condition on a latent reads."""
        return x

    def chosen(self, x: Float[Tensor, "batch pos d"], context: EditContext) -> Bool[Tensor, "batch pos"]:
        """The positions at which it works."""
        allowed = self.allowed(x, context)
        wanted = met(self.where, self.read(x, context), context, self.reader)
        return allowed if wanted is None else allowed & wanted

    def apply(self, x: Float[Tensor, "batch pos d"], context: EditContext) -> Float[Tensor, "batch pos d"]:
        """The activations with those in its places replaced; the very same tensor where it has none."""
        if x.ndim == 2:
            return self.apply(x[:, None], context)[:, 0]
        if x.ndim != 3:
            raise ConfigError(f"{type(self).__name__} changes rows, one for each position: {self.hooks[0]} holds none")
        chosen = self.chosen(x, context)
        if context.report is not None:
            context.report.note_met(chosen, context.rows)
        if not chosen.any():
            return x
        rows = x[chosen]
        numbers = rows_of(x, context)[:, None].expand_as(chosen)[chosen]
        places = Places(numbers, positions_of(x, context)[chosen], context, chosen)
        new = self.replace(rows, places).to(x.device)
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


_JOINED: WeakKeyDictionary[SAE, set[tuple[str, ...]]] = WeakKeyDictionary()
"""Of each SAE the models and hook points with which it was found to fit, as it is."""


def joined_once(sae: SAE, model: SubjectModel, hook: str | list[str]) -> None:
    """Ask whether an SAE fits a model, which runs on what the SAE was probed on: once, until one changes.

    Raises:
        MismatchError: it does not.
    """
    known, hooks = _JOINED.setdefault(sae, set()), [hook] if isinstance(hook, str) else hook

    def asked() -> tuple[str, ...]:
        return sae_hash(sae), sae.metadata.model_dump_json(), model.fingerprint(), *hooks

    if asked() not in known:
        join(sae, model, hook)
        known.add(asked())
