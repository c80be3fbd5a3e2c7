"""Resampling: at a few points of the run, dead latents start anew from inputs that are badly reconstructed."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosem.sae import SAE
from monosem.sae.weights import row_norms
from monosem.training.optimizer import Adam
from monosem.training.revival import RevivalConfig


def due(config: RevivalConfig, tokens_before: int, tokens: int, total_tokens: int) -> bool:
    """Whether a point of resampling lies in the step that has just been made."""
    points = [share * total_tokens for share in config.resample_at]
    return config.method == "resample" and any(tokens_before < point <= tokens for point in points)


@torch.no_grad()
def resample(
    sae: SAE,
    optimizer: Adam,
    dead: Bool[Tensor, " n_latents"],
    inputs: tuple[Float[Tensor, "rows d_in"], Float[Tensor, "rows d_out"]],
    residual: Float[Tensor, "rows d_out"],
    *,
    norm: float,
    seed: int,
) -> Int[Tensor, " resampled"]:
    """Give dead latents new directions in place; returns which.

    An input is drawn, without repetition, with a probability by the square of its squared error. The latent's decoder
    row becomes its target, its encoder row the input itself (both centred), of the mean norm of live decoder rows and
    of `norm` times that of live encoder rows; b_enc becomes 0, other parameters the mean of live latents'; and Adam
    forgets. Of more dead latents than inputs with an error, the first ones are resampled.

    Source: Bricken et al., Towards Monosemanticity, 2023, "Neuron Resampling".

    Args:
        sae: changed in place.
        optimizer: its moments of these latents become 0.
        dead: which latents.
        inputs: what the encoder reads and what the decoder, without b_dec, must give; the same for autoencoders.
        residual: what the SAE leaves of them.
        norm: norm of new encoder rows as a share of the live ones'.
        seed: of the draw: the step, so that a resumed run makes the same.
    """
    alive, latents = (~dead).nonzero()[:, 0], dead.nonzero()[:, 0]
    weights = residual.double().pow(2).sum(-1).pow(2).cpu()
    latents = latents[: int((weights > 0).sum())]
    if not len(latents):
        return latents
    generator = torch.Generator().manual_seed(seed)
    rows = torch.multinomial(weights, len(latents), generator=generator).to(latents.device)
    directions = dict(zip(("W_enc", "W_dec"), inputs, strict=True))
    for name, parameter in sae.named_parameters():
        if name in directions:
            live = row_norms(parameter[alive if len(alive) else latents]).mean() * (norm if name == "W_enc" else 1)
            new = directions[name][rows]
            parameter[latents] = live * new / row_norms(new).clamp_min(torch.finfo(new.dtype).tiny)
        elif name != "b_dec" and tuple(parameter.shape) == (sae.n_latents,):
            parameter[latents] = 0.0 if name == "b_enc" or not len(alive) else parameter[alive].mean()
        else:
            continue
        optimizer.mean[name][latents] = optimizer.square[name][latents] = 0.0
    return latents
