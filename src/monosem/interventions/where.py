"""Where an intervention works: positions, tokens, phase, a condition on a latent, a schedule. Conditions are data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosem.arguments import checked
from monosem.errors import ConfigError, DataError
from monosem.models import EditContext
from monosem.sae import SAE
from monosem.text import well_formed

Phase = Literal["prompt", "generated"]


@checked
@dataclass(frozen=True)
class Where:
    """The positions at which an intervention works: those that meet every condition given."""

    positions: int | Sequence[int] | slice | None = None
    """Numbers of tokens in their text, from 0, padding not counted; negative ones from the end of the text or, in
    generation, of the prompt. A slice or range takes what there is of it."""
    tokens: int | str | Sequence[int | str] | None = None
    """Ids of tokens, or strings that are one token each."""
    phase: Phase | None = None
    """The prompt alone, or what is generated alone."""
    rows: int | Sequence[int] | None = None
    """Rows of the batch."""
    above: tuple[int, float] | None = None
    """A latent and a threshold: where its code, before this edit, is larger."""
    sae: SAE | None = None
    """Of which the latent is; the edit's own if not given. It reads what the edit reads."""
    schedule: Sequence[tuple[int, float]] | None = None
    """Strength by the number of the generated token (0: the prompt): points `(step, factor)`, straight between them.
    An edit moves activations so many times as far as it would; `[(0, 1), (20, 0)]` fades out."""

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        if isinstance(self.positions, slice):
            parts = (self.positions.start, self.positions.stop, self.positions.step)
            if not all(part is None or _is_integer(part) for part in parts) or (parts[2] or 1) < 1:
                raise ConfigError(f"positions of Where are whole numbers, got {self.positions}")
        elif self.positions is not None:
            set_(self, "positions", _integers(self.positions, "positions"))
        if self.tokens is not None:
            given = [self.tokens] if isinstance(self.tokens, int | str) else list(self.tokens)
            if not given or not all(isinstance(t, str) or (_is_integer(t) and t >= 0) for t in given):
                raise ConfigError(f"tokens of Where are ids or strings, got {self.tokens!r}")
            set_(self, "tokens", tuple(given))
        if self.rows is not None:
            set_(self, "rows", _integers(self.rows, "rows"))
            if min(self.rows) < 0:  # type: ignore[arg-type]
                raise ConfigError(f"rows of Where count from 0, got {self.rows}")
        if self.above is not None:
            set_(self, "above", _condition(self.above, self.sae))
        if self.schedule is not None:
            set_(self, "schedule", _points(self.schedule))

    @property
    def _numbers(self) -> tuple[int, ...]:
        return self.positions if isinstance(self.positions, tuple) else ()

    def require_reachable(self, prompt: int, most: int) -> None:
        """Raise DataError where a position is behind all that will be there, or before the beginning."""
        for number in self._numbers:
            if not -prompt <= number < most:
                raise DataError(
                    f"position {number} is outside the text: the prompt has {prompt} tokens, with all new ones {most}"
                )

    def chosen(self, x: Float[Tensor, "batch pos d"], context: EditContext, reader: SAE | None) -> Bool[Tensor, "b p"]:
        """Where all conditions hold, but for the schedule.

        Raises:
            DataError: a position is outside the text, or a condition asks for what is not known here.
        """
        chosen = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if self.positions is not None:
            chosen &= self._at_positions(x, context)
        if self.tokens is not None:
            if context.tokens is None:
                raise DataError("a condition on tokens needs token ids: these inputs have none")
            ids = torch.tensor(_ids(self.tokens, context.tokenizer), device=x.device)
            chosen &= torch.isin(context.tokens, ids)
        if self.phase is not None:
            generated = context.generated
            if generated is None:
                generated = torch.zeros_like(chosen)
            chosen &= generated if self.phase == "generated" else ~generated
        if self.rows is not None:
            chosen &= torch.isin(rows_of(x, context), torch.tensor(self.rows, device=x.device))[:, None]
        if self.above is not None:
            chosen &= self._above(x, chosen, self.sae or reader)
        return chosen

    def _at_positions(self, x: Tensor, context: EditContext) -> Bool[Tensor, "batch pos"]:
        positions = positions_of(x, context)
        lengths = torch.full_like(positions[:, 0], x.shape[1]) if context.lengths is None else context.lengths
        if isinstance(self.positions, slice):
            start, stop = (_from_end(end, lengths) for end in (self.positions.start or 0, self.positions.stop))
            met = (positions >= start) & ((positions - start) % (self.positions.step or 1) == 0)
            return met if stop is None else met & (positions < stop)
        wanted = [_from_end(number, lengths) for number in self._numbers]
        if not context.continued:
            for number, at in zip(self._numbers, wanted, strict=True):
                if not bool(((at >= 0) & (at < lengths[:, None])).any()):
                    raise DataError(f"position {number} is outside the text, which has {int(lengths.max())} tokens")
        return (positions[:, :, None] == torch.stack(wanted, -1)).any(-1)

    def _above(self, x: Tensor, chosen: Tensor, reader: SAE | None) -> Bool[Tensor, "batch pos"]:
        if reader is None:
            raise ConfigError("above=(latent, threshold) needs to know whose latent: Where(above=..., sae=sae)")
        assert self.above is not None
        latent, threshold = self.above
        if not 0 <= latent < reader.n_latents:
            raise ConfigError(f"above names latent {latent}: this SAE has latents 0 to {reader.n_latents - 1}")
        met = torch.zeros_like(chosen)
        if chosen.any():
            met[chosen] = reader.encode(x[chosen]).select([latent]).to_dense()[:, 0] > threshold
        return met

    def factor(self, x: Float[Tensor, "batch pos d"], context: EditContext) -> Float[Tensor, "batch pos"] | None:
        """By how many times as far activations are moved; None without a schedule."""
        if self.schedule is None:
            return None
        step = torch.zeros(x.shape[:2], device=x.device) if context.step is None else context.step.float()
        points = torch.tensor(self.schedule, dtype=torch.float64, device=x.device)
        after = torch.searchsorted(points[:, 0].contiguous(), step.double(), right=True)
        low, high = points[(after - 1).clamp(min=0)], points[after.clamp(max=len(points) - 1)]
        width = (high[..., 0] - low[..., 0]).clamp(min=1e-9)
        share = ((step.double() - low[..., 0]) / width).clamp(0, 1)
        return low[..., 1] + share * (high[..., 1] - low[..., 1])


