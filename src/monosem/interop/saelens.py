"""SAELens: `cfg.json` and `sae_weights.safetensors`, of version 6 and of those before."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from monosem.errors import FileError
from monosem.files import Stored
from monosem.interop.hook import bos_of, hook_of, length_of, model_of, normalised
from monosem.interop.layout import Layout, Parts, matrix, refusal, wanted
from monosem.interop.place import Place
from monosem.sae import (
    SAE,
    BatchTopKSAE,
    GatedSAE,
    JumpReLUSAE,
    JumpReLUSkipTranscoder,
    ReLUSAE,
    SAEMetadata,
    SkipTranscoder,
    TopKSAE,
    Transcoder,
)
from monosem.sae.transform import TransformKind
from monosem.sae.weights import row_norms

CENTRED = (
    "jbloom/GPT2-Small-SAEs-Reformatted",
    "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8",
    "tommmcgrath/gpt2-small-mlp-out-saes",
)
"""Repositories whose files do not say that they are of a model with centred weights: SAELens's registry says it."""
FILES = ("cfg.json", "sae_weights.safetensors")
OLDER = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
NORMALISATIONS: dict[str, TransformKind] = {
    "none": "none",
    "layer_norm": "standardise",
    "constant_norm_rescale": "row_norm",
    "expected_average_only_in": "scale",
    "covariance_whitening": "whiten",
}
USE_SAELENS = "encode with SAELens, and bring the activations here as vectors"


def recognises(place: Place) -> bool:
    """`cfg.json` beside tensors of SAELens's names, or with its word for their number."""
    if not place.has("cfg.json"):
        return False
    config = place.json("cfg.json")
    return "d_sae" in config or (place.has("sae_weights.safetensors") and "format" not in config)


def read(place: Place) -> Parts:
    """All architectures but those that our classes do not compute."""
    config = _config(place)
    tensors = dict(place.tensors("sae_weights.safetensors"))
    architecture, activation = str(config.get("architecture", "standard")), config.get("activation_fn", "relu")
    skip = {"temporal", "matching_pursuit", "abstopk"} & {architecture}
    if skip:
        raise refusal(place, f"its {architecture} encoder is computed by none of ours", USE_SAELENS)
    if architecture in ("standard", "gated", "jumprelu") and activation not in ("relu", None):
        raise refusal(place, f"its activation function is {activation!r}", USE_SAELENS)
    W_dec, b_dec = wanted(tensors, place, "W_dec", "b_dec")
    n_latents, d_out = matrix(W_dec)
    W_enc = wanted(tensors, place, "W_enc")[0].T
    d_in = matrix(W_enc)[1]
    found: dict[str, Stored | Tensor] = {"W_enc": W_enc, "W_dec": W_dec, "b_dec": b_dec}
    kind, settings = _kind(architecture, place, config, tensors, found)
    transform = _transform(place, config, found)
    metadata = _metadata(config, transcodes := architecture.endswith("transcoder"))
    before_gain = normalised(metadata.original_hook, metadata.model)
    if before_gain is not None and transform == "none":
        metadata.hook, transform = before_gain, "row_norm"
    elif transform == "none" and not transcodes and _centred(place, config):
        transform = "row_centre"
    if transcodes and "W_skip" in found and transform not in ("none", "row_norm"):
        raise refusal(place, "its skip reads activations that its encoder reads normalised", USE_SAELENS)
    return Parts(
        kind,
        d_in,
        n_latents,
        found,
        metadata,
        settings,
        d_out=d_out if transcodes else None,
        subtract_b_dec=None if transcodes else bool(config.get("apply_b_dec_to_input", True)),
        transform=transform,
        finish=_finish(config, tensors),
    )


def _centred(place: Place, config: dict[str, Any]) -> bool:
    """Whether it reads what a model writes whose weights TransformerLens has centred: rows of mean 0."""
    options = config.get("model_from_pretrained_kwargs")
    said = isinstance(options, dict) and options.get("center_writing_weights") is True
    known = any(place.source.removeprefix("hf://").startswith(repo + "/") for repo in CENTRED)
    written = re.search(r"hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_out)$", str(config.get("hook_name")))
    return bool((said or known) and written)


def _config(place: Place) -> dict[str, Any]:
    """What cfg.json says, in the words of version 6, metadata and all on one level."""
    config = {OLDER.get(name, name): value for name, value in place.json("cfg.json").items()}
    metadata = config.get("metadata")
    config |= metadata if isinstance(metadata, dict) else {}
    options = config.get("activation_fn_kwargs")
    if config.get("activation_fn") == "topk" and isinstance(options, dict):
        config |= {"architecture": "topk", "k": options.get("k")}
    normalises = config.get("normalize_activations")
    if isinstance(normalises, bool):
        config["normalize_activations"] = "expected_average_only_in" if normalises else "none"
    return config


