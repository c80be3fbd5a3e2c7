"""The explorer's HTTP API and page (FastAPI); docs/explorer_api.md is its contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import Depends, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from monosem.errors import MonosemError
from monosem.explorer import shapes
from monosem.explorer.answers import answer, answer_json, of_error, problem, to_json
from monosem.explorer.card import features_json, previews, python_code
from monosem.explorer.dictionary import Dictionary, Unavailable
from monosem.explorer.effect_routes import add_effect_routes
from monosem.explorer.export import feature_html
from monosem.explorer.geometry import THRESHOLD
from monosem.explorer.graph_routes import add_graph_routes
from monosem.explorer.guard import Guard
from monosem.explorer.guess_routes import add_guess_routes
from monosem.explorer.head_routes import add_head_routes
from monosem.explorer.kept import Kept
from monosem.explorer.lanes import QUICK, Lanes
from monosem.explorer.meta_routes import add_meta_routes
from monosem.explorer.openai_routes import add_openai_routes
from monosem.explorer.page import NOT_BUILT, Page
from monosem.explorer.parameters import known_parameters
from monosem.explorer.rating_routes import add_rating_routes
from monosem.explorer.search import falls_back, search, search_as_text, search_everywhere, warm
from monosem.explorer.site import Site
from monosem.explorer.subject import Source
from monosem.explorer.table import Filters, histogram_of, page_of
from monosem.explorer.token_set_routes import add_token_set_routes

MOST_PREVIEWS = 100
LARGEST_NUMBER = 2**31 - 1
LONGEST_WORDS, LONGEST_SQL = 1_000, 10_000
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": shapes.Problem} for status in (400, 403, 404, 405, 409, 413, 422, 500, 503)
}
Words = Annotated[str, Query(max_length=LONGEST_WORDS)]
Many = Annotated[int, Query(ge=0, le=LARGEST_NUMBER)]


def _filters(
    range: Annotated[list[str] | None, Query(description="COLUMN,LOW,HIGH; may be repeated", max_length=50)] = None,
    where: Annotated[
        str | None, Query(description="a condition in DuckDB's SQL: one expression", max_length=LONGEST_SQL)
    ] = None,
    contains: Annotated[
        str | None, Query(description="in the label or the top, peak or promoted token", max_length=LONGEST_WORDS)
    ] = None,
    latents: Annotated[str | None, Query(description="1,2,3: only these")] = None,
    starred: bool = False,
    labelled: bool = False,
    list: Annotated[str | None, Query(description="only those on this list", max_length=LONGEST_WORDS)] = None,
    dead: Annotated[bool, Query(description="false leaves out latents that never fired")] = True,
) -> Filters:
    return Filters(range or (), where, contains, latents, starred, labelled, list, dead)


Given = Annotated[Filters, Depends(_filters)]


def make_app(
    dictionaries: dict[str, Dictionary],
    names: Iterable[str] = (),
    page: Page | None = None,
    alone: Iterable[Source] = (),
) -> FastAPI:
    """The application.

    Args:
        dictionaries: by the name in their addresses.
        names: host names, beside localhost and addresses in numbers, under which the server may be called.
        page: the built page; the package's own if not given.
        alone: SAEs without a store: their models write texts for clients, and are not on the page.
    """
    site, lanes, kept = Site(dictionaries, alone), Lanes(), Kept()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = QUICK
        warm(list(dictionaries.values()))
        yield
        site.close()

    app = FastAPI(
        title="monosem explorer",
        version=version("monosem"),
        lifespan=lifespan,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        responses=ERRORS,
        dependencies=[Depends(known_parameters)],
    )
    for kind in (RequestValidationError, HTTPException, MonosemError, IndexError, Exception):
        app.add_exception_handler(kind, of_error)
    app.state.site = site
    _read_routes(app, site, lanes, kept)
    _table_routes(app, site, lanes, kept)
    _long_routes(app, site, lanes, kept)
    _model_routes(app, site, lanes)
    _note_routes(app, site)
    add_rating_routes(app, site)
    add_guess_routes(app, site)
    add_openai_routes(app, site, lanes)
    add_effect_routes(app, site, lanes)
    add_graph_routes(app, site, lanes)
    add_head_routes(app, site, lanes)
    add_token_set_routes(app, site, lanes)
    add_meta_routes(app, site, lanes)
    _page_routes(app, page or Page())
    app.add_middleware(Guard, names=names)
    return app


def _read_routes(app: FastAPI, site: Site, lanes: Lanes, kept: Kept) -> None:
    get = app.get

    @get("/api/dictionaries", response_model=shapes.Site)
    def dictionaries() -> Response:
        """The dictionaries that the server was given."""
        return answer(site.overview())

    @get("/api/d/{name}", response_model=shapes.Dictionary)
    async def dictionary(name: str) -> Response:
        """What a dictionary is, its figures, its firing rates."""
        lane = lanes.quick if site.has_read(name) else lanes.long
        return await lane.run(lambda: answer(site.dictionary(name)))

    @get("/api/d/{name}/f/{latent}", response_model=shapes.Feature)
    def feature(name: str, latent: int) -> Response:
        """Everything on one feature's page."""
        dictionary = site[name]
        return answer_json(kept.get(dictionary, ("f", latent), lambda: to_json(features_json(dictionary, [latent])[0])))

    @get("/api/d/{name}/f/{latent}/python", response_model=shapes.Code)
    def python(name: str, latent: int) -> Response:
        """Python that opens it."""
        return answer(python_code(site[name], latent))

    @get("/api/d/{name}/f/{latent}/html", response_class=Response, responses={200: {"content": {"text/html": {}}}})
    def html(name: str, latent: int) -> Response:
        """The feature as one HTML file that needs nothing else, to be kept."""
        attached = f'attachment; filename="{name}-f-{latent}.html"'
        headers = {"cache-control": "no-store", "content-disposition": attached}
        return Response(feature_html(site[name], latent), headers=headers, media_type="text/html")

    @get("/api/d/{name}/image/{number}", response_class=Response, responses={200: {"content": {"image/png": {}}}})
    def image(name: str, number: int) -> Response:
        """The thumbnail of an image that an example shows (PNG); its number is the example's `document`."""
        dictionary = site[name]
        pictures = dictionary.store.pictures
        if pictures is None:
            raise IndexError(f"{name} is of text: it has no images")
        return _png(pictures.png(number))

    @get("/api/d/{name}/f/{latent}/image", response_class=Response, responses={200: {"content": {"image/png": {}}}})
    def made_image(name: str, latent: int) -> Response:
        """The image made for a feature (PNG), where its `made_image` says that there is one."""
        dictionary = site[name]
        dictionary.check(latent)
        if dictionary.optimised is None:
            raise IndexError(f"{name} has no images made for features: ms.optimise_image makes them")
        return _png(dictionary.optimised.png(latent))


