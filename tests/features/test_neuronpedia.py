"""Batches for Neuronpedia fit its schema; sending goes on where it stopped; a real server answers."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from monosem.errors import ConfigError, DataError, FileError
from monosem.features import FeatureStore
from monosem.features.neuronpedia import joined, upload, write_batches, write_export


@pytest.fixture(scope="module")
def store(small_run: Path) -> FeatureStore:
    return FeatureStore(small_run / "features")


@pytest.fixture(scope="module")
def batches(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("batches")
    return write_batches(store, folder, model_id="bundled", source="2-mine", latents=range(200), progress=False)


def fits(batch: dict[str, Any]) -> None:
    """What its schema asks of a batch."""
    assert batch["modelId"] == batch["modelId"].lower()
    features = batch["features"]
    assert 1 <= len(features) <= 128
    assert len({feature["index"] for feature in features}) == len(features)
    for feature in features:
        assert 0 <= feature["index"] <= 10_000_000
        assert 0 <= feature["density"] <= 1
        for side in ("topLogits", "bottomLogits"):
            assert len(feature[side]) <= 20
            assert all(one["token"] and isinstance(one["value"], float) for one in feature[side])
        assert all(1 <= len(one["text"]) <= 512 for one in feature["explanations"])
        assert feature["activations"]
        for one in feature["activations"]:
            assert 1 <= len(one["tokens"]) == len(one["values"]) <= 1024
            assert all(one["tokens"])


def test_batches_fit_the_schema_and_hold_what_the_store_does(batches: list[Path], store: FeatureStore) -> None:
    assert len(batches) == 2
    seen = 0
    for path in batches:
        batch = json.loads(path.read_text())
        fits(batch)
        seen += len(batch["features"])
    assert seen == sum(bool(feature.top) for feature in store.features(range(200)))
    first = json.loads(batches[0].read_text())["features"][0]
    feature = store[first["index"]]
    assert first["density"] == pytest.approx(feature.rate)
    assert max(first["activations"][0]["values"]) == pytest.approx(feature.max, rel=0.01)
    assert "".join(first["activations"][0]["tokens"]) == "".join(feature.top[0].texts)


def test_tokens_without_a_text_go_with_the_next(store: FeatureStore) -> None:
    import dataclasses

    example = store[0].top[0]
    changed = dataclasses.replace(example, texts=["a", "", "é", ""], activations=np.array([0.0, 3.0, 1.0, 2.0]))
    assert joined(changed) == (["a", "é"], [0.0, 3.0])
    assert joined(dataclasses.replace(changed, texts=[""] * 4)) == ([" "], [0.0])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"model_id": "GPT2", "source": "2-mine"}, "lower-case"),
        ({"model_id": "gpt2", "source": "mine"}, "begins with its layer"),
    ],
)
def test_names_that_it_does_not_take_are_refused(
    names: dict[str, str], words: str, store: FeatureStore, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        write_batches(store, tmp_path, model_id=names["model_id"], source=names["source"], progress=False)
    assert not any(tmp_path.iterdir())


def test_a_folder_is_of_one_choice(store: FeatureStore, batches: list[Path]) -> None:
    with pytest.raises(FileError, match="another source or choice"):
        write_batches(store, batches[0].parent, model_id="bundled", source="3-mine", progress=False)


class Server(BaseHTTPRequestHandler):
    """Takes batches as Neuronpedia does; refuses the first call with 503, and a batch at will."""

    taken: ClassVar[list[dict[str, Any]]]
    calls: ClassVar[int]
    refused: ClassVar[str | None]

    def do_POST(self) -> None:
        cls = type(self)
        cls.calls += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/api/feature/upload-batch"
        status, words = 200, "{}"
        if self.headers["x-api-key"] != "secret":
            status, words = 401, "no such key"
        elif cls.calls == 1:
            status, words = 503, "busy"
        elif cls.refused == str(body["features"][0]["index"]):
            status, words = 400, '{"error": "Source not found."}'
        else:
            fits(body)
            cls.taken.append(body)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(words.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[tuple[type[Server], str]]:
    class Own(Server):
        taken: ClassVar[list[dict[str, Any]]] = []
        calls: ClassVar[int] = 0
        refused: ClassVar[str | None] = None

    running = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield Own, f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_what_was_sent_is_not_sent_again(
    server: tuple[type[Server], str], batches: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monosem.features.neuronpedia.WAIT", 0.01)
    site, address = server
    second = json.loads(batches[1].read_text())["features"][0]["index"]
    site.refused = str(second)
    with pytest.raises(DataError, match=r"refused batch-0001\.json: 400 .*Source not found"):
        upload(batches[0].parent, "secret", address=address, progress=False)
    site.refused = None
    assert upload(batches[0].parent, "secret", address=address, progress=False) == len(batches) - 1
    assert upload(batches[0].parent, "secret", address=address, progress=False) == 0
    sent = [feature["index"] for body in site.taken for feature in body["features"]]
    assert len(sent) == len(set(sent))
    with pytest.raises(DataError, match="401 no such key"):
        upload(batches[0].parent, "wrong", address=address.replace("127.0.0.1", "localhost"), progress=False)


def test_a_server_that_is_not_there_is_named(
    batches: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("monosem.features.neuronpedia.WAIT", 0.01)
    with pytest.raises(FileError, match="cannot be sent"):
        upload(batches[0].parent, "secret", address="http://127.0.0.1:9", progress=False)
    with pytest.raises(FileError, match="no batches"):
        upload(tmp_path, "secret", progress=False)


def lines(folder: Path) -> list[dict[str, Any]]:
    """Those of all files."""
    contents = [gzip.decompress(path.read_bytes()) for path in sorted(folder.iterdir())]
    return [json.loads(line) for content in contents for line in content.splitlines()]


def test_export_files_have_one_row_each_of_the_same_columns(store: FeatureStore, tmp_path: Path) -> None:
    home = write_export(
        store, tmp_path, model_id="bundled", source="2-mine", latents=range(200), examples=3, progress=False
    )
    assert home == tmp_path / "bundled" / "2-mine"
    rows = lines(home / "features")
    assert sorted(int(row["index"]) for row in rows) == list(range(200))
    assert len({tuple(row) for row in rows}) == 1, "the importer takes its columns from the first row"
    activations = lines(home / "activations")
    assert all(one["values"][one["maxValueTokenIndex"]] == one["maxValue"] for one in activations)
    assert len({one["id"] for one in activations}) == len(activations)
