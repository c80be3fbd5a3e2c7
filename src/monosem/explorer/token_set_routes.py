"""The API of token sets: all of them, the features of one, and those of one feature."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query
from fastapi.responses import Response

from monosem.explorer import shapes
from monosem.explorer.answers import answer
from monosem.explorer.lanes import Lanes
from monosem.explorer.site import Site
from monosem.explorer.token_sets import TokenSetShelves


def add_token_set_routes(app: FastAPI, site: Site, lanes: Lanes) -> None:
    """Add them."""
    shelves = TokenSetShelves(site)

    @app.get("/api/d/{name}/token-sets", response_model=shapes.TokenSetsView)
    async def view(name: str) -> Response:
        """Sets of tokens, and how many features promote or suppress each, if that has been tested."""
        return await lanes.long.run(lambda: answer(shelves.view(name)))

    @app.post("/api/d/{name}/token-sets", response_model=shapes.TokenSetsView)
    async def test(name: str) -> Response:
        """Test it."""
        return await lanes.model.run(lambda: answer(shelves.test(name)))

    @app.get("/api/d/{name}/token-sets/features", response_model=shapes.SetFeatures)
    async def features(
        name: str,
        of_set: Annotated[str | None, Query(alias="set", max_length=1_000)] = None,
        of_class: Annotated[str | None, Query(alias="class", max_length=1_000)] = None,
        suppressed: bool = False,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> Response:
        """The features that promote a set, or suppress it; or those of a class."""
        return await lanes.long.run(lambda: answer(shelves.features(name, of_set, of_class, suppressed, limit)))

    @app.get("/api/d/{name}/f/{latent}/token-sets", response_model=shapes.OwnSets)
    async def own(name: str, latent: int) -> Response:
        """The sets that one feature promotes or suppresses."""
        return await lanes.beside.run(lambda: answer(shelves.own(name, latent)))