def _png(content: bytes) -> Response:
    return Response(content, headers={"cache-control": "private, max-age=3600"}, media_type="image/png")


def _table_routes(app: FastAPI, site: Site, lanes: Lanes, kept: Kept) -> None:
    @app.get("/api/d/{name}/features", response_model=shapes.Page)
    async def table(
        name: str,
        given: Given,
        sort: str = "latent",
        limit: Annotated[int, Query(ge=0, le=500)] = 50,
        offset: Many = 0,
    ) -> Response:
        """A page of the table, filtered and sorted."""
        dictionary = site[name]

        def read() -> bytes:
            return to_json(page_of(dictionary, given, sort, limit, offset))

        if given.asked:
            return answer_json(await lanes.asked.run(read))
        question = ("features", repr(given), sort, limit, offset)
        return answer_json(await lanes.quick.run(lambda: kept.get(dictionary, question, read)))

    @app.get("/api/d/{name}/histogram", response_model=shapes.ColumnHistogram)
    async def histogram(
        name: str,
        given: Given,
        column: str = "rate",
        bins: Annotated[int, Query(ge=1, le=400)] = 40,
        log: bool = False,
    ) -> Response:
        """Latents by the value of a column, under the table's filters."""
        return await lanes.of(given).run(lambda: answer(histogram_of(site[name], given, column, bins, log)))


def _long_routes(app: FastAPI, site: Site, lanes: Lanes, kept: Kept) -> None:
    get = app.get

    @get("/api/d/{name}/search", response_model=shapes.Found)
    async def find(
        name: str,
        q: Words,
        kind: str = "all",
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        offset: Many = 0,
    ) -> Response:
        """Features by word, token, passages, notes, activating text or similarity."""
        dictionary, lane = site[name], lanes.model if kind == "text" else lanes.long
        nothing: list[shapes.Found] = []

        def look() -> bytes | None:
            found = search(dictionary, site.subjects, q, kind, limit, offset)
            if not falls_back(dictionary, found):
                return to_json(found)
            nothing.append(found)
            return None

        body = await lane.run(lambda: kept.get(dictionary, ("search", q, kind, limit, offset), look))
        if body is None:
            body = to_json(nothing[0])
            with suppress(MonosemError):  # it cannot be read: nothing was found all the same
                body = await lanes.model.run(lambda: to_json(search_as_text(dictionary, site.subjects, q, limit)))
        return answer_json(body)

    @get("/api/search", response_model=shapes.FoundEverywhere)
    async def find_everywhere(q: Words, kind: str = "all", limit: Annotated[int, Query(ge=1, le=200)] = 12) -> Response:
        """The same in every dictionary."""
        lane, all_of = lanes.model if kind == "text" else lanes.long, list(site.dictionaries.values())
        return await lane.run(lambda: answer(search_everywhere(all_of, site.subjects, q, kind, limit)))

    @get("/api/d/{name}/map", response_model=shapes.Map)
    async def points(name: str) -> Response:
        """Features as points."""
        return await lanes.map.run(lambda: answer(site.geometry.map(site[name])))

    @get("/api/d/{name}/f/{latent}/matches", response_model=list[shapes.Match])
    async def matches(name: str, latent: int) -> Response:
        """Its best match in every other dictionary of the same width."""
        return await lanes.beside.run(lambda: answer(site.geometry.matches(site[name], latent)))

    @get("/api/d/{name}/previews", response_model=list[shapes.Preview])
    async def hovers(name: str, latents: str, words: Words = "") -> Response:
        """Names and three passages of up to 100 features, the strongest or those that hold some words."""
        asked = [n.strip()[:20] for n in latents.split(",")[:MOST_PREVIEWS]]
        numbers = [int(n) for n in asked if n.isascii() and n.isdigit()]
        return await lanes.beside.run(lambda: answer(previews(site[name], numbers, words)))


