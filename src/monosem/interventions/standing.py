"""Standing lists: features that are never to fire, or always, whatever a model reads and writes, with a report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.interventions.amounts import Places
from monosem.interventions.features import FeatureEdit
from monosem.interventions.where import Condition
from monosem.models import EditContext
from monosem.sae import SAE


class Event(NamedTuple):
    """A place at which a list had to act."""

    row: int
    """Of the batch."""
    position: int
    """Number of the token in its text."""
    generated: bool
    token: int | None
    latent: int
    was: float
    """Its code as it would have been."""
    is_now: float

    def __str__(self) -> str:
        where = "generated" if self.generated else "prompt"
        return (
            f"row {self.row}, token {self.position} ({where}): latent {self.latent} {self.was:.3g} -> {self.is_now:.3g}"
        )


class Standing(FeatureEdit):
    """Latents that never fire, and latents that always do: an edit, in force for as long as you like.

    rules = ms.Standing(sae, never=[12, 80], always={40: 3.0})
    out = ms.generate(model, "Once upon a time", edits=[rules])
    for event in rules.events:
        print(event)

    What may never fire is set to 0 where it would, what always fires is raised to its amount where it is lower. Both
    are told of in `events`, in the order in which they happened; `clear` forgets them. As data (`to_json`) it is its
    lists, without what has happened.
    """

    unchanged = "nothing was on that may never be, and all that must be was on"

    fields = ("sae", "never", "always", "hook", "where", "keep_error")

    @checked
    def __init__(
        self,
        sae: SAE,
        *,
        never: Sequence[int] = (),
        always: Mapping[int | str, float] | None = None,
        hook: str | None = None,
        where: Condition = None,
        keep_error: bool = True,
    ) -> None:
        """Make the lists.

        Args:
            sae: the SAE.
            never: latents that are never to fire.
            always: latents that are always to fire, and how strongly at least.
            hook: its hook point, if the SAE does not know it.
            where: at which positions; see `ms.Where`.
            keep_error: leave what the SAE does not explain as it is.

        Raises:
            ConfigError: both lists are empty, a latent is in both or does not exist, or an amount is not above 0.
        """
        self.always = _amounts(always or {})
        if isinstance(never, str) or not isinstance(never, Sequence):
            raise ConfigError(f"never is numbers of latents, as [12, 80], got {never!r}")
        both = [latent for latent in never if latent in self.always]
        if both:
            raise ConfigError(f"latent {both[0]} is never to fire and always: choose one")
        if not never and not self.always:
            raise ConfigError("both lists are empty: give never=[12], always={40: 3.0} or both")
        self.never = tuple(never)
        super().__init__(sae, [*never, *self.always], hook=hook, where=where, keep_error=keep_error)
        self.events: list[Event] = []

    def clear(self) -> None:
        """Forget what happened."""
        self.events = []

    def setting(self, codes: Float[Tensor, "chosen m"], places: Places) -> Float[Tensor, "chosen m"]:
        floor = codes.new_tensor([0.0] * len(self.never) + list(self.always.values()))
        silent = torch.arange(len(floor), device=codes.device) < len(self.never)
        new = torch.where(silent, 0, torch.maximum(codes, floor))
        self._note(codes, new, places)
        return new

    def _note(self, codes: Tensor, new: Tensor, places: Places) -> None:
        acted = (new != codes).detach()
        if places.begins is not None:
            acted &= torch.tensor(places.begins, device=acted.device)
        context, chosen = places.context, places.chosen
        tokens = None if context.tokens is None else context.tokens[chosen]
        generated = _flags(context, chosen)
        for i, j in acted.nonzero().tolist():
            self.events.append(
                Event(
                    int(places.rows[i]),
                    int(places.positions[i]),
                    bool(generated[i]),
                    None if tokens is None else int(tokens[i]),
                    self.latents[j],
                    float(codes[i, j]),
                    float(new[i, j]),
                )
            )

    def report(self) -> str:
        """In words, how often each list had to act."""
        lines: list[str] = []
        for latent in self.latents:
            mine = [event for event in self.events if event.latent == latent]
            rule = "never" if latent in self.never else f"always {self.always[latent]:g}"
            said = sum(event.generated for event in mine)
            words = f"acted {len(mine)} times, {said} of them in what was generated" if mine else "had nothing to do"
            lines.append(f"latent {latent} ({rule}): {words}")
        return "\n".join(lines)

    def detail(self) -> str:
        return f", never {list(self.never)}, always {self.always}"


def _flags(context: EditContext, chosen: Bool[Tensor, "batch pos"]) -> Bool[Tensor, " n"]:
    generated = context.generated
    return torch.zeros(int(chosen.sum()), dtype=torch.bool) if generated is None else generated[chosen]


def _amounts(always: Any) -> dict[int, float]:
    """Of each latent its least amount; numbers of latents may be text, as they are in JSON."""
    if not isinstance(always, Mapping):
        raise ConfigError(f"always is amounts of latents, as {{40: 3.0}}, got {always!r}")
    found: dict[int, float] = {}
    for latent, amount in always.items():
        if not re.fullmatch("[0-9]{1,18}", str(latent)):
            raise ConfigError(f"latents are whole numbers, got {str(latent)[:40]!r}")
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < float("inf"):
            raise ConfigError(f"latent {latent} is always to fire with {amount}: give a finite number above 0")
        found[int(latent)] = float(amount)
    return found
