"""Goodfire's SAEs, one .pt or .pth with `encoder_linear` and `decoder_linear`, and qresearch's, with `encoder`."""

from __future__ import annotations

import re

from monosem.interop.layout import Layout, Parts, matrix, wanted
from monosem.interop.place import Place
from monosem.sae import ReLUSAE, SAEMetadata

NAME = re.compile(r"(?P<model>.+)-SAE-l(?P<layer>\d+)\.pth?")
PAIRS = (("encoder_linear", "decoder_linear"), ("encoder", "decoder"))
OWNERS = {"Llama": "meta-llama", "DeepSeek": "deepseek-ai"}


def recognises(place: Place) -> bool:
    """Two linear layers of the first names; of the second, which others have too, in a file that names its layer."""
    return _pair(place) is not None


def _pair(place: Place) -> tuple[str, str] | None:
    tensors = place.only()
    found = next((pair for pair in PAIRS if {f"{name}.weight" for name in pair} <= set(tensors)), None)
    named = place.weights[0] if found else ""
    return found if found == PAIRS[0] or NAME.fullmatch(named) else None


def read(place: Place) -> Parts:
    """ReLU of what comes in; no bias is subtracted first. The layer is in the file's name."""
    encoder, decoder = _pair(place) or PAIRS[0]
    names = (f"{encoder}.weight", f"{encoder}.bias", f"{decoder}.weight", f"{decoder}.bias")
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
