"""EleutherAI's sparsify: `cfg.json` and `sae.safetensors` in a folder whose name is the hook point."""

from __future__ import annotations

import re

import torch

from monosem.errors import FileError
from monosem.interop.hook import hook_of
from monosem.interop.layout import Layout, Parts, matrix, refusal, wanted
from monosem.interop.place import Place
from monosem.sae import SAE, SAEMetadata, SkipTranscoder, TopKSAE, Transcoder

HOOK = re.compile(r"(embed_tokens|wte|embed_in|(?:[a-z_]+\.)*(?:layers|h)\.\d+(?:\.[\w.]+)?)")
USE_SPARSIFY = "encode with sparsify, and bring the activations here as vectors"


def recognises(place: Place) -> bool:
    """An encoder as a linear layer beside W_dec, whose rows are latents too."""
    return place.has("cfg.json", "sae.safetensors") and "encoder.weight" in place.tensors("sae.safetensors")


def read(place: Place) -> Parts:
    """TopK, of activations, or from a module's input to its output, with a skip or without."""
    config, tensors = place.json("cfg.json"), place.tensors("sae.safetensors")
    W_enc, b_enc, W_dec, b_dec = wanted(tensors, place, "encoder.weight", "encoder.bias", "W_dec", "b_dec")
    n_latents, d_in = matrix(W_enc)
    k = config.get("k")
    if not isinstance(k, int) or k < 1:
        raise FileError(f"{place.source}: cfg.json gives no k of 1 or more, but {k!r}: restore it or write it anew")
    if config.get("signed"):
        raise refusal(place, "its codes have signs (signed is set)", USE_SPARSIFY)
    if config.get("activation", "topk") != "topk":
        raise refusal(
            place, f"its activation is {config['activation']!r}, which no class of ours computes", USE_SPARSIFY
        )
    transcodes, skip = bool(config.get("transcode")), "W_skip" in tensors
    hook = next((found[1] for word in reversed(place.words) if (found := HOOK.fullmatch(word))), None)
    parts = Parts(
        TopKSAE,
        d_in,
        n_latents,
        {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec},
        SAEMetadata(original_hook=hook, hook=hook_of(hook)),
        {"k": k},
    )
    if skip or transcodes:
        parts.kind, parts.d_out = (SkipTranscoder if skip else Transcoder), matrix(W_dec)[1]
        if skip:
            parts.tensors["W_skip"] = tensors["W_skip"]
        if hook is not None and transcodes and ":" not in hook:
            parts.metadata.hook, parts.metadata.target_hook = hook_of(f"{hook}:input"), hook_of(f"{hook}:output")
        if not transcodes:
            parts.finish = _unsubtracted
    return parts


def _unsubtracted(sae: SAE) -> None:
    """An autoencoder with a skip reads x - b_dec; ours with a skip reads x: the difference goes into the bias."""
    shift = sae.W_enc.double() @ sae.b_dec.double()
    sae.b_enc.copy_((sae.b_enc.double() - shift).to(torch.get_default_dtype()))


LAYOUT = Layout("sparsify", "cfg.json and sae.safetensors (encoder.weight, W_dec)", recognises, read)
