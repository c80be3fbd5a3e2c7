"""The server: one address, until it is stopped."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType

import pyarrow
import uvicorn
from fastapi import FastAPI

from monosem.errors import ConfigError
from monosem.explorer.alone import Alone
from monosem.explorer.app import make_app
from monosem.explorer.connection import Connection
from monosem.explorer.dictionary import Dictionaries, open_dictionaries
from monosem.explorer.names import LOOPBACK, own_names, reached_at
from monosem.explorer.page import Page

PORT = 8321
SWITCH = 0.001
"""Seconds for which Python stays with a thread while others wait: a feature, which gives way often, waits for each."""
GRACE = 1
"""Seconds that answers have to end once the server stops ..."""
LAST = 1.6
"""... and the whole process has."""


def serve(
    paths: Sequence[str | Path],
    host: str = LOOPBACK,
    port: int = PORT,
    ready: Callable[[list[str]], None] | None = None,
    allowed: Iterable[str] = (),
    alone: Sequence[Alone] = (),
    loaded: bool = False,
    reward: str | None = None,
) -> None:
    """Serve stores until Ctrl-C or SIGTERM.

    These end the process, within two seconds whatever it does then: nothing else stops a thread within a library.

    Args:
        paths: run folders or feature stores.
        host: address to listen on; only this machine can reach the default one.
        port: 0 takes any that is free.
        ready: called with the server's addresses once it answers; the first is for this machine.
        allowed: names under which the server may be called, beside those of this machine.
        alone: SAEs without a store, whose models write texts for clients of the OpenAI protocol.
        loaded: whether models are loaded before it answers, not when they are first asked for.
        reward: a reward model that the dictionaries read beside their own.

    Raises:
        FileError: a store is missing, damaged or of another version; or a model, if it is to be loaded.
        ConfigError: the port is taken or the host is not one of this machine.
        Unavailable: a model is to be loaded that is not there, or does not fit.
    """
    sys.setswitchinterval(SWITCH)
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # the default one keeps what it no longer needs
    opened = open_dictionaries(paths, reward) if paths or not alone else Dictionaries()
    app = make_app(opened, own_names(host, allowed), Page(), alone)
    with listen(host, port) as listening:
        if loaded:
            app.state.site.load()
        found = reached_at(host, listening.getsockname()[1])
        Server(app, (lambda: ready(found)) if ready else None).run(sockets=[listening])


class Server(uvicorn.Server):
    """uvicorn's, which waits for nobody."""

    def __init__(self, app: FastAPI, ready: Callable[[], None] | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE,
            )
        )
        self._close = app.state.site.close
        self._ready = ready
        self._ends: int | None = None
        """Exit status, once a signal has come."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._ready:
            self._ready()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve; a signal then ends the process at once: Python's own way to end takes libraries seconds."""
        try:
            super().run(sockets)
        finally:
            if self._ends is not None:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(self._ends)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to stop: in order, and at last in any case."""
        if self._ends is None:
            self._ends = 0 if sig == signal.SIGINT else 128 + sig
            end = threading.Timer(LAST, os._exit, [self._ends])
            end.daemon = True
            end.start()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what runs elsewhere, then as usual."""
        self._close()
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what is cut off now is no error
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: it cannot be had; a taken port names one that is free.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # an answer's body does not wait for its head's receipt
    if sys.platform != "win32":
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(128)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            with listen(host, 0) as other:
                free = other.getsockname()[1]
            raise ConfigError(f"port {port} of {host} is taken: try --port {free}") from error
        raise ConfigError(f"cannot listen on {host}, port {port} ({error.strerror}): try --host {LOOPBACK}") from error
    return made


def open_browser(address: str) -> None:
    """Open the page in the user's browser, where there is a screen."""
    import os
    import webbrowser

    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return
    threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
