"""Gemma Scope 1: `params.npz` in a folder of its layer, width and L0; the site is in the repository's name."""

from __future__ import annotations

import math
import re
from functools import partial

from monosem.interop.layout import Layout, Parts, matrix, wanted
from monosem.interop.place import Place
from monosem.sae import SAE, JumpReLUSAE, SAEMetadata

REPO = re.compile(r"gemma-scope-(?P<size>\d+b)-(?P<kind>pt|it)-(?P<site>res|att|mlp|transcoders)")
LAYER = re.compile(r"layer_(\d+)")
SITES = {"res": "resid_post", "att": "attn_z", "mlp": "mlp_out"}
LENGTH = 1024
"""Tokens of a context in training."""


def recognises(place: Place) -> bool:
    """An .npz whose encoder has a column for each latent, its decoder a row, and a threshold each."""
    if not place.weights or not place.weights[0].endswith(".npz"):
        return False
    return {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"} <= {name.lower() for name in place.only()}


def read(place: Place) -> Parts:
    """JumpReLU; b_dec is not subtracted from what is read.

    Transcoders read what the norm before the MLP gives, before its gain; no module gives that, so they read the
    residual stream here, and norm it themselves. The dictionary of embeddings was trained on the rows of the embedding
    matrix, of which the model reads sqrt(d) times as much: that is its transform, so that it takes and gives what
    stands in the model.
    """
    tensors = {name.lower(): stored for name, stored in place.only().items()}
    W_enc, W_dec, b_enc, b_dec, threshold = wanted(tensors, place, "w_enc", "w_dec", "b_enc", "b_dec", "threshold")
    d_in, n_latents = matrix(W_enc)
    words = "/".join(place.words)
    named = REPO.search(words)
    predicts = named is not None and named["site"] == "transcoders"
    embeds = "embedding" in place.words
    return Parts(
        JumpReLUSAE,
        d_in,
        n_latents,
        {"W_enc": W_enc.T, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec, "threshold": threshold},
        _metadata(words, named, embeds),
        d_out=matrix(W_dec)[1] if predicts else None,
        subtract_b_dec=False,
        transform="scale" if embeds else "row_norm" if predicts else "none",
        finish=partial(_scale, by=1 / math.sqrt(d_in)) if embeds else None,
    )


def _scale(sae: SAE, by: float) -> None:
    sae.transform.scale.fill_(by)


def _metadata(words: str, named: re.Match[str] | None, embeds: bool) -> SAEMetadata:
    layer = LAYER.search(words)
    if named is None or (layer is None and not embeds):
        return SAEMetadata(prepend_bos=True, context_length=LENGTH)
    model = f"google/gemma-2-{named['size']}" + ("-it" if named["kind"] == "it" else "")
    found = SAEMetadata(model=model, prepend_bos=True, exclude_special=True, context_length=LENGTH)
    if embeds:
        return found.model_copy(update={"hook": "embed", "original_hook": "hook_embed"})
    number = layer[1] if layer is not None else ""
    if named["site"] == "transcoders":
        original = f"blocks.{number}.ln2.hook_normalized > blocks.{number}.hook_mlp_out"
        both = {"hook": f"resid_mid.{number}", "target_hook": f"mlp_out.{number}"}
        return found.model_copy(update={**both, "original_hook": original})
    hook = f"{SITES[named['site']]}.{number}"
    return found.model_copy(update={"hook": hook, "original_hook": f"{named['site']} layer_{number}"})


LAYOUT = Layout("Gemma Scope", "params.npz (W_enc, W_dec, b_enc, b_dec, threshold)", recognises, read)
