"""What brings dead latents back, for any architecture: losses on the compacted dictionary of dead latents alone.

Resampling, which is no loss, is in resample.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from monosem import kernels
from monosem.files import Settings
from monosem.ranks import division
from monosem.sae import SAE, BatchTopKSAE, Crosscoder, TopKSAE
from monosem.sae.weights import row_norms

RevivalMethod = Literal["aux_k", "resample", "ghost", "ghost_scaled", "pre_activation", "none"]
SILENT_AT_ONCE = 4096  # latents
COEFFICIENTS: dict[str, float] = {"aux_k": 1 / 32, "ghost": 1.0, "ghost_scaled": 1.0, "pre_activation": 0.03}


class RevivalConfig(Settings):
    """How to keep latents alive."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: RevivalMethod = "aux_k"
    """aux_k: the strongest dead latents explain what the live ones leave; those that are below zero on every row, and
    would get no gradient, are raised until they speak. resample: dead latents start anew from badly reconstructed
    inputs. ghost, ghost_scaled: all dead latents, through exp, explain what is left; for latents that are dead although
    nothing competes with them. pre_activation: dead latents are raised to where they fire. none."""
    coefficient: float | None = Field(default=None, ge=0)
    """Weight of the method's loss; if not given, 1/32 for aux_k, 1 for ghost gradients, 0.03 for pre_activation."""
    k_aux: int | None = Field(default=None, ge=1)
    """aux_k: dead latents that speak per token; half of the activations' width if not given."""
    resample_at: tuple[float, ...] = (0.125, 0.25, 0.375, 0.5)
    """resample: at which shares of the run."""
    resample_norm: float | None = Field(default=None, gt=0)
    """resample: norm of a new encoder row, as a share of the mean norm of live ones; if not given, 0.2 where a latent
    has a threshold to pass, 1 where it must win against the others (topk and its kin)."""

    def new_norm(self, sae: SAE) -> float:
        """`resample_norm`, or the architecture's own."""
        own = 1.0 if isinstance(sae, TopKSAE) else 0.2
        return own if self.resample_norm is None else self.resample_norm

    @property
    def weight(self) -> float:
        """The coefficient, or the method's own; 0 where there is no loss."""
        own = COEFFICIENTS.get(self.method, 0.0)
        return own if self.coefficient is None or not own else self.coefficient


