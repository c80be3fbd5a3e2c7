"""The API of what features do: to the tokens of a passage, to a next token."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query
from fastapi.responses import Response

from monosem.explorer import shapes
from monosem.explorer.answers import answer
from monosem.explorer.effects import ablated_context, total_effects
from monosem.explorer.lanes import Lanes
from monosem.explorer.site import Site

Number = Annotated[int, Query(ge=0, le=2**31 - 1)]


def add_effect_routes(app: FastAPI, site: Site, lanes: Lanes) -> None:
    """Add them."""

    @app.get("/api/d/{name}/f/{latent}/effects", response_model=shapes.Ablated)
    async def effects(name: str, latent: int, text: str, context: Number) -> Response:
        """What ablating a feature does to each token of a harvested context."""
        return await lanes.model.run(lambda: answer(ablated_context(site.subjects, site[name], text, context, latent)))

    @app.post("/api/d/{name}/total", response_model=shapes.Totals)
    async def total(name: str, asked: shapes.AskedTotal) -> Response:
        """What features add to the logit of a next token, by ablating each over a whole prompt."""
        return await lanes.model.run(lambda: answer(total_effects(site.subjects, site[name], asked)))
