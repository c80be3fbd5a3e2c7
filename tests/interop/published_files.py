"""What publishers put on the hub, small: of each family of names its files, in a cache as huggingface_hub keeps one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

SHA = "0123456789abcdef0123456789abcdef01234567"
F = 48
"""Latents."""

Tensors = dict[str, Tensor]


def cached(cache: Path, repo: str) -> Path:
    """The folder of a repository's files in the cache."""
    home = cache / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(SHA)
    folder = home / "snapshots" / SHA
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def only_the_cache(patch: pytest.MonkeyPatch, cache: Path) -> None:
    """From here on the hub is not asked, and its cache is this one."""
    from huggingface_hub import constants

    patch.setattr(constants, "HF_HUB_OFFLINE", True)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))


def put(path: Path, tensors: Tensors, **config: object) -> None:
    """Tensors, in the kind of file that the path's name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, allow_pickle=False, **{name: tensor.numpy() for name, tensor in tensors.items()})
    elif path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path)


def say(path: Path, content: object) -> None:
    """A config, as JSON or YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content) if path.suffix == ".yaml" else json.dumps(content))


def weights(d: int) -> Tensors:
    """Latent-major, no bias zero."""
    generator = torch.Generator().manual_seed(d)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {"W_enc": 0.3 * draw(F, d), "W_dec": 0.3 * draw(F, d), "b_enc": draw(F), "b_dec": draw(d)}


def linear(d: int, encoder: str = "encoder", decoder: str = "decoder") -> Tensors:
    """As two layers of torch."""
    p = weights(d)
    named = {f"{encoder}.weight": p["W_enc"], f"{encoder}.bias": p["b_enc"]}
    return {**named, f"{decoder}.weight": p["W_dec"].T.contiguous(), f"{decoder}.bias": p["b_dec"]}


def turned(d: int) -> Tensors:
    """The encoder with a column a latent."""
    p = weights(d)
    return {**p, "W_enc": p["W_enc"].T.contiguous()}


def lower(d: int) -> Tensors:
    """Gemma Scope 2's names."""
    p = {name.replace("W_", "w_"): tensor for name, tensor in turned(d).items()}
    return {**p, "threshold": torch.full((F,), 0.1)}


# Of each family, what stands in its repository -------------------------------------------------------------------


def saelens(repo: Path, path: str, d: int) -> None:
    put(repo / path / "sae_weights.safetensors", turned(d))
    flat = {
        "d_in": d,
        "d_sae": F,
        "hook_point": "blocks.1.hook_resid_pre",
        "model_name": "gpt2-small",
        "context_size": 128,
    }
    say(
        repo / path / "cfg.json",
        {**flat, "activation_fn_str": "relu", "normalize_activations": "none", "dtype": "float32"},
    )


def saelens_6(repo: Path, path: str, d: int) -> None:
    put(repo / path / "sae_weights.safetensors", {**turned(d), "threshold": torch.full((F,), 0.1)})
    known = {"model_name": "google/gemma-2-2b", "hook_name": "blocks.1.hook_resid_post", "prepend_bos": True}
    config = {"architecture": "jumprelu", "d_in": d, "d_sae": F, "dtype": "float32", "metadata": known}
    say(repo / path / "cfg.json", {**config, "apply_b_dec_to_input": True, "normalize_activations": "none"})


def kissane(repo: Path, path: str, d: int) -> None:
    put(repo / path, turned(d))
    say(repo / path.replace(".pt", "_cfg.json"), {"act_name": "blocks.1.attn.hook_z", "act_size": d, "dict_size": F})


def goodfire(repo: Path, path: str, d: int) -> None:
    put(repo / path, linear(d, "encoder_linear", "decoder_linear"))


def qresearch(repo: Path, path: str, d: int) -> None:
    put(repo / path, linear(d))


def dictionary_learning(repo: Path, path: str, d: int) -> None:
    p = linear(d)
    p["b_dec"] = p.pop("decoder.bias")
    put(repo / path / "ae.pt", {**p, "k": torch.tensor(8), "threshold": torch.tensor(0.1)})
    trainer = {"dict_class": "BatchTopKSAE", "k": 8, "layer": 1, "lm_name": "google/gemma-2-2b"}
    say(repo / path / "config.json", {"trainer": trainer, "buffer": {"ctx_len": 128}})


