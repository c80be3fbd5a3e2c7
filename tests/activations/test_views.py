"""Several hook points from one pass, images, rules of positions: the right rows, all in the same order."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import monosem as ms
from monosem.activations import HookView, LiveActivations, Place, activations, batches
from monosem.data import kept_positions
from monosem.errors import ConfigError, DataError, HookError, MismatchError
from monosem.models import SubjectModel
from monosem.sae.metadata import PixelFormat

TEXTS = [f"{'many words ' * (i % 5)}and a number, {i}." for i in range(40)]
HOOKS = ["resid_post.1", "mlp_mid.0", "attn_z.2", "resid_pre.1"]
SMALL: dict[str, Any] = {"context_length": 16, "buffer_tokens": 320, "seed": 3}


@pytest.fixture(scope="module")
def model(make_gpt2: Callable[..., nn.Module], letter_tokenizer: type) -> SubjectModel:
    return SubjectModel(make_gpt2(vocabulary=128), letter_tokenizer(), "letters")


# Several hook points ----------------------------------------------------------------------------------------------


def test_each_hook_point_gives_the_bits_that_it_gives_alone(model: SubjectModel) -> None:
    together = LiveActivations(model, HOOKS, TEXTS, **SMALL)
    assert together.d_in == 32 + 128 + 32 + 32
    for hook in HOOKS:
        alone, view = LiveActivations(model, hook, TEXTS, **SMALL), together.select(hook)
        assert view.d_in == alone.d_in
        for number in (0, 1, 3):
            assert torch.equal(view.pool(number), alone.pool(number))
        assert view.metadata == alone.metadata
        probe = view.probe()
        assert torch.equal(view.probe_activations(probe), alone.probe_activations(alone.probe()))


def test_views_in_step_share_one_pass(model: SubjectModel, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    forward = model.capture

    def counted(inputs: Any, hooks: Any) -> Any:
        passes.append(len(inputs))
        return forward(inputs, hooks)

    monkeypatch.setattr(model, "capture", counted)
    source = LiveActivations(model, HOOKS, TEXTS, **SMALL)
    begun = len(passes)
    streams = [batches(source.select(hook), 50) for hook in HOOKS] + [batches(source.pair(*HOOKS[:2]), 50)]
    for _ in range(12):
        places = {next(stream)[1] for stream in streams}
        assert len(places) == 1
    shared, passes[:] = len(passes) - begun, []
    alone = LiveActivations(model, HOOKS[0], TEXTS, **SMALL)
    begun = len(passes)
    for _ in zip(range(12), batches(alone, 50), strict=False):
        pass
    assert shared == len(passes) - begun


def test_dictionaries_trained_together_hold_one_pool_in_memory(
    model: SubjectModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    make, source = LiveActivations.make_pool, LiveActivations(model, HOOKS, TEXTS, **SMALL)

    def remembered(self: LiveActivations, number: int) -> Tensor:
        alive.append(sum(pool() is not None for pool in pools))
        pool = make(self, number)
        pools.append(weakref.ref(pool))
        return pool

    def refuse(self: HookView, number: int) -> Tensor:
        raise AssertionError("a view made a pool of its own")

    monkeypatch.setattr(LiveActivations, "make_pool", remembered)
    monkeypatch.setattr(HookView, "make_pool", refuse)
    views = {"sae": source.select("resid_post.1"), "pair": source.pair("resid_pre.1", "resid_post.1")}
    saes: dict[str, ms.SAE] = {"sae": ms.TopKSAE(32, 40, k=2), "pair": ms.Transcoder(32, 40, d_out=32, k=2)}
    config = ms.TrainingConfig(batch_size=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these texts are much alike
        ms.train_together(saes, views, tokens=1500, config=config, progress=False)
    assert len(alive) >= 4
    assert alive == [0] * len(alive)


def test_pair_and_stack_are_the_same_rows_side_by_side(model: SubjectModel) -> None:
    source = LiveActivations(model, HOOKS, TEXTS, **SMALL)
    one, other, wide = (source.select(hook).pool(1) for hook in ("resid_post.1", "resid_pre.1", "mlp_mid.0"))
    pair = source.pair("mlp_mid.0", "blocks.1.hook_resid_post")
    x, target = pair.split(pair.pool(1))
    assert torch.equal(x, wide)
    assert target is not None
    assert torch.equal(target, one)
    assert (pair.d_in, pair.d_out, pair.n_sources) == (128, 32, 1)
    assert (pair.metadata.hook, pair.metadata.target_hook) == ("mlp_mid.0", "resid_post.1")
    stack = source.stack(["resid_pre.1", "resid_post.1"])
    x, target = stack.split(stack.pool(1))
    assert target is None
    assert torch.equal(x, torch.stack([other, one], dim=1))
    assert (stack.d_in, stack.d_out, stack.n_sources) == (32, 32, 2)
    assert (stack.metadata.hook, stack.metadata.hooks) == (None, ["resid_pre.1", "resid_post.1"])
    rows, _ = next(batches(source, 30))
    x, target = pair.split(pair.take(rows))
    assert target is not None
    assert torch.equal(torch.cat([x, target], 1), pair.pool(0)[:30])
    probe = pair.probe()
    assert pair.probe_activations(probe).shape[1] == 160


def test_pairs_of_stacks_are_what_a_cross_layer_transcoder_reads_and_predicts(model: SubjectModel) -> None:
    source = LiveActivations(model, ["mlp_in.0", "mlp_in.1", "mlp_out.0", "mlp_out.1"], TEXTS, **SMALL)
    both = source.pair(["mlp_in.0", "mlp_in.1"], ["mlp_out.0", "mlp_out.1"])
    x, target = both.split(both.pool(0))
    assert target is not None
    assert x.shape == target.shape == (len(x), 2, 32)
    assert torch.equal(x[:, 1], source.select("mlp_in.1").pool(0))
    assert torch.equal(target[:, 0], source.select("mlp_out.0").pool(0))
    known = both.metadata
    assert (known.hook, known.hooks, known.target_hook) == (None, ["mlp_in.0", "mlp_in.1"], None)
    assert known.target_hooks == ["mlp_out.0", "mlp_out.1"]
    with pytest.raises(ConfigError, match="2 hook points and 1 targets"):
        source.pair(["mlp_in.0", "mlp_in.1"], ["mlp_out.0"])


@pytest.mark.filterwarnings("ignore:.*rows occur again")  # the texts begin alike
def test_models_side_by_side_are_read_token_by_token(
    model: SubjectModel, make_gpt2: Callable[..., nn.Module], letter_tokenizer: type
) -> None:
    chat = SubjectModel(make_gpt2(vocabulary=128, seed=1), letter_tokenizer(), "chat")
    both = ms.activations(ms.ModelSet([model, chat]), "resid_post.1", TEXTS, **SMALL, max_norm_ratio=50)
    x, target = both.split(both.pool(1))
    assert target is None
    for i, one in enumerate((model, chat)):
        alone = ms.activations(one, "resid_post.1", TEXTS, **SMALL)
        assert torch.equal(x[:, i], alone.pool(1))
    crosscoder = ms.Crosscoder(d_in=both.d_in, n_latents=24, n_sources=both.n_sources, k=4)
    config = ms.TrainingConfig(batch_size=32)
    ms.train(crosscoder, both, tokens=128, config=config, progress=False)
    known = crosscoder.metadata
    assert (known.model, known.models, known.hook) == (None, ["letters", "chat"], "resid_post.1")
    assert known.model_fingerprint == f"{model.fingerprint()} + {chat.fingerprint()}"
    assert known.max_norm is not None
    assert list(known.max_norm) == ["resid_post.1 of letters", "resid_post.1 of chat"]
    two = LiveActivations(ms.ModelSet([model, chat]), ["mlp_in.1", "mlp_out.1"], TEXTS, **SMALL)
    between = two.pair("mlp_in.1", "mlp_out.1")
    x, target = between.split(between.pool(0))
    assert target is not None
    assert torch.equal(target[:, 1], LiveActivations(chat, "mlp_out.1", TEXTS, **SMALL).pool(0))
    assert torch.equal(two.select("mlp_in.1").split(two.select("mlp_in.1").pool(0))[0], x)
    with pytest.raises(MismatchError, match="the SAE reads one activation, the source has 2 side by side"):
        ms.train(ms.TopKSAE(32, 24, k=4), both, tokens=128, config=config, progress=False)


def test_hook_points_that_do_not_fit_are_refused(model: SubjectModel) -> None:
    source = LiveActivations(model, HOOKS[:2], TEXTS, **SMALL)
    with pytest.raises(ConfigError, match=r"equal width.*resid_post\.1: 32, mlp_mid\.0: 128"):
        source.stack()
    with pytest.raises(ConfigError, match=r"does not read resid_post\.0"):
        source.select("resid_post.0")
    with pytest.raises(HookError):
        source.select("resid_post.9")
    with pytest.raises(ConfigError, match="several different"):
        activations(model, ["embed", "embed"], TEXTS)
    assert isinstance(source.select("mlp_mid.0"), HookView)


# Rules ------------------------------------------------------------------------------------------------------------


def rows_by_hand(model: SubjectModel, source: LiveActivations, n_contexts: int) -> Tensor:
    batch = source.contexts.read(0, n_contexts)
    x = model.capture(batch.inputs, ["resid_post.1"])["resid_post.1"]
    return x[kept_positions(batch, **source.positions)]


def missing(rows: Tensor, among: Tensor) -> int:
    """How many rows are not (nearly) among others: a batch's size changes last bits."""
    return int((torch.cdist(rows.double(), among.double()).min(1).values > 1e-3).sum())


