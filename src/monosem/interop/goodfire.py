"""Goodfire's SAEs: one .pt or .pth with `encoder_linear` and `decoder_linear`."""

from __future__ import annotations

import re

from monosem.interop.layout import Layout, Parts, matrix, wanted
from monosem.interop.place import Place
from monosem.sae import ReLUSAE, SAEMetadata

NAME = re.compile(r"(?P<model>.+)-SAE-l(?P<layer>\d+)\.pth?")
OWNERS = {"Llama": "meta-llama", "DeepSeek": "deepseek-ai"}


def recognises(place: Place) -> bool:
    """Two linear layers of these names."""
    return {"encoder_linear.weight", "decoder_linear.weight"} <= set(place.only())


def read(place: Place) -> Parts:
    """ReLU of what comes in; no bias is subtracted first. The layer is in the file's name."""
    names = ("encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias")
    W_enc, b_enc, W_dec, b_dec = wanted(place.only(), place, *names)
    n_latents, d_in = matrix(W_enc)
    metadata, name = SAEMetadata(), NAME.fullmatch(place.weights[0])
    if name:
        owner = OWNERS.get(name["model"].partition("-")[0])
        metadata = SAEMetadata(
            model=f"{owner}/{name['model']}" if owner else name["model"],
            hook=f"resid_post.{name['layer']}",
            original_hook=f"l{name['layer']}",
        )
    tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec.T, "b_dec": b_dec}
    return Parts(ReLUSAE, d_in, n_latents, {**tensors}, metadata, subtract_b_dec=False)


LAYOUT = Layout("Goodfire", "a .pt or .pth with encoder_linear and decoder_linear", recognises, read)
