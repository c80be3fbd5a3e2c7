"""Qwen-Scope: `layerN.sae.pt` with W_enc, W_dec, b_enc and b_dec, and a config.json for all layers."""

from __future__ import annotations

import re
from typing import Any

from monosem.errors import FileError
from monosem.interop.layout import Layout, Parts, matrix, wanted
from monosem.interop.place import Place
from monosem.sae import SAEMetadata, TopKSAE

FILE = re.compile(r"layer(\d+)\.sae\.pt")
REPO = re.compile(r"SAE-Res-(?P<model>.+)-W\d+K-L0_(?P<k>\d+)")
LENGTH = 1024


def recognises(place: Place) -> bool:
    """One file of that name."""
    return len(place.weights) == 1 and FILE.fullmatch(place.weights[0]) is not None


def read(place: Place) -> Parts:
    """TopK; b_dec is not subtracted from what is read."""
    W_enc, W_dec, b_enc, b_dec = wanted(place.only(), place, "W_enc", "W_dec", "b_enc", "b_dec")
    n_latents, d_in = matrix(W_enc)
    config = place.json("config.json")
    named = next((found for word in place.words if (found := REPO.fullmatch(word))), None)
    k: Any = config.get("k", int(named["k"]) if named else None)
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= n_latents:
        raise FileError(f"{place.source}: k is {k!r}, it should be said by config.json: download that too")
    layer = FILE.fullmatch(place.weights[0])
    model = config.get("base_model") or (f"Qwen/{named['model']}" if named else None)
    return Parts(
        TopKSAE,
        d_in,
        n_latents,
        {"W_enc": W_enc, "W_dec": W_dec.T, "b_enc": b_enc, "b_dec": b_dec},
        SAEMetadata(
            model=model if isinstance(model, str) else None,
            hook=f"resid_post.{layer[1]}" if layer else None,
            original_hook=f"model.layers.{layer[1]}" if layer else None,
            context_length=LENGTH,
        ),
        {"k": k},
        subtract_b_dec=False,
    )


LAYOUT = Layout("Qwen-Scope", "layerN.sae.pt", recognises, read)
