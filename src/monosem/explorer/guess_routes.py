"""The API of the game."""

from __future__ import annotations

import functools
from typing import Annotated

from fastapi import FastAPI, Query
from fastapi.responses import Response

from monosem.explorer import shapes
from monosem.explorer.answers import answer
from monosem.explorer.guess import Game
from monosem.explorer.shapes.guess import LARGEST_SEED, ROUNDS
from monosem.explorer.site import Site

GAMES = 64
"""Kept in memory."""
Seed = Annotated[int, Query(ge=0, le=LARGEST_SEED)]


def add_guess_routes(app: FastAPI, site: Site) -> None:
    """Add them."""

    @functools.lru_cache(GAMES)
    def game(name: str, seed: int) -> Game:
        return Game(site[name], seed)

    @app.get("/api/d/{name}/guess", response_model=shapes.GuessRound)
    def ask(name: str, seed: Seed = 0, round: Annotated[int, Query(ge=0, lt=ROUNDS)] = 0) -> Response:
        """A round of the game: where a feature fires, and on which of some others may it?"""
        return answer(game(name, seed).ask(round))

    @app.post("/api/d/{name}/guess", response_model=shapes.GuessScore)
    def score(name: str, given: shapes.Guesses) -> Response:
        """The last round solved, and the score so far, beside that of a machine and of chance."""
        return answer(game(name, given.seed).score(given.choices))
