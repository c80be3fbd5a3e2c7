"""Are meta-latents what a smaller dictionary has for latents?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from rich import box
from rich.table import Table
from torch import Tensor

from monosem.analysis.cosines import nearest, over_latents, random_directions
from monosem.codes import SparseCodes
from monosem.intervals import Interval
from monosem.sae import TopKSAE, pursue
from monosem.text import printed

PERMUTATIONS = 200
PAIRS_OF_A_PARENT = 50
LATENTS, CHANCE = "the small dictionary's latents", "random directions"


@dataclass(frozen=True)
class Overlap:
    """Meta-latents beside a smaller dictionary's latents. `print` shows all; all intervals are 95 %."""

    n_small: int
    threshold: float
    k: int
    to_small: dict[str, Interval]
    """The largest cosine of a direction with a latent of the small dictionary, by kind of direction, on average."""
    found: dict[str, Interval]
    """Which share of the small dictionary's latents is within the threshold of one of the directions."""
    explains: dict[str, Interval]
    """Which share of a decoder row k directions of each kind make up (its squared cosine), as many kinds as directions
    each."""
    parents: int
    """Latents of the small dictionary that have several of the large one within the threshold: splits."""
    siblings: Interval
    """Which share of two latents of one split have a meta-latent in common."""
    siblings_by_chance: Interval
    """The same of two latents of any splits: the mean and the middle 95 % of permutations."""
    named: Interval
    """Which share of the latents of splits have the meta-latent that is nearest to the latent that was split."""
    named_by_chance: Interval

    def table(self) -> Table:
        title = f"Beside a dictionary of {self.n_small:,} latents, with 95 % intervals"
        table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.title_justify = table.caption_justify = "left"
        for name in ("", "largest cosine", f"finds (>= {self.threshold:g})", f"{self.k} of them explain"):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        for name in dict.fromkeys((*self.to_small, *self.explains)):
            columns = (self.to_small, self.found, self.explains)
            table.add_row(name, *(_cell(column.get(name)) for column in columns))
        told = (
            f"{self.parents:,} of its latents are split. Of two latents of one split {_cell(self.siblings)} share a "
            f"meta-latent, by chance {_cell(self.siblings_by_chance)}; {_cell(self.named)} have the meta-latent "
            f"nearest to what was split, by chance {_cell(self.named_by_chance)}."
        )
        table.caption = told if self.parents else "None of its latents is split."
        return table

    def __str__(self) -> str:
        return printed(self.table(), width=130)


def overlap(
    rows: Float[Tensor, "n d"],
    codes: SparseCodes,
    directions: dict[str, Float[Tensor, "meta d"]],
    small: Float[Tensor, "m d"],
    threshold: float,
    k: int,
    seed: int,
) -> Overlap:
    """Compare; all directions are of norm 1, and the first kind are the meta-latents of `codes`."""
    generator = torch.Generator().manual_seed(seed)
    small = small.to(rows.device)
    directions = {name: each.to(rows.device) for name, each in directions.items()}
    own = next(iter(directions.values()))
    kinds = {**directions, CHANCE: random_directions(len(own), rows.shape[1], generator).to(rows)}
    some = torch.randperm(len(small), generator=generator)[: len(own)].to(rows.device)
    explaining = {**kinds, LATENTS: small[some]}
    parents, split = _splits(rows, small, threshold)
    on = (codes.to_dense() > 0).to(rows.device)
    siblings = _siblings(on, parents, generator, split)
    named = _named(on, parents, nearest(small, own).indices, split)
    null = [_permuted(on, parents, split, small, own, generator) for _ in range(PERMUTATIONS)] if len(split) else []
    return Overlap(
        len(small),
        threshold,
        k,
        {name: over_latents(nearest(kind, small).cosines) for name, kind in kinds.items()},
        {name: over_latents(nearest(small, kind).cosines >= threshold) for name, kind in kinds.items()},
        {name: over_latents(_made_up(rows, kind, k)) for name, kind in explaining.items()},
        len(split),
        siblings,
        _middle([one[0] for one in null]),
        named,
        _middle([one[1] for one in null]),
    )