@pytest.mark.parametrize(
    "rule",
    [{"skip_first": 4}, {"last_only": True}, {"packing": False}, {"packing": False, "last_only": True}],
    ids=str,
)
def test_rows_are_those_of_the_positions_that_the_rule_keeps(model: SubjectModel, rule: dict[str, Any]) -> None:
    size = 60 if "last_only" in rule else 320
    source = LiveActivations(model, "resid_post.1", TEXTS, **{**SMALL, **rule, "buffer_tokens": size})
    rows = torch.cat([source.pool(number) for number in range(3)])
    block = source._block_contexts
    sure, possible = rows_by_hand(model, source, 2 * block), rows_by_hand(model, source, 3 * block)
    assert missing(sure, rows) == missing(rows, possible) == 0
    assert len(sure) < len(rows) <= len(possible)
    known = source.metadata
    for name, value in rule.items():
        assert getattr(known, name) == value
    probe = source.probe()
    assert torch.equal(source.probe_activations(probe), source.probe_activations(source.probe()))
    assert missing(source.probe_activations(probe), rows_by_hand(model, source, 32)) == 0
    assert 0.6 * size < len(rows) / 2.5 <= 1.2 * size, "a block is about as many rows as the buffer holds"


@pytest.mark.parametrize("rule", [{}, {"last_only": True}, {"skip_first": 2}], ids=str)
def test_short_documents_are_read_by_length_and_buffers_are_counted_in_rows(
    model: SubjectModel, monkeypatch: pytest.MonkeyPatch, rule: dict[str, Any]
) -> None:
    """Of documents of 1 to 14 tokens in contexts of 60, hardly any padding goes through the model."""
    texts = ["abcdefghijklmn"[: 1 + 5 * i % 14] for i in range(3000)]
    options: dict[str, Any] = {"context_length": 60, "packing": False, "buffer_tokens": 1000, "seed": 1, **rule}
    positions = {"all": 0, "padding": 0}
    forward = model.capture

    def counted(inputs: Any, hooks: Any) -> Any:
        positions["all"] += inputs["input_ids"].numel()
        positions["padding"] += int((inputs["attention_mask"] == 0).sum())
        return forward(inputs, hooks)

    source = LiveActivations(model, "resid_post.1", texts, **options)
    monkeypatch.setattr(model, "capture", counted)
    pools = [source.make_pool(number) for number in range(4)]
    assert positions["padding"] < 0.25 * positions["all"]
    for pool in pools[1:]:
        assert 700 < len(pool) < 1200
    monkeypatch.undo()
    fresh = LiveActivations(model, "resid_post.1", texts, **options)
    assert torch.equal(fresh.make_pool(2), pools[2])
    by_hand = rows_by_hand(model, source, 3 * source._block_contexts)
    assert missing(torch.cat(pools[:3])[::7], by_hand) == 0


