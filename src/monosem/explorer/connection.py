"""A connection of the server that cuts off who keeps it waiting: half a request, or an answer that nobody reads."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from monosem.explorer.guard import HEADERS

PATIENCE = 20.0
"""Seconds within which a request must be whole, and an answer be read on."""
MOST_CONNECTIONS = 256


class Connection(H11Protocol):
    """uvicorn's own closes connections that idle between two requests, and waits for all others."""

    _unfinished: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Begin to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
        self._wait_for_request()

    def data_received(self, data: bytes) -> None:
        """Some of a request."""
        super().data_received(data)
        self._wait_for_request()

    def _wait_for_request(self) -> None:
        waits = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        if waits and self._unfinished is None:
            self._unfinished = self.loop.call_later(PATIENCE, self.transport.abort)
        elif not waits:
            self._unfinished = _stop(self._unfinished)

    def pause_writing(self) -> None:
        """The answer is not read as fast as it comes."""
        super().pause_writing()
        self._unread = _stop(self._unread) or self.loop.call_later(PATIENCE, self.transport.abort)

    def resume_writing(self) -> None:
        """It is."""
        self._unread = _stop(self._unread)
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection, at last also if the end of an answer was never read."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(PATIENCE, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._unfinished, self._unread = _stop(self._unfinished), _stop(self._unread)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Say in JSON, as everywhere, that this is no HTTP, or that its head is too long."""
        body = json.dumps({"error": f"this is no request that can be read: {msg}"}).encode()
        facts = {"content-type": "application/json", "connection": "close", "content-length": str(len(body)), **HEADERS}
        headers = [(name.encode(), value.encode()) for name, value in facts.items()]
        events: list[Any] = [
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
