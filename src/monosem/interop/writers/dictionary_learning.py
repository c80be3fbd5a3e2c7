"""dictionary_learning: a folder with ae.pt and config.json, which its `load_dictionary` reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monosem.interop.writers.plain import (
    FOLD,
    W_skip,
    kind,
    layer_of,
    parameter,
    plain,
    refuse,
    require_no_transform,
    threshold,
)
from monosem.sae import SAE, BatchTopKSAE, MatryoshkaSAE

LOAD = "dictionary_learning.utils.load_dictionary({path!r}, 'cpu')"
NAME = "dictionary_learning"


def files(sae: SAE) -> dict[str, Any]:
    """The files of an SAE, by name.

    Raises:
        ConfigError: dictionary_learning has no such SAE.
    """
    given, sae = sae, plain(sae, NAME)
    require_no_transform(sae, NAME)
    if not sae.autoencodes or W_skip(sae) is not None:
        refuse(given, NAME, "it has no transcoders", "saelens, sparsify and circuit_tracer have")
    made = _batchtopk(given) if isinstance(given, BatchTopKSAE) and given.subtract_b_dec else _others(sae)
    name, tensors = made
    trainer = {
        "dict_class": name,
        "activation_dim": sae.d_in,
        "dict_size": sae.n_latents,
        "k": given.settings.get("k"),
        "layer": layer_of(sae.metadata.hook),
        "lm_name": sae.metadata.model,
        "submodule_name": sae.metadata.hook,
    }
    buffer = {"ctx_len": sae.metadata.context_length, "d_submodule": sae.d_in}
    return {"ae.pt": tensors, "config.json": {"trainer": trainer, "buffer": buffer}}


def _batchtopk(sae: BatchTopKSAE) -> tuple[str, dict[str, Tensor]]:
    limit = sae.threshold.detach().clamp_min(0).float()
    shared = {"b_dec": sae.b_dec.detach(), "k": _whole(sae.k), "threshold": limit}
    if isinstance(sae, MatryoshkaSAE):
        sizes = torch.tensor([0, *sae.widths]).diff()
        own = {"W_enc": sae.W_enc.detach().T, "b_enc": sae.b_enc.detach(), "W_dec": sae.W_dec.detach()}
        return "MatryoshkaBatchTopKSAE", {**own, **shared, "group_sizes": sizes}
    return "BatchTopKSAE", {**_linear(sae), **shared}


def _others(sae: SAE) -> tuple[str, dict[str, Tensor]]:
    how, b_dec = kind(sae), sae.b_dec.detach()
    if how == "jumprelu":
        if sae.subtract_b_dec:
            refuse(sae, NAME, "its JumpReLU does not subtract b_dec from what it reads", FOLD)
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