def _model_routes(app: FastAPI, site: Site, lanes: Lanes) -> None:
    @app.get("/api/compare", response_model=shapes.Comparison)
    async def compare(
        a: str,
        b: str,
        threshold: Annotated[float, Query(ge=-1, le=1)] = THRESHOLD,
        by: Literal["decoder", "activations"] | None = None,
    ) -> Response:
        """Two dictionaries: features matched, split, merged, missing."""
        return await lanes.model.run(lambda: answer(site.geometry.compare(site[a], site[b], threshold, by)))

    @app.post("/api/d/{name}/prompt", response_model=shapes.Prompt)
    async def prompt(name: str, question: shapes.Question) -> Response:
        """A text through model and dictionary."""
        return await lanes.model.run(lambda: answer(site.subjects.prompt(site[name], question)))

    @app.get("/api/d/{name}/f/{latent}/logits", response_model=shapes.Histogram)
    async def logits(name: str, latent: int) -> Response:
        """The vocabulary by what one unit of this feature adds to each logit, relative to the mean."""
        return await lanes.model.run(lambda: answer(site.subjects.logits(site[name], latent)))

    @app.get("/api/d/{name}/context", response_model=shapes.Context)
    async def context(name: str, text: str, context: Many, latent: Many) -> Response:
        """The whole context around an example."""
        return await lanes.model.run(lambda: answer(site.subjects.context(site[name], text, context, latent)))

    @app.get("/api/d/{name}/model", response_model=shapes.ModelState)
    def model(name: str) -> Response:
        """Whether the model is loaded."""
        return answer(site.subjects.state(site[name]))

    @app.post("/api/d/{name}/model", response_model=shapes.ModelState)
    def load(name: str) -> Response:
        """Begin to load the model; answers at once."""
        return answer(site.subjects.begin(site[name]))


def _note_routes(app: FastAPI, site: Site) -> None:
    @app.get("/api/d/{name}/notes", response_model=shapes.Notes)
    def notes(name: str) -> Response:
        """All notes, to be kept as a file."""
        return answer(site.notes(name))

    @app.post("/api/d/{name}/notes", response_model=shapes.Imported)
    def take_in(name: str, file: shapes.NoteFile) -> Response:
        """Take in exported notes."""
        dictionary = _writable(site[name])
        if file.dictionary != dictionary.notes.dictionary:
            raise Unavailable(f"these notes are of another dictionary ({file.dictionary}), not of {name}")
        return answer({"imported": dictionary.notes.take_in(file.notes)})

    @app.get("/api/d/{name}/notes/{latent}", response_model=shapes.Note)
    def note(name: str, latent: int) -> Response:
        """The note of a feature."""
        return answer(site[name].notes[site[name].check(latent)])

    @app.put("/api/d/{name}/notes/{latent}", response_model=shapes.Note)
    def change(name: str, latent: int, given: shapes.NoteChange) -> Response:
        """Change what is given of a note."""
        dictionary = _writable(site[name])
        return answer(dictionary.notes.change(dictionary.check(latent), given))

    @app.delete("/api/d/{name}/notes/{latent}", response_model=shapes.Note)
    def clear(name: str, latent: int) -> Response:
        """Empty a note."""
        dictionary = _writable(site[name])
        return answer(dictionary.notes.clear(dictionary.check(latent)))


def _writable(dictionary: Dictionary) -> Dictionary:
    if dictionary.notes.why_not:
        raise Unavailable(dictionary.notes.why_not)
    return dictionary


def _page_routes(app: FastAPI, page: Page) -> None:
    @app.get("/api/{rest:path}", include_in_schema=False)
    def nothing(rest: str) -> Response:
        return problem(404, f"there is no /api/{rest}: see /api/openapi.json")

    @app.get("/v1/{rest:path}", include_in_schema=False)
    def no_such(rest: str) -> Response:
        raise HTTPException(404, f"there is no /v1/{rest}: see docs/serving.md")

    @app.get("/{path:path}", include_in_schema=False)
    def file(path: str) -> Response:
        """A file of the page, or else the page itself."""
        found = page.file(path) if path != "index.html" else None
        if found is not None:
            lasting = path.startswith("assets/")  # their names change with their content
            cache = "public, max-age=31536000, immutable" if lasting else "no-cache"
            return Response(found.content, headers={"cache-control": cache}, media_type=found.kind)
        if path.startswith("assets/"):
            return problem(404, f"the page has no {path}")
        index = page.file("index.html")
        if index is None:
            return Response(NOT_BUILT + "\n", 503, media_type="text/plain; charset=utf-8")
        return Response(index.content, headers={"cache-control": "no-cache"}, media_type=index.kind)
