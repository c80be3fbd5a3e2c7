"""From a small dictionary to a large one, move by move, each move's error known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from rich import box
from rich.table import Table
from scipy import sparse

from monosem.analysis.stitch.families import Family
from monosem.analysis.stitch.sums import Quadratic
from monosem.errors import ConfigError
from monosem.spelling import listed
from monosem.text import printed

Order = Literal["steady", "published", "greedy"]
ROWS_SHOWN = 11


class Move(NamedTuple):
    """Latents that leave and latents that come, at once; with `offset`, the bias changes over."""

    small: tuple[int, ...] = ()
    large: tuple[int, ...] = ()
    kind: str = "offset"


@dataclass(frozen=True)
class Path:
    """Mixtures from the small dictionary to the large one. Figures are of the activations that were read.

    Arrays have one entry more than there are moves: the first is the small dictionary, the last the large one.
    """

    moves: list[Move]
    order: str
    mse: np.ndarray
    """Mean squared error of a row, summed over its width."""
    fvu: np.ndarray
    l0: np.ndarray
    """Latents on per row, of those that are there."""
    n_small: np.ndarray
    n_large: np.ndarray

    @property
    def monotone(self) -> np.ndarray:
        """The points between which error goes from that of the small dictionary to that of the large one, never back.

        Moves between two of them count as one step. Of a large dictionary that is worse the error rises instead.
        """
        mse, sign = self.mse, 1 if self.mse[-1] <= self.mse[0] else -1
        kept = [0]
        for point in range(1, len(mse)):
            last = point == len(mse) - 1
            if last or sign * mse[-1] <= sign * mse[point] < sign * mse[kept[-1]]:
                kept.append(point)
        return np.array(kept)

    @property
    def best(self) -> int:
        """The point of the lowest error: the best of the mixtures passed."""
        return int(np.argmin(self.mse))

    @property
    def largest_rise(self) -> float:
        """By how much FVU rises at most from one move to the next."""
        return float(max(0.0, np.diff(self.fvu).max(initial=0.0)))

    def table(self) -> Table:
        points = np.unique(np.linspace(0, len(self.moves), ROWS_SHOWN).round().astype(int))
        kept = len(self.monotone) - 1
        table = Table(title=f"From small to large, {self.order} order", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.caption = (
            f"{len(self.moves):,} moves; FVU rises by {self.largest_rise:.2g} at most in one. In {kept:,} steps of "
            f"them it goes one way alone. Lowest: {self.fvu[self.best]:.4f} after {self.best:,} moves, with "
            f"{self.n_small[self.best] + self.n_large[self.best]:,} latents, {self.l0[self.best]:.1f} on."
        )
        table.title_justify = table.caption_justify = "left"
        for name in ("moves", "of the small", "of the large", "L0", "FVU"):
            table.add_column(name, justify="right")
        for at in points.tolist():
            counts = (at, self.n_small[at], self.n_large[at])
            table.add_row(*(f"{count:,}" for count in counts), f"{self.l0[at]:.2f}", f"{self.fvu[at]:.4f}")
        return table

    def __str__(self) -> str:
        return printed(self.table(), width=100)


def walk(quadratic: Quadratic, families: Sequence[Family], n_small: int, n_large: int, order: Order) -> Path:
    """All moves, one after another, chosen so that

    - "steady": the error stays as near as can be to a straight line from that of the small to that of the large;
    - "published": novel latents come first, then families are swapped whole; of those, each time the best;
    - "greedy": each time the best of all.

    Raises:
        ConfigError: there is no such order.
    """
    if order not in get_args(Order):
        raise ConfigError(f"there is no order {order!r}: choose one of {listed(order, get_args(Order))}")
    moves = [Move(family.small, family.large, family.kind) for family in families] + [Move()]
    n = n_small + n_large
    U = _matrix(moves, n_small, n)
    own = np.asarray(U.multiply(U @ quadratic.Q).sum(1)).ravel()
    m = np.zeros(n + 1)
    m[:n_small] = 1
    slope = 2 * (quadratic.Q @ m - quadratic.h)
    along = U @ slope
    end = np.concatenate([np.zeros(n_small), np.ones(n_large + 1)])
    mse, last = [quadratic.error(m)], quadratic.error(end)
    left, chosen = np.ones(len(moves), dtype=bool), list[int]()
    phase = np.array([order == "published" and move.kind != "novel" for move in moves])
    UQ = sparse.csr_matrix(2 * (U @ quadratic.Q))
    UT = U.T.tocsr()
    for step in range(1, len(moves) + 1):
        after = mse[-1] + along + own
        line = mse[0] + (last - mse[0]) * step / len(moves)
        badness = np.abs(after - line) if order == "steady" else after.copy()
        badness[~left | (phase & ~phase[left].all())] = np.inf
        best = int(badness.argmin())
        chosen.append(best)
        mse.append(float(after[best]))
        left[best] = False
        start, stop = UQ.indptr[best : best + 2]
        touched, change = UQ.indices[start:stop], UQ.data[start:stop]
        _add(along, UT, touched, change)
    found = [moves[i] for i in chosen]
    mse[-1] = last
    error = np.array(mse)
    step_of = U[chosen] if chosen else U
    rates = np.append(quadratic.rates[:-1], 0.0)
    return Path(
        found,
        order,
        error,
        error / quadratic.variance,
        _summed(rates[:n_small].sum(), np.asarray(step_of @ rates).ravel()),
        _summed(n_small, [-len(move.small) for move in found]).astype(int),
        _summed(0, [len(move.large) for move in found]).astype(int),
    )


def _add(along: np.ndarray, UT: sparse.csr_matrix, touched: np.ndarray, change: np.ndarray) -> None:
    """Every latent is in one move: what its slope changes by goes to that move's."""
    starts = UT.indptr[touched]
    np.add.at(along, UT.indices[starts], UT.data[starts] * change)


def _matrix(moves: Sequence[Move], n_small: int, n: int) -> sparse.csr_matrix:
    """(moves, n + 1): -1 for latents that leave, 1 for those that come; every column has one entry."""
    rows = [i for i, move in enumerate(moves) for _ in (*move.small, *move.large)] + [len(moves) - 1]
    columns = [number for move in moves for number in (*move.small, *(n_small + one for one in move.large))] + [n]
    values = [value for move in moves for value in (-1.0,) * len(move.small) + (1.0,) * len(move.large)] + [1.0]
    return sparse.csr_matrix((values, (rows, columns)), shape=(len(moves), n + 1))


def _summed(start: float, changes: Sequence[float] | np.ndarray) -> np.ndarray:
    return start + np.concatenate([[0.0], np.cumsum(changes)])
