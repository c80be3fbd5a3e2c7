"""What a sparse feature circuit is made from: two states of every site, all effects, the way to run the model again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.circuits.feature_circuit.nodes import Mask, Node, Numbering, SiteEffects, order_of
from monosem.circuits.sites import Dictionaries, sites_of
from monosem.codes import SparseCodes
from monosem.errors import DataError
from monosem.interventions.number import Number, number_of
from monosem.interventions.way import Put, Site, Way, midpoints
from monosem.models import Replay, SubjectModel
from monosem.work import doing

Method = Literal["gradient", "integrated"]
Ablation = Literal["mean", "zero"]


@dataclass(frozen=True)
class Asked:
    """What a circuit is asked for, whatever the dictionaries."""

    model: SubjectModel
    clean: Any
    corrupt: Any
    number: Number
    method: Method
    steps: int
    ablate: Ablation
    by_position: bool


class Parts:
    """What a circuit is made from: both states of every site, all effects, and the way to run the model again."""

    def __init__(self, asked: Asked, dictionaries: Dictionaries) -> None:
        """Run the model, and find the effects of all nodes."""
        self.asked = asked
        self.way = Way(asked.model, sites_of(asked.model, dictionaries), asked.clean, asked.number)
        self.value, sites = self.way.value(), self.way.sites
        if not bool(self.value.isfinite().all()):
            raise DataError("the number is not finite")
        self.others = _other_states(asked, sites)
        for site, other in zip(sites, self.others, strict=True):
            assert site.x is not None
            assert other.x is not None
            site.away = site.x - other.x
        self.numberings = [Numbering(site.sae.n_latents, asked.by_position) for site in sites]
        self.gradients = self.way.gradients()[0] if asked.method == "gradient" else self._integrated()
        pairs = zip(sites, self.others, self.gradients, self.numberings, strict=True)
        self.effects = [SiteEffects.of(*each) for each in pairs]

    def again(self, dictionaries: Dictionaries) -> Parts:
        """The same of other dictionaries."""
        return Parts(self.asked, dictionaries)

    def alone(self, site: Site) -> Way:
        """One site goes its way, all others stay."""
        return Way(self.asked.model, [site], self.asked.clean, self.asked.number)

    def _integrated(self) -> list[Tensor]:
        """Of every site the mean gradient along its way."""
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

    @cached_property
    def order(self) -> list[tuple[int, int]]:
        """(site, number) of all nodes, the largest mean effect first."""
        return [(site, int(self.effects[site].numbers[column])) for site, column in order_of(self.effects)]

    def node(self, site: int, number: int) -> Node:
        """A node by site and number."""
        effects = self.effects[site]
        column = int(torch.searchsorted(effects.numbers, number))
        position, latent = self.numberings[site].back(effects.numbers[column])
        effect = float(effects.values[:, column].mean())
        return Node(self.way.sites[site].write, int(latent), int(position), effect)

    @contextmanager
    def spared(self) -> Iterator[None]:
        """Within this block, runs do not compute anew what comes before all sites."""
        hooks = [hook for site in self.way.sites for hook in (site.read, site.write)]
        replay = Replay(self.asked.model, [*hooks, *self.asked.number.hooks], self.asked.clean)
        with replay.of(self.asked.clean):
            yield

    @torch.no_grad()
    def run(self, nodes: Sequence[tuple[int, int]], but: bool = False) -> Float[Tensor, " contexts"]:
        """The number with some nodes alone (or all but these) as they are."""
        functions: list[tuple[str, Put]] = []
        for index, (site, other) in enumerate(zip(self.way.sites, self.others, strict=True)):
            own = torch.tensor([number for at, number in nodes if at == index], dtype=torch.int64)
            own = own.to(site.kept.device)
            if but:
                every = self.effects[index].numbers
                own = every[~torch.isin(every, own)]
            functions += Mask(site, other, own, self.numberings[index]).functions()
        return self.way.run(functions)


def _other_states(asked: Asked, sites: list[Site]) -> list[Site]:
    """Each site as it is in the corrupt prompts, on the mean, or without anything."""
    if asked.corrupt is None:
        return [(_mean if asked.ablate == "mean" else _nothing)(site) for site in sites]
    others = [Site(site.sae, site.read, site.write) for site in sites]
    nothing = number_of(asked.model, lambda _: torch.zeros(1))
    Way(asked.model, others, asked.corrupt, nothing).value()
    for site, other in zip(sites, others, strict=True):
        assert site.x is not None
        assert other.x is not None
        if site.x.shape != other.x.shape:
            raise DataError(
                f"clean and corrupt prompts stand side by side, token by token: they have {tuple(site.x.shape[:2])} "
                f"and {tuple(other.x.shape[:2])} contexts and tokens. Without such prompts leave corrupt out."
            )
    return others


@torch.no_grad()
def _nothing(site: Site) -> Site:
    """No feature is on and no error there: what is left is the decoder's bias; where nothing is read, what is there."""
    assert site.x is not None
    entries = SparseCodes.from_dense(site.entries.values.new_zeros(site.entries.n_rows, site.sae.n_latents))
    x = site.x.clone()
    x[site.kept] = site.sae.decode(entries, site.rows).to(x.dtype)
    return site.otherwise(x, entries)


@torch.no_grad()
def _mean(site: Site) -> Site:
    """Every feature and every error at its mean over the contexts that are read at the same token."""
    assert site.x is not None
    counts = site.kept.sum(0)
    if len(site.x) < 2 or bool((counts == 1).any()):
        raise DataError(
            "a mean needs several prompts at every token: give prompts of one length, corrupt prompts beside them, or "
            "ablate='zero'"
        )
    n, codes = site.sae.n_latents, site.entries
    positions = site.kept.nonzero()[:, 1]
    numbers, inverse = (positions[codes.rows()] * n + codes.indices.long()).unique(return_inverse=True)
    sums = torch.zeros(len(numbers), dtype=codes.values.dtype, device=codes.device)
    sums.index_add_(0, inverse, codes.values)
    at = numbers // n
    per_position = torch.zeros(site.kept.shape[1], dtype=torch.int64, device=codes.device).index_add_(
        0, at, torch.ones_like(at)
    )
    offsets = torch.nn.functional.pad(per_position.cumsum(0), (1, 0))
    means = SparseCodes(sums / counts[at], (numbers % n).to(torch.int32), offsets, n)
    x = site.x.clone()
    mean = (site.x * site.kept[..., None]).sum(0) / counts.clamp(min=1)[:, None]
    x[site.kept] = mean[positions]
    return site.otherwise(x, means[positions])
