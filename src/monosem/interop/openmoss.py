"""OpenMOSS: Llama Scope (`hyperparams.json`, `checkpoints/final.safetensors`), its R1 distillation, and Llamascopium
(`config.json`, `sae_weights.safetensors`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from monosem.errors import FileError
from monosem.files import Stored
from monosem.interop.hook import hook_of, model_of, normalised
from monosem.interop.layout import Layout, Parts, matrix, refusal, wanted
from monosem.interop.place import Place
from monosem.sae import SAE, JumpReLUSAE, ReLUSAE, SAEMetadata, TopKSAE
from monosem.sae.weights import row_norms

FINAL, OWN = "checkpoints/final.safetensors", "sae_weights.safetensors"
LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
PLAIN = ("W_E", "b_E", "W_D", "b_D")
NORM = "dataset_average_activation_norm"
LENGTH = 1024
ALIKE = 1e-3
MODELS = (("Llama3_1-8B-Base", "meta-llama/Llama-3.1-8B"), ("R1-Distill", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"))


def recognises(place: Place) -> bool:
    """Weights of these names, and a config that names its hook points."""
    tensors = _tensors(place)
    return bool(_config(place).get("hook_point_in")) and ({*LINEAR[:1]} <= set(tensors) or {*PLAIN[:1]} <= set(tensors))


def _tensors(place: Place) -> Mapping[str, Stored]:
    name = next((name for name in (FINAL, OWN) if place.has(name)), None)
    return place.tensors(name) if name is not None else place.only()


def _config(place: Place) -> dict[str, Any]:
    return place.json("hyperparams.json", above=True) or place.json("config.json")


def read(place: Place) -> Parts:
    """What is read, times sqrt(d) / the mean norm of the data, is encoded; what is decoded is scaled back.

    A transcoder that reads a norm's output before its gain reads the residual stream here, and norms it itself. A
    latent is on where its pre-activation, times the norm of its decoder row where the config says so, is above its
    threshold.
    """
    tensors, config = _tensors(place), _config(place)
    W_enc, b_enc, W_dec, b_dec = _weights(tensors, place)
    n_latents, d_in = matrix(W_enc)
    _require_plain(place, config)
    reads, predicts = str(config["hook_point_in"]), str(config.get("hook_point_out") or config["hook_point_in"])
    autoencodes = reads == predicts
    how = str(config.get("act_fn", "jumprelu" if _limit(tensors, config) is not None else "relu")).lower()
    kinds: dict[str, type[SAE]] = {"relu": ReLUSAE, "jumprelu": JumpReLUSAE, "topk": TopKSAE}
    if how not in kinds:
        raise refusal(place, f"its activation {how!r} depends on the batch", "save it as JumpReLU with Llamascopium")
    norms = [_norm(place, tensors, config, side, hook) for side, hook in (("in", reads), ("out", predicts))]
    found: dict[str, Stored | Tensor] = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}
    if how == "jumprelu":
        limit = _limit(tensors, config)
        if limit is None:
            raise FileError(
                f"{place.source} has no threshold, neither as a tensor nor in its config: download it again"
            )
        if limit.shape not in ((n_latents,), (1,), ()):
            raise FileError(f"{place.source} has {limit.numel()} thresholds of {n_latents} latents: download it again")
        found["threshold"] = limit.expand(n_latents)
    settings = {"k": config.get("top_k")} if how == "topk" else {}
    weighted = bool(config.get("sparsity_include_decoder_norm", False))
    scales = [1.0 if norm is None else math.sqrt(d_in) / norm for norm in norms]
    words = "/".join(place.words)
    model = model_of(config.get("model_name")) or next((model for word, model in MODELS if word in words), None)
    before_gain = normalised(reads, model)
    metadata = SAEMetadata(
        model=model,
        hook=before_gain or hook_of(reads),
        target_hook=None if autoencodes else hook_of(predicts),
        original_hook=reads if autoencodes else f"{reads} > {predicts}",
        prepend_bos=True,
        context_length=LENGTH,
    )
    return Parts(
        kinds[how],
        d_in,
        n_latents,
        found,
        metadata,
        settings,
        d_out=None if autoencodes else matrix(W_dec)[1],
        subtract_b_dec=autoencodes and bool(config.get("apply_decoder_bias_to_pre_encoder", False)),
        transform="row_norm" if before_gain else "none" if norms == [None, None] else "scale",
        finish=partial(_finish, place=place, scales=scales, weighted=weighted),
    )


def _weights(tensors: Mapping[str, Stored], place: Place) -> tuple[Stored, Stored, Stored, Stored | Tensor]:
    """Latent-major; a decoder without bias has one of zeros."""
    if "encoder.weight" in tensors:
        W_enc, b_enc, W_dec = wanted(tensors, place, *LINEAR[:3])
        return W_enc, b_enc, W_dec.T, tensors.get("decoder.bias", torch.zeros(W_dec.shape[0]))
    W_enc, b_enc, W_dec = wanted(tensors, place, *PLAIN[:3])
    return W_enc.T, b_enc, W_dec, tensors.get("b_D", torch.zeros(W_dec.shape[-1]))


def _require_plain(place: Place, config: dict[str, Any]) -> None:
    if str(config.get("sae_type", "sae")) not in ("sae", "transcoder"):
        raise refusal(place, f"it is a {config['sae_type']}", "use Llamascopium")
    if config.get("use_glu_encoder"):
        raise refusal(place, "its encoder is gated by a second one (use_glu_encoder)", "use Llamascopium")
    if config.get("norm_activation") == "batch-wise":
        raise refusal(place, "it scales activations by the norm of their batch", "use Llamascopium")


def _limit(tensors: Mapping[str, Stored], config: dict[str, Any]) -> Tensor | None:
    for name in ("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold"):
        if name in tensors:
            return tensors[name].read(torch.float32).exp()
    number = config.get("jump_relu_threshold")
    return torch.tensor([float(number)]) if isinstance(number, int | float) else None


def _norm(place: Place, tensors: Mapping[str, Stored], config: dict[str, Any], side: str, hook: str) -> float | None:
    """The mean norm of the data, by which activations are divided; None where nothing is."""
    how = config.get("norm_activation", "dataset-wise")
    if how == "inference":
        return None
    if how == "token-wise":
        raise refusal(place, "it scales every activation by its own norm and scales back by it", "use Llamascopium")
    if f"{NORM}.{hook}" in tensors:
        return tensors[f"{NORM}.{hook}"].number()
    known = config.get(NORM)
    number = known.get(side) if isinstance(known, dict) else None
    if not isinstance(number, int | float) or not number > 0:
        raise FileError(f"{place.source} does not say the mean norm of its activations ({NORM}): download it again")
    return float(number)


def _finish(sae: SAE, place: Place, scales: list[float], weighted: bool) -> None:
    if sae.transform.kind == "scale":
        sae.transform.scale.fill_(scales[0])
        sae.target_transform.scale.fill_(scales[-1])
    elif sae.transform.kind == "row_norm":  # what is scaled is the norm of a row: the scale stands in the encoder
        sae.W_enc.mul_(scales[0])
        sae.target_transform.scale.fill_(scales[-1])
    if not weighted:
        return
    norms = row_norms(sae.W_dec.detach())[:, 0]
    if isinstance(sae, JumpReLUSAE):
        sae.threshold.div_(norms)
    elif isinstance(sae, TopKSAE) and norms.max() > (1 + ALIKE) * norms.min():
        raise refusal(
            place, "its latents compete by codes times decoder norms, which differ", "scale the rows to norm 1 first"
        )


LAYOUT = Layout(
    "OpenMOSS",
    "hyperparams.json with checkpoints/final.safetensors, or config.json with sae_weights.safetensors",
    recognises,
    read,
)
