"""circuit-tracer: a transcoder of one layer beside those of others, or a cross-layer transcoder, and a config.yaml."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from monosem.hook_names import layer_of, to_transformer_lens
from monosem.interop.writers.plain import kind, plain, refuse, skip_of, threshold, without_transform
from monosem.sae import SAE, CrossLayerTranscoder

LOAD = "circuit_tracer: a folder of its layers, with config.yaml, as a repository on the hub"
NAME = "circuit_tracer"


def files(sae: SAE, fold: bool = False) -> dict[str, Any]:
    """The files of a transcoder, by name: of one layer those of that layer, to stand beside the others'.

    Raises:
        ConfigError: circuit-tracer has no such transcoder.
    """
    if sae.autoencodes:
        refuse(sae, NAME, "it has transcoders alone", "saelens holds it")
    if sae.d_out != sae.d_in:
        refuse(sae, NAME, f"it writes as wide as it reads, not {sae.d_out} for {sae.d_in}", "saelens holds it")
    sae = without_transform(sae, NAME, fold)
    if isinstance(sae, CrossLayerTranscoder):
        return _cross_layer(sae)
    sae = plain(sae, NAME)
    if kind(sae) not in ("relu", "jumprelu"):
        remedy = "sparsify holds TopK ones" if kind(sae) == "topk" else "keep it in our own format"
        refuse(sae, NAME, f"its {kind(sae)} keeps negative values that ours has not", remedy)
    layer, skip = layer_of(sae.metadata.hook), skip_of(sae)
    if layer is None:
        refuse(sae, NAME, "its files are named after layers, and this one does not know its own", "set metadata.hook")
    tensors: dict[str, Tensor] = {
        "W_enc": sae.W_enc.detach(),
        "W_dec": sae.W_dec.detach(),
        "b_enc": sae.b_enc.detach(),
        "b_dec": sae.b_dec.detach(),
    }
    if kind(sae) == "jumprelu":
        tensors["activation_function.threshold"] = threshold(sae)
    if skip is not None:
        tensors["W_skip"] = skip.detach()
    config = _config(sae, "transcoder_set", sae.metadata.hook, sae.metadata.target_hook)
    return {f"layer_{layer}.safetensors": tensors, "config.yaml": config}


def _cross_layer(sae: CrossLayerTranscoder) -> dict[str, Any]:
    if sae.skip:
        refuse(sae, NAME, "its cross-layer files have no skip", "keep it in our own format (to='monosem')")
    limits = sae.own_threshold if sae.own_thresholds else sae.threshold.expand(sae.n_latents)
    biases = [part.detach().unflatten(0, (sae.n_layers, -1)) for part in (sae.b_enc, sae.b_dec, limits.clamp_min(0))]
    found: dict[str, Any] = {}
    for layer in range(sae.n_layers):
        own = zip(("b_enc", "b_dec", "threshold"), biases, strict=True)
        encoder = {f"{name}_{layer}": part[layer].clone() for name, part in own}
        found[f"W_enc_{layer}.safetensors"] = {f"W_enc_{layer}": sae.encoder_of(layer).detach(), **encoder}
        found[f"W_dec_{layer}.safetensors"] = {f"W_dec_{layer}": sae.decoder_of(layer).detach()}
    known = sae.metadata
    sides = (known.hooks or [None])[0], (known.target_hooks or [None])[0]
    return {**found, "config.yaml": _config(sae, "cross_layer_transcoder", *sides)}


def _config(sae: SAE, model_kind: str, hook: str | None, target: str | None) -> dict[str, Any]:
    found = {
        "model_kind": model_kind,
        "model_name": sae.metadata.model,
        "feature_input_hook": _inside(hook),
        "feature_output_hook": _inside(target),
    }
    return {name: value for name, value in found.items() if value is not None}


def _inside(hook: str | None) -> str | None:
    """A hook point inside its block; what the MLP reads is `mlp.hook_in` there."""
    if hook is None:
        return None
    if hook.startswith("mlp_in."):
        return "mlp.hook_in"
    theirs = to_transformer_lens(hook)
    return hook.rpartition(".")[0] if theirs is None else theirs.split(".", 2)[2]
