"""A graph in one HTML file: nothing of its data is run or shown as HTML, and nothing else is needed."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import unescape
from pathlib import Path

import pytest

from monosem.circuits.graph.exchange_read import read_exchanged
from monosem.circuits.graph.single_file import graph_page
from monosem.circuits.graph.view import graph_view
from monosem.errors import FileError

THEIRS = Path(__file__).parent / "data/circuit_tracer.json"
NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(1)><!--\u2028"


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A page of three files, whose program holds what would end its element."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text(
        '<script defer src="./assets/index-a_1.js"></script><link rel="stylesheet" href="./assets/style-b.css">'
    )
    (tmp_path / "assets/index-a_1.js").write_text('const a = "</script><!--";')
    (tmp_path / "assets/style-b.css").write_text("p{margin:0}")
    return tmp_path


def test_data_is_data(built: Path) -> None:
    graph = read_exchanged(THEIRS)
    graph.prompt, graph.words[1] = NASTY, NASTY
    graph.targets[0]["label"] = NASTY
    view = graph_view(graph)
    html = graph_page(view, {"mlp_out.0/1": {"name": NASTY}}, built)
    assert "<img" not in html
    assert "alert(1)</script>" not in html
    data = re.findall(r'<script type="application/json" id="graph">(.*?)</script>', html, re.DOTALL)
    assert len(data) == 1
    assert json.loads(data[0]) == {"view": view, "previews": {"mlp_out.0/1": {"name": NASTY}}}
    (program,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    policy = unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1])  # type: ignore[index]
    hashed = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
    assert f"script-src 'sha256-{hashed}'" in policy
    assert policy.startswith("default-src 'none'")
    assert not re.search(r'(src|href)="', html)


def test_without_the_built_page_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="make page"):
        graph_page(graph_view(read_exchanged(THEIRS)), built=tmp_path)
    (tmp_path / "index.html").write_text("<p>")
    with pytest.raises(FileError, match="build it anew"):
        graph_page(graph_view(read_exchanged(THEIRS)), built=tmp_path)
