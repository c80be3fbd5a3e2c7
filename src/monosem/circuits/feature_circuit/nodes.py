"""The nodes of a sparse feature circuit: features and errors, how much of a number each carries, and who is in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosem.circuits.feature_circuit.states import summed
from monosem.codes import SparseCodes
from monosem.interventions.way import Put, Site
from monosem.kernels import index_add_
from monosem.models import EditContext


@dataclass(frozen=True)
class Node:
    """A feature of a site, or all that its dictionary leaves unexplained."""

    site: str
    """The hook point where it is written."""
    latent: int
    """-1: the error."""
    position: int
    """-1: at all positions."""
    effect: float
    """By how much the number falls, to first order or along the path, when it goes to its other state; a mean."""

    @property
    def is_error(self) -> bool:
        return self.latent < 0

    @property
    def name(self) -> str:
        at = "" if self.position < 0 else f" at token {self.position}"
        return f"{self.site} {'error' if self.is_error else self.latent}{at}"


class Numbering:
    """A number for each node of a site: the same feature at all positions, or at each another."""

    def __init__(self, n_latents: int, by_position: bool) -> None:
        self.n_latents, self.by_position = n_latents, by_position

    def of(self, positions: Int[Tensor, " entries"], latents: Int[Tensor, " entries"]) -> Int[Tensor, " entries"]:
        """Of features; the error has the latent n_latents."""
        return latents.long() + (positions.long() * (self.n_latents + 1) if self.by_position else 0)

    def among(self, chosen: Int[Tensor, " nodes"], n_positions: int) -> Bool[Tensor, " numbers"]:
        """Of every number whether it is one of some."""
        size = (self.n_latents + 1) * (n_positions if self.by_position else 1)
        found = torch.zeros(size, dtype=torch.bool, device=chosen.device)
        found[chosen] = True
        return found

    def of_entries(self, site: Site, entries: SparseCodes) -> Int[Tensor, " entries"]:
        """Of codes of a site's rows."""
        return self.of(site.kept.nonzero()[:, 1][entries.rows()], entries.indices)

    def back(self, numbers: Int[Tensor, " nodes"]) -> tuple[Tensor, Tensor]:
        """Positions and latents, -1 where it is all of them or the error."""
        latents = numbers % (self.n_latents + 1)
        positions = numbers // (self.n_latents + 1) if self.by_position else torch.full_like(numbers, -1)
        return positions, torch.where(latents == self.n_latents, -1, latents)


@dataclass
class SiteEffects:
    """How much of the number every node of a site carries."""

    numbers: Int[Tensor, " nodes"]
    sums: Float[Tensor, " nodes"]
    """Over contexts."""
    totals: Float[Tensor, " contexts"]
    """Over nodes."""

    @staticmethod
    def of(site: Site, other: Site, gradient: Float[Tensor, "contexts pos d"], numbering: Numbering) -> SiteEffects:
        """From a gradient: that along what goes when each node goes from its state to the other. They add up to the
        gradient along all that goes, whatever the dictionary.
        """
        n_contexts, n_positions = site.kept.shape
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for state, sign in ((site, 1), (other, -1)):
            scores = state.scores(gradient)
            context, position = scores.rows() // n_positions, scores.rows() % n_positions
            parts.append((numbering.of(position, scores.indices), context, sign * scores.values.to(gradient.dtype)))
        error = (gradient * (site.rest - other.rest)).sum(-1)
        context, position = (error != 0).nonzero(as_tuple=True)
        latents = torch.full_like(position, numbering.n_latents)
        parts.append((numbering.of(position, latents), context, error[context, position]))
        numbers, contexts, values = (torch.cat(columns) for columns in zip(*parts, strict=True))
        totals = torch.zeros(n_contexts, dtype=gradient.dtype, device=gradient.device)
        return SiteEffects(*summed(numbers, values), index_add_(totals, contexts, values))

    def plus(self, other: SiteEffects) -> SiteEffects:
        """Of both, contexts one after another."""
        numbers, sums = summed(torch.cat([self.numbers, other.numbers]), torch.cat([self.sums, other.sums]))
        return SiteEffects(numbers, sums, torch.cat([self.totals, other.totals]))


class Mask:
    """An edit of one site: features that are not in a circuit stand in their other state, the others as they are now.

    What is in the circuit is computed anew from what stands there; with all in it, nothing changes, bit for bit.
    """

    def __init__(self, site: Site, other: Site, chosen: Int[Tensor, " nodes"], numbering: Numbering) -> None:
        self.site, self.other, self.numbering = site, other, numbering
        n_positions = site.kept.shape[1]
        self.chosen = numbering.among(chosen, n_positions)
        positions = torch.arange(n_positions, device=chosen.device)
        errors = numbering.of(positions, torch.full_like(positions, numbering.n_latents))
        self.error_in: Bool[Tensor, " pos"] = self.chosen[errors]
        self._rows: Tensor | None = None
        gone = ~self.chosen[numbering.of_entries(other, other.entries)]
        self.comes = other.written(some(other.entries, gone), other.rows)

    def functions(self) -> list[tuple[str, Put]]:
        """What stands at its hook points, in the forward pass."""
        if self.site.read == self.site.write:
            return [(self.site.write, self._at_both)]
        return [(self.site.read, self._read), (self.site.write, self._write)]

    def _read(self, x: Tensor, context: EditContext) -> Tensor:
        self._rows = x[self.site.kept]
        return x

    def _at_both(self, x: Tensor, context: EditContext) -> Tensor:
        return self._write(self._read(x, context), context)

    def _write(self, x: Tensor, context: EditContext) -> Tensor:
        assert self._rows is not None
        entries = self.site.sae.encode(self._rows)
        gone = ~self.chosen[self.numbering.of_entries(self.site, entries)]
        new = x
        if bool(gone.any()) or bool((self.comes != 0).any()):
            new = x - self.site.written(some(entries, gone), self._rows) + self.comes
        if not bool(self.error_in.all()):
            rest = x - self.site.written(entries, self._rows)
            new = torch.where(self.error_in[:, None], new, new - rest + self.other.rest)
        return new


def some(codes: SparseCodes, kept: Bool[Tensor, " entries"]) -> SparseCodes:
    """Some entries of codes."""
    return codes._keep(kept, codes.indices, codes.n_latents)


def order_of(sites: Sequence[SiteEffects]) -> list[tuple[int, int]]:
    """(site, column) of all nodes, largest mean effect first, whatever its sign; ties in order."""
    sizes = torch.cat([each.sums.abs() for each in sites])
    places = [(site, column) for site, each in enumerate(sites) for column in range(len(each.numbers))]
    return [places[i] for i in torch.argsort(sizes, descending=True, stable=True).tolist()]
