"""What a graph's edges come from: every source of a pass held still has a column, and rows are filled target by target.

Columns: all features that are on, in the order in which they are read; then errors, tokens, positions, each by place;
biases by place; and the constant of the target itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.circuits.frozen.frozen import Frozen, Site
from monosem.circuits.frozen.units import layer_number
from monosem.circuits.graph.core import OWN

LAID_OUT = 2**30
"""Bytes of decoder rows, laid out by position, that are kept between batches; others are gathered each time."""


@dataclass(frozen=True)
class Group:
    """Columns of one kind at one place."""

    kind: str
    hook: str
    start: int
    size: int
    by_position: bool
    """Whether there is one for each position; else one alone."""

    @property
    def layer(self) -> int:
        return layer_number(self.hook)


@dataclass
class Padded:
    """One unit's entries laid out by position: for each position as many places as the fullest has."""

    entries: Int[Tensor, "pos places"]
    there: Tensor


class Sources:
    """The columns of one pass, and how cotangents become rows."""

    def __init__(self, frozen: Frozen) -> None:
        self.frozen = frozen
        order = sorted(range(len(frozen.units)), key=lambda number: frozen.read_at[number])
        self.starts: dict[int, int] = {}
        self.n_features = 0
        for number in order:
            self.starts[number] = self.n_features
            self.n_features += len(frozen.units[number].positions)
        self.unit_order = order
        self.groups: list[Group] = []
        self._index: dict[tuple[str, str], Group] = {}
        self.n_columns = self.n_features
        for kind in ("error", "token", "position", "bias"):
            for site in frozen.sites:
                for name in _places(site, kind):
                    self._group(kind, name, kind != "bias")
        self._group("bias", OWN, False)
        self._padded = [self._pad(unit.positions) for unit in frozen.units]
        self._laid_out: dict[tuple[int, int], Tensor] = {}
        self._kept = 0

    def _group(self, kind: str, name: str, by_position: bool) -> None:
        if (kind, name) in self._index:
            return
        size = self.frozen.length if by_position else 1
        group = Group(kind, name, self.n_columns, size, by_position)
        self.groups.append(group)
        self._index[kind, name] = group
        self.n_columns += size

    def _pad(self, positions: Int[Tensor, " n"]) -> Padded:
        length = self.frozen.length
        counts = torch.bincount(positions, minlength=length)
        assert bool((positions[1:] >= positions[:-1]).all()), "entries are sorted by position"
        widest = int(counts.max()) if len(positions) else 0
        there = torch.arange(widest, device=positions.device)[None] < counts[:, None]
        entries = torch.zeros(length, widest, dtype=torch.int64, device=positions.device)
        entries[there] = torch.arange(len(positions), device=positions.device)
        return Padded(entries, there)

    # Columns of features ----------------------------------------------------------------------------------------------

    def feature(self, columns: Int[Tensor, " n"]) -> list[tuple[int, Int[Tensor, " k"], Int[Tensor, " k"]]]:
        """Columns by unit: the unit's number, its entries, and where in what was given they stand."""
        found: list[tuple[int, Tensor, Tensor]] = []
        for number in self.unit_order:
            start, size = self.starts[number], len(self.frozen.units[number].positions)
            where = ((columns >= start) & (columns < start + size)).nonzero()[:, 0]
            if len(where):
                found.append((number, columns[where] - start, where))
        return found

    def table(self) -> dict[str, Tensor]:
        """Of every feature column: unit, position, latent, activation."""
        units = self.frozen.units
        numbers = [torch.full_like(units[n].positions, n) for n in self.unit_order]
        columns = {
            "unit": torch.cat(numbers) if numbers else torch.zeros(0, dtype=torch.int64),
            "position": torch.cat([units[n].positions for n in self.unit_order] or [torch.zeros(0, dtype=torch.int64)]),
            "latent": torch.cat([units[n].latents for n in self.unit_order] or [torch.zeros(0, dtype=torch.int64)]),
            "activation": torch.cat([units[n].values for n in self.unit_order] or [torch.zeros(0)]),
        }
        return {name: column.cpu() for name, column in columns.items()}

    # Rows -------------------------------------------------------------------------------------------------------------

    def rows(
        self, site: int, positions: Int[Tensor, " batch"], vectors: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch columns"]:
        """Edges to targets that read one site, each at one position by one vector; without their own constants."""
        out = vectors.new_zeros(self.n_columns, len(vectors))

        def visit(number: int, g: Float[Tensor, "batch pos d"]) -> None:
            self._fill(out, self.frozen.sites[number], g)

        def visit_one(number: int, g: Float[Tensor, "batch d"]) -> None:
            self._fill_one(out, self.frozen.sites[number], positions, g)

        self.frozen.pull_one(site, positions, vectors, visit, visit_one)
        return out.T

    def rows_of(self, site: int, cotangent: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch columns"]:
        """Edges to targets that read one site at several positions."""
        out = cotangent.new_zeros(self.n_columns, len(cotangent))

        def visit(number: int, g: Float[Tensor, "batch pos d"]) -> None:
            self._fill(out, self.frozen.sites[number], g)

        self.frozen.pull(site, cotangent, visit)
        return out.T

    def _fill(self, out: Float[Tensor, "columns batch"], site: Site, g: Float[Tensor, "batch pos d"]) -> None:
        n = g.shape[1]
        for number, write in site.features:
            padded = self._padded[number]
            if not padded.entries.shape[1]:
                continue
            rows = self._decoder(number, write)[:n]
            products = torch.matmul(rows, g.permute(1, 2, 0))[padded.there[:n]]  # entries by position, batch
            start = self.starts[number]
            out[start : start + len(products)] += products
        for group, x in self._by_position(site):
            out[group.start : group.start + n] += torch.einsum("bpd,pd->pb", g, x[:n])
        sums = g.sum(1) if any(len(constant) == 1 for _, constant in site.constants) else None
        for name, constant in site.constants:
            column = self._index["bias", name].start
            if len(constant) == 1 and sums is not None:
                out[column] += sums @ constant[0]
            else:
                out[column] += g.flatten(1) @ constant[:n].flatten()

    def _fill_one(
        self, out: Float[Tensor, "columns batch"], site: Site, at: Int[Tensor, " batch"], g: Float[Tensor, "batch d"]
    ) -> None:
        """The same of cotangents at one position each."""
        batch = torch.arange(len(g), device=g.device)
        for number, write in site.features:
            padded = self._padded[number]
            there = padded.there[at]
            if not there.any():
                continue
            products = torch.einsum("bmd,bd->bm", self._decoder(number, write)[at], g)
            columns = self.starts[number] + padded.entries[at]
            out[columns[there], batch[:, None].expand_as(there)[there]] += products[there]
        for group, x in self._by_position(site):
            out[group.start + at, batch] += (g * x[at]).sum(1)
        for name, constant in site.constants:
            rows = constant if len(constant) == 1 else constant[at]
            out[self._index["bias", name].start] += (g * rows).sum(1)

    def _by_position(self, site: Site) -> list[tuple[Group, Tensor]]:
        found = [(self._index[kind, site.name], x) for kind, x in site.leaves]
        if site.error is not None:
            found.append((self._index["error", site.error[0]], site.error[1]))
        return found

    def _decoder(self, number: int, write: int) -> Float[Tensor, "pos places d"]:
        """What a unit writes, laid out by position."""
        if (number, write) in self._laid_out:
            return self._laid_out[number, write]
        padded, unit = self._padded[number], self.frozen.units[number]
        rows = unit.written(write, padded.entries.flatten()).to(self.frozen.dtype).unflatten(0, padded.entries.shape)
        if self._kept + rows.nbytes <= LAID_OUT:
            self._kept += rows.nbytes
            self._laid_out[number, write] = rows
        return rows

    # What is to be moved ----------------------------------------------------------------------------------------------

    def changes(self, columns: Sequence[int], factor: float = 1.0) -> dict[int, Float[Tensor, "columns pos d"]]:
        """What each source adds, times a factor, at every site where it does: for `Frozen.push`."""
        found: dict[int, Tensor] = {}
        for index, column in enumerate(columns):
            for number, site in enumerate(self.frozen.sites):
                change = self._change(site, column)
                if change is not None:
                    if number not in found:
                        found[number] = site.value.new_zeros(len(columns), *site.value.shape)
                    found[number][index] += factor * change
        return found

    def _change(self, site: Site, column: int) -> Float[Tensor, "pos d"] | None:
        change: Tensor | None = None
        if column < self.n_features:
            for number, write in site.features:
                unit, entry = self.frozen.units[number], column - self.starts[number]
                if 0 <= entry < len(unit.positions):
                    change = torch.zeros_like(site.value)
                    entries = torch.tensor([entry], device=change.device)
                    change[int(unit.positions[entry])] = unit.written(write, entries)[0].to(change.dtype)
            return change
        for group, x in self._by_position(site):
            if group.start <= column < group.start + group.size:
                change = torch.zeros_like(site.value)
                change[column - group.start] = x[column - group.start]
        for name, constant in site.constants:
            if self._index["bias", name].start == column:
                change = (0 if change is None else change) + constant.expand_as(site.value)
        return change


def _places(site: Site, kind: str) -> list[str]:
    if kind == "error":
        return [] if site.error is None else [site.error[0]]
    if kind == "bias":
        return [name for name, _ in site.constants]
    return [site.name for leaf, _ in site.leaves if leaf == kind]