def sparsify(repo: Path, path: str, d: int) -> None:
    p = linear(d)
    p |= {"W_dec": weights(d)["W_dec"], "b_dec": p.pop("decoder.bias")}
    del p["decoder.weight"]
    put(repo / path / "sae.safetensors", p)
    say(repo / path / "cfg.json", {"expansion_factor": 32, "num_latents": 0, "k": 8, "d_in": d, "signed": False})


def gemma_scope(repo: Path, path: str, d: int) -> None:
    put(repo / path / "params.npz", {**turned(d), "threshold": torch.full((F,), 0.1)})


def gemma_scope_2(repo: Path, path: str, d: int) -> None:
    skip = {"affine_skip_connection": 0.1 * torch.eye(d)} if path.endswith("_affine") else {}
    put(repo / path / "params.safetensors", lower(d) | skip)


def gemma_scope_2_layers(repo: Path, path: str, d: int, layers: int = 3) -> None:
    for layer in range(layers):
        several = {"w_dec": 0.1 * torch.randn(F, layers, d, generator=torch.Generator().manual_seed(layer))}
        skip = {"affine_skip_connection": 0.1 * torch.eye(d)} if path.endswith("_affine") else {}
        put(repo / path / f"params_layer_{layer}.safetensors", lower(d) | several | skip)


def gemma_scope_2_crosscoder(repo: Path, path: str, d: int) -> None:
    gemma_scope_2_layers(repo, path, d, len(path.split("_width")[0].split("layer_")[1].split("_")))


def qwen_scope(repo: Path, path: str, d: int) -> None:
    p = weights(d)
    put(repo / path, {**p, "W_dec": p["W_dec"].T.contiguous()})


def llama_scope(repo: Path, path: str, d: int) -> None:
    put(repo / path / "checkpoints" / "final.safetensors", linear(d))
    predicts = "blocks.1.hook_mlp_out" if "TC" in path else "blocks.1.hook_resid_post"
    hooks = {"hook_point_in": "blocks.1.hook_resid_mid" if "TC" in path else predicts, "hook_point_out": predicts}
    norms = {"dataset_average_activation_norm": {"in": 5.0, "out": 4.0}}
    say(repo / path / "hyperparams.json", {**hooks, **norms, "jump_relu_threshold": 0.1, "d_model": d, "d_sae": F})


def llama_scope_r1(repo: Path, path: str, d: int) -> None:
    hook = "blocks.1.hook_resid_post"
    norm = {
        f"dataset_average_activation_norm.{hook}": torch.tensor(5.0),
        "log_jumprelu_threshold": torch.full((F,), -2.0),
    }
    put(repo / path / "sae_weights.safetensors", linear(d) | norm)
    say(
        repo / path / "config.json", {"hook_point_in": hook, "hook_point_out": hook, "d_model": d, "act_fn": "jumprelu"}
    )


def llamascopium(repo: Path, path: str, d: int) -> None:
    p, hook = weights(d), "blocks.1.hook_resid_post"
    named = {"W_E": p["W_enc"].T, "b_E": p["b_enc"], "W_D": p["W_dec"], "b_D": p["b_dec"]}
    put(repo / path / "sae_weights.safetensors", named | {f"dataset_average_activation_norm.{hook}": torch.tensor(5.0)})
    about = {"hook_point_in": hook, "hook_point_out": hook, "act_fn": "relu", "sae_type": "sae"}
    say(repo / path / "config.json", about | {"norm_activation": "dataset-wise", "model_name": "google/gemma-2-2b"})


