"""A hub that cannot be reached: what was downloaded before is loaded at once, the rest is named soon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from torch import nn

NOWHERE = "http://127.0.0.1:9"


def run(code: str, endpoint: str, home: Path) -> str:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    return (done.stdout + done.stderr).strip().splitlines()[-1]


@pytest.fixture
def empty_hub() -> Iterator[str]:
    """A server that answers, and has nothing."""

    class Nothing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_is_reachable_if_it_answers_at_all(empty_hub: str, tmp_path: Path) -> None:
    code = "from monosem.hub import reachable; print(reachable('some/one'), reachable('some/one', 'dataset'))"
    assert run(code, empty_hub, tmp_path) == "True True"
    assert run(code, NOWHERE, tmp_path) == "False False"


TRIED = {
    "model": "ms.load_model('some/model')",
    "data": "next(iter(ms.data.read_documents('hub:some/data')))",
    "known": "ms.load_model('known/model', tokenizer=object())",
}
TRY = """
import json, time
import monosem as ms, monosem.data
said = {{}}
for name, code in {tried}.items():
    begun = time.monotonic()
    try:
        found = eval(code)
        words = f"{{found.name}} {{found.n_layers}}"
    except ms.errors.MonosemError as error:
        words = f"{{type(error).__name__}}: {{error}}"
    said[name] = words, time.monotonic() - begun
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tiny_module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, float]]:
    """What a process says that cannot reach the hub, and the seconds that it took."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "hub" / "models--known--model"
    module: object = tiny_module
    module.save_pretrained(folder / "snapshots" / "abc")  # pyright: ignore
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    return json.loads(run(TRY.format(tried=TRIED), NOWHERE, home))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model", "FileError: cannot load the model 'some/model'"),
        ("data", "FileError: cannot load the data set 'hub:some/data'"),
    ],
)
def test_what_cannot_be_reached_is_named_within_seconds(
    said: dict[str, tuple[str, float]], name: str, words: str
) -> None:
    told, seconds = said[name]
    assert words in told
    assert seconds < 20, "their libraries alone take 25 s, in which they try again"


def test_a_model_downloaded_before_is_loaded_without_the_hub(said: dict[str, tuple[str, float]]) -> None:
    told, seconds = said["known"]
    assert told.startswith("known/model "), told
    assert seconds < 20