def test_where_there_is_nothing_to_read_it_is_said_at_once(model: SubjectModel) -> None:
    with pytest.raises(DataError, match=r"nothing that the SAE reads in 4,096 .*skip_first=15") as error:
        LiveActivations(model, "embed", ["abc", "de"] * 400, **SMALL, packing=False, skip_first=15)
    assert "exclude_special=True" in str(error.value)


def test_padding_does_not_change_what_stands_before_it(model: SubjectModel) -> None:
    source = LiveActivations(model, "resid_post.1", ["abc def"], context_length=16, packing=False, buffer_tokens=16)
    alone = model.capture(torch.tensor([[1, *map(ord, "abc def")]]), ["resid_post.1"])["resid_post.1"][0, 1:]
    assert missing(alone, torch.cat([source.pool(0), source.pool(1)])) == 0


def test_rows_of_extreme_norm_are_left_out_and_the_limit_is_remembered(
    make_gpt2: Callable[..., nn.Module], letter_tokenizer: type
) -> None:
    module = make_gpt2(vocabulary=128)
    with torch.no_grad():
        module.get_parameter("transformer.wte.weight")[ord(",")] *= 1000
    model = SubjectModel(module, letter_tokenizer(), "letters")

    def rows(**options: Any) -> tuple[Tensor, LiveActivations]:
        source = LiveActivations(model, ["embed", "mlp_out.0"], TEXTS, **SMALL, **options)
        return torch.cat([source.pool(number) for number in range(3)]), source

    every, _ = rows()
    some, source = rows(max_norm_ratio=10)
    norms = every[:, :32].norm(dim=-1)
    sinks = norms > 10 * norms.median()
    assert 5 < sinks.sum() < len(every) / 10
    assert torch.equal(some.sort(0).values, every[~sinks].sort(0).values)
    known = source.select("embed").metadata
    assert known.max_norm_ratio == 10
    assert known.max_norm is not None
    assert known.max_norm["embed"] == pytest.approx(10 * norms.median().item(), rel=0.1)
    fresh = LiveActivations(model, ["embed", "mlp_out.0"], TEXTS, **SMALL, max_norm_ratio=10)
    assert torch.equal(fresh.pool(2), source.pool(2))


