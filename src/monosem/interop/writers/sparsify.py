"""sparsify: a folder with cfg.json and sae.safetensors, best named after the module that it is of."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from monosem.interop.writers.plain import kind, plain, refuse, skip_of, without_transform
from monosem.sae import SAE

LOAD = "sparsify.SparseCoder.load_from_disk({path!r})"


def files(sae: SAE, fold: bool = False) -> dict[str, Any]:
    """The files of an SAE, by name.

    Raises:
        ConfigError: sparsify has no such SAE.
    """
    sae = plain(sae, "sparsify")
    if kind(sae) != "topk":
        refuse(sae, "sparsify", f"its latents are TopK alone, not {kind(sae)}", "saelens holds it")
    sae = without_transform(sae, "sparsify", fold)
    if sae.d_out != sae.d_in:
        refuse(sae, "sparsify", f"it writes as wide as it reads, not {sae.d_out} for {sae.d_in}", "keep to='monosem'")
    if sae.autoencodes and not sae.subtract_b_dec:
        refuse(sae, "sparsify", "its autoencoders subtract b_dec from what they read", "saelens holds it")
    tensors: dict[str, Tensor] = {
        "encoder.weight": sae.W_enc.detach(),
        "encoder.bias": sae.b_enc.detach(),
        "W_dec": sae.W_dec.detach(),
        "b_dec": sae.b_dec.detach(),
    }
    skip = skip_of(sae)
    if skip is not None:
        tensors["W_skip"] = skip.detach()
    config = {
        "activation": "topk",
        "expansion_factor": max(1, sae.n_latents // sae.d_in),
        "normalize_decoder": sae.unit_norm_decoder,
        "num_latents": sae.n_latents,
        "k": sae.settings["k"],
        "multi_topk": bool(sae.settings["multi_coefficient"]),
        "skip_connection": skip is not None,
        "transcode": not sae.autoencodes,
        "d_in": sae.d_in,
    }
    return {"sae.safetensors": tensors, "cfg.json": config}