CIRCUITS = {"model_name": "Qwen/Qwen3-4B", "feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}


def circuit_tracer(repo: Path, path: str, d: int) -> None:
    put(repo / path, weights(d))
    k = {"activation": "topk", "k": 8} if "crv" in str(repo) else {}
    say((repo / path).parent / "config.yaml", {"model_kind": "transcoder_set", **CIRCUITS, **k})


def circuit_tracer_across(repo: Path, path: str, d: int) -> None:
    for layer in range(3):
        p = weights(d)
        own = {f"{name}_{layer}": p[name] for name in ("W_enc", "b_enc", "b_dec")}
        put(repo / path / f"W_enc_{layer}.safetensors", own)
        decoder = 0.1 * torch.randn(F, 3 - layer, d, generator=torch.Generator().manual_seed(layer))
        put(repo / path / f"W_dec_{layer}.safetensors", {f"W_dec_{layer}": decoder})
    say(repo / path / "config.yaml", {"model_kind": "cross_layer_transcoder", **CIRCUITS})


def listed(repo: Path, path: str, d: int) -> None:
    """A list of what stands in other repositories, which is put there too."""
    cache, files = repo.parents[2], "layer_{}/width_16k/average_l0_5{}/params.npz"
    other = cached(cache, "google/gemma-scope-2b-pt-transcoders")
    for layer in range(3):
        gemma_scope(other, files.format(layer, layer).rpartition("/")[0], d)
    addresses = [f"hf://google/gemma-scope-2b-pt-transcoders/{files.format(layer, layer)}" for layer in range(3)]
    hooks = {"feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "hook_mlp_out"}
    config = {"model_kind": "transcoder_set", "model_name": "google/gemma-2-2b", **hooks, "transcoders": addresses}
    say(repo / path.rpartition("/")[0] / "config.yaml", config)


def listed_across(repo: Path, path: str, d: int) -> None:
    """As `listed`, one set across layers."""
    whole = "clt/width_262k_l0_medium"
    gemma_scope_2_layers(cached(repo.parents[2], "google/gemma-scope-2-270m-pt"), whole, d)
    at = f"hf://google/gemma-scope-2-270m-pt/{whole}/params_layer_{{}}.safetensors?revision=main"
    config = {**CIRCUITS, "model_name": "google/gemma-3-270m", "transcoders": [at.format(layer) for layer in range(3)]}
    say(repo / path / "config.yaml", {"model_kind": "cross_layer_transcoder", **config})


def neuronpedia(repo: Path, path: str, d: int) -> None:
    rows = weights(d)["W_dec"].tolist()
    say(repo / path, [{"modelId": "gpt2-small", "hookName": "blocks.1.hook_resid_post", "vector": row} for row in rows])


class Family(NamedTuple):
    """Dictionaries that are published in one way."""

    covers: str
    """A pattern of their names in the catalogue."""
    name: str
    """One of layer 1, or as if it were."""
    write: Callable[[Path, str, int], None]
    layout: str
    hook: str
    model: str
    target: str | None = None


LAYERS = " ".join(f"mlp_in.{layer}" for layer in range(3))
WRITES = LAYERS.replace("_in", "_out")
GEMMA_2, GEMMA_3, LLAMA = "google/gemma-2-2b", "google/gemma-3-270m", "meta-llama/Llama-3.1-8B"
SAELENS = (
    r"(JoshEngels|Juliushanhanhan|ctigges|neuronpedia|tommmcgrath|jbloom)/.+/.+|"
    r"chanind/gemma-2-\w+-batch-topk-matryoshka-saes-w-32k-l0-\d+/(standard/|snap/)?blocks\.\d+\.hook_resid_post"
)

FAMILIES = {
    "SAELens, older": Family(
        SAELENS,
        "jbloom/GPT2-Small-SAEs-Reformatted/blocks.1.hook_resid_pre",
        saelens,
        "SAELens",
        "resid_pre.1",
        "openai-community/gpt2",
    ),
    "SAELens": Family(
        r"chanind/.+",
        "chanind/gemma-2-2b-batch-topk-matryoshka-saes-w-32k-l0-40/snap/blocks.1.hook_resid_post",
        saelens_6,
        "SAELens",
        "resid_post.1",
        GEMMA_2,
    ),
    "Kissane": Family(
        r"ckkissane/attn-saes-gpt2-small-all-layers/gpt2-small_L\d+_Hcat_z_.+\.pt",
        "ckkissane/attn-saes-gpt2-small-all-layers/gpt2-small_L1_Hcat_z_lr1.20e-03_l18.00e-01_ds24576_bs4096_dc1.00e-06_"
        "rsanthropic_rie25000_nr4_v5.pt",
        kissane,
        "Kissane et al.",
        "attn_z.1",
        "openai-community/gpt2",
    ),
    "Goodfire": Family(
        r"Goodfire/(.+-SAE-l\d+/|DeepSeek-R1-SAE-l37/math/).+-SAE-l\d+\.pth?",
        "Goodfire/Llama-3.1-8B-Instruct-SAE-l1/Llama-3.1-8B-Instruct-SAE-l1.pth",
        goodfire,
        "Goodfire",
        "resid_post.1",
        "meta-llama/Llama-3.1-8B-Instruct",
    ),
    "qresearch": Family(
        r"qresearch/.+-SAE-l\d+\.pt",
        "qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l1/DeepSeek-R1-Distill-Llama-8B-SAE-l1.pt",
        qresearch,
        "Goodfire",
        "resid_post.1",
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    ),
    "dictionary_learning": Family(
        r"(adamkarvonen|canrager|andyrdt)/.+/trainer_\d+(_step_\d+)?",
        "canrager/saebench_gemma-2-2b_width-2pow12_date-1109/gemma-2-2b_topk_width-2pow12_date-1109/"
        "resid_post_layer_1_checkpoints/trainer_0_step_0",
        dictionary_learning,
        "dictionary_learning",
        "resid_post.1",
        GEMMA_2,
    ),
    "sparsify": Family(
        r"EleutherAI/.+/layers\.\d+(\.mlp)?",
        "EleutherAI/sae-pythia-410m-65k/layers.1.mlp",
        sparsify,
        "sparsify",
        "layers.1.mlp",
        "EleutherAI/pythia-410m",
    ),
    "Gemma Scope": Family(
        r"google/gemma-scope-\d+b-\w\w-(res|att|mlp)/layer_\d+/width_\w+/average_l0_\d+",
        "google/gemma-scope-2b-pt-att/layer_1/width_16k/average_l0_79",
        gemma_scope,
        "Gemma Scope",
        "attn_z.1",
        GEMMA_2,
    ),
    "Gemma Scope, embeddings": Family(
        r"google/gemma-scope-\d+b-pt-res/embedding/width_\d+k/average_l0_\d+",
        "google/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6",
        gemma_scope,
        "Gemma Scope",
        "embed",
        GEMMA_2,
    ),
    "Gemma Scope, transcoders": Family(
        r"google/gemma-scope-2b-pt-transcoders/layer_\d+/width_16k/average_l0_\d+",
        "google/gemma-scope-2b-pt-transcoders/layer_1/width_16k/average_l0_65",
        gemma_scope,
        "Gemma Scope",
        "resid_mid.1",
        GEMMA_2,
        "mlp_out.1",
    ),
    "Gemma Scope 2": Family(
        r"google/gemma-scope-2-\w+-\w\w/(resid_post|attn_out|mlp_out)(_all)?/layer_\d+_width_\w+_l0_[a-z]+(_seed_\d)?",
        "google/gemma-scope-2-270m-pt/resid_post_all/layer_1_width_16k_l0_small",
        gemma_scope_2,
        "Gemma Scope 2",
        "resid_post.1",
        GEMMA_3,
    ),
    "Gemma Scope 2, transcoders": Family(
        r"google/gemma-scope-2-\w+-\w\w/transcoder(_all)?/layer_\d+_width_\w+_l0_[a-z]+(_affine)?(_seed_\d)?",
        "google/gemma-scope-2-270m-pt/transcoder_all/layer_1_width_16k_l0_small_affine",
        gemma_scope_2,
        "Gemma Scope 2",
        "mlp_in.1",
        GEMMA_3,
        "mlp_out.1",
    ),
    "Gemma Scope 2, crosscoders": Family(
        r"google/gemma-scope-2-\w+-\w\w/crosscoder/layer_[\d_]+_width_\w+_l0_[a-z]+(_seed_\d)?",
        "google/gemma-scope-2-270m-pt/crosscoder/layer_0_1_2_width_65k_l0_big",
        gemma_scope_2_crosscoder,
        "Gemma Scope 2, several layers",
        "resid_post.0 resid_post.1 resid_post.2",
        GEMMA_3,
        "resid_post.0 resid_post.1 resid_post.2",
    ),
    "Gemma Scope 2, across layers": Family(
        r"google/gemma-scope-2-\w+-\w\w/clt/width_\w+_l0_[a-z]+(_affine)?(_seed_\d)?",
        "google/gemma-scope-2-270m-pt/clt/width_262k_l0_big_affine",
        gemma_scope_2_layers,
        "Gemma Scope 2, several layers",
        LAYERS,
        GEMMA_3,
        WRITES,
    ),
    "Qwen-Scope": Family(
        r"Qwen/SAE-Res-.+-W\d+K-L0_\d+/layer\d+\.sae\.pt",
        "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_8/layer1.sae.pt",
        qwen_scope,
        "Qwen-Scope",
        "resid_post.1",
        "Qwen/Qwen3-1.7B-Base",
    ),
    "Llama Scope": Family(
        r"fnlp/Llama3_1-8B-Base-LX[RAM]-\d+x/Llama3_1-8B-Base-L\d+[RAM]-\d+x",
        "fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L1R-8x",
        llama_scope,
        "OpenMOSS",
        "resid_post.1",
        LLAMA,
    ),
    "Llama Scope, transcoders": Family(
        r"fnlp/Llama3_1-8B-Base-LXTC-\d+x/Llama3_1-8B-Base-L\d+TC-\d+x",
        "fnlp/Llama3_1-8B-Base-LXTC-8x/Llama3_1-8B-Base-L1TC-8x",
        llama_scope,
        "OpenMOSS",
        "resid_mid.1",
        LLAMA,
        "mlp_out.1",
    ),
    "Llama Scope R1": Family(
        r"fnlp/Llama-Scope-R1-Distill/.+/L\d+R",
        "fnlp/Llama-Scope-R1-Distill/400M-Slimpajama-400M-OpenR1-Math-220k/L1R",
        llama_scope_r1,
        "OpenMOSS",
        "resid_post.1",
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    ),
    "Llamascopium": Family("-", "OpenMOSS/scopium/L1R", llamascopium, "OpenMOSS", "resid_post.1", GEMMA_2),
    "circuit-tracer": Family(
        r"(mwhanna/qwen3-.+-transcoders(-lowl0)?|mntss/transcoder-Llama-3.2-1B)/layer_\d+\.safetensors",
        "mwhanna/qwen3-4b-transcoders/layer_1.safetensors",
        circuit_tracer,
        "circuit-tracer",
        "mlp_in.1",
        "Qwen/Qwen3-4B",
        "mlp_out.1",
    ),
    "circuit-tracer, TopK": Family(
        r"facebook/crv-8b-instruct-transcoders/layer_\d+\.safetensors",
        "facebook/crv-8b-instruct-transcoders/layer_1.safetensors",
        circuit_tracer,
        "circuit-tracer",
        "mlp_in.1",
        "Qwen/Qwen3-4B",
        "mlp_out.1",
    ),
    "circuit-tracer, across layers": Family(
        r"(mntss|bluelightai)/clt-.+",
        "mntss/clt-gemma-2-2b-426k",
        circuit_tracer_across,
        "circuit-tracer, cross-layer",
        LAYERS,
        "Qwen/Qwen3-4B",
        WRITES,
    ),
    "circuit-tracer, listed": Family(
        r"mntss/gemma-scope-transcoders/layer_\d+|mwhanna/gemma-scope-2-\w+-\w\w/transcoder_all/.+/layer_\d+",
        "mntss/gemma-scope-transcoders/layer_1",
        listed,
        "Gemma Scope",
        "resid_mid.1",
        GEMMA_2,
        "mlp_out.1",
    ),
    "circuit-tracer, listed across layers": Family(
        r"mwhanna/gemma-scope-2-\w+-\w\w/clt/.+",
        "mwhanna/gemma-scope-2-270m-pt/clt/width_262k_l0_medium",
        listed_across,
        "Gemma Scope 2, several layers",
        LAYERS,
        GEMMA_3,
        WRITES,
    ),
    "Neuronpedia": Family(
        "-", "somebody/vectors/steering.json", neuronpedia, "Neuronpedia", "resid_post.1", "openai-community/gpt2"
    ),
}
"""Of each way of publishing, one."""
REFUSED = r"canrager/temporalSAEs/.+"
