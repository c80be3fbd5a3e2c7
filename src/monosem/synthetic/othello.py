"""Othello on 6 x 6 squares by random legal play: a game whose every position is known, to ask what a model knows of it.

Games are sequences of tokens: a square 0 to 35 (row by row), `PASS` where a player has no legal move, and `END` before
the first move and after the last. Boards are seen by the player who is to move: 1 is a stone of theirs ("mine"), -1 one
of the opponent ("theirs"), 0 an empty square. That is how models of Othello are known to keep it (Nanda and others,
2023, arXiv:2309.00941), and turns alternate strictly, since a pass is a token too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from monosem.arguments import NotNegative, checked
from monosem.errors import ConfigError

SIDE = 6
SQUARES = SIDE * SIDE
PASS, END = SQUARES, SQUARES + 1
N_TOKENS = SQUARES + 2
LONGEST = 40
"""Positions that a game can take with `END` before it: 32 moves, and passes, of which random play has few."""
MINE, THEIRS = 1, -1
NAMES = [f"{'abcdef'[square % SIDE]}{square // SIDE + 1}" for square in range(SQUARES)] + ["pass", "end"]
"""Of tokens: a1 is the corner at the top left, f1 that at the top right."""

_STRIDE = SIDE + 1  # a column that is always empty keeps a line from going on in the next row
_BIT = np.array([square // SIDE * _STRIDE + square % SIDE for square in range(SQUARES)], np.uint64)
_BOARD = np.bitwise_or.reduce(np.uint64(1) << _BIT)
_DIRECTIONS = [(turn, np.uint64(by)) for by in (1, _STRIDE - 1, _STRIDE, _STRIDE + 1) for turn in (1, -1)]

Bits = Int[np.ndarray, " games"]
"""One board a game: the bits of the squares on which something is."""


class OthelloGames(NamedTuple):
    """Games, and what is true after each token of them."""

    tokens: Int[np.ndarray, "games positions"]
    """`END`, the moves, and `END` up to the last position."""
    boards: Int[np.ndarray, "games positions 36"]
    """After the token: 1 for stones of the player who is to move, -1 for the opponent's, 0 for empty squares."""
    legal: Bool[np.ndarray, "games positions 38"]
    """What may come next: squares, or `PASS` where there is none, or `END` where neither player has one."""
    playing: Bool[np.ndarray, "games positions"]
    """Up to the last move; after it nothing is to be predicted but `END`."""

    @property
    def text(self) -> list[str]:
        """Games as words, without `END`: "c2 b4 ..."."""
        return [
            " ".join(NAMES[token] for token in row[1:][on[1:]])
            for row, on in zip(self.tokens, self.playing, strict=True)
        ]


@checked
def othello_games(n: int, seed: NotNegative | tuple[NotNegative, ...] = 0, positions: int = LONGEST) -> OthelloGames:
    """Play games, each move drawn evenly from the legal ones. The same seed gives the same games.

    Args:
        n: how many games.
        seed: of the moves.
        positions: tokens kept of each game, with the `END` before it.

    Raises:
        ConfigError: no games, or positions below 2.
    """
    if n < 1 or positions < 2:
        raise ConfigError(f"a game takes at least 2 positions, and there must be one: got n={n}, positions={positions}")
    rng = np.random.default_rng(seed)
    mine, theirs = (np.full(n, _squares(*names), np.uint64) for names in (("d3", "c4"), ("c3", "d4")))
    tokens = np.full((n, positions), END, np.int64)
    boards = np.zeros((n, positions, SQUARES), np.int8)
    legal = np.zeros((n, positions, N_TOKENS), bool)
    playing = np.zeros((n, positions), bool)
    playing[:, 0] = True
    for position in range(positions):
        boards[:, position] = _spread(mine).astype(np.int8) - _spread(theirs)
        legal[:, position] = next_tokens(mine, theirs)
        if position + 1 == positions:
            break
        drawn = np.where(legal[:, position], rng.random((n, N_TOKENS)), -1).argmax(axis=1)
        tokens[:, position + 1] = drawn
        playing[:, position + 1] = drawn != END
        mine, theirs = after(mine, theirs, drawn)
    return OthelloGames(tokens, boards, legal, playing)


def next_tokens(mine: Bits, theirs: Bits) -> Bool[np.ndarray, "games 38"]:
    """What the player to move may do."""
    moves = _spread(_moves(mine, theirs))
    stuck, over = ~moves.any(axis=1), _moves(theirs, mine) == 0
    return np.column_stack([moves, stuck & ~over, stuck & over])


def after(mine: Bits, theirs: Bits, tokens: Int[np.ndarray, " games"]) -> tuple[Bits, Bits]:
    """The boards after a token, seen by the player whose turn it is then."""
    squares = tokens < SQUARES
    stone = np.where(squares, np.uint64(1) << _BIT[np.where(squares, tokens, 0)], np.uint64(0))
    turned = np.zeros_like(mine)
    for direction in _DIRECTIONS:
        line = _line(stone, theirs, direction)
        turned |= np.where(_shift(line, direction) & mine, line, np.uint64(0))
    moved = (theirs & ~turned, mine | turned | stone)
    over = tokens == END
    return np.where(over, mine, moved[0]), np.where(over, theirs, moved[1])


def _moves(mine: Bits, theirs: Bits) -> Bits:
    """Empty squares that enclose a line of the opponent's stones."""
    found = np.zeros_like(mine)
    for direction in _DIRECTIONS:
        found |= _shift(_line(mine, theirs, direction), direction)
    return found & ~(mine | theirs)


def _line(start: Bits, through: Bits, direction: tuple[int, np.uint64]) -> Bits:
    """The squares of `through` that follow `start` without a gap: at most 4 on this board."""
    line = _shift(start, direction) & through
    for _ in range(SIDE - 3):
        line |= _shift(line, direction) & through
    return line


def _shift(bits: Bits, direction: tuple[int, np.uint64]) -> Bits:
    turn, by = direction
    return (bits << by if turn > 0 else bits >> by) & _BOARD


def _spread(bits: Bits) -> Bool[np.ndarray, "games 36"]:
    return (bits[:, None] >> _BIT & np.uint64(1)).astype(bool)


def _squares(*names: str) -> np.uint64:
    return np.bitwise_or.reduce([np.uint64(1) << _BIT[NAMES.index(name)] for name in names])