def _made_up(rows: Float[Tensor, "n d"], directions: Float[Tensor, "m d"], k: int) -> Float[Tensor, " n"]:
    """The squared cosine of each row with what k directions, searched for, make of it."""
    blank = TopKSAE(rows.shape[1], len(directions), k=1, transform="none", device=rows.device)
    with torch.no_grad():
        blank.W_dec.copy_(directions)
    made = blank.decode(pursue(blank, rows, k=min(k, len(directions)))).detach()
    return (rows * made).sum(-1).pow(2) / made.pow(2).sum(-1).clamp_min(1e-30)


def _splits(
    rows: Float[Tensor, "n d"], small: Float[Tensor, "m d"], threshold: float
) -> tuple[Int[Tensor, " n"], Int[Tensor, " splits"]]:
    """The small dictionary's latent that each row is nearest to, -1 below the threshold; those that have several."""
    cosines, parents = nearest(rows, small)
    parents = torch.where(cosines >= threshold, parents, -1)
    counts = torch.bincount(parents[parents >= 0], minlength=len(small))
    return parents, (counts > 1).nonzero()[:, 0]


def _pairs(
    parents: Int[Tensor, " n"], split: Int[Tensor, " splits"], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Two latents of one split each time, and which split that is; of many pairs some."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for number, parent in enumerate(split.tolist()):
        own = (parents == parent).nonzero()[:, 0].cpu()
        pairs = (
            torch.combinations(own) if len(own) < 64 else own[torch.randint(len(own), (200, 2), generator=generator)]
        )
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        pairs = pairs[torch.randperm(len(pairs), generator=generator)[:PAIRS_OF_A_PARENT]]
        found.append((pairs[:, 0], pairs[:, 1], torch.full((len(pairs),), number)))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))  # pyright: ignore[reportReturnType]


def _siblings(
    on: Bool[Tensor, "n meta"], parents: Int[Tensor, " n"], generator: torch.Generator, split: Int[Tensor, " splits"]
) -> Interval:
    """Of two latents of one split, how often they have a meta-latent in common; over splits."""
    if not len(split):
        return Interval(float("nan"))
    a, b, which = _pairs(parents, split, generator)
    shared = (on[a] & on[b]).any(-1).double().cpu()
    sums = torch.zeros(len(split), dtype=torch.float64).index_add_(0, which, shared)
    return over_latents(sums / torch.bincount(which, minlength=len(split)))


def _named(
    on: Bool[Tensor, "n meta"], parents: Int[Tensor, " n"], nearest_meta: Int[Tensor, " m"], split: Tensor
) -> Interval:
    """Of the latents of splits, how many have the meta-latent nearest to what was split."""
    own = torch.isin(parents, split).nonzero()[:, 0]
    return over_latents(on[own, nearest_meta[parents[own]]])


def _permuted(
    on: Tensor, parents: Tensor, split: Tensor, small: Tensor, own: Tensor, generator: torch.Generator
) -> tuple[float, float]:
    """Both shares with the latents of splits dealt out anew among them."""
    among = torch.isin(parents, split).nonzero()[:, 0]
    dealt = parents.clone()
    dealt[among] = parents[among[torch.randperm(len(among), generator=generator).to(among.device)]]
    return _siblings(on, dealt, generator, split).value, _named(on, dealt, nearest(small, own).indices, split).value


def _middle(values: list[float]) -> Interval:
    """The mean and the middle 95 %."""
    if not values:
        return Interval(float("nan"))
    found = torch.tensor(values, dtype=torch.float64)
    low, high = found.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(found.mean()), low, high)


def _cell(interval: Interval | None) -> str:
    if interval is None:
        return ""
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"
