"""Conversion between architectures that compute the same codes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.sae.base import SAE

CONVERSIONS: dict[tuple[str, str], Callable[[SAE], SAE]] = {}
"""From one architecture to another, by name."""


def conversion(source: str, to: str) -> Callable[[Callable[[SAE], SAE]], Callable[[SAE], SAE]]:
    """Decorates a function that makes an equivalent SAE of another architecture."""

    def register(function: Callable[[SAE], SAE]) -> Callable[[SAE], SAE]:
        CONVERSIONS[source, to] = function
        return function

    return register


@checked
@torch.no_grad()
def convert(sae: SAE, to: str) -> SAE:
    """An SAE of another architecture that gives the same codes and reconstructions; the one given is left as it is.

    Raises:
        ConfigError: there is no such conversion.
    """
    if (sae.architecture, to) not in CONVERSIONS:
        known = ", ".join(f"{source} to {end}" for source, end in sorted(CONVERSIONS))
        raise ConfigError(f"{sae.architecture} cannot be converted to {to}; there are {known}")
    new = CONVERSIONS[sae.architecture, to](sae)
    new.metadata, new.probe = sae.metadata, dict(sae.probe)
    return new.train(sae.training)


@checked
@torch.no_grad()
def prune_activations(sae: SAE, threshold: float | Float[Tensor, " n_latents"]) -> SAE:
    """A JumpReLU SAE with the same codes, but for those at or below a threshold, which are off.

    Weak activations are many and say little. Where reconstructions matter, `fix_suppression` afterwards.

    Args:
        sae: of an architecture that converts to JumpReLU.
        threshold: in units of codes; one number, or one a latent.

    Raises:
        ConfigError: the SAE does not convert.
    """
    new = convert(sae, "jumprelu")
    least = torch.as_tensor(threshold).to(new.W_enc)
    limits = new.get_parameter("threshold")
    limits.copy_(torch.maximum(limits, least))
    new.metadata = sae.metadata.model_copy(update={"fingerprint": None})
    return new


def _jumprelu(
    sae: SAE,
    threshold: Float[Tensor, " n_latents"],
    W_enc: Float[Tensor, "n_latents d_in"] | None = None,
    b_enc: Float[Tensor, " n_latents"] | None = None,
) -> SAE:
    """JumpReLU with an SAE's weights, transforms and decoder, and with its own encoder."""
    new = SAE.registry["jumprelu"](
        sae.d_in,
        sae.n_latents,
        **sae.common,
    )
    tensors = new.state_dict()
    shared = {name: tensor for name, tensor in sae.state_dict().items() if name in tensors and name != "density"}
    own = {"W_enc": W_enc, "b_enc": b_enc, "threshold": threshold.expand(sae.n_latents)}
    for name, tensor in {**shared, **{name: t for name, t in own.items() if t is not None}}.items():
        tensors[name].copy_(tensor)
    new.transform.fitted = new.target_transform.fitted = sae.transform.fitted
    return new


@conversion("relu", "jumprelu")
def relu_to_jumprelu(sae: SAE) -> SAE:
    """ReLU is JumpReLU at 0. Codes equal to the bit."""
    return _jumprelu(sae, torch.zeros_like(sae.b_enc))


@conversion("batchtopk", "jumprelu")
@conversion("matryoshka", "jumprelu")
def batchtopk_to_jumprelu(sae: SAE) -> SAE:
    """In use BatchTopK is JumpReLU with one threshold. Codes equal to the bit."""
    threshold: Tensor = sae.threshold  # pyright: ignore[reportAssignmentType]
    return _jumprelu(sae, threshold.clamp_min(0))


@conversion("prolu", "jumprelu")
def prolu_to_jumprelu(sae: SAE) -> SAE:
    """M where m > 0 and m + b > 0: no bias, threshold max(0, -b). Codes equal to the bit."""
    return _jumprelu(sae, (-sae.b_enc).clamp_min(0), b_enc=torch.zeros_like(sae.b_enc))


@conversion("gated", "jumprelu")
def gated_to_jumprelu(sae: SAE) -> SAE:
    """The gate m + b_enc > 0 is z > b_mag - exp(r) b_enc, with z = exp(r) m + b_mag. Equal up to rounding."""
    factor, b_mag = sae.get_parameter("r_mag").exp(), sae.get_parameter("b_mag")
    threshold = (b_mag - factor * sae.b_enc).clamp_min(0)
    return _jumprelu(sae, threshold, sae.W_enc * factor[:, None], b_mag)
