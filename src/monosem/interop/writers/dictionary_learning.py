"""dictionary_learning: a folder with ae.pt and config.json, which its `load_dictionary` reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monosem.hook_names import layer_of
from monosem.interop.writers.plain import (
    kind,
    parameter,
    plain,
    refuse,
    skip_of,
    threshold,
    without_b_dec,
    without_transform,
)
from monosem.sae import SAE, BatchTopKSAE, MatryoshkaSAE

LOAD = "dictionary_learning.utils.load_dictionary({path!r}, 'cpu')"
NAME = "dictionary_learning"


def files(sae: SAE, fold: bool = False) -> dict[str, Any]:
    """The files of an SAE, by name.

    Raises:
        ConfigError: dictionary_learning has no such SAE.
    """
    whole = plain(sae, NAME)
    if not sae.autoencodes or skip_of(sae) is not None:
        refuse(sae, NAME, "it has no transcoders", "saelens, sparsify and circuit_tracer have")
    if isinstance(sae, BatchTopKSAE) and sae.subtract_b_dec:
        name, tensors = _batchtopk(without_transform(sae, NAME, fold))
    else:
        name, tensors = _others(without_transform(whole, NAME, fold), fold)
    trainer = {
        "dict_class": name,
        "activation_dim": sae.d_in,
        "dict_size": sae.n_latents,
        "k": sae.settings.get("k"),
        "layer": layer_of(sae.metadata.hook),
        "lm_name": sae.metadata.model,
        "submodule_name": sae.metadata.hook,
    }
    buffer = {"ctx_len": sae.metadata.context_length, "d_submodule": sae.d_in}
    return {"ae.pt": tensors, "config.json": {"trainer": trainer, "buffer": buffer}}


def _batchtopk(sae: SAE) -> tuple[str, dict[str, Tensor]]:
    assert isinstance(sae, BatchTopKSAE)
    limit = sae.threshold.detach().clamp_min(0).float()
    shared = {"b_dec": sae.b_dec.detach(), "k": _whole(sae.k), "threshold": limit}
    if isinstance(sae, MatryoshkaSAE):
        sizes = torch.tensor([0, *sae.widths]).diff()
        own = {"W_enc": sae.W_enc.detach().T, "b_enc": sae.b_enc.detach(), "W_dec": sae.W_dec.detach()}
        return "MatryoshkaBatchTopKSAE", {**own, **shared, "group_sizes": sizes}
    return "BatchTopKSAE", {**_linear(sae), **shared}


def _others(sae: SAE, fold: bool) -> tuple[str, dict[str, Tensor]]:
    how, b_dec = kind(sae), sae.b_dec.detach()
    if how == "jumprelu":
        sae = without_b_dec(sae, NAME, fold)
        own = {"W_enc": sae.W_enc.detach().T, "b_enc": sae.b_enc.detach(), "W_dec": sae.W_dec.detach()}
        return "JumpReluAutoEncoder", {**own, "b_dec": b_dec, "threshold": threshold(sae)}
    if how == "relu" and not sae.subtract_b_dec:
        return "AutoEncoderNew", {**_linear(sae), "decoder.bias": b_dec}
    if not sae.subtract_b_dec:
        refuse(sae, NAME, "its dictionaries of this kind subtract b_dec from what they read", "saelens holds it")
    if how == "topk":
        own = {"b_dec": b_dec, "k": _whole(sae.settings["k"]), "threshold": torch.tensor(-1.0)}
        return "AutoEncoderTopK", {**_linear(sae), **own}
    if how == "gated":
        names = {"r_mag": "r_mag", "gate_bias": "b_enc", "mag_bias": "b_mag"}
        biases = {theirs: parameter(sae, ours) for theirs, ours in names.items()}
        weights = {"encoder.weight": sae.W_enc.detach(), "decoder.weight": sae.W_dec.detach().T}
        return "GatedAutoEncoder", {**weights, "decoder_bias": b_dec, **biases}
    norms = sae.W_dec.detach().norm(dim=1)
    if not torch.allclose(norms, torch.ones_like(norms)):
        remedy = "export ms.fold(sae, norms=True), whose codes are times their norms"
        refuse(sae, NAME, "on loading it rescales decoder rows to norm 1, and codes with them", remedy)
    return "AutoEncoder", {**_linear(sae), "bias": b_dec}


def _linear(sae: SAE) -> dict[str, Tensor]:
    return {
        "encoder.weight": sae.W_enc.detach(),
        "encoder.bias": sae.b_enc.detach(),
        "decoder.weight": sae.W_dec.detach().T,
    }


def _whole(k: int) -> Tensor:
    return torch.tensor(k, dtype=torch.int)
