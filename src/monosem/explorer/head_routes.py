"""The API of attention heads: what each does, one of them, and one on a prompt."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI
from fastapi import Path as InPath
from fastapi.responses import Response

from monosem.explorer import shapes
from monosem.explorer.answers import answer
from monosem.explorer.heads import HeadShelves
from monosem.explorer.lanes import Lanes
from monosem.explorer.site import Site

Number = Annotated[int, InPath(ge=0, le=2**31 - 1)]


def add_head_routes(app: FastAPI, site: Site, lanes: Lanes) -> None:
    """Add them."""
    shelves = HeadShelves(site)

    @app.get("/api/d/{name}/heads", response_model=shapes.HeadsView)
    async def view(name: str) -> Response:
        """What the heads of a dictionary's model do, if that has been measured."""
        return await lanes.long.run(lambda: answer(shelves.view(name)))

    @app.post("/api/d/{name}/heads", response_model=shapes.HeadsView)
    async def measure(name: str) -> Response:
        """Measure it, and keep it."""
        return await lanes.model.run(lambda: answer(shelves.measure(name)))

    @app.get("/api/d/{name}/heads/{layer}/{head}", response_model=shapes.HeadView)
    async def head(name: str, layer: Number, head: Number) -> Response:
        """One head: examples, other heads, features."""
        return await lanes.model.run(lambda: answer(shelves.head(name, layer, head)))

    @app.post("/api/d/{name}/heads/{layer}/{head}/prompt", response_model=shapes.HeadPattern)
    async def pattern(name: str, layer: Number, head: Number, asked: shapes.AskedHead) -> Response:
        """One head on a prompt: its pattern, what it writes, why it looks where it looks."""
        return await lanes.model.run(lambda: answer(shelves.pattern(name, layer, head, asked)))
