"""Stored activations: the rows of the model, each once, dealt at random; killed, damaged or out of room, and mended."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

import monosem as ms
from monosem.activations import StoredActivations, batches, store_activations
from monosem.activations.order import shuffled
from monosem.errors import ConfigError, DataError, FileError
from monosem.models import BUNDLED, ModelSet, SubjectModel

HOOKS = ["embed", "resid_post.1"]
OPTIONS: dict[str, Any] = {"context_length": 24, "shard_rows": 128, "window_shards": 4, "progress": False, "seed": 3}
TOKENS = 1_300
"""Two windows of 512 rows, and one of 276 in three shards."""
SCRIPT = """
import sys
sys.path[:0] = [{tests!r}]
import torch
torch.set_num_threads(1)
from transformers import AutoTokenizer
from shared_fixtures import random_gpt2
from monosem.activations import store_activations
from monosem.models import BUNDLED, SubjectModel
model = SubjectModel(random_gpt2(), AutoTokenizer.from_pretrained(str(BUNDLED)), "tiny")
store_activations(model, {hooks!r}, "bundled", {folder!r}, tokens={tokens}, dtype="float32", **{options!r})
"""


@pytest.fixture(scope="module")
def model(make_gpt2: Any) -> SubjectModel:
    return SubjectModel(make_gpt2(), AutoTokenizer.from_pretrained(str(BUNDLED)), "tiny")


@pytest.fixture(scope="module")
def written(model: SubjectModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored") / "acts"
    store_activations(model, HOOKS, "bundled", folder, tokens=TOKENS, dtype="float32", **OPTIONS)
    return folder


@pytest.fixture
def store(written: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(written, tmp_path / "acts"))


def digest(folder: Path) -> dict[str, str]:
    """A hash of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows_of(store: StoredActivations) -> Tensor:
    return torch.cat(list(store.in_order()))