Condition = Where | Tensor | Callable[[EditContext], Tensor] | None
"""What `where=` takes: conditions, a tensor of bools (batch, pos), or a function of the context that returns one."""


def met(
    where: Condition, x: Float[Tensor, "batch pos d"], context: EditContext, reader: SAE | None = None
) -> Bool[Tensor, "batch pos"] | None:
    """The positions that `where` asks for; None for all.

    Raises:
        DataError: what it gives does not fit the activations.
    """
    if where is None:
        return None
    if isinstance(where, Where):
        return where.chosen(x, context, reader)
    found = where if isinstance(where, Tensor) else where(context)
    if found.dtype != torch.bool:
        raise DataError(f"where must be of bools, got {found.dtype}")
    found = found.to(x.device)
    if found.shape == x.shape[:2]:
        return found
    if isinstance(where, Tensor) and context.continued and found.ndim == 2 and len(found) == len(x):
        positions = positions_of(x, context)
        inside = positions < found.shape[1]
        return found.gather(1, positions.clamp(max=found.shape[1] - 1)) & inside
    raise DataError(f"where has shape {tuple(found.shape)}, the activations have {tuple(x.shape[:2])} positions")


def positions_of(x: Tensor, context: EditContext) -> Tensor:
    """(batch, pos), known or counted."""
    if context.positions is not None:
        return context.positions
    return torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])


def rows_of(x: Tensor, context: EditContext) -> Tensor:
    """(batch,), known or counted."""
    return torch.arange(len(x), device=x.device) if context.rows is None else context.rows


@lru_cache(maxsize=64)
def _ids(tokens: tuple[int | str, ...], tokenizer: Any) -> list[int]:
    found: list[int] = []
    for token in tokens:
        if isinstance(token, int):
            found.append(token)
            continue
        if tokenizer is None:
            raise DataError(f"{token!r} cannot be looked up without a tokenizer: give ids of tokens")
        ids = tokenizer(well_formed(token), add_special_tokens=False)["input_ids"]
        special: Any = tokenizer.convert_tokens_to_ids(token) if len(ids) != 1 else None
        if len(ids) != 1 and (special is None or special == getattr(tokenizer, "unk_token_id", None)):
            pieces = ", ".join(repr(tokenizer.decode([i])) for i in ids)
            raise ConfigError(f"{token!r} is not one token but {len(ids)}: {pieces}")
        found.append(ids[0] if len(ids) == 1 else special)
    return found


def _from_end(number: int | None, lengths: Tensor) -> Any:
    """(batch, 1): a number of a token in each text; None for none."""
    if number is None:
        return None
    return torch.full_like(lengths, number)[:, None] + (lengths[:, None] if number < 0 else 0)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integers(value: Any, name: str) -> tuple[int, ...]:
    given = [value] if _is_integer(value) else value.tolist() if isinstance(value, Tensor) else value
    if not isinstance(given, Sequence) or isinstance(given, str) or not given or not all(map(_is_integer, given)):
        raise ConfigError(f"{name} of Where are whole numbers, got {value!r}")
    return tuple(given)


def _condition(value: Any, sae: SAE | None) -> tuple[int, float]:
    fits = isinstance(value, Sequence) and len(value) == 2 and _is_integer(value[0])
    if not fits or not isinstance(value[1], int | float) or not math.isfinite(value[1]):
        raise ConfigError(f"above is (latent, threshold), got {value!r}")
    latent = value[0]
    if latent < 0 or (sae is not None and latent >= sae.n_latents):
        most = "" if sae is None else f" to {sae.n_latents - 1}"
        raise ConfigError(f"above names latent {latent}: there are latents 0{most}")
    return (latent, float(value[1]))


def _points(value: Any) -> tuple[tuple[int, float], ...]:
    fits: bool = isinstance(value, list | tuple) and len(value) > 0
    for point in value if fits else ():
        fits &= isinstance(point, Sequence) and len(point) == 2 and _is_integer(point[0])
        fits = fits and isinstance(point[1], int | float) and math.isfinite(point[1])
        if not fits:
            break
    if not fits or any(a[0] >= b[0] for a, b in itertools.pairwise(value)):
        raise ConfigError(f"a schedule is points (step, factor) of growing steps, got {value!r}")
    return tuple((step, float(factor)) for step, factor in value)
