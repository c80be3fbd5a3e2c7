"""meta_sae: what latents are made of, found by a small dictionary of their decoder rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from rich import box
from rich.table import Table
from torch import Tensor

from monosem.activations import activations
from monosem.analysis.cosines import random_directions, require_one_place, unit_rows
from monosem.analysis.meta.overlap import Overlap, overlap
from monosem.analysis.meta.saved import Kept, read, write
from monosem.arguments import NotNegative, Positive, checked
from monosem.codes import SparseCodes
from monosem.errors import ConfigError, MismatchError
from monosem.files import named_folder
from monosem.intervals import Interval
from monosem.interventions import Redirect
from monosem.sae import SAE, BatchTopKSAE
from monosem.sae.identity import dictionary_hash
from monosem.text import printed
from monosem.training import TrainingConfig, train_together

LATENTS_EACH = 16
"""Latents to a meta-latent, where their number is not given."""
EPOCHS, FEWEST_ROWS, MOST_ROWS = 150, 300_000, 4_000_000
"""Times that every row is trained on, of so many rows in all at least and at most."""
SMALLEST_BATCH, LARGEST_BATCH = 256, 2048
HELD_OUT = 0.1
OWN, ALIKE, RANDOM = "decoder rows", "random rows, same covariance", "random rows"


class Part(NamedTuple):
    """A meta-latent of a latent, or a latent of a meta-latent."""

    number: int
    weight: float
    """The latent's decoder row at norm 1 is about the sum of weights times directions."""


class Explained(NamedTuple):
    """Which share of the variance of rows their meta-latents explain."""

    trained: Interval
    held_out: Interval


