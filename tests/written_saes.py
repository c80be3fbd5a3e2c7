"""SAEs of every architecture with random weights, every bias non-zero, and what they read, for tests of formats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import monosem as ms
from monosem.sae import SAE, BatchTopKSAE

D, N, LAYERS, ROWS = 8, 42, 3, 60

SAES: dict[str, tuple[type[SAE], dict[str, Any]]] = {
    "relu": (ms.ReLUSAE, {}),
    "relu tied": (ms.ReLUSAE, {"tied": True}),
    "relu, b_dec not subtracted": (ms.ReLUSAE, {"subtract_b_dec": False}),
    "gated": (ms.GatedSAE, {}),
    "jumprelu": (ms.JumpReLUSAE, {}),
    "jumprelu, b_dec not subtracted": (ms.JumpReLUSAE, {"subtract_b_dec": False}),
    "topk": (ms.TopKSAE, {"k": 5}),
    "topk, centred and scaled": (ms.TopKSAE, {"k": 5, "transform": "centre_scale"}),
    "topk, standardised": (ms.TopKSAE, {"k": 5, "transform": "standardise"}),
    "batchtopk": (ms.BatchTopKSAE, {"k": 5}),
    "matryoshka": (ms.MatryoshkaSAE, {"k": 5}),
    "prolu": (ms.ProLUSAE, {}),
    "switch": (ms.SwitchSAE, {"k": 2, "n_experts": 6}),
    "crosscoder": (ms.Crosscoder, {"n_sources": 2}),
    "matching pursuit": (ms.MatchingPursuitSAE, {"k": 3}),
    "relu transcoder": (ms.ReLUSAE, {"d_out": D}),
    "jumprelu transcoder": (ms.JumpReLUSAE, {"d_out": D}),
    "jumprelu skip transcoder": (ms.JumpReLUSkipTranscoder, {}),
    "topk transcoder": (ms.Transcoder, {"k": 5}),
    "topk skip transcoder": (ms.SkipTranscoder, {"k": 5}),
    "cross-layer": (ms.CrossLayerTranscoder, {"n_layers": LAYERS, "own_thresholds": True}),
    "cross-layer batchtopk": (ms.CrossLayerTranscoder, {"n_layers": LAYERS, "k": 4}),
}


@torch.no_grad()
def made(name: str, seed: int = 3) -> tuple[SAE, Tensor]:
    """One of them, and rows for it: of large norm, and one of zeros. Transforms are fitted, decoder rows of norm 1."""
    kind, options = SAES[name]
    sae = kind(D, N, **{"transform": "none", **options})
    generator = torch.Generator().manual_seed(seed)
    for parameter in sae.parameters():
        parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    for limit in ("threshold", "own_threshold"):
        if limit in dict(sae.named_parameters()):
            sae.get_parameter(limit).abs_()
    for rows in ("W_dec",) if hasattr(sae, "W_dec") else ():
        sae.get_parameter(rows).div_(sae.get_parameter(rows).norm(dim=1, keepdim=True))
    if isinstance(sae, BatchTopKSAE):
        sae.running_threshold.fill_(0.3)
        sae.threshold_weight.fill_(0.5)
    x = 3 * torch.randn(ROWS, *sae.in_shape, generator=generator) + 1
    x[7], x[8] = 0, 30 * x[8]
    sae.fit_transforms(x, x)
    predicts = not sae.autoencodes
    sae.metadata.model, sae.metadata.hook = "m", "mlp_in.0" if predicts else "resid_post.2"
    sae.metadata.target_hook = "mlp_out.0" if predicts else None
    if sae.architecture == "cross_layer_transcoder":
        sae.metadata.hooks = [f"mlp_in.{layer}" for layer in range(LAYERS)]
        sae.metadata.target_hooks = [f"mlp_out.{layer}" for layer in range(LAYERS)]
        sae.metadata.hook = sae.metadata.target_hook = None
    return sae, x
