"""The scopes: small files built from their descriptions are read, and give what loops over their formulas give."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import monosem as ms
from monosem.errors import ConfigError, FileError
from monosem.sae import SAE, CrossLayerTranscoder, JumpReLUSkipTranscoder

D, F, L = 6, 20, 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def rows(*shape: int) -> Tensor:
    x = 4 * normal(30, *shape, seed=9) + 1
    x[3], x[4] = 0, 100 * x[4]
    return x


def jumprelu(x: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: Tensor) -> Tensor:
    """One latent of one row after another; W_enc (d, F)."""
    codes = torch.zeros(len(x), W_enc.shape[1])
    for row in range(len(x)):
        for latent in range(W_enc.shape[1]):
            pre = float(x[row].double() @ W_enc[:, latent].double() + b_enc[latent].double())
            codes[row, latent] = pre if pre > threshold[latent] else 0.0
    return codes


def parameters(seed: int = 0, d_out: int = D) -> dict[str, Tensor]:
    return {
        "w_enc": normal(D, F, seed=seed),
        "w_dec": normal(F, d_out, seed=seed + 1),
        "b_enc": normal(F, seed=seed + 2),
        "b_dec": normal(d_out, seed=seed + 3),
        "threshold": normal(F, seed=seed + 4).abs(),
    }


@torch.no_grad()
def agrees(sae: SAE, x: Tensor, codes: Tensor, reconstruction: Tensor) -> None:
    out = sae(x)
    assert 0 < (codes > 0).sum() < codes.numel()
    assert (out.codes.to_dense() - codes).abs().max() <= 1e-5 * codes.abs().max()
    assert (out.reconstruction - reconstruction).abs().max() <= 1e-5 * reconstruction.abs().max()


def normed(x: Tensor) -> Tensor:
    """What an RMSNorm makes of rows, before its gain."""
    return x / x.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-12)


# Gemma Scope ----------------------------------------------------------------------------------------------------------


def npz(folder: Path, p: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True)
    named = {("W" + name[1:] if name.startswith("w_") else name): tensor.numpy() for name, tensor in p.items()}
    np.savez(folder / "params.npz", allow_pickle=False, **named)
    return folder


@pytest.mark.parametrize(
    ("repo", "hook", "target", "model"),
    [
        ("gemma-scope-2b-pt-res", "resid_post.12", None, "google/gemma-2-2b"),
        ("gemma-scope-9b-pt-att", "attn_z.12", None, "google/gemma-2-9b"),
        ("gemma-scope-9b-it-res", "resid_post.12", None, "google/gemma-2-9b-it"),
        ("gemma-scope-27b-pt-mlp", "mlp_out.12", None, "google/gemma-2-27b"),
        ("gemma-scope-2b-pt-transcoders", "resid_mid.12", "mlp_out.12", "google/gemma-2-2b"),
    ],
)
def test_gemma_scope(repo: str, hook: str | None, target: str | None, model: str, tmp_path: Path) -> None:
    p, x = parameters(), rows(D)
    sae = ms.load_sae(npz(tmp_path / "google" / repo / "layer_12/width_16k/average_l0_82", p))
    read = x if target is None else normed(x)
    codes = jumprelu(read, p["w_enc"], p["b_enc"], p["threshold"])
    agrees(sae, x, codes, codes @ p["w_dec"] + p["b_dec"])
    known = sae.metadata
    assert (known.model, known.hook, known.target_hook) == (model, hook, target)
    assert (known.prepend_bos, known.context_length, known.layout) == (True, 1024, "Gemma Scope")
    assert sae.autoencodes == (target is None)
    assert not sae.subtract_b_dec


def test_gemma_scope_of_embeddings_reads_what_stands_in_the_model(tmp_path: Path) -> None:
    p, table = parameters(), normal(40, D, seed=5)
    sae = ms.load_sae(npz(tmp_path / "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_44", p))
    codes = jumprelu(table, p["w_enc"], p["b_enc"], p["threshold"])
    agrees(sae, math.sqrt(D) * table, codes, math.sqrt(D) * (codes @ p["w_dec"] + p["b_dec"]))
    assert sae.metadata.hook == "embed"


# Gemma Scope 2 --------------------------------------------------------------------------------------------------------

BLOCK = "model.layers.17"
CONFIGS = {
    "resid_post": ("output", "output", "sae"),
    "attn_out": ("self_attn.o_proj.input", "self_attn.o_proj.input", "sae"),
    "mlp_out": ("post_feedforward_layernorm.output", "post_feedforward_layernorm.output", "sae"),
    "transcoder_all": ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output", "transcoder"),
}
OURS = {"resid_post": "resid_post.17", "attn_out": "attn_z.17", "mlp_out": "mlp_out.17", "transcoder_all": "mlp_in.17"}


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("site", CONFIGS)
def test_gemma_scope_2(site: str, affine: bool, with_config: bool, tmp_path: Path) -> None:
    if affine and site != "transcoder_all":
        return
    p, x = parameters(d_out=D), rows(D)
    skip = normal(D, D, seed=7)
    if affine:
        p["affine_skip_connection"] = skip
    name = f"google/gemma-scope-2-270m-pt/{site}/layer_17_width_16k_l0_small" + ("_affine" if affine else "")
    folder = tmp_path / name
    folder.mkdir(parents=True)
    save_file(p, folder / "params.safetensors")
    if with_config:
        reads, predicts, kind = CONFIGS[site]
        about: dict[str, Any] = {
            "architecture": "jump_relu",
            "model_name": "google/gemma-3-270m-pt",
            "type": kind,
            "hf_hook_point_in": f"{BLOCK}.{reads}",
            "hf_hook_point_out": f"{BLOCK}.{predicts}",
        }
        (folder / "config.json").write_text(json.dumps(about))
    sae = ms.load_sae(folder)
    codes = jumprelu(x, p["w_enc"], p["b_enc"], p["threshold"])
    out = codes @ p["w_dec"] + p["b_dec"]
    agrees(sae, x, codes, out + x @ skip if affine else out)
    assert isinstance(sae, JumpReLUSkipTranscoder) == affine
    assert sae.metadata.model == "google/gemma-3-270m"
    assert sae.metadata.hook == OURS[site]
    assert sae.metadata.target_hook == ("mlp_out.17" if site == "transcoder_all" else None)


def layers_of(folder: Path, affine: bool = False) -> list[dict[str, Tensor]]:
    """One file a layer; rows for earlier layers than a file's own are filled, and do not count."""
    folder.mkdir(parents=True)
    made: list[dict[str, Tensor]] = []
    for layer in range(L):
        p = parameters(seed=10 * layer)
        p["w_dec"] = normal(F, L, D, seed=50 + layer)
        if affine:
            p["affine_skip_connection"] = normal(D, D, seed=70 + layer)
        save_file(p, folder / f"params_layer_{layer}.safetensors")
        made.append(p)
    return made


