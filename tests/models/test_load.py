"""load_model: the class that the config names, what stands beside the weights, and what is no model."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import FAMILY_MODELS, IMAGE, PIXELS, TEXT, randomise
from pace import pace
from torch import nn

from monosem import kernels
from monosem.errors import ConfigError, DataError, FileError
from monosem.models import SubjectModel, load_model


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Local folders must load without it."""

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", fail)
    monkeypatch.setattr("socket.getaddrinfo", fail)


def slow_in(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """A warning is wanted where this processor is slow in that precision."""
    slow = kernels.speed(dtype, torch.device("cpu")) < kernels.SLOW
    return pytest.warns(UserWarning, match="times slower") if slow else nullcontext()


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_every_family_loads_as_what_was_saved(name: str, tmp_path: Path) -> None:
    spec = FAMILY_MODELS[name]
    saved = SubjectModel(spec.build())
    saved.module.save_pretrained(tmp_path / "m")
    loaded = load_model(tmp_path / "m", device="cpu", dtype=torch.float64)
    assert type(loaded.module) is type(saved.module)
    assert (loaded.tokenizer, loaded.processor) == (None, None)
    assert loaded.fingerprint() == saved.fingerprint()
    for (name, ours), theirs in zip(loaded.module.named_parameters(), saved.module.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert loaded.hook_points == saved.hook_points
    with slow_in(torch.bfloat16):
        in_half = load_model(tmp_path / "m", device="cpu", dtype=torch.bfloat16)
    assert in_half.fingerprint() == load_model(tmp_path / "m", device="cpu").fingerprint()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_module_in_half_precision_says_so_where_that_is_slow(dtype: torch.dtype) -> None:
    with slow_in(dtype):
        load_model(nn.Sequential(nn.Linear(3, 4)).to(dtype))
    load_model(nn.Sequential(nn.Linear(3, 4)))


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("llama", "LlamaForSequenceClassification"),
        ("gpt2", "GPT2ForSequenceClassification"),
        ("bert", "BertForSequenceClassification"),
        ("llama", "LlamaModel"),
        ("bert", "BertModel"),
    ],
)
def test_reward_models_and_bare_encoders_keep_their_head_or_its_absence(
    family: str, head: str, tmp_path: Path, tokenizer: Any
) -> None:
    spec = FAMILY_MODELS[family]
    saved = SubjectModel(spec.build(head, num_labels=1))
    saved.module.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, device="cpu", dtype=torch.float64)
    assert type(loaded.module).__name__ == head
    assert loaded.tokenizer_fingerprint() == SubjectModel(nn.Linear(1, 1), tokenizer).tokenizer_fingerprint()
    if "Sequence" in head:
        assert loaded(spec.inputs()).shape == (2, 1)
        torch.testing.assert_close(loaded(spec.inputs()), saved(spec.inputs()), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_of_a_model_with_two_halves_the_image_half_is_taken_with_its_processor(kind: str, tmp_path: Path) -> None:
    import transformers

    halves = {"text_config": {**TEXT, "max_position_embeddings": 12}, "vision_config": PIXELS}
    whole = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**halves))
    randomise(whole).save_pretrained(tmp_path)
    size = {"height": IMAGE, "width": IMAGE}
    crop = {"crop_size": size} if kind == "CLIP" else {}
    getattr(transformers, f"{kind}ImageProcessorPil")(size=size, **crop).save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu", dtype=torch.float64)
    pixels = model.pixels(torch.randint(0, 255, (3, 20, 20), dtype=torch.uint8))
    assert pixels.shape == (1, 3, IMAGE, IMAGE)
    expected = SubjectModel(whole).capture(pixels, ["resid_post.1"])["resid_post.1"]
    torch.testing.assert_close(model.capture(pixels, ["resid_post.1"])["resid_post.1"], expected, rtol=0, atol=1e-10)
    assert model.tokenizer is None
    with pytest.raises(DataError, match="reads images, not text"):
        model.capture("a text", ["embed"])


def test_weights_that_are_not_all_there_are_refused(tmp_path: Path) -> None:
    """Transformers would fill them with random numbers."""
    from safetensors.torch import load_file, save_file

    spec = FAMILY_MODELS["llama"]
    spec.build().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(FileError) as error:
        load_model(tmp_path)
    assert "lack 1 that LlamaForCausalLM needs, as model.layers.1.mlp.down_proj.weight" in one_line(error)


@pytest.mark.parametrize(
    "wrong", ["runs/typo", "runs/old/typo", "no/such/folder", "./typo", "runs/file", "~/no-such-m"]
)
def test_what_looks_like_a_folder_and_is_none_fails_at_once(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, monosem: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "file").write_text("")
    start = time.perf_counter()
    with pytest.raises(FileError) as error:
        load_model(wrong)
    assert f"{wrong} is not a folder" in one_line(error)
    with pytest.raises(FileError):
        load_model(Path("typo"))
    assert time.perf_counter() - start < pace(time.monotonic)
    if wrong not in ("runs/file", "no/such/folder"):  # `info` says more of a file; the other may be a name of the hub
        outcome = monosem("info", wrong)
        assert outcome.code != 0
        said = " ".join(outcome.err.split())
        assert f"{wrong} is not a folder" in said or f"{wrong} does not exist" in said


def test_a_module_spread_over_devices_is_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    module = FAMILY_MODELS["llama"].build()
    module.hf_device_map = {"": "cpu"}
    monkeypatch.setattr(nn.Module, "to", lambda *_: pytest.fail("the module was moved"))
    load_model(module)
    with pytest.raises(ConfigError, match="spread over devices"):
        load_model(module, device="cpu")


def test_fingerprints_see_a_change_anywhere_in_a_large_tensor() -> None:
    module = FAMILY_MODELS["llama"].build(vocab_size=500)
    before = SubjectModel(module).fingerprint()
    for rows in (slice(0, 20), slice(240, 260), slice(480, 500)):
        with torch.no_grad():
            module.model.embed_tokens.weight[rows] += 0.1
        assert SubjectModel(module).fingerprint() != before
        before = SubjectModel(module).fingerprint()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"n_layer": 10**9}, "1,000,000,000 layers"),
        ({"attn_pdrop": math.nan}, "attn_pdrop is nan"),
        ({"n_head": -2}, "-2"),
    ],
)
def test_a_config_that_cannot_run_is_refused_before_it_is_built(
    setting: dict[str, Any], words: str, tiny_module: Any, tmp_path: Path
) -> None:
    tiny_module.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **setting}))
    with pytest.raises(FileError, match=words):
        load_model(tmp_path)