def test_a_computed_order_holds_every_place_once_and_any_part_of_it_is_known_by_itself() -> None:
    for n in [*range(1, 70), 1000, 4097]:
        whole = shuffled(0, n, n, 1, 2)
        assert np.array_equal(np.sort(whole), np.arange(n))
        assert np.array_equal(shuffled(n // 3, n // 2, n, 1, 2), whole[n // 3 : n // 2])
    assert not np.array_equal(shuffled(0, 1000, 1000, 1), shuffled(0, 1000, 1000, 2))
    n = 10**10
    few = shuffled(n - 1000, n, n, 5)
    assert len(set(few.tolist())) == 1000
    assert few.min() < n / 50
    assert few.max() > n - n / 50


def test_places_of_a_computed_order_are_as_random_as_drawn_ones() -> None:
    n, bins = 40_000, 20
    whole = shuffled(0, n, n, 9)
    found = np.histogram2d(np.arange(n), whole, bins)[0]
    expected = n / bins**2
    chi = ((found - expected) ** 2 / expected).sum()
    freedom = (bins - 1) ** 2
    assert abs(chi - freedom) < 4 * (2 * freedom) ** 0.5
    assert abs(np.corrcoef(whole[:-1], whole[1:])[0, 1]) < 0.02


def test_it_holds_what_the_model_gives_for_the_first_tokens_each_once(model: SubjectModel, written: Path) -> None:
    store = StoredActivations(written)
    live = ms.activations(model, HOOKS, context_length=24, seed=3)
    expected, places = list[Tensor](), list[Tensor]()
    for part in live.read_from(0):  # type: ignore[attr-defined]
        batch, kept = part.batch, part.kept
        captured = model.capture(batch.inputs, HOOKS)
        expected.append(torch.cat([captured[hook][kept] for hook in HOOKS], 1))
        places.append(torch.stack([batch.document[kept], batch.position[kept], batch.tokens[kept]], 1))
        if sum(map(len, expected)) >= TOKENS:
            break
    wanted = {tuple(place): row for place, row in zip(torch.cat(places).tolist(), torch.cat(expected), strict=True)}
    found, where = rows_of(store), np.concatenate(list(store.places()))
    assert len(store) == len(found) == TOKENS
    assert len({tuple(place) for place in where.tolist()}) == TOKENS
    for place, row in zip(where.tolist(), found, strict=True):
        torch.testing.assert_close(row, wanted[tuple(place)], rtol=0, atol=0)


def test_rows_are_dealt_to_all_shards_of_a_window(written: Path) -> None:
    store = StoredActivations(written)
    assert [window.rows for window in store.store.windows] == [[128] * 4, [128] * 4, [128, 128, 20]]
    first = list(store.places())[:4]
    documents = [set(shard[:, 0].tolist()) for shard in first]
    shared = set.intersection(*documents)
    assert len(shared) > 0.6 * len(set.union(*documents))


def test_a_batch_of_fewer_rows_than_a_window_has_shards_is_dealt_out_too(
    make_gpt2: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SubjectModel(make_gpt2(), tokenizer, "tiny")
    monkeypatch.setattr(model, "contexts_at_once", lambda length: 1)
    options = {**OPTIONS, "shard_rows": 8, "window_shards": 32, "context_length": 24}
    store = store_activations(model, "embed", "bundled", tmp_path, tokens=256, **options)
    assert store.store.windows[0].rows == [8] * 32
    assert rows_of(store).shape == (256, model.d_model)


def test_an_epoch_has_every_row_once_the_next_one_in_another_order_and_pools_can_be_made_again(written: Path) -> None:
    store = StoredActivations(written, buffer_tokens=256)
    assert store._pools_an_epoch == 6  # pyright: ignore[reportPrivateUsage]
    pools = [store.make_pool(number) for number in range(12)]
    everything = rows_of(store).sum(1).sort().values
    for epoch in (pools[:6], pools[6:]):
        assert torch.equal(torch.cat(epoch).sum(1).sort().values, everything)
    assert not torch.equal(pools[0], pools[6])
    again = StoredActivations(written, buffer_tokens=256)
    for number in (7, 2):
        assert torch.equal(again.make_pool(number), pools[number])
    other = StoredActivations(written, buffer_tokens=256, seed=1)
    assert not torch.equal(other.make_pool(0)[:9], pools[0][:9])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_numbers_are_those_of_the_type_to_the_bit(
    model: SubjectModel, written: Path, tmp_path: Path, dtype: Any
) -> None:
    store = store_activations(model, HOOKS, "bundled", tmp_path, tokens=TOKENS, dtype=dtype, **OPTIONS)
    exact = rows_of(StoredActivations(written)).to(getattr(torch, dtype))
    assert torch.equal(rows_of(store), exact.float())
    assert torch.equal(store.make_pool(0), StoredActivations(written).make_pool(0).to(getattr(torch, dtype)).float())
    shard = load_file(tmp_path / "resid_post.1" / "000005.safetensors")["rows"]  # by the library of the format
    assert shard.dtype == getattr(torch, dtype)
    assert torch.equal(shard, exact[5 * 128 :][: len(shard), 32:])


def test_one_hook_point_of_several_pairs_and_models(model: SubjectModel, written: Path, tmp_path: Path) -> None:
    whole = StoredActivations(written)
    alone = ms.activations(written, "blocks.1.hook_resid_post")
    assert torch.equal(alone.make_pool(0), whole.make_pool(0)[:, 32:])
    assert alone.metadata.hook == "resid_post.1"
    assert alone.metadata.context_length == 24
    x, target = whole.pair("embed", "resid_post.1").split(whole.pair("embed", "resid_post.1").make_pool(0))
    assert target is not None
    assert torch.equal(torch.cat([x, target], 1), whole.make_pool(0))
    two = store_activations(ModelSet([model, model]), "resid_post.1", "bundled", tmp_path, tokens=200, **OPTIONS)
    assert two.n_sources == 2
    assert two.split(two.make_pool(0))[0].shape == (200, 2, 32)
    assert two.metadata.models == ["tiny", "tiny"]


def test_a_dictionary_trained_from_a_store_knows_where_its_activations_are_from(
    model: SubjectModel, written: Path
) -> None:
    source = ms.activations(written, "resid_post.1", buffer_tokens=256)
    first = torch.cat([rows for (rows, _), _ in zip(batches(source, 100), range(20), strict=False)])
    assert len(first) == 2000  # more than an epoch
    sae = ms.TopKSAE(32, 64, k=4)
    ms.train(sae, source, tokens=1000, config=ms.TrainingConfig(batch_size=100), progress=False)
    assert sae.metadata.hook == "resid_post.1"
    assert sae.metadata.model == "tiny"
    assert ms.check(sae, model)
    x = torch.cat([source.make_pool(0), source.make_pool(1)])[:200]
    report = ms.evaluate(sae, source, tokens=200, progress=False)
    unexplained = (x - sae(x).reconstruction).square().sum() / (x - x.mean(0)).square().sum()
    assert report["fvu"].value == pytest.approx(unexplained.item(), rel=1e-4)
    whole = ms.evaluate(sae, source, tokens=10 * TOKENS, controls=False, progress=False)
    assert whole.facts["rows"] == TOKENS


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(model: SubjectModel, tmp_path: Path, forks: Any) -> None:
    folder, tokens = tmp_path / "killed", 4_000
    about = {"tests": str(Path(__file__).parents[1]), "hooks": HOOKS, "tokens": tokens, "options": OPTIONS}
    process = forks("-c", SCRIPT.format(folder=str(folder), **about))
    process.until((folder / "windows" / "000000.json").is_file)
    process.kill()
    with pytest.raises(FileError, match=r"of 4,000 tokens are stored so far: run the same"):
        StoredActivations(folder)
    store_activations(model, HOOKS, "bundled", folder, tokens=tokens, dtype="float32", **OPTIONS)
    store_activations(model, HOOKS, "bundled", tmp_path / "whole", tokens=tokens, dtype="float32", **OPTIONS)
    assert digest(folder) == digest(tmp_path / "whole")


def test_more_tokens_are_written_on_to_the_bytes_of_a_longer_store(
    model: SubjectModel, store: Path, tmp_path: Path
) -> None:
    for folder in (store, tmp_path / "longer"):
        store_activations(model, HOOKS, "bundled", folder, tokens=2 * TOKENS, dtype="float32", **OPTIONS)
    assert digest(store) == digest(tmp_path / "longer")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 16
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_damaged_shard_is_found_named_and_rewritten(
    model: SubjectModel, store: Path, written: Path, damage: Any
) -> None:
    shard = store / "resid_post.1" / "000006.safetensors"
    damage(shard)
    with pytest.raises(FileError, match=r"000006\.safetensors.*`monosem store`"):
        StoredActivations(store, buffer_tokens=TOKENS).make_pool(0)
    with pytest.warns(UserWarning, match=r"damaged or not there: .*resid_post\.1/000006\.safetensors: written anew"):
        store_activations(model, HOOKS, "bundled", store, tokens=TOKENS, dtype="float32", **OPTIONS)
    assert digest(store) == digest(written)


@pytest.fixture
def small_disk(mounted: Callable[[str], Path]) -> Path:
    return mounted("512k")


def test_a_full_disk_is_said_before_with_what_is_missing_and_what_is_written_stays(
    model: SubjectModel, small_disk: Path, written: Path
) -> None:
    folder = small_disk / "acts"
    store_activations(model, HOOKS, "bundled", folder, tokens=1024, dtype="float32", **OPTIONS)
    before = digest(folder)
    with pytest.raises(FileError, match=r"disk is full: .* MiB are missing"):
        store_activations(model, HOOKS, "bundled", folder, tokens=4096, dtype="float32", **OPTIONS)
    assert digest(folder) == before
    assert len(StoredActivations(folder)) == 1024
    store_activations(model, HOOKS, "bundled", folder, tokens=TOKENS, dtype="float32", **OPTIONS)
    assert digest(folder) == digest(written)


def test_what_cannot_be_stored_or_read_is_refused_in_a_line(model: SubjectModel, store: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "tokens": TOKENS, "dtype": "float32"}
    with pytest.raises(ConfigError, match=r"another context_length \(24 there, 16 now\)"):
        store_activations(model, HOOKS, "bundled", store, **{**options, "context_length": 16})
    with pytest.raises(ConfigError, match=r"another hooks .*resid_post\.1"):
        store_activations(model, "embed", "bundled", store, **options)
    with pytest.raises(ConfigError, match="another dtype"):
        store_activations(model, HOOKS, "bundled", store, **{**options, "dtype": "bfloat16"})
    with pytest.raises(ConfigError, match=r"dtype must be one of 'float32'.*not 'int8'"):
        store_activations(model, HOOKS, "bundled", tmp_path / "new", **{**options, "dtype": "int8"})
    with pytest.raises(ConfigError, match=r"window_shards must be a whole number of at least 1"):
        store_activations(model, HOOKS, "bundled", tmp_path / "new", **{**options, "window_shards": 0})
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match=r"has no mlp_out\.0; it has embed, resid_post\.1"):
        StoredActivations(store, "mlp_out.0")
    with pytest.raises(FileError, match=r"no index\.json"):
        StoredActivations(tmp_path)
    (store / "windows" / "000001.json").write_text('{"rows": [-1]}')
    with pytest.raises(FileError, match=r"000001\.json cannot be used"):
        StoredActivations(store)


def test_what_float16_cannot_hold_is_not_stored(make_gpt2: Any, tmp_path: Path) -> None:
    module = make_gpt2()
    with torch.no_grad():
        module.get_parameter("transformer.wte.weight").mul_(1e7)
    large = SubjectModel(module, AutoTokenizer.from_pretrained(str(BUNDLED)), "large")
    with pytest.raises(DataError, match=r"float16 holds 65,504: dtype='bfloat16'"):
        store_activations(large, "embed", "bundled", tmp_path / "acts", tokens=500, dtype="float16", **OPTIONS)
    assert not list((tmp_path / "acts").rglob("*.safetensors"))
