"""What every request must keep to, and the headers of every answer: a page elsewhere on the web gets nothing here."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from anyio import move_on_after

from monosem.explorer.names import names_it

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LARGEST_BODY, LARGEST_FILE = 2**20, 32 * 2**20
"""Bytes: of a note or a prompt, and of a file of notes."""
MOST_READ_ON = 2 * LARGEST_FILE
"""Bytes of a body that is refused which are received before it is said."""
PATIENCE = 0.5
"""Seconds to wait for the next piece of it."""
LONGEST = 10
"""Seconds for all of it: one that drips holds nobody up."""
CHANGING = ("POST", "PUT", "PATCH", "DELETE")
OWN_POLICY = (
    "default-src 'self'; style-src-attr 'unsafe-inline'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'"
)
"""Content-Security-Policy of the page."""
HEADERS = {
    "content-security-policy": f"{OWN_POLICY}; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """ASGI middleware: checks who asks, and the body; adds the headers.

    - A name that an attacker may point at this machine (DNS rebinding) is refused: a `Host` must be an address in
      numbers, `localhost`, or a name given.
    - What a page of another origin asks for is refused, images and scripts included, as the browser says in
      `Sec-Fetch-Site` and `Origin`: reading takes work too. Links to the page from elsewhere are followed.
    """

    def __init__(self, app: App, names: Iterable[str] = ()) -> None:
        self.app = app
        self.names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] != "http":
            return

        body = _Body(receive)

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                if message["status"] >= 400:
                    await body.read_on()
                given = [(name, value) for name, value in message["headers"] if name.decode() not in HEADERS]
                message["headers"] = given + [(k.encode(), v.encode()) for k, v in HEADERS.items()]
            await send(message)

        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        most = LARGEST_FILE if scope["path"].endswith("/notes") else LARGEST_BODY
        refusal = self._refusal_of_asker(scope, headers)
        if refusal is None and scope["method"] in CHANGING:
            refusal = _refusal_of_body(scope["method"], headers, most)
        if refusal is not None:
            await _answer(send_guarded, *refusal)
            return
        await self.app(scope, body.bounded(most), send_guarded)

    def _refusal_of_asker(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.knows(host):
            return 403, (
                f"this server is not {host[:100]!r}: open it as 127.0.0.1 or localhost, or start it with --allow-host"
            )
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return 403, f"a page of {origin[:100]!r} may not ask anything here"
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not _is_link(scope, headers):
            return 403, "a page of another site may not ask anything here"
        return None

    def knows(self, host: str) -> bool:
        """Whether a `Host` header names this server."""
        return names_it(host, self.names)


def _is_link(scope: Scope, headers: dict[str, str]) -> bool:
    """Whether somebody has followed a link to an address of the page, in a window of its own."""
    to_page = scope["method"] == "GET" and not scope["path"].startswith("/api/")
    return to_page and (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")


def _refusal_of_body(method: str, headers: dict[str, str], most: int) -> tuple[int, str] | None:
    if method != "DELETE" and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return 400, "send JSON: Content-Type must be application/json"
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or int(length[:20]) > most:
        return 413, f"the body is larger than {most // 2**20} MiB"
    return None


class _Body:
    """The body of a request, in the pieces in which it comes."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._seen, self._whole = receive, 0, False

    async def _next(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        self._whole = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    def bounded(self, most: int) -> Receive:
        """A body that comes without a length is cut off where it gets too large."""

        async def bounded() -> MutableMapping[str, Any]:
            message = await self._next()
            return {"type": "http.disconnect"} if self._seen > most else message

        return bounded

    async def read_on(self) -> None:
        """Take in the rest of what is refused, up to a limit: who still sends would not see the answer."""
        with move_on_after(LONGEST):
            while not self._whole and self._seen <= MOST_READ_ON:
                with move_on_after(PATIENCE) as waited:
                    await self._next()
                if waited.cancelled_caught:
                    return


async def _answer(send: Send, status: int, words: str) -> None:
    body = json.dumps({"error": words}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