@dataclass(frozen=True)
class MetaSAE:
    """The meta-latents of a dictionary: directions of which sums make up its decoder rows, few for each.

        row at norm 1 = sum over meta-latents of weight * direction  +  what is left

    print(meta) says how well, beside dictionaries trained alike on random rows.
    """

    sae: SAE
    """The dictionary of decoder rows."""
    codes: SparseCodes
    """(n_latents, meta-latents) weights; those left out of training because they were not chosen have none."""
    similarity: Float[Tensor, " n_latents"]
    """The cosine of each row with what its meta-latents make of it; NaN where it was left out, 0 where it has none."""
    explained: dict[str, Explained]
    controls: dict[str, Float[Tensor, "meta d"]]
    """Directions found in random rows, by the name that they have in `explained`."""
    dictionary: str
    """A hash of the dictionary whose latents these are."""
    hook: str | None = None

    @property
    def n_latents(self) -> int:
        """How many meta-latents there are."""
        return self.sae.n_latents

    @property
    def directions(self) -> Float[Tensor, "meta d"]:
        """Of every meta-latent, in the model's own units, at norm 1."""
        return unit_rows(self.sae.decoder_directions())

    @checked
    def made_of(self, latent: int, n: Positive | None = None) -> list[Part]:
        """The meta-latents of a latent, the strongest first.

        Raises:
            ConfigError: there is no such latent.
        """
        if not 0 <= latent < self.codes.n_rows:
            raise ConfigError(f"there are latents 0 to {self.codes.n_rows - 1}, not {latent}")
        start, stop = self.codes.offsets[latent : latent + 2].tolist()
        return _strongest(self.codes.indices[start:stop], self.codes.values[start:stop], n)

    @checked
    def latents_of(self, meta: int, n: Positive | None = None) -> list[Part]:
        """The latents that are made of a meta-latent, the strongest first.

        Raises:
            ConfigError: there is no such meta-latent.
        """
        if not 0 <= meta < self.n_latents:
            raise ConfigError(f"there are meta-latents 0 to {self.n_latents - 1}, not {meta}")
        own = self.codes.indices == meta
        return _strongest(self.codes.rows()[own], self.codes.values[own], n)

    @checked
    def edit(
        self,
        sae: SAE,
        latents: int | Sequence[int] | None = None,
        *,
        without: int | Sequence[int] = (),
        plus: Mapping[int, float] | None = None,
        **options: Any,
    ) -> Redirect:
        """The edit in which latents lose some of what they are made of, or gain something.

        Args:
            sae: the dictionary whose meta-latents these are.
            latents: which; all that are made of those in `without`, if not given.
            without: meta-latents whose part is taken out of the latents' decoder rows.
            plus: meta-latents put in, with their weights.
            **options: `hook`, `where` and `keep_error`, as in `ms.Ablate`.

        Raises:
            MismatchError: it is another dictionary.
            ConfigError: nothing would change, or there are no such latents.
        """
        self.require_own(sae)
        out = [without] if isinstance(without, int) else list(without)
        put = dict(plus or {})
        wrong = [meta for meta in (*out, *put) if not 0 <= meta < self.n_latents]
        if wrong:
            raise ConfigError(f"there are meta-latents 0 to {self.n_latents - 1}, not {wrong[0]}")
        if latents is None:
            chosen = sorted({part.number for meta in out for part in self.latents_of(meta)})
        else:
            chosen = [latents] if isinstance(latents, int) else list(latents)
        if not chosen or not (put or any(part.number in out for one in chosen for part in self.made_of(one))):
            raise ConfigError("nothing would change: none of the latents is made of these meta-latents")
        rows, directions = sae.decoder_directions(chosen), self.directions.to(sae.W_dec)
        change = (
            -self.codes[chosen].select(out).to_dense().to(rows) @ directions[out] if out else torch.zeros_like(rows)
        )
        for meta, weight in put.items():
            change = change + weight * directions[meta]
        return Redirect(sae, chosen, rows + rows.norm(dim=-1, keepdim=True) * change, **options)

    @checked
    def against(
        self, sae: SAE, small: SAE, *, threshold: float = 0.7, k: int | None = None, seed: NotNegative = 0
    ) -> Overlap:
        """Are meta-latents what a smaller dictionary has for latents? With random directions as the null.

        Args:
            sae: the dictionary whose meta-latents these are.
            small: a smaller dictionary of the same activations.
            threshold: cosine from which two directions count as one.
            k: latents of either for each row, where both are to explain decoder rows; the mean number, if not given.
            seed: of random directions and permutations.

        Raises:
            MismatchError: it is another dictionary, or the two are not of one place.
        """
        self.require_own(sae)
        require_one_place(small, sae)
        some = ~self.similarity.isnan()
        found = {"meta-latents": self.directions, **{f"those of {n}": d for n, d in self.controls.items()}}
        return overlap(
            unit_rows(sae.decoder_directions())[some],
            self.codes[some],
            found,
            unit_rows(small.decoder_directions()),
            threshold,
            k or max(1, round(float(self.codes[some].l0().float().mean()))),
            seed,
        )

    def require_own(self, sae: SAE) -> None:
        if dictionary_hash(sae) != self.dictionary:
            raise MismatchError(
                "these are meta-latents of another dictionary: ms.meta_sae(sae) finds those of this one"
            )

    @checked
    def save(self, path: str | Path) -> None:
        """Write a folder, which `MetaSAE.load` reads; the page finds it as `meta_sae` beside the feature store."""
        explained = {name: [list(one.trained), list(one.held_out)] for name, one in self.explained.items()}
        about = {"dictionary": self.dictionary, "hook": self.hook, "explained": explained}
        write(path, Kept(self.sae, self.codes, self.similarity, self.controls, about))

    @staticmethod
    @checked
    def load(path: str | Path) -> MetaSAE:
        """Read what `save` has written.

        Raises:
            FileError: it is missing or damaged.
        """
        sae, codes, similarity, controls, about = read(path)
        explained = {name: Explained(*(Interval(*one) for one in pair)) for name, pair in about["explained"].items()}
        return MetaSAE(sae, codes, similarity, explained, controls, about["dictionary"], about["hook"])

    def table(self) -> Table:
        some = ~self.similarity.isnan()
        place = f" at {self.hook}" if self.hook else ""
        mean = float(self.codes[some].l0().float().mean())
        title = f"{self.n_latents:,} meta-latents of {int(some.sum()):,} latents{place}, {mean:.1f} in each on average"
        table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.caption = "Share of the variance of rows at norm 1 that is explained, with 95 % intervals."
        table.title_justify = table.caption_justify = "left"
        table.add_column("")
        for name in ("rows trained on", "rows held out"):
            table.add_column(name, justify="right", no_wrap=True)
        for name, (trained, held_out) in self.explained.items():
            table.add_row(name, said(trained), said(held_out))
        return table

    def __str__(self) -> str:
        return printed(self.table(), width=100)


