"""Othello on 6 x 6 squares: the boards of many games at once are those of one game played square by square."""

import numpy as np
import pytest

from monosem.errors import ConfigError
from monosem.synthetic.othello import (
    END,
    LONGEST,
    MINE,
    N_TOKENS,
    NAMES,
    PASS,
    SIDE,
    SQUARES,
    THEIRS,
    OthelloGames,
    othello_games,
)

BLACK, WHITE = "x", "o"


class OneGame:
    """The rules, in a dictionary of squares."""

    def __init__(self) -> None:
        self.stones = {(2, 3): BLACK, (3, 2): BLACK, (2, 2): WHITE, (3, 3): WHITE}
        self.to_move = BLACK

    @property
    def other(self) -> str:
        return WHITE if self.to_move == BLACK else BLACK

    def enclosed(self, row: int, column: int, mover: str) -> list[tuple[int, int]]:
        other, every = (WHITE if mover == BLACK else BLACK), list[tuple[int, int]]()
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                line, at = [], (row + down, column + across)
                while (down, across) != (0, 0) and self.stones.get(at) == other:
                    line.append(at)
                    at = (at[0] + down, at[1] + across)
                every += line if self.stones.get(at) == mover else []
        return every

    def moves(self, mover: str) -> set[int]:
        places = [divmod(square, SIDE) for square in range(SQUARES)]
        return {
            row * SIDE + column
            for row, column in places
            if (row, column) not in self.stones and self.enclosed(row, column, mover)
        }

    def next_tokens(self) -> set[int]:
        return self.moves(self.to_move) or ({PASS} if self.moves(self.other) else {END})

    def play(self, token: int) -> None:
        if token < SQUARES:
            row, column = divmod(token, SIDE)
            for at in [*self.enclosed(row, column, self.to_move), (row, column)]:
                self.stones[at] = self.to_move
        self.to_move = self.other

    def board(self) -> list[int]:
        seen = {self.to_move: MINE, self.other: THEIRS, None: 0}
        return [seen[self.stones.get(divmod(square, SIDE))] for square in range(SQUARES)]


@pytest.fixture(scope="module")
def games() -> OthelloGames:
    return othello_games(400, seed=3)


def test_boards_and_legal_moves_are_those_of_the_rules_played_one_game_at_a_time(games: OthelloGames) -> None:
    for tokens, boards, legal, playing in zip(*(part[:120] for part in games), strict=True):
        game = OneGame()
        assert tokens[0] == END
        assert playing[0]
        for position, token in enumerate(tokens):
            over = position > 0 and token == END
            assert playing[position] == (not over)
            if over:
                assert (tokens[position:] == END).all()
                break
            if position:
                assert token in game.next_tokens()
                game.play(int(token))
            assert boards[position].tolist() == game.board()
            assert set(np.flatnonzero(legal[position]).tolist()) == game.next_tokens()


def test_passes_and_games_that_end_early_are_among_those_played(games: OthelloGames) -> None:
    assert (games.tokens == PASS).any()
    empty_at_the_end = (games.boards[:, -1] == 0).any(axis=1)
    assert empty_at_the_end.any()
    assert not empty_at_the_end.all()
    assert (~games.playing[:, -1]).all(), "no game of these fills the longest"


def test_every_legal_move_is_drawn_equally_often() -> None:
    first = othello_games(8000, seed=1, positions=2).tokens[:, 1]
    counts = np.bincount(first, minlength=N_TOKENS)
    assert set(np.flatnonzero(counts)) == {NAMES.index(name) for name in ("c2", "b3", "e4", "d5")}
    assert np.abs(counts[counts > 0] - 2000).max() < 5 * (8000 * 3 / 16) ** 0.5


def test_the_seed_is_the_games_and_fewer_positions_cut_them() -> None:
    games, cut = othello_games(20, seed=5), othello_games(20, seed=5, positions=12)
    assert games.tokens.shape == (20, LONGEST)
    np.testing.assert_array_equal(games.tokens[:, :12], cut.tokens)
    np.testing.assert_array_equal(games.tokens, othello_games(20, seed=5).tokens)
    assert (games.tokens != othello_games(20, seed=6).tokens).any()


def test_text_has_a_word_for_every_move(games: OthelloGames) -> None:
    for text, tokens, playing in zip(games.text, games.tokens, games.playing, strict=True):
        assert [NAMES.index(word) for word in text.split()] == tokens[playing][1:].tolist()


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": 3, "positions": 1}])
def test_no_games_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 2 positions"):
        othello_games(**wrong)
