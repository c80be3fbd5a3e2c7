"""dictionary_learning: `ae.pt` beside `config.json`, of all its classes."""

from __future__ import annotations

from typing import Any

import torch

from monosem.errors import FileError
from monosem.files import Stored
from monosem.interop.hook import hook_of, length_of, model_of
from monosem.interop.layout import Layout, Parts, matrix, wanted
from monosem.interop.place import Place
from monosem.sae import BatchTopKSAE, GatedSAE, JumpReLUSAE, MatryoshkaSAE, ReLUSAE, SAEMetadata, TopKSAE

ENCODER = {"encoder.weight", "decoder.weight"}
FILTERED, FILTERED_REPOS = 10, "adamkarvonen/qwen3-"
"""Trained without rows above so many times the median norm, which no file of these repositories says."""
BACKUP = "ae."
"""Before the names in the file of a run that is not finished."""


def recognises(place: Place) -> bool:
    """One .pt, with the tensors of one of the classes."""
    return len(place.weights) == 1 and place.weights[0].endswith(".pt") and bool(_class(_tensors(place), place))


def _tensors(place: Place) -> dict[str, Stored]:
    found = dict(place.only())
    if any(name.startswith(BACKUP) for name in found):
        return {name.removeprefix(BACKUP): stored for name, stored in found.items() if name.startswith(BACKUP)}
    return found


def _class(tensors: dict[str, Stored], place: Place) -> str | None:
    """Which class wrote these tensors; JumpReLU's are Gemma Scope's too, which says nothing against it."""
    names = set(tensors)
    if {"r_mag", "gate_bias", "mag_bias"} <= names:
        return "gated"
    if names >= ENCODER and {"b_dec"} <= names:
        return "batch_top_k" if _trainer(place).get("dict_class") == "BatchTopKSAE" else "top_k"
    if ENCODER | {"encoder.bias", "bias"} <= names:
        return "standard"
    if ENCODER | {"encoder.bias", "decoder.bias"} <= names and "trainer" in place.json("config.json"):
        return "standard_new"
    if {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"} <= names:
        return "matryoshka" if "group_sizes" in names else "jump_relu"
    return None


def _trainer(place: Place) -> dict[str, Any]:
    trainer = place.json("config.json").get("trainer")
    return trainer if isinstance(trainer, dict) else {}


def read(place: Place) -> Parts:
    """The class is what the tensors say; of TopK and BatchTopK, which look alike, what `config.json` says."""
    tensors = _tensors(place)
    name = _class(tensors, place)
    if any(key.startswith(BACKUP) for key in place.only()) and "norm_factor" in place.values(place.weights[0]):
        raise FileError(
            f"{place.source} is the copy of a run that is not finished, whose activations were scaled: finish the run, "
            "which writes ae.pt with the scale in its biases"
        )
    linear = set(tensors) >= ENCODER
    W_enc, W_dec = wanted(tensors, place, *(("encoder.weight", "decoder.weight") if linear else ("W_enc", "W_dec")))
    W_enc, W_dec = (W_enc, W_dec.T) if linear else (W_enc.T, W_dec)
    n_latents, d_in = matrix(W_enc)
    parts = Parts(ReLUSAE, d_in, n_latents, {"W_enc": W_enc, "W_dec": W_dec}, _metadata(place))

    def take(**names: str) -> None:
        parts.tensors |= dict(zip(names, wanted(tensors, place, *names.values()), strict=True))

    match name:
        case "gated":
            parts.kind = GatedSAE
            take(b_dec="decoder_bias", b_enc="gate_bias", r_mag="r_mag", b_mag="mag_bias")
        case "standard":
            take(b_dec="bias", b_enc="encoder.bias")
        case "standard_new":
            parts.subtract_b_dec = False
            take(b_dec="decoder.bias", b_enc="encoder.bias")
        case "jump_relu":
            parts.kind, parts.subtract_b_dec = JumpReLUSAE, False
            take(b_dec="b_dec", b_enc="b_enc", threshold="threshold")
        case "top_k":
            parts.kind, parts.settings = TopKSAE, {"k": _k(tensors, place)}
            take(b_dec="b_dec", b_enc="encoder.bias")
        case _:
            matryoshka = name == "matryoshka"
            take(b_dec="b_dec", b_enc="b_enc" if matryoshka else "encoder.bias", running_threshold="threshold")
            parts.tensors["threshold_weight"] = torch.ones((), dtype=torch.float64)
            parts.kind, parts.settings = BatchTopKSAE, {"k": _k(tensors, place)}
            if matryoshka:
                sizes = wanted(tensors, place, "group_sizes")[0].read(torch.int64)
                parts.kind = MatryoshkaSAE
                parts.settings["widths"] = sizes.cumsum(0).tolist()
    return parts


def _k(tensors: dict[str, Stored], place: Place) -> int:
    k = tensors["k"].number() if "k" in tensors else _trainer(place).get("k")
    if isinstance(k, bool) or not isinstance(k, int | float) or not 1 <= k < 2**31:
        raise FileError(f"{place.source} gives no k of 1 or more, but {k!r}: restore it or write it anew")
    return int(k)


def _metadata(place: Place) -> SAEMetadata:
    trainer, buffer = _trainer(place), place.json("config.json").get("buffer")
    buffer = buffer if isinstance(buffer, dict) else {}
    layer, submodule = trainer.get("layer"), trainer.get("submodule_name")
    hook = f"{submodule or 'layer'} {layer}" if layer is not None else None
    place_of = None
    if isinstance(layer, int) and (not submodule or "resid" in str(submodule)):
        place_of = f"resid_post.{layer}"
    ratio = buffer.get("max_activation_norm_multiple")
    if not isinstance(ratio, int | float) or isinstance(ratio, bool) or not ratio > 0:
        ratio = FILTERED if place.source.removeprefix("hf://").startswith(FILTERED_REPOS) else None
    return SAEMetadata(
        model=model_of(trainer.get("lm_name")),
        hook=place_of or hook_of(str(submodule) if submodule else None),
        original_hook=hook,
        context_length=length_of(buffer.get("ctx_len")),
        prepend_bos=buffer["add_special_tokens"] if isinstance(buffer.get("add_special_tokens"), bool) else None,
        exclude_special=True if buffer.get("remove_bos") is True else None,
        max_norm_ratio=float(ratio) if ratio else None,
    )


LAYOUT = Layout("dictionary_learning", "ae.pt and config.json", recognises, read)
