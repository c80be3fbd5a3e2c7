"""What every writer begins with: the SAE in the simplest form that computes the same, and refusals in words."""

from __future__ import annotations

import copy
from typing import NoReturn

import torch
from torch import Tensor, nn

from monosem.errors import ConfigError
from monosem.sae import (
    SAE,
    BatchTopKSAE,
    Crosscoder,
    CrossLayerTranscoder,
    GatedSAE,
    JumpReLUSAE,
    MatchingPursuitSAE,
    ProLUSAE,
    ReLUSAE,
    SwitchSAE,
    TopKSAE,
    convert,
)
from monosem.sae import (
    fold as moved_into_weights,
)

FOLD = "export with fold=True (--fold), which moves it into the weights: codes are then the same up to rounding"


def refuse(sae: SAE, to: str, why: str, remedy: str) -> NoReturn:
    """Raise ConfigError: what the format cannot hold, and what to do instead."""
    raise ConfigError(f"{to} cannot hold this {sae.architecture} SAE exactly: {why}: {remedy}")


def plain(sae: SAE, to: str) -> SAE:
    """An SAE of plain ReLU, JumpReLU, gates or TopK with the same codes to the bit.

    Raises:
        ConfigError: there is none.
    """
    if isinstance(sae, SwitchSAE | Crosscoder | CrossLayerTranscoder | MatchingPursuitSAE):
        refuse(sae, to, "it has no place for what this architecture does", "keep it in our own format (to='monosem')")
    if isinstance(sae, BatchTopKSAE | ProLUSAE):
        return convert(sae, "jumprelu")
    return sae


def kind(sae: SAE) -> str:
    """How the codes of a `plain` SAE come about: relu, jumprelu, gated or topk."""
    kinds = {GatedSAE: "gated", ReLUSAE: "relu", JumpReLUSAE: "jumprelu", TopKSAE: "topk"}
    return next(name for one, name in kinds.items() if isinstance(sae, one))


@torch.no_grad()
def without_transform(sae: SAE, to: str, fold: bool, known: tuple[str, ...] = ("none",)) -> SAE:
    """The SAE as it is, where a format has a place for its transforms, or else one without, if `fold` allows.

    Raises:
        ConfigError: it does not, or the transform is another map for every row.
    """
    kinds = {sae.transform.kind, sae.target_transform.kind}
    if kinds <= set(known):
        return sae
    if sae.transform.per_row:
        what = "saelens holds it" if sae.autoencodes and to != "saelens" else "keep it in our own format (to='monosem')"
        refuse(sae, to, f"it has no place for the transform {sae.transform.kind!r}, another map for every row", what)
    if not fold:
        refuse(sae, to, f"it has no place for the transform {sae.transform.kind!r}", FOLD)
    return moved_into_weights(sae, norms=False)


@torch.no_grad()
def without_b_dec(sae: SAE, to: str, fold: bool) -> SAE:
    """The SAE as it is, where it subtracts no b_dec from what it reads, or else one that does not, if `fold` allows.

    Raises:
        ConfigError: it does not.
    """
    if not sae.subtract_b_dec:
        return sae
    if not fold:
        refuse(sae, to, "it does not subtract b_dec from what it reads", FOLD)
    new = copy.deepcopy(sae)
    if new.one_matrix:
        new.W_enc = nn.Parameter(new.W_enc.detach().clone())
    new.add_to_pre_activations((-(new.W_enc.double() @ new.b_dec.double())).to(new.b_enc.dtype))
    new.subtract_b_dec = False
    return new


def parameter(sae: SAE, name: str) -> Tensor:
    """One of its tensors, detached."""
    return sae.get_parameter(name).detach()


def threshold(sae: SAE) -> Tensor:
    """Above it a latent is on, (n_latents,); 0 with ReLU."""
    if kind(sae) == "relu":
        return torch.zeros_like(sae.b_enc)
    return parameter(sae, "threshold").clamp_min(0)


def skip_of(sae: SAE) -> Tensor | None:
    """The linear path beside the latents, (d_out, d_in), if it has one."""
    return dict(sae.named_parameters()).get("W_skip")