def across(made: list[dict[str, Tensor]], x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of all layers, one after another, and what they write, by loops."""
    codes = [jumprelu(x[:, i], p["w_enc"], p["b_enc"], p["threshold"]) for i, p in enumerate(made)]
    out = torch.zeros(len(x), L, D)
    for target in range(L):
        out[:, target] = made[target]["b_dec"]
        for source in range(target + 1):
            out[:, target] += codes[source] @ made[source]["w_dec"][:, target]
        if "affine_skip_connection" in made[target]:
            out[:, target] += x[:, target] @ made[target]["affine_skip_connection"]
    return torch.cat(codes, 1), out


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_gemma_scope_2_across_layers(affine: bool, lazy: bool, tmp_path: Path) -> None:
    folder = tmp_path / "google/gemma-scope-2-1b-pt/clt" / ("width_262k_l0_big" + ("_affine" if affine else ""))
    made, x = layers_of(folder, affine), rows(L, D)
    sae = ms.load_sae(folder, lazy=lazy)
    assert isinstance(sae, CrossLayerTranscoder)
    agrees(sae, x, *across(made, x))
    assert sae.metadata.hooks == [f"mlp_in.{layer}" for layer in range(L)]
    assert sae.metadata.target_hooks == [f"mlp_out.{layer}" for layer in range(L)]
    assert sae.metadata.model == "google/gemma-3-1b-pt"


def test_gemma_scope_2_crosscoders_write_to_their_layer_and_those_after_it(tmp_path: Path) -> None:
    folder = tmp_path / "google/gemma-scope-2-1b-pt/crosscoder/layer_7_13_17_width_65k_l0_big"
    made, x = layers_of(folder), rows(L, D)
    config = {"hf_hook_point_in": "model.layers.{7,13,17}.output", "hf_hook_point_out": "model.layers.{7,13,17}.output"}
    for written in (False, True):
        if written:
            (folder / "config.json").write_text(json.dumps({**config, "model_name": "google/gemma-3-1b-pt"}))
        sae = ms.load_sae(folder)
        agrees(sae, x, *across(made, x))
        assert sae.metadata.hooks == sae.metadata.target_hooks == ["resid_post.7", "resid_post.13", "resid_post.17"]


def test_what_cannot_be_told_of_several_layers_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    made = layers_of(folder)
    with pytest.raises(ConfigError, match=r"one layer of a set.*: give the folder"):
        ms.load_sae(folder / "params_layer_1.safetensors")
    for layer, p in enumerate(made):
        save_file({**p, "w_dec": made[0]["w_dec"]}, folder / f"params_layer_{layer}.safetensors")
    with pytest.raises(ConfigError, match="all its files hold the same decoder"):
        ms.load_sae(folder)
    for layer, p in enumerate(made):
        save_file({**p, "w_dec": made[0]["w_dec"][:, 0].contiguous()}, folder / f"params_layer_{layer}.safetensors")
    with pytest.raises(ConfigError, match=r"decoders of shape \(20, 6\), and not of \(20, 3, d\)"):
        ms.load_sae(folder)
    (folder / "params_layer_1.safetensors").unlink()
    with pytest.raises(FileError, match=r"params_layer \[0, 2\]"):
        ms.load_sae(folder)


def touched(part: str) -> int:
    """Bytes of mapped files, whose path has this part, that this process has touched."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            ours = part in line
        elif ours and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@torch.no_grad()
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells which pages are touched")
def test_lazy_decoders_are_read_where_latents_are_on(tmp_path: Path) -> None:
    n_latents, width, folder = 4096, 512, tmp_path / "lazy_set"
    folder.mkdir()
    for layer in range(2):
        p = {
            "w_enc": torch.zeros(width, n_latents),
            "b_enc": torch.full((n_latents,), -1.0),
            "b_dec": torch.zeros(width),
        }
        p["b_enc"][7 + 40 * layer] = 1.0  # the one that is on
        p |= {"w_dec": normal(n_latents, 2, width, seed=layer), "threshold": torch.zeros(n_latents)}
        save_file(p, folder / f"params_layer_{layer}.safetensors")
    sae = ms.load_sae(folder, lazy=True)
    before = touched("lazy_set")
    out = sae(torch.zeros(3, 2, width))
    assert out.codes.l0().tolist() == [2, 2, 2]
    assert out.reconstruction[:, 1].abs().sum() > 0
    whole = 2 * n_latents * 2 * width * 4
    assert before == 0
    assert 0 < touched("lazy_set") <= whole / 100


# Qwen-Scope -----------------------------------------------------------------------------------------------------------


def test_qwen_scope(tmp_path: Path) -> None:
    folder = tmp_path / "Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_4"
    folder.mkdir(parents=True)
    p, x = {"W_enc": normal(F, D), "W_dec": normal(D, F), "b_enc": normal(F), "b_dec": normal(D)}, rows(D)
    torch.save(p, folder / "layer18.sae.pt")
    sae = ms.load_sae(folder / "layer18.sae.pt")
    codes = torch.zeros(len(x), F)
    for row in range(len(x)):
        pre = p["W_enc"] @ x[row] + p["b_enc"]
        for latent in pre.argsort(descending=True)[:4].tolist():
            codes[row, latent] = max(0.0, float(pre[latent]))
    agrees(sae, x, codes, codes @ p["W_dec"].T + p["b_dec"])
    assert (sae.metadata.model, sae.metadata.hook) == ("Qwen/Qwen3-8B-Base", "resid_post.18")
    (folder / "config.json").write_text(json.dumps({"k": 3, "base_model": "Qwen/Qwen3-8B-Base"}))
    assert ms.load_sae(folder / "layer18.sae.pt").settings["k"] == 3


# OpenMOSS -------------------------------------------------------------------------------------------------------------


def linear() -> dict[str, Tensor]:
    return {
        "encoder.weight": normal(F, D),
        "encoder.bias": normal(F),
        "decoder.weight": normal(D, F),
        "decoder.bias": normal(D),
    }


def scaled(p: dict[str, Tensor], x: Tensor, limit: Tensor, norms: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Their formula: activations times sqrt(d) / mean norm, and back."""
    read = x * (math.sqrt(D) / norms[0])
    codes = jumprelu(read, p["encoder.weight"].T, p["encoder.bias"], limit)
    return codes, (codes @ p["decoder.weight"].T + p["decoder.bias"]) / (math.sqrt(D) / norms[1])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("site", ["R", "TC"])
def test_llama_scope(site: str, weighted: bool, tmp_path: Path) -> None:
    folder = tmp_path / f"fnlp/Llama3_1-8B-Base-LX{site}-8x/Llama3_1-8B-Base-L15{site}-8x"
    (folder / "checkpoints").mkdir(parents=True)
    p, x = linear(), rows(D)
    reads = "blocks.15.hook_resid_post" if site == "R" else "blocks.15.ln2.hook_normalized"
    predicts = reads if site == "R" else "blocks.15.hook_mlp_out"
    norms = (3.5, 3.5) if site == "R" else (3.5, 0.7)
    about = {"hook_point_in": reads, "hook_point_out": predicts, "d_model": D, "d_sae": F, "jump_relu_threshold": 0.4}
    about |= {"dataset_average_activation_norm": {"in": norms[0], "out": norms[1]}, "act_fn": "jumprelu"}
    (folder / "hyperparams.json").write_text(json.dumps({**about, "sparsity_include_decoder_norm": weighted}))
    save_file(p, folder / "checkpoints" / "final.safetensors")
    sae = ms.load_sae(folder)
    limit, read = torch.full((F,), 0.4), x if site == "R" else normed(x)
    agrees(sae, x, *scaled(p, read, limit / p["decoder.weight"].norm(dim=0) if weighted else limit, norms))
    assert sae.metadata.model == "meta-llama/Llama-3.1-8B"
    assert sae.metadata.hook == ("resid_post.15" if site == "R" else "resid_mid.15")
    assert sae.metadata.target_hook == (None if site == "R" else "mlp_out.15")


def test_the_distillation_of_llama_scope(tmp_path: Path) -> None:
    folder = tmp_path / "fnlp/Llama-Scope-R1-Distill/400M-Slimpajama-400M-OpenR1-Math-220k/L15R"
    folder.mkdir(parents=True)
    p, x, hook, limit = linear(), rows(D), "blocks.15.hook_resid_post", normal(F, seed=8)
    norm = {f"dataset_average_activation_norm.{hook}": torch.tensor(2.5)}
    save_file({**p, "log_jumprelu_threshold": limit, **norm}, folder / "sae_weights.safetensors")
    about = {"hook_point_in": hook, "hook_point_out": hook, "d_model": D, "act_fn": "jumprelu"}
    (folder / "config.json").write_text(json.dumps(about))
    sae = ms.load_sae(folder)
    agrees(sae, x, *scaled(p, x, limit.exp(), (2.5, 2.5)))
    assert sae.metadata.model == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    assert sae.metadata.hook == "resid_post.15"


@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
@pytest.mark.parametrize("norm", ["dataset-wise", "inference"])
def test_llamascopium(activation: str, norm: str, tmp_path: Path) -> None:
    p, x, hook, limit = linear(), rows(D), "blocks.3.hook_mlp_out", normal(F, seed=8)
    tensors = {
        "W_E": p["encoder.weight"].T,
        "b_E": p["encoder.bias"],
        "W_D": p["decoder.weight"].T,
        "b_D": p["decoder.bias"],
    }
    if activation == "jumprelu":
        tensors["activation_function.log_jumprelu_threshold"] = limit
    if norm == "dataset-wise":
        tensors[f"dataset_average_activation_norm.{hook}"] = torch.tensor(2.5)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "sae_weights.safetensors")
    about = {"hook_point_in": hook, "hook_point_out": hook, "act_fn": activation, "norm_activation": norm}
    about |= {"sparsity_include_decoder_norm": True, "sae_type": "sae"}
    (tmp_path / "config.json").write_text(json.dumps(about))
    sae = ms.load_sae(tmp_path)
    limits = limit.exp() / p["decoder.weight"].norm(dim=0) if activation == "jumprelu" else torch.zeros(F)
    size = math.sqrt(D) if norm == "inference" else 2.5
    agrees(sae, x, *scaled(p, x, limits, (size, size)))
    assert sae.metadata.hook == "mlp_out.3"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sae_type": "lorsa"}, "it is a lorsa"),
        ({"use_glu_encoder": True}, "use_glu_encoder"),
        ({"norm_activation": "token-wise"}, "its own norm"),
        ({"act_fn": "batchtopk"}, "depends on the batch"),
        ({"act_fn": "topk", "top_k": 3, "sparsity_include_decoder_norm": True}, "compete by codes times decoder norms"),
    ],
)
def test_what_llamascopium_alone_computes_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    save_file(linear(), tmp_path / "sae_weights.safetensors")
    hook = "blocks.3.hook_mlp_out"
    about = {"hook_point_in": hook, "hook_point_out": hook, "norm_activation": "inference", "act_fn": "relu"}
    (tmp_path / "config.json").write_text(json.dumps({**about, **change}))
    with pytest.raises(ConfigError, match=words):
        ms.load_sae(tmp_path)
