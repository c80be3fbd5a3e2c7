"""The API of meta-latents: all of them, and one."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import Response

from monosem.explorer import shapes
from monosem.explorer.answers import answer
from monosem.explorer.lanes import Lanes
from monosem.explorer.metas import meta_latent, meta_latents
from monosem.explorer.site import Site


def add_meta_routes(app: FastAPI, site: Site, lanes: Lanes) -> None:
    """Add them."""

    @app.get("/api/d/{name}/meta", response_model=shapes.MetaLatents)
    async def metas(name: str) -> Response:
        """What the latents of a dictionary are made of, if that has been found."""
        return await lanes.beside.run(lambda: answer(meta_latents(site[name])))

    @app.get("/api/d/{name}/meta/{number}", response_model=shapes.MetaLatent)
    async def meta(name: str, number: int) -> Response:
        """One meta-latent and the latents that are made of it."""
        return await lanes.beside.run(lambda: answer(meta_latent(site[name], number)))
