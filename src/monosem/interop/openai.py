"""OpenAI's sparse_autoencoder: one .pt with `pre_bias`, `latent_bias` and the name of the activation."""

from __future__ import annotations

import re

from monosem.errors import FileError
from monosem.files import Stored
from monosem.interop.layout import Layout, Parts, matrix, refusal, wanted
from monosem.interop.place import Place
from monosem.sae import ReLUSAE, SAEMetadata, TopKSAE

SITES = {
    "mlp_post_act": "mlp_mid",
    "resid_delta_mlp": "mlp_out",
    "resid_delta_attn": "attn_out",
    "resid_post_mlp": "resid_post",
    "resid_post_attn": "resid_mid",
}
"""Hook points in the paths under which they are published, and ours."""


def recognises(place: Place) -> bool:
    """The two biases have names that no other library gives."""
    return place.path.suffix != ".safetensors" and {"pre_bias", "latent_bias", "encoder.weight"} <= set(place.only())


def read(place: Place) -> Parts:
    """TopK behind a LayerNorm without weights, or ReLU."""
    tensors, said = place.only(), place.values(place.weights[0])
    W_enc, b_enc, b_dec = wanted(tensors, place, "encoder.weight", "latent_bias", "pre_bias")
    n_latents, d_in = matrix(W_enc)
    found: dict[str, Stored] = {"W_enc": W_enc, "b_enc": b_enc, "b_dec": b_dec}
    tied = "decoder.weight" not in tensors
    found["W_dec"] = W_enc if tied else tensors["decoder.weight"].T
    parts = Parts(ReLUSAE, d_in, n_latents, {**found}, _metadata(place))
    activation = said.get("activation", "ReLU")
    if activation == "TopK":
        k, after = said.get("activation_state_dict.k"), said.get("activation_state_dict.postact_fn", "ReLU")
        if after != "ReLU":
            raise refusal(
                place, f"its codes go through {after} after the selection, and may be negative", "use its code"
            )
        if not isinstance(k, int) or k < 1:
            raise FileError(f"{place.source} gives no k of 1 or more, but {k!r}: download it again")
        parts.kind, parts.settings, parts.transform = TopKSAE, {"k": k}, "standardise"
    elif activation != "ReLU":
        raise refusal(place, f"its activation function is {activation!r}", "use its own code")
    return parts


def _metadata(place: Place) -> SAEMetadata:
    """The published paths say the place: .../resid_post_mlp/.../autoencoders/8.pt"""
    site = next((SITES[word] for word in place.words if word in SITES), None)
    original = next((word for word in place.words if word in SITES), None)
    layer = place.words[-1].partition(".")[0]
    if site is None or not re.fullmatch("[0-9]{1,9}", layer):
        return SAEMetadata()
    return SAEMetadata(
        model="openai-community/gpt2" if any("gpt2" in word for word in place.words) else None,
        hook=f"{site}.{layer}",
        original_hook=f"{original} of layer {layer}",
    )


LAYOUT = Layout("OpenAI", "a .pt with pre_bias, latent_bias and encoder.weight", recognises, read)
