"""What is shared without a server says the same, and runs nothing that data holds."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from monosem.errors import ConfigError, FileError
from monosem.explorer import Dictionary, export_features, export_site, open_dictionaries
from monosem.explorer.chunks import read_chunk
from monosem.explorer.export import feature_html
from monosem.explorer.notes import Notes
from monosem.explorer.page import Page
from monosem.explorer.shapes import NoteChange

SCRIPT = "<script>alert('x')</script><img src=x onerror=alert(1)>"
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def site(run_folder: Path, second: Any, page: Page, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dictionaries = open_dictionaries([run_folder, second.folder / "features"])
    return export_site(dictionaries, tmp_path_factory.mktemp("site") / "out", page)


def whole(site: Path, latent: int) -> Any:
    """A feature of the site, with the texts of its examples as the passages have them."""
    chunk = read_chunk(site, f"d/small/f/{latent // 32}")
    feature = chunk["features"][latent - chunk["first"]]
    held = read_chunk(site, f"d/small/passages/{chunk['passages']}")
    for kind in ("top", "samples", "near_misses", "silent"):
        for example in feature[kind]:
            passage = held["passages"][example["passage"] - held["first"]]
            start, stop = example["start"], example["start"] + example.pop("length")
            example |= {"text": passage["text"], "context": passage["context"], "texts": passage["texts"][start:stop]}
            example |= {"before": passage["texts"][max(0, start - held["room"]) : start]}
            example |= {"after": passage["texts"][stop : stop + held["room"]]}
    return feature


def test_an_export_holds_what_the_server_says(site: Path, client: Any) -> None:
    chunk = read_chunk(site, "d/small/f/2")
    assert (chunk["first"], len(chunk["features"])) == (64, 32)
    for latent in (64, 80):
        served = client.get(f"/api/d/small/f/{latent}")
        served["matches"] = client.get(f"/api/d/small/f/{latent}/matches")
        assert whole(site, latent) == served
    rows = read_chunk(site, "d/small/table/0")
    assert rows["rows"] == client.get("/api/d/small/features", limit=500)["rows"]
    assert read_chunk(site, "d/small/map") == client.get("/api/d/small/map")
    about, served = read_chunk(site, "d/small/index"), client.get("/api/d/small")
    different = {"path", "can"}
    assert {k: v for k, v in about.items() if k not in different} == {
        k: v for k, v in served.items() if k not in different
    }
    assert read_chunk(site, "compare/small/second") == client.get("/api/compare", a="small", b="second")


def test_two_processes_write_the_files_of_one(
    run_folder: Path, second: Any, page: Page, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_features, "WORTH_A_PROCESS", 1)
    dictionaries, by_this = open_dictionaries([run_folder, second.folder / "features"]), list[int]()
    write = export_features._write

    def once_the_other_has_begun(*arguments: Any) -> None:
        while not any((tmp_path / "out/data/d/small/f").glob("*.js")) and not by_this:
            time.sleep(0.05)
        by_this.append(arguments[-1])
        write(*arguments)

    monkeypatch.setattr(export_features, "_write", once_the_other_has_begun)
    written = export_site(dictionaries, tmp_path / "out", page)
    files = [path.relative_to(site) for path in sorted(site.rglob("*")) if path.is_file()]
    assert [path.relative_to(written) for path in sorted(written.rglob("*")) if path.is_file()] == files
    assert all((site / file).read_bytes() == (written / file).read_bytes() for file in files)
    assert 0 < len(by_this) < len([file for file in files if file.parent.name == "f"])


def test_an_export_says_that_it_is_one(site: Path) -> None:
    overview = read_chunk(site, "dictionaries")
    assert overview["static"] is True
    assert "monosem explore" in overview["dictionaries"][0]["can"]["prompt"]
    assert overview["dictionaries"][0]["path"] == "small"  # no path of this machine
    index = (site / "index.html").read_text()
    assert "<base" not in index
    assert '<meta name="monosem" content="static">' in index
    assert (site / "assets/page-1.js").is_file()


def test_no_part_of_an_export_is_missing(site: Path) -> None:
    parts = [read_chunk(site, f"d/small/f/{part}") for part in range(8)]
    assert [f["latent"] for part in parts for f in part["features"]] == list(range(256))
    assert not (site / "data/d/small/f/8.js").exists()


def test_another_export_leaves_nothing_of_the_one_before(
    run_folder: Path, site: Path, page: Page, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(site, tmp_path / "site"))
    own = [path.relative_to(folder) for path in folder.rglob("*")]
    files = sorted(folder / path for path in own if not {"second", "second.js", "compare"} & set(path.parts))
    assert len(files) < len(own)
    (folder / "data/d/other/f").mkdir(parents=True)
    (folder / "data/d/other/f/0.js").write_text("old")
    (folder / "assets/page-0.js").write_text("old")
    export_site(open_dictionaries([run_folder]), folder, page)
    assert sorted(folder.rglob("*")) == files


def test_an_export_does_not_write_over_other_things(run_folder: Path, page: Page, site: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    dictionaries = open_dictionaries([run_folder])
    with pytest.raises(ConfigError, match="holds something else"):
        export_site(dictionaries, tmp_path, page)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(FileError, match="make page"):
        export_site(dictionaries, tmp_path / "new", Page(tmp_path / "none"))


class Elements(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_one_feature_in_one_file_runs_nothing_that_data_holds(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    (dictionary,) = open_dictionaries([tmp_path / "run"]).values()
    dictionary.notes.change(3, NoteChange(label=SCRIPT, comment=SCRIPT))
    _hostile_tokens(dictionary, 3)
    elements = Elements(feature_html(dictionary, 3))
    assert not {"script", "img", "iframe", "link", "object"} & set(elements.tags)
    assert not [name for name in elements.attributes if name.startswith("on") or name in ("src", "href")]
    assert elements.text.count(SCRIPT) >= 4  # title, heading, comment, tokens: as words
    assert "default-src 'none'" in feature_html(dictionary, 3)


def _hostile_tokens(dictionary: Dictionary, latent: int) -> None:
    """Every token of the feature's strongest passage reads as markup."""
    for token in dictionary.store[latent].top[0].tokens.tolist():
        dictionary.store.vocabulary.pieces[token] = SCRIPT.encode()


