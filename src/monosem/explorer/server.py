"""The server: one address, until it is stopped."""

from __future__ import annotations

import errno
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow
import uvicorn

from monosem.errors import ConfigError
from monosem.explorer.app import make_app
from monosem.explorer.dictionary import open_dictionaries
from monosem.explorer.guard import own_names
from monosem.explorer.page import Page

PORT = 8321
LOOPBACK = "127.0.0.1"


def serve(
    paths: Sequence[str | Path],
    host: str = LOOPBACK,
    port: int = PORT,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve stores until Ctrl-C.

    Args:
        paths: run folders or feature stores.
        host: address to listen on; only this machine can reach the default one.
        port: 0 takes any that is free.
        ready: called with the server's address once it answers.

    Raises:
        FileError: a store is missing, damaged or of another version.
        ConfigError: the port is taken or the host is not one of this machine.
    """
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # the default one keeps what it no longer needs
    app = make_app(open_dictionaries(paths), own_names(host), Page())
    with listen(host, port) as listening:
        found = listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else {"0.0.0.0": LOOPBACK}.get(host, host)
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
        server = _Server(config, lambda: ready(f"http://{shown}:{found}") if ready else None)
        server.run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


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
