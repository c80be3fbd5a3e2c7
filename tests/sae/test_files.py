"""The native format: what is saved comes back bit for bit; what is damaged is named; nothing is ever executed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from monosem.errors import ConfigError, FileError
from monosem.sae import (
    SAE,
    GatedSAE,
    InputFingerprint,
    JumpReLUSAE,
    MatchingPursuitSAE,
    ProLUSAE,
    ReLUSAE,
    SAEMetadata,
    SkipTranscoder,
    SwitchSAE,
    TopKSAE,
    Transcoder,
    load_sae,
)
from monosem.sae.blank import outlined

MakeSAE = Callable[..., SAE]
CASES = [
    pytest.param(TopKSAE, {"k": 4, "multi_coefficient": 0.25}, id="topk"),
    pytest.param(ReLUSAE, {"coefficient": 0.125}, id="relu"),
    pytest.param(ReLUSAE, {"p": 0.5, "p_end": 0.25, "tied": True, "target_l0": 4.0}, id="relu, tied"),
    pytest.param(GatedSAE, {"coefficient_warmup": 0.25}, id="gated"),
    pytest.param(ProLUSAE, {"gradient": "ste"}, id="prolu"),
    pytest.param(JumpReLUSAE, {"penalty": "frequency", "bandwidth": 0.25}, id="jumprelu"),
    pytest.param(SwitchSAE, {"k": 4, "n_experts": 5, "balance_coefficient": 0.25}, id="switch"),
    pytest.param(Transcoder, {"k": 4}, id="transcoder"),
    pytest.param(SkipTranscoder, {"k": 4, "d_out": 5}, id="skip_transcoder"),
    pytest.param(MatchingPursuitSAE, {"k": 4}, id="matching_pursuit"),
]
METADATA = SAEMetadata(
    model="some/model",
    hook="resid_post.2",
    context_length=64,
    prepend_bos=False,
    tokens_trained=1234,
    fingerprint=InputFingerprint(mean_norm=12.5, fvu=0.1, l0=4.0),
)


@pytest.fixture
def folder(make_sae: MakeSAE, tmp_path: Path) -> Path:
    """A folder with a good SAE in it."""
    make_sae(TopKSAE, k=4).save(tmp_path / "good")
    return tmp_path / "good"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transform", ["centre_scale", "none"])
@pytest.mark.parametrize(("cls", "settings"), CASES)
def test_what_is_saved_comes_back_bit_for_bit(
    cls: type[SAE], settings: dict[str, Any], transform: str, dtype: torch.dtype, make_sae: MakeSAE, tmp_path: Path
) -> None:
    sae = make_sae(cls, dtype=dtype, transform=transform, **settings)
    sae.metadata, sae.probe = METADATA, {"activations": torch.randn(5, 7), "tokens": torch.arange(6).reshape(2, 3)}
    sae.save(tmp_path / "new" / "folder")
    loaded = load_sae(tmp_path / "new" / "folder")
    assert type(loaded) is cls
    assert loaded.settings == sae.settings
    assert loaded.transform.kind == transform
    assert loaded.transform.fitted
    assert loaded.metadata == METADATA
    assert_same(loaded.state_dict(), sae.state_dict())
    assert_same(loaded.probe, sae.probe)
    x = torch.randn(40, 7)
    codes, expected = loaded.encode(x), sae.encode(x)
    for name in ("values", "indices", "offsets"):
        assert torch.equal(getattr(codes, name), getattr(expected, name))
    assert torch.equal(loaded(x).reconstruction, sae(x).reconstruction)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_an_untrained_sae_is_still_to_be_fitted_when_it_comes_back(tmp_path: Path) -> None:
    TopKSAE(7, 20, k=4).save(tmp_path)
    assert not load_sae(tmp_path).transform.fitted


def test_an_sae_is_found_by_its_folder_its_run_folder_or_its_files(make_sae: MakeSAE, tmp_path: Path) -> None:
    make_sae(TopKSAE, k=4).save(tmp_path / "run" / "sae")
    for path in ("run", "run/sae", "run/sae/cfg.json", "run/sae/sae.safetensors"):
        assert load_sae(tmp_path / path).n_latents == 20
        assert load_sae(str(tmp_path / path)).n_latents == 20


def test_saving_again_replaces_what_was_there(folder: Path, make_sae: MakeSAE) -> None:
    other = make_sae(ReLUSAE, seed=9)
    other.save(folder)
    assert_same(load_sae(folder).state_dict(), other.state_dict())
    assert sorted(p.name for p in folder.iterdir()) == ["cfg.json", "sae.safetensors"]


def test_a_class_loads_its_own_kind_only(folder: Path) -> None:
    assert TopKSAE.load(folder).k == 4
    assert SAE.load(folder).n_latents == 20
    with pytest.raises(ConfigError, match="not a ReLUSAE"):
        ReLUSAE.load(folder)


# Damage -----------------------------------------------------------------------------------------------------------


def config_with(changes: dict[str, Any] | Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "cfg.json").read_text())
        if callable(changes):
            changes(config)
        else:
            config.update(changes)
        (folder / "cfg.json").write_text(json.dumps(config))

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


def truncate(share: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        whole = (folder / "sae.safetensors").read_bytes()
        (folder / "sae.safetensors").write_bytes(whole[: int(share * len(whole))])

    return change


def tensors_with(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "sae.safetensors")
        change(tensors)
        save_file(tensors, folder / "sae.safetensors")

    return rewrite


BAD_CONFIGS = {
    "not JSON": write("cfg.json", b"{nope"),
    "empty": write("cfg.json", b""),
    "binary": write("cfg.json", bytes(range(256))),
    "a list": write("cfg.json", b"[1, 2]"),
    "another format": config_with({"format": "sae_lens"}),
    "no format": config_with(lambda c: c.pop("format")),
    "a newer version": config_with({"format_version": 99}),
    "no version": config_with(lambda c: c.pop("format_version")),
    "a version in words": config_with({"format_version": "two"}),
    "unknown architecture": config_with({"architecture": "hyperbolic"}),
    "no architecture": config_with(lambda c: c.pop("architecture")),
    "no settings": config_with(lambda c: c.pop("settings")),
    "settings as a list": config_with({"settings": [1]}),
    "unknown setting": config_with(lambda c: c["settings"].update(temperature=1)),
    "k above n_latents": config_with(lambda c: c["settings"].update(k=21)),
    "k in words": config_with(lambda c: c["settings"].update(k="many")),
    "a huge width to predict": config_with({"d_out": 10**12}),
    "k as a float": config_with(lambda c: c["settings"].update(k=4.0)),
    "deeply nested": write("cfg.json", b'{"a":' * 100_000),
    "negative width": config_with({"d_in": -7}),
    "broken width": config_with({"d_in": 7.5}),
    "unknown dtype": config_with({"dtype": "float33"}),
    "a dtype that is none": config_with({"dtype": "nn"}),
    "a dtype of integers": config_with({"dtype": "int64"}),
    "no transform": config_with(lambda c: c.pop("transform")),
    "transform in words": config_with({"transform": "centre"}),
    "unknown transform": config_with(lambda c: c["transform"].update(kind="whirl")),
    "no fitted": config_with(lambda c: c["transform"].pop("fitted")),
    "unknown metadata": config_with(lambda c: c["metadata"].update(colour="blue")),
    "metadata of a wrong type": config_with(lambda c: c["metadata"].update(context_length="long")),
}
BAD_WEIGHTS = {
    "missing": lambda folder: (folder / "sae.safetensors").unlink(),
    "empty": write("sae.safetensors", b""),
    "garbage": write("sae.safetensors", bytes(range(256)) * 50),
    "header torn": truncate(0.02),
    "data torn": truncate(0.9),
    "other width": config_with({"d_in": 8}),
    "a huge number of latents": config_with({"n_latents": 10**12}),
    "other number of latents": config_with({"n_latents": 21}),
    "a tensor missing": tensors_with(lambda t: t.__delitem__("b_enc")),
    "a tensor too many": tensors_with(lambda t: t.update(W_extra=torch.ones(3))),
    "a tensor transposed": tensors_with(lambda t: t.update(W_enc=t["W_enc"].T.contiguous())),
}


@pytest.mark.parametrize("damage", BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_a_bad_config_is_named(damage: Callable[[Path], None], folder: Path) -> None:
    damage(folder)
    with pytest.raises(FileError) as caught:
        load_sae(folder)
    assert str(folder / "cfg.json") in str(caught.value)


@pytest.mark.parametrize("damage", BAD_WEIGHTS.values(), ids=BAD_WEIGHTS.keys())
def test_bad_weights_are_named(damage: Callable[[Path], None], folder: Path) -> None:
    damage(folder)
    with pytest.raises(FileError) as caught:
        load_sae(folder)
    assert str(folder / "sae.safetensors") in str(caught.value)


@pytest.mark.parametrize("length", range(0, 200, 7))
def test_weights_cut_at_any_byte_are_refused(length: int, folder: Path) -> None:
    whole = (folder / "sae.safetensors").read_bytes()
    (folder / "sae.safetensors").write_bytes(whole[:length])
    with pytest.raises(FileError, match=r"sae\.safetensors"):
        load_sae(folder)


def test_a_folder_without_an_sae_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="holds no SAE"):
        load_sae(tmp_path)
    with pytest.raises(FileError, match="does not exist"):
        load_sae(tmp_path / "nowhere")


class Trap:
    """A pickle of this creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_pickle_in_place_of_the_weights_is_refused_and_not_executed(
    as_zip: bool, folder: Path, tmp_path: Path
) -> None:
    sprung = tmp_path / "sprung"
    torch.save({"W_enc": Trap(sprung)}, folder / "sae.safetensors", _use_new_zipfile_serialization=as_zip)
    with pytest.raises(FileError, match=r"sae\.safetensors cannot be read"):
        load_sae(folder)
    assert not sprung.exists()
    with (folder / "sae.safetensors").open("rb") as file:
        torch.load(file, weights_only=False)  # the trap is a real one
    assert sprung.exists()


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec", "transform.mean", "transform.scale"])
def test_weights_that_are_not_finite_are_refused(name: str, make_sae: MakeSAE, tmp_path: Path) -> None:
    sae = make_sae(TopKSAE, k=4)
    sae.state_dict()[name].view(-1)[0] = torch.nan
    sae.save(tmp_path)
    with pytest.raises(FileError, match=rf"sae\.safetensors.* 1 of the [0-9]+ numbers of {name} are not finite"):
        load_sae(tmp_path)


def test_a_limit_may_be_infinite(make_sae: MakeSAE, tmp_path: Path) -> None:
    """That of a latent which is never on."""
    sae = make_sae(TopKSAE, k=4)
    with torch.no_grad():
        sae.b_enc[3] = -torch.inf
    sae.save(tmp_path)
    assert torch.equal(load_sae(tmp_path).b_enc, sae.b_enc)
    with torch.no_grad():
        sae.b_enc[3] = torch.inf  # always on, and everything with it
    sae.save(tmp_path)
    with pytest.raises(FileError, match="1 of the 20 numbers of b_enc are not finite"):
        load_sae(tmp_path)


def test_an_outline_takes_no_memory_whatever_its_size() -> None:
    """400 GB for a number of each latent alone."""
    made = outlined(lambda: TopKSAE(8, 10**11, k=3))
    assert made.W_enc.is_meta
    assert tuple(made.b_enc.shape) == (10**11,)
    small = outlined(lambda: TopKSAE(8, 1000, k=3))
    assert not small.b_enc.is_meta
