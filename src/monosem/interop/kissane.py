"""Kissane and Krzyzanowski's SAEs of attention, and others of Neel Nanda's first code: NAME.pt beside NAME_cfg.json."""

from __future__ import annotations

from typing import Any

from monosem.interop.hook import hook_of, length_of, model_of
from monosem.interop.layout import Layout, Parts, matrix, wanted
from monosem.interop.place import Place
from monosem.sae import ReLUSAE, SAEMetadata

NAMES = ("W_enc", "W_dec", "b_enc", "b_dec")
LENGTH = 128
"""Tokens of a context in training."""


def recognises(place: Place) -> bool:
    """A .pt of these tensors, and what was asked of it beside it under its name."""
    return set(NAMES) <= set(place.only()) and bool(_config(place).get("act_name"))


def _config(place: Place) -> dict[str, Any]:
    name, dot, _ = place.weights[0].rpartition(".pt") if len(place.weights) == 1 else ("", "", "")
    return place.json(f"{name}_cfg.json") if dot else {}


def read(place: Place) -> Parts:
    """ReLU of x - b_dec; of `hook_z`, the heads stand side by side."""
    config = _config(place)
    W_enc, W_dec, b_enc, b_dec = wanted(place.only(), place, *NAMES)
    d_in, n_latents = matrix(W_enc)
    hook, length = str(config["act_name"]), length_of(config.get("seq_len"))
    metadata = SAEMetadata(
        model=model_of(config.get("model_name")) or ("openai-community/gpt2" if _of_gpt2(place) else None),
        hook=hook_of(hook),
        original_hook=hook,
        prepend_bos=True,
        context_length=length or LENGTH,
    )
    return Parts(ReLUSAE, d_in, n_latents, {"W_enc": W_enc.T, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}, metadata)


def _of_gpt2(place: Place) -> bool:
    return place.weights[0].startswith("gpt2-small")


LAYOUT = Layout("Kissane et al.", "NAME.pt (W_enc, W_dec, b_enc, b_dec) and NAME_cfg.json", recognises, read)
