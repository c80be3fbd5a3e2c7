"""Features of ready vectors: the rows that fire most, their labels, no tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from monosem.errors import ConfigError, DataError
from monosem.features import FeatureStore, harvest
from monosem.sae import TopKSAE

D, N, ROWS = 6, 12, 400
KINDS = ("oak", "elm", "fir", "yew")


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(ROWS, D, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def sae() -> TopKSAE:
    return TopKSAE(D, N, k=2, seed=1, transform="none")


@pytest.fixture(scope="module")
def store(sae: TopKSAE, x: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    labels = [KINDS[int(row[:4].argmax())] for row in x]
    return harvest(sae, tmp_path_factory.mktemp("rows"), vectors=x, labels=labels, progress=False)


def test_the_rows_that_fire_most_are_those_of_a_plain_pass(store: FeatureStore, sae: TopKSAE, x: torch.Tensor) -> None:
    dense = sae.encode(x).to_dense().detach()
    assert store.n_tokens == ROWS
    for feature in store.features(range(N)):
        own = dense[:, feature.latent]
        assert feature.count == int((own > 0).sum()) == feature.histogram.counts.sum()
        best = own.argsort(descending=True)[: len(feature.top)].tolist()
        assert [example.document for example in feature.top] == best
        np.testing.assert_allclose([e.activation for e in feature.top], own[best], rtol=1e-5)
        assert len(feature.top) == min(12, feature.count)
        assert (feature.firing_tokens, feature.promoted, feature.silent) == ([], [], [])
        assert len(feature.neighbours) == 8
        assert feature.things == "rows"
        for example in feature.near_misses:
            assert own[example.document] == 0


def test_latents_are_named_and_found_by_labels(store: FeatureStore) -> None:
    assert store.rows is not None
    for latent in store.notable(3):
        feature = store[latent]
        labels = [store.rows.label(example.document) for example in feature.top]
        common = max(set(labels), key=labels.count)
        if 2 * labels.count(common) > len(labels):
            assert feature.name == common
        assert f"row {feature.top[0].document}: {labels[0]}" in repr(feature)
        assert f"row {feature.top[0].document}: {labels[0]}" in feature._repr_html_()
    found = store.search(words="oak").to_pylist()
    assert found[0]["how"] == "rows"
    best = store[found[0]["latent"]]
    assert "oak" in [store.rows.label(example.document) for example in best.top]
    with pytest.raises(ConfigError, match="no tokens"):
        store.search(token="oak")


def test_equal_rows_are_one_example(sae: TopKSAE, x: torch.Tensor, tmp_path: Path) -> None:
    twice = torch.cat([x[:50]] * 8)
    for feature in harvest(sae, tmp_path, twice, progress=False).features(range(N)):
        shown = [example.document % 50 for example in feature.top]
        assert len(set(shown)) == len(shown)
        assert feature.name.startswith("row ")


def test_a_table_says_what_its_rows_are(sae: TopKSAE, x: torch.Tensor, tmp_path: Path) -> None:
    names, years = [f"tree {i}" for i in range(ROWS)], list(range(ROWS))
    table = pa.table({"v": x.tolist(), "name": names, "year": years})
    pq.write_table(table, tmp_path / "x.parquet")
    found = harvest(sae, tmp_path / "a", vectors=tmp_path / "x.parquet", progress=False)
    top = found[0].top[0].document
    assert found.rows is not None
    assert found.rows.label(top) == f"name: tree {top} · year: {top}"
    np.save(tmp_path / "x.npy", x.numpy())
    plain = harvest(sae, tmp_path / "b", vectors=tmp_path / "x.npy", progress=False)
    assert plain.rows is not None
    assert plain.rows.label(top) is None
    assert [f.count for f in plain.features(range(N))] == [f.count for f in found.features(range(N))]


def test_what_does_not_fit_is_refused(sae: TopKSAE, x: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="width 6"):
        harvest(sae, tmp_path, vectors=x[:, :5], progress=False)
    with pytest.raises(DataError, match="3 labels for 400 rows"):
        harvest(sae, tmp_path, vectors=x, labels=["a", "b", "c"], progress=False)
    trained = TopKSAE(D, N, k=2)
    trained.metadata.vectors = "x.npy"
    with pytest.raises(ConfigError, match="vectors="):
        harvest(trained, tmp_path, progress=False)


def test_a_run_on_vectors_has_features_and_they_are_explored(
    monosem: Callable[..., Any], tmp_path: Path, x: torch.Tensor
) -> None:
    """Trained, evaluated, harvested again, shown: all from the command line; the remedy that is printed works."""
    np.save(tmp_path / "a.npy", x.numpy())
    run = tmp_path / "run"
    given = [f"--set=vectors={tmp_path / 'a.npy'}", f"--set=evaluation.vectors={tmp_path / 'a.npy'}"]
    sizes = ["--set=sae.n_latents=12", "--set=sae.k=2", "--set=tokens=4000", "--set=training.batch_size=200"]
    assert monosem("train", *given, *sizes, f"--set=output={run}", "--no-evaluation").code == 0
    refused = monosem("explore", run, "--export", tmp_path / "site")
    assert refused.code == 2
    assert f"monosem harvest {run}" in " ".join(refused.err.split())
    assert monosem("harvest", run).code == 0
    shown = monosem("top", run, 1)
    assert shown.code == 0
    assert "of rows, max" in shown.out
    assert monosem("info", run).code == 0