# Reading ahead ----------------------------------------------------------------------------------------------------


def test_an_error_in_the_model_or_the_text_leaves_no_thread(model: SubjectModel, monkeypatch: Any) -> None:
    source = LiveActivations(model, "embed", TEXTS, **SMALL)
    source.pool(0)

    def torn(*_: Any) -> None:
        raise DataError("torn page")

    monkeypatch.setattr(source.contexts, "_tokenise", torn)
    with pytest.raises(DataError, match="torn page"):
        list(batches(source, 50, Place(1)))
    assert 0 <= source.idle_share <= 1
    for thread in [t for t in threading.enumerate() if t.name == "monosem-read-ahead"]:
        thread.join(5)
        assert not thread.is_alive()


# Images -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vit() -> SubjectModel:
    """A random ViT of 2 layers: 4 x 4 patches of 4 x 4 pixels, and a class token."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, image_size=16, patch_size=4
    )
    return SubjectModel(ViTModel(config).eval(), name="vit")


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), dtype=np.uint8)


def layer_of(model: SubjectModel) -> str:
    """The module path of the first block, whatever this version of transformers calls it."""
    return next(p for p, m in model.module.named_modules() if type(m).__name__ == "ViTLayer")


@pytest.mark.parametrize("exclude_special", [True, False])
def test_an_image_model_gives_a_row_for_every_patch(
    vit: SubjectModel, photos: np.ndarray, exclude_special: bool
) -> None:
    hook = layer_of(vit)
    options: dict[str, Any] = {"images": photos, "buffer_tokens": 170, "exclude_special": exclude_special, "seed": 1}
    source = LiveActivations(vit, hook, **options)
    in_order = [source.pool(number) for number in range(7)]
    pixels = (torch.from_numpy(photos).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    by_hand = vit.capture(pixels, [hook])[hook]
    assert by_hand.shape == (50, 17, 24)
    wanted = (by_hand[:, 1:] if exclude_special else by_hand).reshape(-1, 24)
    rows = torch.cat(in_order)
    assert missing(wanted, rows) == missing(rows, wanted) == 0
    assert len(rows) > len(wanted)
    fresh = LiveActivations(vit, hook, **options)
    assert all(torch.equal(fresh.pool(number), in_order[number]) for number in (4, 2))
    known = source.metadata
    assert known.images == "50 images given as ndarray of shape (50, 16, 16, 3)"
    assert known.pixels == PixelFormat(height=16, width=16)
    assert known.text is None
    assert source.probe()["activations"].shape == (len(source.pool(0)[:256]), 24)


def test_an_unreadable_image_gives_no_rows(vit: SubjectModel, tmp_path: Any, photos: np.ndarray) -> None:
    from PIL import Image

    for number in range(6):
        Image.fromarray(photos[number]).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"none")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = LiveActivations(vit, layer_of(vit), images=tmp_path, buffer_tokens=6 * 17)
        rows = torch.cat([source.pool(0), source.pool(1)])
    assert ["3.png" in str(w.message) for w in caught] == [True]
    known = source.metadata
    pixels = (torch.from_numpy(photos[:6]).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    x = vit.capture(pixels, [layer_of(vit)])[layer_of(vit)][:, 1:]
    assert missing(rows, x[[0, 1, 2, 4, 5]].reshape(-1, 24)) == 0
    assert missing(x[3], rows) == 16
    assert known.documents_skipped == 1


def test_the_wrong_kind_of_data_is_said_to_be_so(vit: SubjectModel, model: SubjectModel, photos: np.ndarray) -> None:
    with pytest.raises(DataError, match="letters reads text, not images"):
        activations(model, "embed", images=photos)
    with pytest.raises(DataError, match="vit reads images"):
        activations(vit, layer_of(vit), "bundled")
    with pytest.raises(ConfigError, match="last_only is for text"):
        activations(vit, layer_of(vit), images=photos, last_only=True)
    bare = SubjectModel(nn.Sequential(nn.Conv2d(3, 4, 2)), name="bare")
    with pytest.raises(ConfigError, match="pixels=PixelFormat"):
        activations(bare, "0", images=photos)
    with pytest.raises(DataError, match=r"0 gives \(1, 4, 15, 15\)"):
        activations(bare, "0", images=photos, pixels=PixelFormat(height=16, width=16))
    with pytest.raises(ConfigError, match="images are read by a model"):
        activations(torch.ones(3, 2), images=photos)
