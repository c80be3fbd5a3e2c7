"""Random streams of codes, cut into batches, for the tests of harvests and stores."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosem.codes import SparseCodes
from monosem.data import ContextBatch, Document, PackedText
from monosem.features import Harvest, HarvestSettings

LATENTS, LENGTH = 11, 13
SMALL = HarvestSettings(
    top=4, sample=2, near=2, near_ranks=3, near_every=1, silent=2, silent_windows=8, log_firings=150, cofiring_rows=40,
    before=4, after=3, seed=5,
)  # fmt: skip


class Stream:
    """Contexts of random documents, the positions kept, and random codes and pre-activations of every position."""

    def __init__(self, seed: int, tokenizer: Any, scale: float = 4.0) -> None:
        rng = np.random.default_rng(seed)
        texts = ["".join(rng.choice(list("abcdefgh"), size=rng.integers(1, 30))) for _ in range(20)]
        self.batch = PackedText([Document(t) for t in texts], tokenizer(), LENGTH).read(0, 1000)
        self.kept = ~self.batch.special & torch.from_numpy(rng.random(tuple(self.batch.tokens.shape)) < 0.9)
        spread = rng.normal(size=(*self.batch.tokens.shape, LATENTS)) * scale
        self.pre = torch.from_numpy(np.exp2(spread).astype(np.float32))
        self.on = torch.from_numpy(rng.random(self.pre.shape) < 0.3)
        self.dense = self.pre * self.on * self.kept[..., None]

    def part(self, first: int, stop: int) -> tuple[ContextBatch, Tensor, SparseCodes, Tensor]:
        """Some contexts: batch, kept, codes, and for every row the three strongest latents that are off."""
        batch = self.batch[first:stop]
        kept = self.kept[first:stop]
        off = self.pre[first:stop].masked_fill(self.on[first:stop], -torch.inf)[kept]
        return batch, kept, SparseCodes.from_dense(self.dense[first:stop][kept]), off

    def harvest(
        self, cuts: list[int], first: int = 0, stop: int | None = None, settings: HarvestSettings = SMALL
    ) -> Harvest:
        """What is harvested from contexts first to stop, in batches that end at the cuts."""
        stop = len(self.batch) if stop is None else stop
        harvest = Harvest(LATENTS, 128, LENGTH, text="random", first_context=first, settings=settings)
        bounds = [first, *sorted(c for c in cuts if first < c < stop), stop]
        for a, b in itertools.pairwise(bounds):
            batch, kept, codes, off = self.part(a, b)

            def near(rows: Tensor, off: Tensor = off) -> tuple[Tensor, Tensor]:
                best = off[rows].topk(3)
                return best.values, best.indices.masked_fill(best.values.isinf(), -1)

            harvest.add(batch, kept, codes, near)
        return harvest


def content(harvest: Harvest) -> dict[str, Any]:
    """Everything that a harvest holds, in an order that does not depend on how it came in."""
    found: dict[str, Any] = {f"totals.{k}": v for k, v in harvest.totals._asdict().items()}
    near = harvest.layout.slots - harvest.layout.n_near
    ends = [harvest.layout.n_top, *range(harvest.layout.n_top, near, harvest.layout.per_bin), near, near + 99]
    bounds = [0, *dict.fromkeys(ends)]
    for latent, (a, b) in itertools.product(range(harvest.n_latents), itertools.pairwise(bounds)):
        members: list[tuple[Any, ...]] = []
        for slot in range(a, min(b, harvest.layout.slots)):
            if harvest.slots.place[latent, slot] >= 0:
                width = int(harvest.slots.length[latent, slot])
                columns = (column for column in harvest.slots if slot < column.shape[1])
                row = (column[latent, slot] for column in columns)
                members.append(tuple(v[:width].tolist() if v.ndim else v.item() for v in row))
        found[f"slots.{latent}.{a}"] = sorted(members)
    keys, columns = harvest.windows.kept()
    found |= {"windows.key": keys} | {f"windows.{k}": v for k, v in columns.items()}
    log = harvest.log.kept()
    token = np.repeat(np.arange(len(log.tokens)), np.where(log.read, log.fired, 0))
    order = np.lexsort((log.latents, token))  # within a token they may come in any order
    log = log._replace(latents=log.latents[order], values=log.values[order])
    found |= {f"log.{name}": column for name, column in log._asdict().items()}
    found["log.limit"] = int(harvest.log.limit)
    return found | {"token_counts": harvest.token_counts, "n_tokens": harvest.n_tokens, "spans": harvest.spans}


def assert_equal(a: Harvest, b: Harvest, sums: float = 0.0) -> None:
    """They hold the same; sums of floats may differ by a relative error."""
    ours, theirs = content(a), content(b)
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name in ("totals.sum", "totals.square"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=sums)
        elif isinstance(ours[name], np.ndarray):
            assert np.array_equal(ours[name], theirs[name]), name
        else:
            assert ours[name] == theirs[name], name
