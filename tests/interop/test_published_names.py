"""Names of the catalogue lead to files that are read: of each family, its files in a cache of the hub."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from published_files import FAMILIES, REFUSED, SHA, cached, only_the_cache, put, say

import monosem as ms
from monosem.errors import ConfigError, FileError
from monosem.interop.catalogue import everything

D = 12


def placed(cache: Path, family: str, d: int = D) -> str:
    """The name of a family's dictionary, whose files are in the cache now."""
    one = FAMILIES[family]
    owner, name, *path = one.name.split("/")
    one.write(cached(cache, f"{owner}/{name}"), "/".join(path), d)
    return one.name


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    only_the_cache(monkeypatch, tmp_path / "hub")
    return tmp_path / "hub"


def test_every_name_of_the_catalogue_is_of_a_family_whose_files_are_read() -> None:
    patterns = [re.compile(one.covers) for one in FAMILIES.values()] + [re.compile(REFUSED)]
    strange = [entry.name for entry in everything() if not any(pattern.fullmatch(entry.name) for pattern in patterns)]
    assert not strange


@pytest.mark.parametrize("family", FAMILIES)
def test_a_name_leads_to_its_model_and_hook(family: str, cache: Path) -> None:
    one = FAMILIES[family]
    sae = ms.load_sae(placed(cache, family))
    known = sae.metadata
    assert (known.layout, known.model, known.revision) == (one.layout, one.model, SHA)
    assert " ".join(known.hooks or [known.hook or ""]) == one.hook
    assert " ".join(known.target_hooks or [known.target_hook or ""]) == (one.target or "")
    assert sae.d_in == D
    x = torch.randn(5, *sae.in_shape, generator=torch.Generator().manual_seed(0))
    assert sae(x).codes.l0().sum() > 0
    assert sae(x).reconstruction.shape == (5, *sae.out_shape)


def test_a_list_of_addresses_says_which_layers_there_are(cache: Path) -> None:
    placed(cache, "circuit-tracer, listed")
    first = "hf://google/gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_50/params.npz"
    with pytest.raises(ConfigError, match=f"a set of 3 transcoders.*as hf://mntss/.*/layer_0 .which is {first}"):
        ms.load_sae("mntss/gemma-scope-transcoders")
    with pytest.raises(FileError, match="lists layers 0 to 2, not 7"):
        ms.load_sae("mntss/gemma-scope-transcoders/layer_7")
    placed(cache, "circuit-tracer, listed across layers")
    with pytest.raises(ConfigError, match=r"one layer of a set across layers.*name the set"):
        ms.load_sae("mwhanna/gemma-scope-2-270m-pt/clt/width_262k_l0_medium/layer_1")
    listed = ms.load_sae("mntss/gemma-scope-transcoders/layer_0")
    assert listed.metadata.source == first
    assert torch.equal(listed.W_enc, ms.load_sae(first).W_enc)


@pytest.mark.parametrize("at", [f"?revision={SHA}", f"@{SHA}", "@main"])
def test_a_revision_may_stand_in_the_name(at: str, cache: Path) -> None:
    name = placed(cache, "sparsify")
    assert ms.load_sae(f"hf://{name}{at}").metadata.revision == SHA
    assert ms.load_sae(f"{name}{at}").metadata.source == f"hf://{name}"
    with pytest.raises(ConfigError, match="give one"):
        ms.load_sae(f"hf://{name}{at}", revision="another")
    with pytest.raises(FileError, match="at revision 'v2' is not in the cache"):
        ms.load_sae(f"hf://{name}@v2")


def test_a_list_here_may_name_files_beside_it_and_nothing_else(tmp_path: Path) -> None:
    p = {name: torch.ones(shape) for name, shape in (("W_enc", (4, 3)), ("W_dec", (4, 3)), ("b_enc", 4), ("b_dec", 3))}
    for layer in range(2):
        put(tmp_path / "set" / "files" / f"{layer}.safetensors", p)
    hooks = {"model_name": "gpt2", "feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}

    def write(*addresses: object, **more: str) -> None:
        say(tmp_path / "set" / "config.yaml", {**hooks, **more, "transcoders": list(addresses)})

    write("files/0.safetensors", "files/1.safetensors")
    known = ms.load_sae(tmp_path / "set" / "layer_1").metadata
    assert (known.hook, known.target_hook, known.model) == ("resid_mid.1", "mlp_out.1", "openai-community/gpt2")
    for bad in ("../set/files/0.safetensors", "/etc/passwd", "files/2.safetensors", "hf://nothing", "https://a/b/c"):
        write(bad)
        with pytest.raises(FileError, match="mend"):
            ms.load_sae(tmp_path / "set")
    for worse in ([1], [], {}):
        say(tmp_path / "set" / "config.yaml", {**hooks, "transcoders": worse})
        with pytest.raises(FileError, match="should be a list of addresses"):
            ms.load_sae(tmp_path / "set")
    write("files/0.safetensors", "elsewhere/1.safetensors", model_kind="cross_layer_transcoder")
    with pytest.raises((FileError, ConfigError)):
        ms.load_sae(tmp_path / "set")


def test_temporal_dictionaries_are_refused_with_the_reason(tmp_path: Path) -> None:
    tensors = {"D": torch.ones(4, 3), "E": torch.ones(4, 3), "b": torch.ones(3)}
    put(tmp_path / "latest_ckpt.safetensors", {**tensors, "attn_layers.0.k_ctx.weight": torch.ones(2, 2)})
    with pytest.raises(ConfigError, match=r"from those of earlier tokens by attention.*encode with SAELens"):
        ms.load_sae(tmp_path)


def test_what_no_file_says_the_catalogue_does(cache: Path) -> None:
    name = "mwhanna/qwen3-14b-transcoders-lowl0/layer_1.safetensors"
    folder = cached(cache, "mwhanna/qwen3-14b-transcoders-lowl0")
    put(
        folder / "layer_1.safetensors",
        {name: torch.ones(4, 3) for name in ("W_enc", "W_dec")} | {"b_enc": torch.ones(4), "b_dec": torch.ones(3)},
    )
    known = ms.load_sae(name).metadata
    assert (known.model, known.hook, known.target_hook) == ("Qwen/Qwen3-14B", "mlp_in.1", "mlp_out.1")
