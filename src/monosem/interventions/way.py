"""Between features and none of them, or others: activations on the way, numbers there, and their gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosem.codes import SparseCodes
from monosem.errors import DataError, HookError
from monosem.interventions.base import reads
from monosem.interventions.number import Number
from monosem.interventions.reading import spread
from monosem.models import EditContext, SubjectModel
from monosem.sae import SAE

Put = Callable[[Tensor, EditContext], Tensor]


class Site:
    """One dictionary in one forward pass: what it reads, and what stands where it writes, in parts."""

    def __init__(self, sae: SAE, read: str, write: str | None = None) -> None:
        """Of a dictionary that reads one hook point and writes there, or, as a transcoder, at another."""
        self.sae, self.read, self.write = sae, read, write or read
        self.x: Tensor | None = None
        self._seen: tuple[Tensor, Bool[Tensor, "contexts pos"]] | None = None
        self.kept: Bool[Tensor, "contexts pos"] = torch.zeros(0)
        """Where the dictionary reads."""
        self.codes: SparseCodes = SparseCodes.from_dense(torch.zeros(1, 1))
        """(contexts, pos, latents), the features that are on."""
        self.away: Float[Tensor, "contexts pos d"] = torch.zeros(0)
        """What goes on the way from share 1 to share 0; what the features write, if not set to something else."""

    def look_at_input(self, x: Float[Tensor, "contexts pos d_in"], context: EditContext) -> None:
        """What the dictionary reads.

        Raises:
            DataError: it reads nothing there.
        """
        kept = reads(self.sae.metadata, x.detach(), context)
        if not bool(kept.any()):
            raise DataError(
                f"the SAE reads nothing at {self.read}: only special tokens, or positions that it leaves out"
            )
        self._seen = x.detach()[kept].clone(), kept

    def look(self, x: Float[Tensor, "contexts pos d"], context: EditContext) -> None:
        """What stands where it writes, once."""
        if self.x is not None:
            return
        if self.read == self.write:
            self.look_at_input(x, context)
        if self._seen is None:
            raise HookError(f"{self.write} comes before {self.read}: a transcoder predicts what comes later")
        self.x, (self.rows, self.kept) = x.detach().clone(), self._seen
        self._take_apart(self.sae.encode(self.rows).detach())

    def otherwise(self, x: Float[Tensor, "contexts pos d"], entries: SparseCodes) -> Site:
        """As this one, but that something else stands there, of which the features write these codes of its rows."""
        other = copy.copy(self)
        other.x = x
        other._take_apart(entries)
        return other

    @torch.no_grad()
    def _take_apart(self, entries: SparseCodes) -> None:
        assert self.x is not None
        self.entries, self.codes = entries, spread(entries, self.kept)
        self.rebuilt = self.sae.decode(entries, self.rows)
        self.explained = self.written(entries)
        self.away = self.explained

    def written(self, entries: SparseCodes, rows: Tensor | None = None) -> Float[Tensor, "contexts pos d"]:
        """What codes of the rows add, at their places; of other rows than its own where these are given."""
        assert self.x is not None
        rows = self.rows if rows is None else rows
        none = SparseCodes(torch.zeros_like(entries.values), entries.indices, entries.offsets, entries.n_latents)
        added = self.sae.decode(entries, rows) - self.sae.decode(none, rows)
        found = torch.zeros(*self.kept.shape, added.shape[-1], dtype=self.x.dtype, device=self.x.device)
        return found.index_put((self.kept,), added.to(found.dtype))

    @property
    def rest(self) -> Float[Tensor, "contexts pos d"]:
        """What stands there without the features."""
        assert self.x is not None
        return self.x - self.explained

    def moved(self, x: Float[Tensor, "contexts pos d"], share: float) -> Float[Tensor, "contexts pos d"]:
        """Activations, of which so large a share of what goes on the way is left."""
        return x if share == 1.0 else x - (1 - share) * self.away

    def by_code(self, gradient: Float[Tensor, "contexts pos d"]) -> Float[Tensor, " entries"]:
        """The gradient by every code, from that by what stands there."""
        values = self.entries.values.detach().clone().requires_grad_()
        with torch.enable_grad():
            leaf = SparseCodes(values, self.entries.indices, self.entries.offsets, self.entries.n_latents)
            rebuilt = self.sae.decode(leaf, self.rows)
        return torch.autograd.grad(rebuilt, values, gradient[self.kept].to(rebuilt.dtype))[0]

    def scores(self, gradient: Float[Tensor, "contexts pos d"]) -> SparseCodes:
        """Code times gradient by code, of every entry."""
        return like(self.codes, self.entries.values.detach() * self.by_code(gradient))

    def errors(self, gradient: Float[Tensor, "contexts pos d"]) -> Float[Tensor, "contexts pos"]:
        """Gradient times what the dictionary leaves unexplained, where it reads."""
        assert self.x is not None
        found = torch.zeros(self.kept.shape, dtype=gradient.dtype, device=gradient.device)
        found[self.kept] = ((self.x[self.kept] - self.rebuilt.to(self.x.dtype)) * gradient[self.kept]).sum(-1)
        return found


class Way:
    """A number of each context while what stands at one or several sites goes its way."""

    def __init__(self, model: SubjectModel, sites: Sequence[Site], inputs: Any, number: Number) -> None:
        """Of some sites; once the model has run, they stand in the order in which it comes to where they write."""
        self.model, self.sites, self.inputs, self.number = model, list(sites), inputs, number

    @torch.no_grad()
    def value(self, share: float = 1.0) -> Float[Tensor, " contexts"]:
        """The number of each context, every site at that share of its way."""
        reached: list[Site] = []

        def put(site: Site) -> Put:
            def moved(x: Tensor, context: EditContext) -> Tensor:
                site.look(x, context)
                reached.append(site)
                return site.moved(x, share)

            return moved

        value = self.run([(site.write, put(site)) for site in self.sites])
        self._must_be_among(reached)
        self.sites.sort(key=reached.index)
        return value

    def _must_be_among(self, reached: Sequence[Site] | Mapping[Site, Tensor]) -> None:
        for site in self.sites:
            if site not in reached:
                raise HookError(f"the forward pass of {self.model.name} never reached {site.write}")

    def gradients(
        self, share: float = 1.0, also: Mapping[str, Put] | None = None
    ) -> tuple[list[Float[Tensor, "contexts pos d"]], Float[Tensor, " contexts"]]:
        """Of the number by what stands at each site, all that runs through later ones with it; and the number.

        Args:
            share: of the way, at every site.
            also: what else is put in, at later hook points.
        """
        leaves: dict[Site, Tensor] = {}

        def put(site: Site) -> Put:
            def tapped(x: Tensor, context: EditContext) -> Tensor:
                site.look(x, context)
                torch.set_grad_enabled(True)  # what comes before needs no graph
                moved = site.moved(x, share)
                leaves[site] = torch.zeros_like(moved, requires_grad=True)
                return moved + leaves[site]

            return tapped

        functions = [(site.write, put(site)) for site in self.sites] + list((also or {}).items())
        with torch.no_grad():
            values = self.run(functions)
        self._must_be_among(leaves)
        if not values.requires_grad:
            raise DataError("the number does not depend on the activations: it is of what comes before, or a constant")
        order = [leaves[site] for site in self.sites]
        found = torch.autograd.grad(values, order, torch.ones_like(values), allow_unused=True)
        pairs = zip(order, found, strict=True)
        return [torch.zeros_like(leaf) if g is None else g for leaf, g in pairs], values.detach()

    def run(self, functions: Sequence[tuple[str, Put]]) -> Float[Tensor, " contexts"]:
        """The number of each context, with functions at hook points, in this order where several are at one."""
        reading = [(site.read, _looking(site)) for site in self.sites if site.read != site.write]
        order: dict[str, list[Put]] = {}
        for hook, function in [*reading, *functions, *self.number.hooks.items()]:
            order.setdefault(self.model.hook_point(hook).name, []).append(function)
        with self.model.edit({hook: _in_turn(of) for hook, of in order.items()}):
            out = self.model._call(self.inputs)
        return self.number.of(out, self.model, self.inputs)


def midpoints(steps: int) -> list[float]:
    """The middles of equal steps from 0 to 1: what is summed there is wrong by O(1 / steps^2)."""
    return [(step + 0.5) / steps for step in range(steps)]


def _looking(site: Site) -> Put:
    def look(x: Tensor, context: EditContext) -> Tensor:
        if site.x is None:
            site.look_at_input(x, context)
        return x

    return look


def _in_turn(functions: Sequence[Put]) -> Put:
    def all_of_them(x: Tensor, context: EditContext) -> Tensor:
        for function in functions:
            x = function(x, context)
        return x

    return all_of_them


def like(codes: SparseCodes, values: Float[Tensor, " entries"]) -> SparseCodes:
    """Other values of the same entries."""
    return SparseCodes(values, codes.indices, codes.offsets, codes.n_latents, codes.batch_shape)
