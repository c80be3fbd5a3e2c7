"""Stores at an address: the bits of a folder's, ahead of need, in bounded room; and what goes wrong, in a line each."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from moto.server import ThreadedMotoServer
from transformers import AutoTokenizer

import monosem as ms
from monosem.activations import StoredActivations, store_activations
from monosem.errors import ConfigError, FileError
from monosem.models import BUNDLED, SubjectModel

HOOKS = ["embed", "resid_post.1"]
OPTIONS: dict[str, Any] = {"context_length": 24, "shard_rows": 128, "window_shards": 4, "progress": False, "seed": 3}
SHARD_BYTES = 256 + 128 * 32 * 4


@pytest.fixture(scope="module")
def written(make_gpt2: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = SubjectModel(make_gpt2(), AutoTokenizer.from_pretrained(str(BUNDLED)), "tiny")
    folder = tmp_path_factory.mktemp("remote") / "acts"
    store_activations(model, HOOKS, "bundled", folder, tokens=1_300, dtype="float32", **OPTIONS)
    return folder


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """The file system of a server that speaks S3, with a bucket in it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "word"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        system = fsspec.filesystem("s3")
        system.mkdir("bucket")
        yield system
    server.stop()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what is fetched, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "monosem" / "stores"


@pytest.fixture
def address(bucket: Any, written: Path, tmp_path: Path) -> str:
    """Of a copy of the store."""
    name = f"bucket/{tmp_path.name}"
    bucket.put(f"{written}/", f"{name}/", recursive=True)
    return f"s3://{name}"


def shards_in(cache: Path) -> list[Path]:
    return [path for path in cache.glob("*/*") if path.suffix == ".safetensors" and "--" in path.name]


def test_a_store_on_s3_is_read_as_one_in_a_folder_to_the_bit(address: str, written: Path, cache: Path) -> None:
    here, there = (ms.activations(path, buffer_tokens=256) for path in (written, address))
    for number in range(8):
        assert torch.equal(there.make_pool(number), here.make_pool(number))
    assert there.identity() == here.identity()
    assert there.metadata == here.metadata
    assert isinstance(there, StoredActivations)
    assert isinstance(here, StoredActivations)
    assert torch.equal(torch.cat(list(there.in_order())), torch.cat(list(here.in_order())))
    assert np.array_equal(np.concatenate(list(there.places())), np.concatenate(list(here.places())))
    assert there.probe().keys() == here.probe().keys()
    trained = []
    for source in (here, there):
        sae = ms.TopKSAE(32, 64, k=4, seed=0)
        config = ms.TrainingConfig(batch_size=100)
        ms.train(sae, source.select("resid_post.1"), tokens=1000, config=config, progress=False)
        trained.append(sae)
    assert torch.equal(trained[0].W_dec, trained[1].W_dec)


def test_what_the_next_pool_needs_is_fetched_while_this_one_is_worked_on(address: str, cache: Path) -> None:
    store = StoredActivations(address, "embed", buffer_tokens=256)
    store.make_pool(0)
    until = time.monotonic() + 60
    while len(shards_in(cache)) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(shards_in(cache)) == 4
    assert not list(cache.glob("*/*.part"))


def test_no_more_is_kept_than_was_said_and_nothing_is_fetched_twice_that_is_kept(
    address: str, bucket: Any, written: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONOSEM_CACHE_GIB", str(4.5 * SHARD_BYTES / 2**30))
    store, here = (StoredActivations(path, "embed", buffer_tokens=128) for path in (address, written))
    for number in range(22):
        assert torch.equal(store.make_pool(number), here.make_pool(number))
        assert len(shards_in(cache)) <= 5
    monkeypatch.setenv("MONOSEM_CACHE_GIB", "1")
    list(StoredActivations(address, "embed").in_order())
    assert len(shards_in(cache)) == 11
    bucket.rm(f"{address}/embed/000004.safetensors")
    with pytest.raises(FileError, match=r"embed/000004\.safetensors does not exist: copy it there again"):
        StoredActivations(address, "embed")
    assert torch.equal(torch.cat(list(store.in_order())), torch.cat(list(here.in_order())))


def test_a_damaged_shard_is_named_and_a_damaged_copy_is_fetched_again(
    address: str, bucket: Any, written: Path, cache: Path
) -> None:
    store = StoredActivations(address, "embed", buffer_tokens=2000)
    whole = store.make_pool(0)
    for path in shards_in(cache):
        content = bytearray(path.read_bytes())
        content[-7] ^= 16
        path.write_bytes(content)
    assert torch.equal(StoredActivations(address, "embed", buffer_tokens=2000).make_pool(0), whole)
    content = bytearray((written / "embed" / "000006.safetensors").read_bytes())
    content[-7] ^= 16
    bucket.pipe(f"{address}/embed/000006.safetensors", bytes(content))
    shutil.rmtree(cache)
    with pytest.raises(FileError, match=r"s3://.*embed/000006\.safetensors is damaged.*copy it there again"):
        StoredActivations(address, "embed", buffer_tokens=2000).make_pool(0)
    bucket.pipe(f"{address}/embed/000006.safetensors", bytes(content[:-9]))
    with pytest.raises(FileError, match=r"000006\.safetensors is damaged: it has [\d,]+ of [\d,]+ bytes: copy it"):
        StoredActivations(address, "embed")


def test_any_address_that_fsspec_knows_is_read(written: Path, tmp_path: Path, cache: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(f"{written}/", "/acts/", recursive=True)
    handler = partial(SimpleHTTPRequestHandler, directory=str(written.parent))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    addresses = ["memory://acts", f"file://{written}", f"http://127.0.0.1:{server.server_address[1]}/acts"]
    wanted = StoredActivations(written).make_pool(0)
    for address in addresses:
        store = ms.activations(address)
        assert isinstance(store, StoredActivations)
        assert torch.equal(store.make_pool(0), wanted), address
    server.shutdown()
    server.server_close()


def test_what_cannot_be_reached_is_said_in_a_line(address: str, bucket: Any, cache: Path, tiny: SubjectModel) -> None:
    for wrong, words in (
        ("s3://bucket/nothing_here", r"s3://bucket/nothing_here holds no activations \(no index\.json\)"),
        ("s3://no-such-bucket/acts", r"s3://no-such-bucket/acts holds no activations"),
        ("nosuch://acts", r"nosuch://acts cannot be re"),
        ("gs://bucket/acts", r"gs://bucket/acts cannot be reached .*gcsfs.*pip install"),
        ("http://127.0.0.1:9/acts", r"http://127\.0\.0\.1:9/acts cannot be read .*the network"),
    ):
        with pytest.raises(FileError, match=words) as raised:
            ms.activations(wrong)
        assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"s3://bucket/new: a store is written into a folder of this machine"):
        ms.store_activations(tiny, "embed", path="s3://bucket/new")
    store = StoredActivations(address, "embed", buffer_tokens=128)
    store.make_pool(0)
    bucket.rm(address, recursive=True)
    with pytest.raises(FileError, match=r"embed/\d+\.safetensors does not exist"):
        list(store.in_order())
