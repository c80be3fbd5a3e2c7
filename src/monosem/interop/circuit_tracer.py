"""circuit-tracer's sets: a transcoder of each layer (`layer_3.safetensors`), or one across all (`W_enc_0...`)."""

from __future__ import annotations

import re
from typing import Any

import torch

from monosem.errors import ConfigError, FileError
from monosem.files import Stacked, Stored
from monosem.interop.hook import hook_of, model_of, normalised
from monosem.interop.layout import Layout, Parts, matrix, refusal, wanted
from monosem.interop.place import Place
from monosem.sae import (
    CrossLayerTranscoder,
    JumpReLUSAE,
    JumpReLUSkipTranscoder,
    ReLUSAE,
    SAEMetadata,
    SkipTranscoder,
    Transcoder,
)

LAYER = re.compile(r"layer_(\d+)\.safetensors")
ENCODER = re.compile(r"W_enc_(\d+)\.safetensors")
THRESHOLD = "activation_function.threshold"
KNOWN_K = {"crv-8b-instruct-transcoders": 128}
"""Of sets with TopK whose files do not say k: as circuit-tracer has it in its code."""


def recognises(place: Place) -> bool:
    """Encoders and decoders with a row for each latent."""
    return _one(place) or bool(_layers(place, LAYER))


def _layers(place: Place, pattern: re.Pattern[str]) -> dict[int, str]:
    return {int(found[1]): name for name in place.files if (found := pattern.fullmatch(name))}


def _one(place: Place) -> bool:
    tensors = place.only()
    names = {"W_enc", "W_dec", "b_enc", "b_dec"}
    if place.has("cfg.json") or not place.weights or not place.weights[0].endswith(".safetensors"):
        return False
    return names <= set(tensors) and tensors["W_enc"].shape == tensors["W_dec"].shape


def read(place: Place) -> Parts:
    """One layer of a set."""
    if not _one(place):
        layers = _layers(place, LAYER)
        raise ConfigError(
            f"{place.source} is a set of {len(layers)} transcoders, one a layer: name the one to read, as "
            f"{place.source}/{layers[min(layers)]}"
        )
    tensors, config = place.only(), _config(place)
    W_enc, W_dec, b_enc, b_dec = wanted(tensors, place, "W_enc", "W_dec", "b_enc", "b_dec")
    n_latents, d_in = matrix(W_enc)
    layer = LAYER.fullmatch(place.weights[0])
    parts = Parts(
        ReLUSAE,
        d_in,
        n_latents,
        {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec},
        metadata_of(config, int(layer[1]) if layer else None),
        d_out=matrix(W_dec)[1],
    )
    before_gain = _before_gain(config, int(layer[1])) if layer else None
    if before_gain is not None:
        parts.metadata.hook, parts.transform = before_gain, "row_norm"
    k = _k(place, config)
    skip = "W_skip" in tensors
    if skip:
        parts.tensors["W_skip"] = tensors["W_skip"]
    if k is not None:
        parts.kind, parts.settings = (SkipTranscoder if skip else Transcoder), {"k": k}
    elif THRESHOLD in tensors or skip:
        parts.kind = JumpReLUSkipTranscoder if skip else JumpReLUSAE
        parts.tensors["threshold"] = _threshold(tensors, n_latents)
    return parts


def _before_gain(config: dict[str, Any], layer: int) -> str | None:
    return normalised(f"blocks.{layer}.{config.get('feature_input_hook')}", model_of(config.get("model_name")))


def _threshold(tensors: Any, n_latents: int) -> Stored | torch.Tensor:
    """One a latent; 0 where there are none; one number for all where there is one."""
    if THRESHOLD not in tensors:
        return torch.zeros(n_latents)
    stored: Stored = tensors[THRESHOLD]
    return stored if stored.shape == (n_latents,) else stored.read().reshape(-1).expand(n_latents)


def _config(place: Place) -> dict[str, Any]:
    return place.yaml("config.yaml")


