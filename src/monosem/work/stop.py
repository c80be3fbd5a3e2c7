"""Stopping long work at a safe place when the user, or the system, asks for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import FrameType, TracebackType
from typing import Any

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Stopped(Exception):
    """Raised by `may_stop_here`; whoever opened the `StopRequest` catches it and saves."""


class StopRequest:
    """Turns the first Ctrl-C (SIGTERM, SIGHUP) into a request to stop at a safe place; a second one stops at once."""

    requested = False

    def __enter__(self) -> StopRequest:
        self._before: dict[int, Any] = {}
        self._token: Token[StopRequest | None] = _current.set(self)
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                number = getattr(signal, name, None)
                if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):  # nohup
                    continue
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        _current.reset(self._token)
        for number, handler in self._before.items():
            signal.signal(number, handler)


_current: ContextVar[StopRequest | None] = ContextVar("_current", default=None)


def may_stop_here(agreed: Callable[[bool], bool] = bool) -> None:
    """A place in the midst of long work where nothing is half done.

    Args:
        agreed: makes of whether this process was asked to stop whether all are to.

    Raises:
        Stopped: it is asked for.
    """
    request = _current.get()
    if agreed(request is not None and request.requested):
        raise Stopped
