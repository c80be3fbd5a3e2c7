"""The OpenAI protocol: any of its clients can use a model and its features; docs/serving.md describes it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from monosem.errors import MonosemError
from monosem.explorer.answers import answer, explained, protocol_error, to_json
from monosem.explorer.completions import Answer
from monosem.explorer.lanes import Busy, Lanes
from monosem.explorer.site import Site
from monosem.explorer.wire import ChatRequest, CompletionRequest
from monosem.explorer.writing import Piece

MOST_AT_ONCE = 32
"""Requests that are answered at a time; their texts take turns, a token each."""
STARTED = int(time.time())


def add_openai_routes(app: FastAPI, site: Site, lanes: Lanes) -> None:
    """Add them."""
    answering = app.state.answering = Answering(site, lanes)

    @app.get("/v1/models", include_in_schema=False)
    def models() -> Response:
        """The runs that can be asked."""
        return answer({"object": "list", "data": [_model(site, name) for name in site.written]})

    @app.get("/v1/models/{name}", include_in_schema=False)
    def model(name: str) -> Response:
        """One of them."""
        return answer(_model(site, name))

    @app.post("/v1/completions", include_in_schema=False)
    async def complete(asked: CompletionRequest, request: Request) -> Response:
        """Go on with a text."""
        return await answering.respond(asked, request)

    @app.post("/v1/chat/completions", include_in_schema=False)
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await answering.respond(asked, request)


def _model(site: Site, name: str) -> dict[str, Any]:
    found = site.writer(name)
    facts = {"model": found.model_name, "hook": found.hook, "sae": found.index.get("dictionary")}
    return {"id": name, "object": "model", "created": STARTED, "owned_by": "monosem", "monosem": facts}


class Answering:
    """Answers requests; all texts take turns at the model, and who hangs up is forgotten before the next token."""

    def __init__(self, site: Site, lanes: Lanes) -> None:
        self._site, self._lanes = site, lanes
        self.now = self.steps = 0
        """Requests that are being answered, and tokens written for all so far."""

    async def respond(self, asked: CompletionRequest | ChatRequest, request: Request) -> Response:
        """The answer, in one or as a stream."""
        found = self._site.writer(asked.model)
        if self.now >= MOST_AT_ONCE:
            raise Busy(f"{MOST_AT_ONCE} requests are being answered: ask again later")
        made = await self._lanes.model.run(
            lambda: self._site.subjects.ask(found, lambda sae, model: Answer(asked, sae, model))
        )
        kind = "chat.completion" if made.chat else "text_completion"
        head = {
            "id": ("chatcmpl-" if made.chat else "cmpl-") + secrets.token_hex(12),
            "object": f"{kind}.chunk" if made.chat and asked.stream else kind,
            "created": int(time.time()),
            "model": asked.model,
        }
        if asked.stream:
            options = asked.stream_options
            chunks = self._chunks(made, head, options is not None and options.include_usage)
            return StreamingResponse(chunks, media_type="text/event-stream", headers={"cache-control": "no-store"})
        pieces: list[list[Piece]] = [[] for _ in made.writings]
        async for index, piece in self._written(made):
            pieces[index].append(piece)
            if await request.is_disconnected():
                return Response(status_code=499)
        choices = [made.whole(index, each) for index, each in enumerate(pieces)]
        return answer({**head, "choices": choices, "usage": made.usage()})

    async def _written(self, made: Answer) -> AsyncIterator[tuple[int, Piece]]:
        """Pieces of all texts, in turn."""
        self.now += 1
        try:
            going = list(enumerate(made.writings))
            while going:
                for index, writing in list(going):
                    self.steps += 1
                    piece = await asyncio.wrap_future(self._site.subjects.run(writing.step))
                    if piece.finish is not None:
                        going.remove((index, writing))
                    yield index, piece
        finally:
            self.now -= 1

    async def _chunks(self, made: Answer, head: dict[str, Any], usage: bool) -> AsyncIterator[bytes]:
        """Events of the stream: pieces, usage if it was asked for, the mark of the end; or what went wrong."""
        told: set[int] = set()
        try:
            async for index, piece in self._written(made):
                choice = made.part(index, piece, index not in told)
                told.add(index)
                yield _event({**head, "choices": [choice], **({"usage": None} if usage else {})})
        except (MonosemError, IndexError) as error:
            yield _event(protocol_error(*explained(error)))
            return
        if usage:
            yield _event({**head, "choices": [], "usage": made.usage()})
        yield b"data: [DONE]\n\n"


def _event(value: Any) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"
