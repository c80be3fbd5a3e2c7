"""Prompts that are read together: both states of every site in them, gradients, effects, and runs with parts left out.

A circuit of many prompts reads them some at a time, and again whenever it needs them, so that it never holds more than
those.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.circuits.feature_circuit.nodes import Mask, Numbering, SiteEffects
from monosem.circuits.feature_circuit.states import Ablation, Mean, nothing
from monosem.circuits.sites import Dictionaries, sites_of
from monosem.errors import ConfigError, DataError
from monosem.interventions.number import Number, Of, number_of
from monosem.interventions.way import Put, Site, Way, midpoints
from monosem.models import Replay, SubjectModel
from monosem.work import doing

Method = Literal["gradient", "integrated"]
Told = Callable[[Any, slice], Tensor]
"""A function of what the model returns for some prompts, and of which prompts these are."""
TOGETHER = 4096
"""Tokens that are read together, if not said otherwise."""


@dataclass(frozen=True)
class Asked:
    """What a circuit is asked for, whatever the dictionaries."""

    model: SubjectModel
    clean: Any
    corrupt: Any
    metric: Of | Told
    position: int
    method: Method
    steps: int
    ablate: Ablation
    by_position: bool
    batch_size: int | None

    def number(self, contexts: slice) -> Number:
        """The number of some prompts; a function that takes two arguments is told which they are."""
        if callable(self.metric) and _is_told(self.metric):
            told = cast(Told, self.metric)
            return number_of(self.model, lambda out: told(out, contexts), self.position)
        return number_of(self.model, cast(Of, self.metric), self.position)

    def slices(self) -> list[slice]:
        """Which prompts are read together.

        Raises:
            ConfigError: several batches are asked for, of a number that sees all prompts at once.
            DataError: clean and corrupt prompts do not stand side by side.
        """
        contexts, tokens = _size(self.model, self.clean)
        if self.corrupt is not None and _size(self.model, self.corrupt) != (contexts, tokens):
            raise DataError(
                f"clean and corrupt prompts stand side by side, token by token: they have {(contexts, tokens)} and "
                f"{_size(self.model, self.corrupt)} contexts and tokens. Without such prompts leave corrupt out."
            )
        blind = callable(self.metric) and not _is_told(self.metric)
        size = self.batch_size or (contexts if blind else max(1, TOGETHER // tokens))
        if blind and size < contexts:
            raise ConfigError(
                "a function of one argument sees all prompts at once: let it take another, a slice that says which "
                f"prompts these are, or leave batch_size out (it is {size}, there are {contexts} prompts)"
            )
        return [slice(first, min(first + size, contexts)) for first in range(0, contexts, size)]


class Batch:
    """Some prompts: both states of every site in them."""

    def __init__(self, asked: Asked, dictionaries: Dictionaries, contexts: slice | None) -> None:
        """Run the model; `contexts` is None where these are all of them."""
        self.asked, model = asked, asked.model
        whole = slice(None) if contexts is None else contexts
        self.number = asked.number(whole)
        self.clean, self.corrupt = (_part(model, inputs, contexts) for inputs in (asked.clean, asked.corrupt))
        self.way = Way(model, sites_of(model, dictionaries), self.clean, self.number)
        self.value = self.way.value()
        self.others: list[Site] = []
        """Each site in its other state, once they have been compared."""
        if not bool(self.value.isfinite().all()):
            raise DataError("the number is not finite")
        n = len(self.value) if contexts is None else contexts.stop - contexts.start
        if len(self.value) != n:
            raise DataError(
                f"the function gives {len(self.value)} numbers for {n} prompts: where not all are read at once it must "
                "give one for each"
            )

    def compare(self, means: Sequence[Mean] | None) -> None:
        """Find the other state of every site, and what goes on its way; does nothing once it is known."""
        sites = self.way.sites
        if self.others:
            return
        if self.corrupt is not None:
            self.others = self._corrupt(sites)
        elif means is not None:
            self.others = [mean.state(site) for mean, site in zip(means, sites, strict=True)]
        else:
            self.others = [nothing(site) for site in sites]
        for site, other in zip(sites, self.others, strict=True):
            assert site.x is not None
            assert other.x is not None
            site.away = site.x - other.x

    def _corrupt(self, sites: Sequence[Site]) -> list[Site]:
        others = [Site(site.sae, site.read, site.write) for site in sites]
        none = number_of(self.asked.model, lambda _: torch.zeros(1))
        Way(self.asked.model, others, self.corrupt, none).value()
        return others

    @cached_property
    def gradients(self) -> list[Tensor]:
        """Of the number by what stands at every site, or the mean along its way."""
        return self.way.gradients()[0] if self.asked.method == "gradient" else self._integrated()

    def alone(self, site: Site) -> Way:
        """One site goes its way, all others stay."""
        return Way(self.asked.model, [site], self.clean, self.number)

    def _integrated(self) -> list[Tensor]:
        found: list[Tensor] = []
        steps = self.asked.steps
        with doing("integrating", steps * len(self.way.sites), unit="passes") as work:
            for site in self.way.sites:
                total = torch.zeros_like(site.away)
                for share in midpoints(steps):
                    total += self.alone(site).gradients(share)[0][0]
                    work.advance(1)
                found.append(total / steps)
        return found

    def effects(self, numberings: Sequence[Numbering]) -> list[SiteEffects]:
        """Of all nodes of every site."""
        pairs = zip(self.way.sites, self.others, self.gradients, numberings, strict=True)
        return [SiteEffects.of(*each) for each in pairs]

    @contextmanager
    def spared(self) -> Iterator[None]:
        """Within this block, runs do not compute anew what comes before all sites."""
        hooks = [hook for site in self.way.sites for hook in (site.read, site.write)]
        replay = Replay(self.asked.model, [*hooks, *self.number.hooks], self.clean)
        with replay.of(self.clean):
            yield

    @torch.no_grad()
    def run(self, chosen: Sequence[Tensor], numberings: Sequence[Numbering]) -> Float[Tensor, " contexts"]:
        """The number with some nodes of each site alone as they are."""
        functions: list[tuple[str, Put]] = []
        for site, other, own, numbering in zip(self.way.sites, self.others, chosen, numberings, strict=True):
            functions += Mask(site, other, own, numbering).functions()
        return self.way.run(functions)


def _is_told(metric: Any) -> bool:
    """Whether a function takes two arguments."""
    if isinstance(metric, torch.nn.Module):
        metric = metric.forward
    try:
        parameters = inspect.signature(metric).parameters.values()
    except (TypeError, ValueError):
        return False
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty for p in parameters) == 2


def _size(model: SubjectModel, inputs: Any) -> tuple[int, int]:
    """Prompts, and tokens of each."""
    inputs = model._arguments(inputs)
    first = next(x for x in inputs.values() if isinstance(x, Tensor)) if isinstance(inputs, Mapping) else inputs
    return len(first), int(first.shape[1]) if first.ndim == 2 else 1


def _part(model: SubjectModel, inputs: Any, contexts: slice | None) -> Any:
    if inputs is None or contexts is None:
        return inputs
    given = model._arguments(inputs)
    if not isinstance(given, Mapping):
        return given[contexts]
    return {name: x[contexts] if isinstance(x, Tensor) else x for name, x in given.items()}
