"""The API of the blind ratings."""

from __future__ import annotations

import threading
from typing import Annotated

from fastapi import FastAPI, Query
from fastapi.responses import Response

from monosem.explorer import shapes
from monosem.explorer.answers import answer
from monosem.explorer.card import features_json
from monosem.explorer.ratings import Ratings
from monosem.explorer.site import Site

STRONGEST, SAMPLED = 6, 6
"""Passages that are shown: the strongest, and random ones."""
Rater = Annotated[str, Query(min_length=1, max_length=100)]
Many = Annotated[int, Query(ge=1, le=10_000)]


def add_rating_routes(app: FastAPI, site: Site) -> None:
    """Add them."""
    known: dict[str, Ratings] = {}
    lock = threading.Lock()

    def ratings(name: str) -> Ratings:
        with lock:
            return known.setdefault(name, Ratings(site[name]))

    def to_do(name: str, rater: str, n: int) -> shapes.ToRate:
        of = ratings(name)
        latent, done, total = of.next(rater, n)
        if latent is None:
            return shapes.ToRate(rater=rater, done=done, total=total, latent=None, max=None, options=[], passages=[])
        (feature,) = features_json(of.dictionary, [latent])
        samples = sorted(feature["samples"][:SAMPLED], key=lambda example: -example["activation"])
        return shapes.ToRate(
            rater=rater,
            done=done,
            total=total,
            latent=latent,
            max=feature["max"],
            options=[option.text for option in of.options(rater, latent)],
            passages=[*feature["top"][:STRONGEST], *samples],
        )

    @app.get("/api/d/{name}/rating", response_model=shapes.ToRate)
    def ask(name: str, rater: Rater, n: Many = 50) -> Response:
        """The next feature that somebody has to rate, and its explanations without their authors."""
        return answer(to_do(name, rater.strip() or rater, n))

    @app.post("/api/d/{name}/rating", response_model=shapes.ToRate)
    def rate(name: str, given: shapes.RatingGiven, n: Many = 50) -> Response:
        """Keep a rating, and give the next one to do."""
        of = ratings(name)
        of.add(given.rater, of.dictionary.check(given.latent), given.choice, given.monosemantic)
        return answer(to_do(name, given.rater, n))

    @app.get("/api/d/{name}/rating/results", response_model=shapes.Rated)
    def results(name: str) -> Response:
        """What people chose, how they agree, and what automatic scores say."""
        return answer(ratings(name).results())
