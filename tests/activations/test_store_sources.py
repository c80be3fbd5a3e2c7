"""A store in place of a model: pairs, crosscoders, transcoders, evaluation and features without a forward."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

import monosem as ms
from monosem.activations import StoredActivations, store_activations
from monosem.activations.shards import FORMAT, PLACES, VERSION, ShardWriter, StoreIndex, Window, shard_name, write_index
from monosem.errors import DataError, MismatchError
from monosem.files import write_json
from monosem.intervals import DocumentSums
from monosem.models import BUNDLED, ModelSet, SubjectModel
from monosem.sae import SAEMetadata

OPTIONS: dict[str, Any] = {"context_length": 24, "shard_rows": 128, "window_shards": 4, "progress": False, "seed": 3}
TOKENS = 700
TEXTS = [f"Once upon a time there were {n} cats. " + "They liked fish and milk. " * (n % 3) for n in range(200)]
HOOKS = ["mlp_in.1", "mlp_out.1", "resid_post.0", "resid_post.1"]
SMALL = ms.TrainingConfig(batch_size=100)


@pytest.fixture(scope="module")
def models(make_gpt2: Any) -> ModelSet:
    tokenizer = AutoTokenizer.from_pretrained(str(BUNDLED))
    return ModelSet([SubjectModel(make_gpt2(seed=seed), tokenizer, f"tiny {seed}") for seed in (0, 1)])


@pytest.fixture(scope="module")
def store(models: ModelSet, tmp_path_factory: pytest.TempPathFactory) -> StoredActivations:
    folder = tmp_path_factory.mktemp("sources") / "acts"
    return store_activations(models.models[0], HOOKS, TEXTS, folder, tokens=TOKENS, dtype="float32", **OPTIONS)


def epoch(store: StoredActivations) -> tuple[Tensor, Tensor]:
    """All rows in the order of the first epoch, and their documents."""
    numbers = range(-(-TOKENS // (128 * store._a_pool)))  # pyright: ignore[reportPrivateUsage]
    return torch.cat([store.make_pool(i) for i in numbers]), torch.cat([store.documents(i) for i in numbers])


def test_documents_go_with_their_rows(store: StoredActivations) -> None:
    few = StoredActivations(store.store.path, buffer_tokens=256)  # type: ignore[arg-type]
    stored, places = torch.cat(list(store.in_order())).numpy(), np.concatenate(list(store.places()))
    known: dict[bytes, set[int]] = {}  # the same words at the beginning of several documents give the same row
    for row, document in zip(stored, places[:, 0].tolist(), strict=True):
        known.setdefault(row.tobytes(), set()).add(document)
    rows, documents = epoch(few)
    assert len(set(documents.tolist())) > 10
    assert sorted(documents.tolist()) == sorted(places[:, 0].tolist())
    assert all(document in known[row.tobytes()] for row, document in zip(rows.numpy(), documents.tolist(), strict=True))


def test_it_is_measured_as_rows_are_with_intervals_over_its_documents(store: StoredActivations) -> None:
    source = store.select("resid_post.1")
    sae = ms.TopKSAE(32, 64, k=4)
    ms.train(sae, source, tokens=2000, config=SMALL, progress=False)
    report = ms.evaluate(sae, source, tokens=TOKENS, progress=False)
    rows, documents = epoch(store)
    x = source.take(rows)
    alike = ms.evaluate(sae, x, progress=False)
    for name in ("fvu", "l0", "cosine"):
        assert report[name].value == pytest.approx(alike[name].value, rel=1e-6)
    assert report.columns["PCA"]["fvu"].value == pytest.approx(alike.columns["PCA"]["fvu"].value, rel=1e-6)
    sums, centred = DocumentSums(), (x - x.mean(0)).double()
    with torch.no_grad():
        error = (x - sae(x).reconstruction).double().square().sum(1)
    for name, values in (
        ("rows", torch.ones(len(x))),
        ("error", error),
        ("x", centred),
        ("energy", centred.square().sum(1)),
    ):
        sums.add(name, documents.numpy(), values.numpy())
    fvu = sums.interval(lambda s: s["error"] / (s["energy"] - (s["x"] ** 2).sum(-1) / s["rows"]))
    assert report["fvu"] == pytest.approx(fvu, rel=1e-5)
    assert report["fvu"].low != pytest.approx(alike["fvu"].low, rel=1e-3)
    assert report.facts["data"] == str(store.store.path)
    assert report.facts["rows"] == TOKENS
    small = ms.evaluate(sae, source, tokens=250, controls=False, progress=False)
    assert small.facts["rows"] == 250


def test_transcoders_and_crosscoders_of_hook_points_learn_from_it(store: StoredActivations) -> None:
    pair, both = store.pair("mlp_in.1", "mlp_out.1"), store.stack(["resid_post.0", "resid_post.1"])
    for sae, source in ((ms.Transcoder(32, 64, k=4), pair), (ms.Crosscoder(32, 64, k=4, n_sources=2), both)):
        ms.train(sae, source, tokens=3000, config=SMALL, progress=False)
        report = ms.evaluate(sae, source, tokens=TOKENS, progress=False)
        x, target = source.split(source.take(epoch(store)[0]))
        goal = (x if target is None else target).flatten(1)
        unexplained = (goal - sae(x).reconstruction.flatten(1)).square().sum() / (goal - goal.mean(0)).square().sum()
        assert report["fvu"].value == pytest.approx(unexplained.item(), rel=1e-4)
    assert pair.metadata.target_hook == "mlp_out.1"
    assert both.metadata.hooks == ["resid_post.0", "resid_post.1"]
    with pytest.raises(MismatchError, match=r"reads width 16, the activations have width 32"):
        ms.train(ms.TopKSAE(16, 64, k=4), store.select("resid_post.1"), tokens=100, progress=False)
    with pytest.raises(MismatchError, match=r"reads one activation, the source has 2 side by side"):
        ms.train(ms.TopKSAE(32, 64, k=4), both, tokens=100, progress=False)


def test_two_models_at_two_hook_points_stand_in_one_store(models: ModelSet, tmp_path: Path) -> None:
    hooks = ["resid_post.0", "resid_post.1"]
    store_activations(models, hooks, "bundled", tmp_path / "two", tokens=300, dtype="float32", **OPTIONS)
    store = StoredActivations(tmp_path / "two")
    source = store.select("resid_post.1")
    x, _ = source.split(source.make_pool(0))
    assert x.shape == (300, 2, 32)
    live = ms.activations(models, hooks, context_length=24, seed=3)
    rows = next(iter(live.read_from(0))).rows  # type: ignore[attr-defined]
    here = torch.cat(list(store.in_order()))
    assert all((here == row).all(1).any() for row in rows[:40])
    sae = ms.Crosscoder(32, 64, k=4, n_sources=2)
    ms.train(sae, source, tokens=1000, config=SMALL, progress=False)
    assert sae.metadata.models == ["tiny 0", "tiny 1"]
    assert ms.evaluate(sae, source, tokens=300, progress=False).facts["rows"] == 300
    assert ms.evaluate(sae, models, text=["Once upon a time. " * 20], loss_tokens=64, progress=False)["fvu"].value > 0


def test_features_are_harvested_from_its_rows_with_where_each_is_from(store: StoredActivations, tmp_path: Path) -> None:
    source = store.select("resid_post.1")
    sae = ms.TopKSAE(32, 64, k=4)
    ms.fit(sae, source, tokens=2000, config=SMALL, progress=False)
    found = ms.harvest(sae, tmp_path / "features", source, progress=False)
    x = source.take(torch.cat(list(store.in_order())))
    again = ms.harvest(sae, tmp_path / "again", x, progress=False)
    latent = int(sae.encode(x).to_dense().sum(0).argmax())
    ours, theirs = found[latent], again[latent]
    assert (ours.count, ours.rate) == (theirs.count, theirs.rate)
    number = ours.top[0].document
    assert number == theirs.top[0].document
    document, position, token = np.concatenate(list(store.places()))[number].tolist()
    assert found.rows is not None
    assert found.rows.label(number) == f"document {document}, position {position}, token {token}"
    with pytest.raises(DataError, match="an array, a file or a store"):
        ms.harvest(sae, tmp_path / "none", ms.activations([x]), progress=False)


def test_a_reader_of_ten_billion_rows_holds_its_buffer_and_little_more(tmp_path: Path) -> None:
    rows, at_once, columns = 10**10, 2**20, 1
    n_shards = -(-rows // at_once)
    writer = ShardWriter(tmp_path / "whole", columns, "bfloat16")
    writer.append(np.zeros((at_once, columns), np.uint16))
    writer.close()
    (tmp_path / "acts").mkdir()
    for number in range(n_shards):  # one file under many names
        os.link(tmp_path / "whole", tmp_path / "acts" / shard_name(number))
    for number in range(-(-n_shards // 512)):
        counts = [at_once] * min(512, n_shards - number * 512)
        sums = {name: [writer.sum] * len(counts) for name in ("acts", PLACES)}
        about = Window(rows=counts, sums=sums, context=0, row=0)
        write_json(tmp_path / "windows" / f"{number:06d}.json", about.model_dump())
    index: dict[str, Any] = {"format": FORMAT, "format_version": VERSION, "monosem_version": "", "complete": True}
    index |= {"identity": {}, "metadata": SAEMetadata(), "hooks": {"acts": columns}, "n_models": 1, "dtype": "bfloat16"}
    layout = {"tokens": n_shards * at_once, "shard_rows": at_once, "window_shards": 512}
    write_index(tmp_path, StoreIndex.model_validate({**index, **layout}))
    tracemalloc.start()
    store = StoredActivations(tmp_path, buffer_tokens=2 * at_once)
    store.identity()
    buffer = max(store.make_pool(number).nbytes for number in (0, n_shards // 4, n_shards))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert buffer == 8 * at_once
    assert most < 2 * buffer + 32 * 2**20  # a pool, what sorts its documents, and 9,537 sums
