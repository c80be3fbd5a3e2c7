"""Gemma Scope 2: `params.safetensors`, or, of what reads several layers, `params_layer_0.safetensors` and on."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from monosem.errors import FileError
from monosem.files import Stacked, Stored
from monosem.hook_names import layer_of
from monosem.interop.layout import Layout, Parts, matrix, refusal, wanted
from monosem.interop.place import Place
from monosem.sae import CrossLayerTranscoder, JumpReLUSAE, JumpReLUSkipTranscoder, SAEMetadata

NAMES: tuple[str, ...] = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")
SKIP = "affine_skip_connection"
PARAMS = re.compile(r"params_layer_(\d+)\.safetensors")
PLACES = {  # inside a block, as the files say it: in ours
    "output": "resid_post",
    "self_attn.o_proj.input": "attn_z",
    "pre_feedforward_layernorm.output": "mlp_in",
    "post_feedforward_layernorm.output": "mlp_out",
}
FOLDERS = {  # which say it where a config.json is missing: what is read, and what is predicted
    "resid_post": ("resid_post", None),
    "attn_out": ("attn_z", None),
    "mlp_out": ("mlp_out", None),
    "transcoder": ("mlp_in", "mlp_out"),
    "clt": ("mlp_in", "mlp_out"),
    "crosscoder": ("resid_post", "resid_post"),
}
HOOK = re.compile(r"model\.layers\.(\{[\w,]+\}|\d+)\.(.+)")
REPO = re.compile(r"gemma-scope-2-(?P<size>\d+[mb])-(?P<kind>pt|it)")
LENGTH = 1024


def recognises(place: Place) -> bool:
    """Tensors of these names, in lower case, in one file; a decoder with a row for each latent."""
    tensors = place.only()
    return set(NAMES) <= set(tensors) and place.weights[0].endswith(".safetensors") and not _layers(place)


def _layers(place: Place) -> dict[int, str]:
    return {int(found[1]): name for name in place.files if (found := PARAMS.fullmatch(name))}


def read(place: Place) -> Parts:
    """One layer: JumpReLU, nothing subtracted, nothing scaled (both are in the weights already)."""
    tensors = place.only()
    W_enc, W_dec, b_enc, b_dec, threshold = wanted(tensors, place, *NAMES)
    d_in, n_latents = matrix(W_enc)
    if len(W_dec.shape) == 3:
        raise refusal(place, "it is one layer of a set, under another name", "give the folder of params_layer files")
    reads, predicts, metadata = _about(place)
    layer = layer_of(reads)
    kind = JumpReLUSkipTranscoder if SKIP in tensors else JumpReLUSAE
    found: dict[str, Stored | Tensor] = {
        "W_enc": W_enc.T,
        "W_dec": W_dec,
        "b_enc": b_enc,
        "b_dec": b_dec,
        "threshold": threshold,
    }
    if SKIP in tensors:
        found["W_skip"] = tensors[SKIP].T
    autoencodes = predicts in (None, reads) and SKIP not in tensors
    metadata.hook = None if layer is None else reads
    metadata.target_hook = None if autoencodes or layer is None else predicts
    d_out = None if autoencodes else matrix(W_dec)[1]
    return Parts(kind, d_in, n_latents, found, metadata, d_out=d_out, subtract_b_dec=False)


def recognises_layers(place: Place) -> bool:
    """A file for each layer that is read."""
    return bool(_layers(place))


def read_layers(place: Place) -> Parts:
    """A cross-layer transcoder, or a crosscoder whose latents read one layer and write to that and those after it.

    Each file has the latents that read its layer; what `w_dec` (latents, layers, d) says of layers before it does not
    count.
    """
    if place.path.is_file():
        raise refusal(place, "it is one layer of a set", f"give the folder, {place.source.rpartition('/')[0]}")
    found = _layers(place)
    n_layers = len(found)
    if set(found) != set(range(n_layers)):
        raise FileError(f"{place.source} has params_layer {sorted(found)}, and not all from 0 on: download it again")
    layers = [place.tensors(found[layer]) for layer in range(n_layers)]
    parts = [{name: wanted(own, place, name)[0] for name in NAMES} for own in layers]
    d_in, own_latents = matrix(parts[0]["w_enc"])
    shape = parts[0]["w_dec"].shape
    if len(shape) != 3 or shape[:2] != (own_latents, n_layers):
        raise refusal(
            place,
            f"its {n_layers} files have decoders of shape {shape}, and not of ({own_latents}, {n_layers}, d): whether "
            "latents are shared between layers cannot be told",
            "read the single files with safetensors",
        )
    if n_layers > 1 and _one_decoder(parts):
        raise refusal(place, "all its files hold the same decoder, so that latents read all layers", "use safetensors")
    tensors: dict[str, Stored | Tensor] = {
        "W_enc": Stacked.of([part["w_enc"].T for part in parts]),
        "b_enc": Stacked.of([part["b_enc"] for part in parts]),
        "b_dec": Stacked.of([part["b_dec"] for part in parts]),
        "own_threshold": Stacked.of([part["threshold"] for part in parts]),
    }
    for layer, part in enumerate(parts):
        tensors[f"W_dec_{layer}"] = _from(part["w_dec"], layer)
    skip = all(SKIP in own for own in layers)
    if skip:
        tensors["W_skip"] = torch.stack([own[SKIP].T.read() for own in layers])
    reads, predicts, metadata = _about(place)
    hooks, targets = (_each(name, n_layers) for name in (reads, predicts or reads))
    metadata.hooks, metadata.target_hooks = hooks or None, targets or None
    settings = {"n_layers": n_layers, "own_thresholds": True, "skip": skip, "k": 1}
    return Parts(CrossLayerTranscoder, d_in, n_layers * own_latents, tensors, metadata, settings, d_out=shape[2])


def _one_decoder(parts: list[dict[str, Stored]]) -> bool:
    """Whether the first rows of all decoders are the same."""
    rows = [part["w_dec"].rows(0, min(4, part["w_dec"].shape[0])) for part in parts]
    return all(torch.equal(rows[0], other) for other in rows[1:]) and bool(rows[0].any())


def _from(stored: Stored, layer: int) -> Stored:
    """What is written to a layer and those after it."""
    shape = (stored.shape[0], stored.shape[1] - layer, stored.shape[2])

    def rows(first: int, last: int) -> Tensor:
        return stored.rows(first, last)[:, layer:]

    mapped = None if stored.mapped is None else lambda: stored.mapped()[:, layer:]  # type: ignore[misc]
    straight = stored.straight if layer == 0 else None
    return replace(stored, shape=shape, rows=rows, straight=straight, mapped=mapped)


# What config.json says, or else the folder's name ------------------------------------------------------------------


def _about(place: Place) -> tuple[str | None, str | None, SAEMetadata]:
    """What is read and what is predicted, as hook points, `{...}` where there are several; and the model."""
    config, words = place.json("config.json"), "/".join(place.words)
    read, predicted = (config.get(name) for name in ("hf_hook_point_in", "hf_hook_point_out"))
    reads, predicts = _ours(read), _ours(predicted)
    if reads is None:
        reads, predicts = _by_folder(place, words)
    named = REPO.search(words)
    model = config.get("model_name") or (f"gemma-3-{named['size']}-{named['kind']}" if named else None)
    original = " > ".join(str(name) for name in dict.fromkeys((read, predicted)) if name) or None
    metadata = SAEMetadata(model=_model(model), prepend_bos=True, context_length=LENGTH, original_hook=original)
    return reads, predicts, metadata


def _ours(hook: Any) -> str | None:
    found = HOOK.fullmatch(hook) if isinstance(hook, str) else None
    return f"{PLACES[found[2]]}.{found[1]}" if found and found[2] in PLACES else None


def _by_folder(place: Place, words: str) -> tuple[str | None, str | None]:
    folder = next((name for word in place.words if (name := word.removesuffix("_all")) in FOLDERS), None)
    layers = re.search(r"layer_(\d+(?:_\d+)*)", words)
    if folder is None:
        return None, None
    numbers = "{all}" if layers is None else layers[1] if "_" not in layers[1] else f"{{{layers[1].replace('_', ',')}}}"
    reads, predicts = FOLDERS[folder]
    return f"{reads}.{numbers}", None if predicts is None else f"{predicts}.{numbers}"


def _each(hook: str | None, n_layers: int) -> list[str]:
    """Of `resid_post.{5,9}` one each; of `{all}` one for each layer; none where their number is another."""
    if hook is None:
        return []
    site, _, numbers = hook.partition(".")
    inside = numbers.strip("{}")
    layers = [str(layer) for layer in range(n_layers)] if inside == "all" else inside.split(",")
    return [f"{site}.{layer}" for layer in layers] if len(layers) == n_layers else []


def _model(name: Any) -> str | None:
    """As on the hub, where the smallest base model has no -pt."""
    if not isinstance(name, str) or not name:
        return None
    name = name if "/" in name else f"google/{name}"
    name = name.replace("gemma-v3", "gemma-3")
    return name.removesuffix("-pt") if "270m" in name else name


LAYOUT = Layout("Gemma Scope 2", "params.safetensors (w_enc, w_dec, b_enc, b_dec, threshold)", recognises, read)
SEVERAL = Layout("Gemma Scope 2, several layers", "params_layer_N.safetensors", recognises_layers, read_layers)
