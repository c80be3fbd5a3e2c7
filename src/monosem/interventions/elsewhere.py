"""Dictionaries that write elsewhere than they read: where, and what they know of a forward pass when they write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosem.errors import ConfigError, HookError
from monosem.interventions.amounts import Places
from monosem.interventions.base import reads
from monosem.models import EditContext, SubjectModel
from monosem.sae import SAE, CrossLayerTranscoder


@dataclass(frozen=True)
class Sites:
    """The hook points that a dictionary reads, and those that its latents write to, each with its number there."""

    read: tuple[str, ...]
    written: tuple[str, ...]
    numbers: tuple[int, ...]
    """Of those written to, among what the dictionary predicts."""
    elsewhere: bool
    """Whether it is anything but a dictionary of one place, which it reads and writes to."""

    @classmethod
    def of(cls, sae: SAE, hook: str | None, user: str) -> Sites:
        """Those that an SAE remembers, or that are given.

        A crosscoder of several layers writes to the last of them alone: at earlier ones its codes are not known yet.

        Raises:
            ConfigError: it remembers none, or is of several models.
        """
        known, several = sae.metadata, len(sae.in_shape) > 1
        if known.models:
            raise ConfigError(f"this {sae.architecture} reads several models side by side: {user} edits one")
        if not several and sae.autoencodes:
            name = hook or known.hook
            if name is None:
                raise ConfigError(f"this SAE does not know its hook point: {user}(sae, ..., hook='resid_post.2')")
            return cls((name,), (name,), (0,), elsewhere=False)
        read = tuple(known.hooks or [name for name in (hook or known.hook,) if name])
        targets = tuple(known.target_hooks or [name for name in (known.target_hook,) if name])
        written = read if sae.autoencodes else targets
        names = ("hooks", "target_hooks") if several else ("hook", "target_hook")
        if not read or not written:
            raise ConfigError(
                f"this {sae.architecture} does not know where it reads and writes: set sae.metadata.{names[0]} and "
                f"sae.metadata.{names[1]}"
            )
        if several and len(read) != sae.in_shape[0]:
            raise ConfigError(f"this {sae.architecture} reads {sae.in_shape[0]} hook points, it knows of {len(read)}")
        if hook is not None and hook not in read:
            raise ConfigError(f"this {sae.architecture} reads {', '.join(read)}, not {hook}")
        numbers = tuple(range(len(written)))
        last = slice(-1, None) if sae.autoencodes else slice(None)
        return cls(read, written[last], numbers[last], elsewhere=True)

    @property
    def hooks(self) -> list[str]:
        """All, each once."""
        return list(dict.fromkeys([*self.read, *self.written]))

    def named(self, model: SubjectModel) -> Sites:
        """The same by the names that a model has for them."""
        read, written = (tuple(model.hook_point(name).name for name in names) for names in (self.read, self.written))
        return Sites(read, written, self.numbers, self.elsewhere)


@dataclass
class Pass:
    """What is known of a forward pass of what a dictionary reads in it, and of what edits have made of its codes."""

    sae: SAE
    sites: Sites
    seen: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """(batch, pos, d) at each hook point read so far."""
    readable: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """(batch, pos) where the rules of the dictionary let it."""
    changes: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    """(batch, pos) by how much each latent's code is another by now."""
    written: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """(batch, pos, d) what edits have added so far at each hook point."""
    own: dict[int, dict[int, Tensor]] = field(default_factory=dict[int, dict[int, Tensor]])
    """Of each edit, by how much it changes each latent's code, (batch, pos)."""

    @classmethod
    def at(cls, sae: SAE, sites: Sites, context: EditContext) -> Pass:
        """That of the forward pass at hand, one for all edits of a dictionary."""
        return context.memory.setdefault(("read elsewhere", id(sae)), cls(sae, sites))

    def note(self, x: Float[Tensor, "batch pos d"], context: EditContext) -> Float[Tensor, "batch pos d"]:
        """Keep what stands at a hook point, which stays as it is."""
        if context.hook in self.sites.read and context.hook not in self.seen:
            self.seen[context.hook] = x.clone()
            self.readable[context.hook] = reads(self.sae.metadata, x, context)
        return x

    @property
    def kept(self) -> Bool[Tensor, "batch pos"]:
        """Where all that has been read is what the dictionary reads; raises as `rows`."""
        self._require_read()
        return torch.stack(list(self.readable.values())).all(0)

    def rows(self) -> Float[Tensor, "batch pos *source d"]:
        """What the dictionary reads; 0 at hook points that are still to come, on which nothing known here depends.

        Raises:
            HookError: nothing has been read.
        """
        self._require_read()
        some = next(iter(self.seen.values()))
        if len(self.sae.in_shape) == 1:
            return some
        return torch.stack([self.seen.get(hook, torch.zeros_like(some)) for hook in self.sites.read], 2)

    def _require_read(self) -> None:
        if not self.seen:
            raise HookError(f"{self.sites.written[0]} comes before {self.sites.read[0]}: nothing is read there yet")

    def number(self, hook: str) -> int:
        """Of a hook point among what the dictionary predicts."""
        return self.sites.numbers[self.sites.written.index(hook)]

    def part(self, rows: Float[Tensor, "chosen *target d"], hook: str) -> Float[Tensor, "chosen d"]:
        """Of what is written, what comes to a hook point."""
        return rows if rows.ndim == 2 else rows[:, self.number(hook)]

    def begins(self, latents: Sequence[int], hook: str) -> list[bool]:
        """Of each latent, whether this is the first hook point that it writes to."""
        if not isinstance(self.sae, CrossLayerTranscoder):
            return [True] * len(latents)
        return [latent // self.sae.latents_per_layer == self.number(hook) for latent in latents]


class Setter(Protocol):
    """What sets codes of some latents of a dictionary."""

    sae: SAE
    latents: tuple[int, ...]
    keep_error: bool

    def setting(self, codes: Float[Tensor, "chosen m"], places: Places) -> Float[Tensor, "chosen m"]:
        """The new codes."""
        ...


def changed_elsewhere(
    edit: Setter, known: Pass, rows: Float[Tensor, "chosen d"], places: Places
) -> Float[Tensor, "chosen d"]:
    """The rows at a hook point that latents write to, with what an edit makes of their codes.

    A latent's code is that of what was read, with what earlier edits have made of it in this pass. It is set where the
    latent first writes; at later hook points the same change is written.
    """
    sae, hook, chosen = edit.sae, places.context.hook, places.chosen
    read = known.rows()[chosen]
    latents = torch.tensor(edit.latents, device=sae.W_enc.device)
    codes = sae.encode(read)
    none = torch.zeros(chosen.shape, dtype=sae.W_enc.dtype, device=rows.device)
    before = torch.stack([known.changes.get(latent, none)[chosen] for latent in edit.latents], 1)
    own = known.own.setdefault(id(edit), {})
    fresh = known.begins(edit.latents, hook)
    change = torch.stack([own.get(latent, none)[chosen] for latent in edit.latents], 1)
    if any(fresh):
        old = codes.select(latents).to_dense() + before
        new = edit.setting(old, places._replace(begins=fresh))
        change = torch.where(torch.tensor(fresh, device=change.device), new - old, change)
        for column, latent in enumerate(edit.latents):
            if fresh[column]:
                own[latent] = _spread(change[:, column], chosen)
                known.changes[latent] = known.changes.get(latent, none) + own[latent]
    written = (change @ sae.part(latents)[2]).reshape(len(rows), *sae.out_shape)
    moved = known.part(sae.target_transform.raw_changes(written, read.to(written.dtype)), hook)
    base = rows
    if not edit.keep_error:
        base = known.part(sae.decode(codes, read), hook)
        if hook in known.written:
            base = base + known.written[hook][chosen]
    total = _spread(moved, chosen)
    known.written[hook] = known.written[hook] + total if hook in known.written else total
    return base + moved


def _spread(rows: Tensor, chosen: Bool[Tensor, "batch pos"]) -> Tensor:
    """Rows of some positions at their places among all, (batch, pos, ...); 0 elsewhere."""
    found = rows.new_zeros(*chosen.shape, *rows.shape[1:])
    found[chosen] = rows
    return found