def test_the_command_writes_one_feature(monosem: Command, run_folder: Path, tmp_path: Path) -> None:
    outcome = monosem("explore", run_folder, "--feature", 3, "--html", tmp_path / "out/f.html")
    assert outcome.code == 0
    html = (tmp_path / "out/f.html").read_text()
    assert html.startswith("<!doctype html>")
    assert "small, feature 3" in html
    assert "resid_post.2 of bundled" in html


def test_the_server_gives_one_feature_as_the_same_file(client: Any, run_folder: Path) -> None:
    reply = client.ask("/api/d/small/f/3/html")
    (dictionary,) = open_dictionaries([run_folder]).values()
    assert reply.body.decode() == feature_html(dictionary, 3)
    assert reply.headers["content-disposition"] == 'attachment; filename="small-f-3.html"'
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert client.ask("/api/d/small/f/256/html").status == client.ask("/api/d/none/f/3/html").status == 404


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--feature", 3], "takes both"),
        (["--html", "x.html"], "takes both"),
        (["--feature", 256, "--html", "x.html"], "there are 0 to 255"),
        (["--host", "256.1.1.1"], "cannot listen on 256.1.1.1"),
    ],
)
def test_a_wrong_command_ends_in_one_line(monosem: Command, run_folder: Path, arguments: list[Any], says: str) -> None:
    outcome = monosem("explore", run_folder, "--no-open", *arguments)
    assert (outcome.code, outcome.out, says in outcome.err) == (2, "", True), outcome


def test_a_port_that_is_taken_names_one_that_is_free(monosem: Command, run_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = monosem("explore", run_folder, "--no-open", "--port", port)
    assert outcome.code == 2
    assert f"port {port} of 127.0.0.1 is taken: try --port" in outcome.err
    free = int(outcome.err.split("--port")[1])
    with socket.socket() as other:
        other.bind(("127.0.0.1", free))


def test_two_runs_of_one_name_get_two_names(run_folder: Path, tmp_path: Path) -> None:
    for place in ("x/my run", "y/my run"):
        shutil.copytree(run_folder / "features", tmp_path / place / "features")
    found = open_dictionaries([tmp_path / "x/my run", tmp_path / "y/my run/features"])
    assert list(found) == ["my-run", "my-run-2"]
    with pytest.raises(ConfigError, match="given twice"):
        open_dictionaries([tmp_path / "x/my run", tmp_path / "x/my run/features"])


def test_the_real_executable_serves_until_it_is_stopped(run_folder: Path) -> None:
    command = [sys.executable, "-m", "monosem.cli.main", "explore", str(run_folder), "--no-open", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = next(word for word in server.stdout.readline().split() if word.startswith("http://"))
            with urlopen(f"{address}/api/d/small/f/3", timeout=120) as answer:
                assert json.load(answer)["latent"] == 3
            server.send_signal(signal.SIGINT)
            _, errors = server.communicate(timeout=120)
        finally:
            server.kill()
    assert server.returncode == 0
    assert errors == ""


def test_notes_stand_beside_the_store(run_folder: Path) -> None:
    notes = Notes.beside(run_folder / "features", "a" * 16, 10)
    assert notes.path == run_folder / "features.notes.sqlite"