def _k(place: Place, config: dict[str, Any]) -> int | None:
    """K where the latents of a layer compete; None where each is on by itself."""
    k = config.get("k", next((k for name, k in KNOWN_K.items() if name in place.words), None))
    activation = str(config.get("activation", "topk" if k is not None else "relu")).lower()
    if activation in ("relu", "jumprelu", "jump_relu"):
        return None
    if activation != "topk":
        raise refusal(place, f"its activation is {activation!r}", "use circuit-tracer")
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise FileError(f"{place.source}: config.yaml gives no k of 1 or more, but {k!r}: write k: NUMBER into it")
    return k


def metadata_of(config: dict[str, Any], layer: int | None) -> SAEMetadata:
    """What a set's config.yaml says of the transcoder of a layer; of all, where none is given."""
    reads, predicts = config.get("feature_input_hook"), config.get("feature_output_hook")
    if layer is None or not isinstance(reads, str) or not isinstance(predicts, str):
        return SAEMetadata(model=model_of(config.get("model_name")))
    return SAEMetadata(
        model=model_of(config.get("model_name")),
        hook=hook_of(f"blocks.{layer}.{reads}"),
        target_hook=hook_of(f"blocks.{layer}.{predicts}"),
        original_hook=f"blocks.{layer}.{reads} > blocks.{layer}.{predicts}",
    )


# Across layers ------------------------------------------------------------------------------------------------------


def recognises_clt(place: Place) -> bool:
    """Encoders and decoders in a file a layer."""
    layers = _layers(place, ENCODER)
    return bool(layers) and all(f"W_dec_{layer}.safetensors" in place.files for layer in layers)


def read_clt(place: Place) -> Parts:
    """All layers; latents of each in a row of encoders, and a decoder that writes to it and those after it."""
    found = _layers(place, ENCODER)
    n_layers, config = len(found), _config(place)
    if set(found) != set(range(n_layers)):
        raise FileError(f"{place.source} has layers {sorted(found)}, and not all from 0 on: download it again")
    encoders = [place.tensors(found[layer]) for layer in range(n_layers)]

    def stacked(name: str) -> Stacked:
        return Stacked.of([wanted(own, place, f"{name}_{layer}")[0] for layer, own in enumerate(encoders)])

    W_enc = stacked("W_enc")
    n_latents, d_in = matrix(W_enc)
    tensors: dict[str, Stored | torch.Tensor] = {"W_enc": W_enc, "b_enc": stacked("b_enc"), "b_dec": stacked("b_dec")}
    for layer in range(n_layers):
        name = f"W_dec_{layer}"
        tensors[name] = wanted(place.tensors(f"{name}.safetensors"), place, name)[0]
    own_thresholds = "threshold_0" in encoders[0]
    if not own_thresholds and "jump" in str(config.get("activation")).lower():
        raise FileError(f"{place.source} has no thresholds, and config.yaml says JumpReLU: download it again")
    if own_thresholds:
        tensors["own_threshold"] = stacked("threshold")
    first = tensors["W_dec_0"].shape
    reads, predicts = config.get("feature_input_hook"), config.get("feature_output_hook")
    metadata = SAEMetadata(model=model_of(config.get("model_name")))
    if isinstance(reads, str) and isinstance(predicts, str):
        metadata.hooks = [str(hook_of(f"blocks.{layer}.{reads}")) for layer in range(n_layers)]
        metadata.target_hooks = [str(hook_of(f"blocks.{layer}.{predicts}")) for layer in range(n_layers)]
        metadata.original_hook = f"{reads} > {predicts}"
    before_gain = [layer for layer in range(n_layers) if _before_gain(config, layer) is not None]
    if before_gain:
        raise refusal(
            place,
            "it reads what comes out of every layer's norm before its gain, rows scaled by their own norms, which a "
            "transform of several layers does not do here",
            "take a set whose feature_input_hook is hook_resid_mid or mlp.hook_in",
        )
    return Parts(
        CrossLayerTranscoder,
        d_in,
        n_latents,
        tensors,
        metadata,
        {"n_layers": n_layers, "own_thresholds": own_thresholds, "k": 1},
        d_out=first[-1] if len(first) == 3 else d_in,
    )


LAYOUT = Layout("circuit-tracer", "layer_N.safetensors (W_enc and W_dec of one shape)", recognises, read)
CLT_LAYOUT = Layout(
    "circuit-tracer, cross-layer", "W_enc_N.safetensors and W_dec_N.safetensors", recognises_clt, read_clt
)
