"""Gemma Scope 1: a folder with params.npz."""

from __future__ import annotations

from typing import Any

from monosem.interop.writers.plain import kind, plain, refuse, skip_of, threshold, without_b_dec, without_transform
from monosem.sae import SAE

LOAD = "numpy.load({path!r} + '/params.npz')"
NAME = "gemma_scope"


def files(sae: SAE, fold: bool = False) -> dict[str, Any]:
    """The files of an SAE, by name.

    Raises:
        ConfigError: Gemma Scope has no such SAE.
    """
    sae = plain(sae, NAME)
    if kind(sae) not in ("relu", "jumprelu"):
        refuse(sae, NAME, f"its latents are JumpReLU alone, not {kind(sae)}", "saelens holds it")
    if skip_of(sae) is not None:
        refuse(sae, NAME, "it has no skip", "saelens and circuit_tracer hold it")
    sae = without_b_dec(without_transform(sae, NAME, fold), NAME, fold)
    arrays = {
        "W_enc": sae.W_enc.detach().T,
        "W_dec": sae.W_dec.detach(),
        "b_enc": sae.b_enc.detach(),
        "b_dec": sae.b_dec.detach(),
        "threshold": threshold(sae),
    }
    return {"params.npz": arrays}