def _kind(
    architecture: str,
    place: Place,
    config: dict[str, Any],
    tensors: dict[str, Stored],
    found: dict[str, Stored | Tensor],
) -> tuple[type[SAE], dict[str, Any]]:
    """Our class for an architecture, its settings; what tensors it has beside the usual are put to the others."""

    def take(ours: str, theirs: str = "") -> None:
        found[ours] = wanted(tensors, place, theirs or ours)[0]

    if architecture == "gated":
        for ours, theirs in (("b_enc", "b_gate"), ("r_mag", "r_mag"), ("b_mag", "b_mag")):
            take(ours, theirs)
        return GatedSAE, {}
    take("b_enc")
    match architecture:
        case "standard":
            return ReLUSAE, {}
        case "topk":
            return TopKSAE, {"k": _k(place, config)}
        case "jumprelu" | "jumprelu_transcoder" | "jumprelu_skip_transcoder":
            if "log_threshold" in tensors and "threshold" not in tensors:
                found["threshold"] = tensors["log_threshold"].read(torch.float64).exp().float()
            else:
                take("threshold")
            if "skip" not in architecture:
                return JumpReLUSAE, {}
            take("W_skip")
            return JumpReLUSkipTranscoder, {}
        case "batchtopk" | "matryoshka_batchtopk":
            take("running_threshold", "topk_threshold")
            found["threshold_weight"] = torch.ones((), dtype=torch.float64)
            return BatchTopKSAE, {"k": _k(place, config)}
        case "transcoder":
            return ReLUSAE, {}
        case "skip_transcoder":
            take("W_skip")
            found["threshold"] = torch.zeros(found["b_enc"].shape)
            return JumpReLUSkipTranscoder, {}
        case "topk_transcoder":
            return Transcoder, {"k": _k(place, config)}
        case "topk_skip_transcoder":
            take("W_skip")
            return SkipTranscoder, {"k": _k(place, config)}
        case _:
            raise refusal(
                place, f"its architecture {architecture!r} is not known", "upgrade monosem, or " + USE_SAELENS
            )


def _k(place: Place, config: dict[str, Any]) -> int:
    k = config.get("k")
    if isinstance(k, bool) or not isinstance(k, int | float) or not k >= 1:
        raise FileError(f"{place.source}: cfg.json gives no k of 1 or more, but {k!r}: restore it or write it anew")
    return round(k)


def _transform(place: Place, config: dict[str, Any], found: dict[str, Stored | Tensor]) -> TransformKind:
    """Our name of a normalisation; its numbers, where it has any, are put to the tensors."""
    name = config.get("normalize_activations") or "none"
    if name not in NORMALISATIONS:
        raise refusal(place, f"its normalisation {name!r} is not known", "upgrade monosem, or " + USE_SAELENS)
    if name == "expected_average_only_in":
        factor = place.json("activation_scaler.json").get("scaling_factor")
        if not isinstance(factor, float) or not factor > 0:
            raise refusal(
                place,
                "it was trained on activations scaled by a factor that its files do not say (normalize_activations is "
                "expected_average_only_in, and there is no activation_scaler.json)",
                "with SAELens, fold the factor in (sae.fold_activation_norm_scaling_factor(factor)) and save it again",
            )
        found["transform.scale"] = torch.tensor(factor, dtype=torch.float64)
    if name == "covariance_whitening":
        tensors = place.tensors("activation_whitening.safetensors")
        mean, there, back = wanted(tensors, place, "mean", "matrix", "inverse_matrix")
        found |= {"transform.mean": mean, "transform.matrix": there.T, "transform.inverse_matrix": back.T}
    return NORMALISATIONS[name]


def _finish(config: dict[str, Any], tensors: dict[str, Stored]) -> Any:
    """Norms of decoder rows, and scales of codes, moved into the weights."""
    scale = next((tensors[n] for n in ("finetuning_scaling_factor", "scaling_factor") if n in tensors), None)
    by_norm = bool(config.get("rescale_acts_by_decoder_norm")) and config.get("architecture") != "gated"

    def finish(sae: SAE) -> None:
        if scale is not None and config.get("finetuning_scaling_factor"):
            sae.W_dec.mul_(scale.read(sae.W_dec.dtype)[:, None])
        if by_norm and isinstance(sae, TopKSAE):
            norms = row_norms(sae.W_dec)
            sae.W_enc.mul_(norms)
            sae.b_enc.mul_(norms[:, 0])
            sae.W_dec.div_(torch.where(norms > 0, norms, torch.ones_like(norms)))

    return finish


def _metadata(config: dict[str, Any], transcodes: bool) -> SAEMetadata:
    name = config.get("hook_name")
    name = name if isinstance(name, str) else None
    head = config.get("hook_head_index")
    original = name if head is None else f"{name} of head {head}"
    target = config.get("hook_name_out")
    return SAEMetadata(
        model=model_of(config.get("model_name")),
        hook=hook_of(name) if head is None else None,
        target_hook=hook_of(target) if transcodes and isinstance(target, str) else None,
        original_hook=original,
        text=config["dataset_path"] if isinstance(config.get("dataset_path"), str) else None,
        prepend_bos=bos_of(config.get("prepend_bos", True)),
        context_length=length_of(config.get("context_size")),
    )


LAYOUT = Layout("SAELens", " and ".join(FILES), recognises, read)
