"""Where the commands print."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_WIDTH = 110


def console() -> Console:
    """The terminal; in a pipe or a file, lines of 110 columns."""
    from rich.console import Console

    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)