@checked
def meta_sae(
    sae: SAE,
    n_latents: int | None = None,
    *,
    k: float = 4,
    latents: Sequence[int] | Tensor | None = None,
    tokens: int | None = None,
    config: TrainingConfig | None = None,
    controls: bool = True,
    path: str | Path | None = None,
    seed: NotNegative = 0,
    progress: bool = True,
) -> MetaSAE:
    """Decompose every latent of a dictionary: a BatchTopK dictionary is trained on its decoder rows, at norm 1.

    It has no bias: what all rows share would else be split between it and all directions in any proportion. A tenth of
    the rows is held out, as so few rows are soon learned by heart, and beside it dictionaries of the same size are
    trained on as many random rows. Source: Bussmann et al., Showing SAE latents are not atomic using meta-SAEs, 2024;
    Leask et al., Sparse autoencoders do not find canonical units of analysis, 2025.

    Args:
        sae: left as it is.
        n_latents: meta-latents; a sixteenth of the latents, if not given.
        k: meta-latents of a latent, on average.
        latents: numbers of latents to decompose, or a mask; all if not given. Leave out those that never fire: their
            rows say nothing.
        tokens: rows to train on, with repetition; every row 150 times, if not given, within 300,000 and 4 million.
        config: the settings of training.
        controls: also train on random rows.
        path: a folder in which training can be stopped and goes on, and where the result is saved.
        seed: of initial weights, of random rows and of the rows held out.
        progress: show a live line.

    Raises:
        ConfigError: there are too few latents for so many meta-latents.
    """
    rows = unit_rows(sae.decoder_directions())
    chosen = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    chosen[sae._numbers(latents)] = True
    chosen &= rows.norm(dim=-1) > 0.5
    rows = rows[chosen]
    width = max(1, len(rows) // LATENTS_EACH) if n_latents is None else n_latents
    if not 1 <= k <= width or 2 * width > len(rows):
        raise ConfigError(
            f"{width:,} meta-latents, {k:g} in each of {len(rows):,} latents, cannot be learned: give at least twice "
            "as many latents as meta-latents, and at least k meta-latents"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator).to(rows.device)
    n_out = max(1, round(HELD_OUT * len(rows)))
    worlds = {OWN: rows}
    if controls:
        worlds[ALIKE] = random_directions(len(rows), rows.cpu(), generator).to(rows)
        worlds[RANDOM] = random_directions(len(rows), rows.shape[1], generator).to(rows)
    saes: dict[str, SAE] = {name: _blank(rows, width, k, seed) for name in worlds}
    batch = min(LARGEST_BATCH, max(SMALLEST_BATCH, len(rows) // 8))
    train_together(
        saes,
        {name: activations(world[order[n_out:]]) for name, world in worlds.items()},
        tokens=tokens or min(MOST_ROWS, max(FEWEST_ROWS, EPOCHS * len(rows))),
        config=config or TrainingConfig(batch_size=batch),
        path=None if path is None else named_folder(path) / "training",
        progress=progress,
    )
    explained = {
        name: Explained(_explained(saes[name], world[order[n_out:]]), _explained(saes[name], world[order[:n_out]]))
        for name, world in worlds.items()
    }
    found = MetaSAE(
        saes[OWN],
        *_decomposed(saes[OWN], rows, chosen),
        explained,
        {name: unit_rows(other.decoder_directions()) for name, other in saes.items() if name != OWN},
        dictionary_hash(sae),
        sae.metadata.target_hook or sae.metadata.hook,
    )
    if path is not None:
        found.save(path)
    return found


def _blank(rows: Tensor, width: int, k: float, seed: int) -> SAE:
    new = BatchTopKSAE(rows.shape[1], width, k=round(k), transform="scale", device=rows.device, seed=seed)
    new.b_dec.requires_grad_(False)
    return new


@torch.no_grad()
def _explained(sae: SAE, rows: Float[Tensor, "n d"]) -> Interval:
    """1 - squared error / variance, with the interval of a ratio of means over rows."""
    error = (rows - sae(rows).reconstruction).pow(2).sum(-1).double()
    total = (rows - rows.mean(0)).pow(2).sum(-1).double()
    if not total.sum() > 0:
        return Interval(math.nan)
    ratio = float(error.sum() / total.sum())
    if len(rows) < 2:
        return Interval(1 - ratio)
    half = 1.959964 * float(((error - ratio * total) / total.mean()).std()) / math.sqrt(len(rows))
    return Interval(1 - ratio, 1 - ratio - half, 1 - ratio + half)


@torch.no_grad()
def _decomposed(sae: SAE, rows: Tensor, chosen: Tensor) -> tuple[SparseCodes, Tensor]:
    """Of all latents, weights and the cosines of rows with what they make; without, where not chosen."""
    codes = sae.encode(rows).detach()
    similarity = torch.full((len(chosen),), math.nan, device=rows.device)
    similarity[chosen] = (rows * unit_rows(sae.decode(codes))).sum(-1)
    weights = codes.values * sae.decoder_directions().norm(dim=-1)[codes.indices.long()]
    counts = torch.zeros(len(chosen), dtype=torch.int64, device=rows.device)
    counts[chosen] = codes.offsets.diff()
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return SparseCodes(weights, codes.indices, offsets, sae.n_latents), similarity


def _strongest(numbers: Tensor, weights: Tensor, n: int | None) -> list[Part]:
    found = zip(numbers.tolist(), weights.tolist(), strict=True)
    return sorted((Part(*one) for one in found if one[1]), key=lambda part: -part.weight)[:n]


def said(interval: Interval) -> str:
    """A value and its interval."""
    if interval.low is None:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"
