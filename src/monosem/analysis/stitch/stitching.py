"""stitch: what a large dictionary has that a small one has not, and a path from one to the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich import box
from rich.table import Table

from monosem.activations import activations, first_rows
from monosem.analysis.cosines import require_one_place, unit_rows
from monosem.analysis.stitch.families import KINDS, Families, Family, families
from monosem.analysis.stitch.path import Order, Path, walk
from monosem.analysis.stitch.stitched import Stitched
from monosem.analysis.stitch.sums import Insertions, Quadratic, read
from monosem.arguments import NotNegative, checked
from monosem.errors import ConfigError, MismatchError
from monosem.sae import SAE
from monosem.text import printed
from monosem.work import doing, job


@dataclass(frozen=True)
class Stitching:
    """Two dictionaries of the same activations, latent by latent; `path` leads from one to the other."""

    small: SAE
    large: SAE
    threshold: float
    grouped: Families
    quadratic: Quadratic
    insertions: Insertions
    """Into the small dictionary, of each latent of the large one alone."""

    @property
    def families(self) -> list[Family]:
        """Latents that belong together; of both dictionaries, or of one."""
        return self.grouped.families

    @property
    def kinds(self) -> np.ndarray:
        """(n_large,) "novel", "similar", "split", "merged" or "tangled"."""
        found = np.empty(self.large.n_latents, dtype=object)
        for family in self.families:
            found[list(family.large)] = family.kind
        return found.astype(str)

    @checked
    def path(self, order: Order = "steady") -> Path:
        """A path from the small dictionary to the large one; see `walk` for orders. Nothing is read again.

        Raises:
            ConfigError: there is no such order.
        """
        return walk(self.quadratic, self.families, self.small.n_latents, self.large.n_latents, order)

    @checked
    def at(self, path: Path, point: int) -> Stitched:
        """The mixture after so many moves of a path; negative numbers count from its end.

        Raises:
            ConfigError: the path is not so long.
        """
        n = len(path.moves)
        if not -n - 1 <= point <= n:
            raise ConfigError(f"the path has {n:,} moves, not {point:,}")
        done = path.moves[: point % (n + 1)]
        keep_small = torch.ones(self.small.n_latents, dtype=torch.bool)
        keep_large = torch.zeros(self.large.n_latents, dtype=torch.bool)
        keep_small[[latent for move in done for latent in move.small]] = False
        keep_large[[latent for move in done for latent in move.large]] = True
        return Stitched(self.small, self.large, keep_small, keep_large, any(move.kind == "offset" for move in done))

    def table(self) -> Table:
        place = self.large.metadata.target_hook or self.large.metadata.hook
        title = f"{self.large.n_latents:,} latents beside {self.small.n_latents:,}" + (f" at {place}" if place else "")
        table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.title_justify = table.caption_justify = "left"
        for name in ("", "latents", "share", "help", "hurt", "unclear", "never on", "mean change"):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        kinds, signs, before = self.kinds, self.insertions.signs(), self.path_ends()[0]
        for kind in (*KINDS, "all"):
            own = np.ones(len(kinds), dtype=bool) if kind == "all" else kinds == kind
            if not own.any():
                continue
            alive = own & ~np.isnan(signs)
            shares = [_share(signs[alive] == sign) for sign in (-1, 1, 0)]
            change = f"{self.insertions.change[alive].mean() / before:+.2%}" if alive.any() else ""
            counts = (f"{own.sum():,}", f"{own.mean():.1%}")
            table.add_row(kind, *counts, *shares, f"{(own & np.isnan(signs)).sum():,}", change)
        lost = sum(len(family.small) for family in self.families if family.kind == "lost")
        table.caption = (
            f"Near is a cosine of at least {self.threshold:g}, which {self.grouped.by_chance:.1%} have with random "
            f"directions (99.9 % of those stay below {self.grouped.chance:.2f}). Of those ever on in "
            f"{self.quadratic.rows:,} rows: the shares that lower or raise the error when put into the small "
            "dictionary alone, by a 95 % interval each, and by how much of its error on average. "
            f"{lost:,} of the small one are near to none of the large."
        )
        return table

    def path_ends(self) -> tuple[float, float]:
        """The mean squared errors of the small dictionary and of the large one."""
        n = self.small.n_latents
        ends = np.zeros((2, len(self.quadratic.h)))
        ends[0, :n], ends[1, n:] = 1, 1
        return self.quadratic.error(ends[0]), self.quadratic.error(ends[1])

    def __str__(self) -> str:
        return printed(self.table(), width=110)


@checked
def stitch(
    small: SAE,
    large: SAE,
    x: Any,
    *,
    threshold: float = 0.7,
    rows: int = 100_000,
    seed: NotNegative = 0,
    progress: bool = True,
) -> Stitching:
    """Compare two dictionaries of the same activations latent by latent, in one pass over these.

    Latents whose directions have a cosine over a threshold are joined; what hangs together is a family. A latent of the
    large dictionary without a family is novel. Each is put into the small one, alone, and what that does to the error
    is told; a path of mixtures leads from small to large. Source: Bussmann et al., Stitching SAEs of different sizes,
    2024; Leask et al., Sparse autoencoders do not find canonical units of analysis, 2025.

    Args:
        small: a dictionary.
        large: another one of the same hook point.
        x: their activations: what `ms.activations` returns or takes (a tensor, an array, a file, a store, batches).
        threshold: the cosine.
        rows: how many activations to read at most.
        seed: of the random directions beside which cosines are shown.
        progress: show a live line.

    Raises:
        MismatchError: the dictionaries are of different hook points, models or widths, or not of these activations.
        ConfigError: the threshold is out of range, or what one of the two writes is not a sum of directions.
    """
    if not -1 < threshold <= 1 or rows < 1:
        raise ConfigError(f"threshold is a cosine and rows at least 1, got {threshold:g} and {rows}")
    require_one_place(small, large)
    for sae in (small, large):
        if sae.target_transform.per_row or sae.other_writers():
            what = "units of each row's own" if sae.target_transform.per_row else "a skip beside its latents"
            raise ConfigError(f"a {sae.architecture} with {what} is no sum of directions: stitch others")
    if small.in_shape != large.in_shape:
        raise MismatchError(f"the two dictionaries read widths {small.in_shape} and {large.in_shape}: take two of one")
    source = activations(x)
    if source.d_in != small.d_in:
        raise MismatchError(f"the dictionaries read width {small.d_in}, the activations have {source.d_in}")
    total = rows if source.whole.n_rows is None else min(rows, source.whole.n_rows)
    with job(progress):
        with doing("comparing directions"):
            pair = [unit_rows(sae.decoder_directions()) for sae in (small, large)]
            grouped = families(pair[0], pair[1], threshold, seed)
        with doing("reading", total, unit="rows") as stage:
            quadratic, insertions = read(small, large, first_rows(source, rows), stage)
    return Stitching(small, large, threshold, grouped, quadratic, insertions)


def _share(which: np.ndarray) -> str:
    return f"{which.mean():.1%}" if len(which) else ""
