"""Where the commands print."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_WIDTH = 110
PICTURES = (".svg", ".html")


def console() -> Console:
    """The terminal; in a pipe or a file, lines of 110 columns."""
    from rich.console import Console

    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def picture() -> Console:
    """A console that only remembers, in colour, what is printed: for `save_svg` and `save_html`."""
    import io

    from rich.console import Console

    return Console(
        file=io.StringIO(),
        record=True,
        force_terminal=True,
        color_system="truecolor",
        width=PLAIN_WIDTH,
        highlight=False,
    )


def save_picture(console: Console, path: Path, title: str) -> None:
    """Write what a `picture` console remembers; the file asks no other host for fonts."""
    from rich.terminal_theme import SVG_EXPORT_THEME

    from monosem.files import write_text

    if path.suffix == ".html":
        text = console.export_html()
    else:
        picture = console.export_svg(title=title, theme=SVG_EXPORT_THEME, unique_id="monosem")
        text = re.sub(r"@font-face\s*{.*?}", "", picture, flags=re.DOTALL)
    write_text(path, text)
