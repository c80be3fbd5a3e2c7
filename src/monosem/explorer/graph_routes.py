"""The API of attribution graphs: those of a run, tracing another prompt, groups, changes and what they do."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query
from fastapi.responses import Response

from monosem.explorer import shapes
from monosem.explorer.answers import answer
from monosem.explorer.graph_changes import change_graph, heads_of_edge
from monosem.explorer.graphs import GraphShelves
from monosem.explorer.lanes import Lanes
from monosem.explorer.site import Site

Node = Annotated[str, Query(min_length=1, max_length=300)]
Alike = Annotated[float, Query(ge=0, le=1, allow_inf_nan=False)]


def add_graph_routes(app: FastAPI, site: Site, lanes: Lanes) -> None:
    """Add them."""
    shelves = GraphShelves(site)

    @app.get("/api/d/{name}/graphs", response_model=shapes.Graphs)
    async def graphs(name: str) -> Response:
        """The graphs that stand beside a dictionary."""
        return await lanes.long.run(lambda: answer(shelves[name].overview()))

    @app.post("/api/d/{name}/graphs", response_model=shapes.Traced)
    async def trace(name: str, asked: shapes.AskedTrace) -> Response:
        """Trace a prompt, and keep the graph."""
        return await lanes.model.run(lambda: answer({"id": shelves[name].trace(asked.text, asked.target)}))

    @app.get("/api/d/{name}/graphs/{graph}", response_model=shapes.GraphView)
    async def view(name: str, graph: str, nodes: Annotated[int, Query(ge=1, le=5_000)] = 1_000) -> Response:
        """A graph's most influential nodes and the edges between them."""
        return await lanes.long.run(lambda: answer(shelves[name].view(graph, nodes)))

    @app.get("/api/d/{name}/graphs/{graph}/groups", response_model=shapes.GraphGroups)
    async def groups(name: str, graph: str, alike: Alike = 0.5) -> Response:
        """Groups that are found: features that are made alike and make alike."""
        return await lanes.long.run(lambda: answer({"groups": shelves[name].found(graph, alike)}))

    @app.put("/api/d/{name}/graphs/{graph}/groups", response_model=shapes.GraphGroups)
    async def keep(name: str, graph: str, given: shapes.KeptGroups) -> Response:
        """Keep groups, in place of those that were there."""
        return await lanes.long.run(lambda: answer({"groups": shelves[name].keep(graph, given)}))

    @app.post("/api/d/{name}/graphs/{graph}/change", response_model=shapes.GraphMeasured)
    async def change(name: str, graph: str, given: shapes.GraphChanges) -> Response:
        """What multiplying activations does to every target: predicted by the graph, and measured."""
        return await lanes.model.run(lambda: answer(change_graph(shelves[name], graph, given)))

    @app.get("/api/d/{name}/graphs/{graph}/edge", response_model=shapes.GraphEdgeHeads)
    async def edge(name: str, graph: str, source: Node, target: Node) -> Response:
        """Through which heads an edge goes, and from which token to which."""
        return await lanes.model.run(lambda: answer(heads_of_edge(shelves[name], graph, source, target)))

    @app.get("/api/d/{name}/graphs/{graph}/json", response_class=Response)
    async def exchange(name: str, graph: str) -> Response:
        """The graph as Neuronpedia and circuit-tracer read it."""
        body = await lanes.long.run(lambda: shelves[name].exchanged(graph))
        return _attached(body, "application/json", f"{name}-{graph}.json")

    @app.get("/api/d/{name}/graphs/{graph}/html", response_class=Response)
    async def html(name: str, graph: str) -> Response:
        """The graph as one HTML file that needs nothing else."""
        body = await lanes.long.run(lambda: shelves[name].html(graph))
        return _attached(body.encode(), "text/html; charset=utf-8", f"{name}-{graph}.html")


def _attached(body: bytes, kind: str, file: str) -> Response:
    headers = {"cache-control": "no-store", "content-disposition": f'attachment; filename="{file}"'}
    return Response(body, headers=headers, media_type=kind)
