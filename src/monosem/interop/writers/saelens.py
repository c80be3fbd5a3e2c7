"""SAELens 6: a folder with cfg.json and sae_weights.safetensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from monosem.hook_names import to_transformer_lens
from monosem.interop.writers.plain import kind, parameter, plain, refuse, skip_of, threshold, without_transform
from monosem.sae import SAE

LOAD = "sae_lens.SAE.load_from_disk({path!r})"
NAME = "saelens"
NORMALIZE = {"none": "none", "standardise": "layer_norm", "row_norm": "constant_norm_rescale"}
"""Our transforms, as SAELens calls them."""


def files(sae: SAE, fold: bool = False) -> dict[str, Any]:
    """The files of an SAE, by name.

    Raises:
        ConfigError: SAELens has no such SAE.
    """
    sae = plain(sae, NAME)
    sae = without_transform(sae, NAME, fold, tuple(NORMALIZE) if sae.autoencodes else ("none",))
    how, skip, predicts = kind(sae), skip_of(sae), not sae.autoencodes
    if predicts and how in ("topk", "gated"):
        refuse(sae, NAME, f"its transcoders are of ReLU and JumpReLU, not of {how}", "sparsify holds TopK ones")
    tensors: dict[str, Tensor] = {
        "W_enc": sae.W_enc.detach().T,
        "W_dec": sae.W_dec.detach(),
        "b_dec": sae.b_dec.detach(),
    }
    if how == "gated":
        tensors |= {"b_gate": sae.b_enc.detach(), **{name: parameter(sae, name) for name in ("r_mag", "b_mag")}}
    else:
        tensors["b_enc"] = sae.b_enc.detach()
    if how == "jumprelu":
        tensors["threshold"] = threshold(sae)
    if skip is not None:
        tensors["W_skip"] = skip.detach()
    config: dict[str, Any] = {
        "architecture": _architecture(how, predicts, skip is not None),
        "d_in": sae.d_in,
        "d_sae": sae.n_latents,
        "dtype": str(sae.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": sae.subtract_b_dec,
        "normalize_activations": NORMALIZE[sae.transform.kind],
        "reshape_activations": "none",
        "metadata": _metadata(sae),
    }
    if predicts:
        config["d_out"] = sae.d_out
    if how == "topk":
        config |= {"k": sae.settings["k"], "rescale_acts_by_decoder_norm": False}
    return {"sae_weights.safetensors": tensors, "cfg.json": config}


def _architecture(how: str, predicts: bool, skip: bool) -> str:
    if not predicts:
        return {"relu": "standard"}.get(how, how)
    return ("jumprelu_" if how == "jumprelu" else "") + ("skip_transcoder" if skip else "transcoder")


def _metadata(sae: SAE) -> dict[str, Any]:
    known = sae.metadata
    found = {
        "model_name": known.model,
        "hook_name": _theirs(known.hook),
        "hook_name_out": _theirs(known.target_hook),
        "hook_head_index": None,
        "context_size": known.context_length,
        "prepend_bos": known.prepend_bos,
        "dataset_path": known.text,
        "training_tokens": known.tokens_trained or None,
    }
    return {name: value for name, value in found.items() if value is not None or name == "hook_head_index"}


def _theirs(hook: str | None) -> str | None:
    return None if hook is None else to_transformer_lens(hook) or hook