@dataclass(frozen=True)
class DeadLatents:
    """The dead part of a dictionary, with gradients of its own."""

    sae: SAE
    latents: Int[Tensor, " dead"]
    W_enc: Float[Tensor, "dead d_in"]
    b_enc: Float[Tensor, " dead"]
    W_dec: Float[Tensor, "dead d_out"]

    number: int
    """Of all that are dead, those of other ranks too."""

    @staticmethod
    def of(sae: SAE, dead: Bool[Tensor, " n_latents"]) -> DeadLatents | None:
        """None where no latent is dead."""
        latents = dead.nonzero()[:, 0]
        number = int(kernels.over_latents(torch.tensor(len(latents))))
        if not number:
            return None
        W_enc, b_enc, W_dec = (part.requires_grad_() for part in sae.part(latents))
        return DeadLatents(sae, latents, W_enc, b_enc, W_dec, number)

    @property
    def share(self) -> float:
        """Of all latents."""
        return self.number / kernels.latents_in_all(self.sae.n_latents)

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradient of a loss to the gradients of the SAE."""
        loss.backward()
        self.sae.add_to_gradients(self.latents, self.W_enc.grad, self.b_enc.grad, self.W_dec.grad)


def aux_k(
    dead: DeadLatents, centred: Float[Tensor, "rows d_in"], residual: Float[Tensor, "rows d_out"], k_aux: int | None
) -> Float[Tensor, ""]:
    """How badly dead latents explain the residual: squared error over the residual's energy.

    The `k_aux` strongest ReLU'd pre-activations of dead latents decode, without b_dec, to the residual.

    Source: Gao et al., Scaling and evaluating sparse autoencoders, 2024.
    """
    sae = dead.sae
    k = min(k_aux or max(1, residual.shape[1] // 2), dead.number)
    values, selection = kernels.top_k(centred, dead.W_enc, dead.b_enc, k)
    b_dec = sae.b_dec if sae.subtract_b_dec else None
    activations = kernels.encode(centred, dead.W_enc, dead.b_enc, b_dec, selection, values).relu()
    nothing = residual.new_zeros(residual.shape[1])
    error, _ = kernels.squared_error(activations, dead.W_dec, nothing, selection, residual)
    return error / kernels.mean_square(residual).clamp_min(torch.finfo(residual.dtype).tiny)


@torch.no_grad()
def raise_silent(
    sae: SAE, dead: Bool[Tensor, " n_latents"], centred: Float[Tensor, "rows d_in"]
) -> Int[Tensor, " raised"]:
    """Raise the biases of dead latents that are below zero on every row, until they are above it on 1 % of the rows.

    AuxK gives them no gradient before. Returns which.
    """
    raised = [dead.nonzero()[:0, 0]]
    if not isinstance(sae.b_enc, nn.Parameter) or not dead.any():
        return raised[0]
    for latents in dead.nonzero()[:, 0].split(SILENT_AT_ONCE):
        W_enc, b_enc, _ = sae.part(latents)
        pre = centred @ W_enc.T + b_enc
        some = 1 + kernels.rows_in_all(len(pre)) // 100
        own = torch.cat([pre.abs().amax(0, keepdim=True), pre.topk(min(some, len(pre)), dim=0).values])
        every = division().rows.gather(own)
        largest = torch.stack([part[0] for part in every]).amax(0)
        highest = torch.cat([part[1:] for part in every]).topk(some, dim=0).values
        silent = highest[0] <= 0
        margin = torch.finfo(pre.dtype).eps ** 0.5 * largest[silent]  # above zero however the sums are rounded
        sae.b_enc[latents[silent]] += margin - highest[-1, silent]
        raised.append(latents[silent])
    return torch.cat(raised)


def ghost(
    dead: DeadLatents, centred: Float[Tensor, "rows d_in"], residual: Float[Tensor, "rows d_out"]
) -> Float[Tensor, ""]:
    """Ghost gradients: dead latents, with exp for ReLU, explain half of what is left.

        g = exp(pre_dead) W_dec_dead,   rescaled per row to ||g|| = ||residual|| / 2
        loss = ||residual - g||^2 / d,  rescaled to the squared error of the SAE

    Both scales are constants to the gradient, which only dead latents get. All of them speak on every row: the cost is
    that of a dense SAE of as many latents.

    Source: Jermyn & Templeton, Ghost Grads: An improvement on resampling (Circuits Updates, January 2024); scaled by
    the share of dead latents: Rajamanoharan, Improving Ghost Grads (Progress Update #1 from the GDM Mech Interp Team,
    2024).
    """
    tiny = torch.finfo(residual.dtype).tiny
    pre = centred @ dead.W_enc.T + dead.b_enc
    strength = (pre - pre.detach().amax(1, keepdim=True)).exp()  # a row's scale is taken out below: no overflow
    out = strength @ dead.W_dec
    out = out * (row_norms(residual) / (2 * row_norms(out)).clamp_min(tiny)).detach()
    error = kernels.mean_square(residual - out)
    return error * (kernels.mean_square(residual) / error.clamp_min(tiny)).detach()


def pre_activation(dead: DeadLatents, centred: Float[Tensor, "rows d_in"]) -> Float[Tensor, ""]:
    """How far dead latents are below where they fire, in units of what they would add to the reconstruction.

        loss = mean over rows of sum_i ReLU(threshold_i - pre_i) ||W_dec_i|| / d

    Published for JumpReLU with coefficient 3e-6, to a squared error that is summed over d; with that, far fewer latents
    come back than with the default. The threshold of an architecture without one is 0, or, with a fixed k, the row's
    smallest selected pre-activation. Thresholds and norms are constants to the gradient.

    Source: Conerly et al., Dictionary Learning Optimization Techniques (Circuits Updates, January 2025).
    """
    pre = centred @ dead.W_enc.T + dead.b_enc
    below = (_threshold(dead, centred) - pre).relu() * row_norms(dead.W_dec).detach()[:, 0]
    return kernels.a_row(below.sum(), len(centred)) / dead.W_dec.shape[1]


@torch.no_grad()
def _threshold(dead: DeadLatents, centred: Float[Tensor, "rows d_in"]) -> Tensor:
    """What pre-activations must exceed: one number, one per dead latent, or one per row."""
    sae = dead.sae
    if isinstance(sae, TopKSAE) and not isinstance(sae, BatchTopKSAE):
        values, _ = sae.select(centred)
        return values.reshape(len(centred), -1).amin(1, keepdim=True).clamp_min(0)
    if isinstance(sae, Crosscoder):  # whose threshold is for pre-activations times sizes
        limit = centred.new_zeros(()) if sae.sparsity == "l1" else sae.threshold
        return limit / sae.sizes()[dead.latents]
    threshold = getattr(sae, "threshold", centred.new_zeros(()))
    return threshold[dead.latents] if threshold.ndim else threshold


def add_revival(
    sae: SAE,
    config: RevivalConfig,
    dead: Bool[Tensor, " n_latents"],
    centred: Float[Tensor, "rows d_in"],
    residual: Float[Tensor, "rows d_out"],
) -> dict[str, Float[Tensor, ""]]:
    """Add the gradient of the configured loss to those of the SAE; returns the loss's terms, for the log."""
    if not config.weight:
        return {}
    some = DeadLatents.of(sae, dead)
    if some is None:
        return {"aux": residual.new_zeros(())}
    weight = config.weight * (some.share if config.method == "ghost_scaled" else 1)
    if config.method == "aux_k":
        loss = aux_k(some, centred, residual, config.k_aux)
    elif config.method == "pre_activation":
        loss = pre_activation(some, centred)
    else:
        loss = ghost(some, centred, residual)
    some.backward(weight * loss)
    return {"aux": loss.detach()}
