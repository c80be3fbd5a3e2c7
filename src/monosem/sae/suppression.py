"""Feature suppression: penalties make codes too small; afterwards their sizes can be fitted anew."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from monosem import kernels
from monosem.arguments import Positive, checked
from monosem.errors import ConfigError
from monosem.kernels import Selection
from monosem.sae.base import SAE
from monosem.sae.weights import row_norms


@checked
def fix_suppression(
    sae: SAE,
    x: Float[Tensor, "rows ..."],
    target: Float[Tensor, "rows ..."] | None = None,
    *,
    decoder: bool = False,
    steps: Positive = 100,
) -> SAE:
    """The SAE with the encoder frozen and every latent's strength fitted to the activations alone, without a penalty.

        min over s  || target - b_dec - (s * codes) W_dec ||^2

    An L1 coefficient c shrinks an isolated feature by c d / 2; this takes it back. The strength goes into the decoder
    row's length, so that codes, and which latents are on, stay the same to the bit; `fold` moves it into the codes.
    Latents that are never on in x stay as they are.

    The problem is linear: it is solved by conjugate gradients, which are deterministic and have no rate to choose.

    Args:
        sae: left as it is.
        x: raw activations; several rows for every latent, or strengths fit their noise.
        target: what is predicted, if that is not x.
        decoder: fit decoder rows whole, not their lengths alone.
        steps: of conjugate gradients, at most.

    Raises:
        ConfigError: the SAE has several sources, or encodes with its decoder; targets that it needs are missing.

    Source: Wright & Sharkey, Addressing Feature Suppression in SAEs, 2024 (there by gradient descent).
    """
    if sae.out_shape != (sae.d_out,):
        raise ConfigError(
            f"the strengths of {sae.architecture} cannot be fitted: it writes to several places, by whose norms its "
            "latents are chosen. Its batchtopk selection has no penalty that suppresses"
        )
    if sae.one_matrix:
        serves = "ms.pursue(sae, x, k=..., refit=True) fits them for given activations"
        if sae.architecture != "matching_pursuit":
            serves = "ms.convert(sae, 'jumprelu') first"
        raise ConfigError(f"{sae.architecture} encodes with its decoder, which cannot change alone: {serves}")
    if not sae.autoencodes and target is None:
        raise ConfigError(f"this {sae.architecture} predicts another site: give target, what it must predict")
    new = copy.deepcopy(sae)
    with torch.no_grad():
        rows = sae.rows_of(x)[1]
        out = sae(rows)
        wanted = rows if target is None else target.reshape(len(rows), sae.d_out).to(sae.W_dec.dtype)
        residual = sae.target_transform(wanted, rows) - sae.target_transform(out.reconstruction, rows)
    selection = Selection(out.codes.indices, out.codes.offsets, sae.n_latents)
    values, latents = out.codes.values, out.codes.indices
    W_dec = sae.W_dec.detach()
    energy = kernels.index_add_(values.new_zeros(sae.n_latents), latents, values**2).sqrt()
    if decoder:
        scale = _inverse(energy)[:, None]
        change = least_squares(lambda u: kernels.decode(values, u * scale, selection), W_dec * 0, residual, steps)
        rows = W_dec + change * scale
    else:
        scale = _inverse(energy * row_norms(W_dec)[:, 0])

        def contribution(u: Float[Tensor, " n_latents"]) -> Float[Tensor, "rows d_out"]:
            return kernels.decode(values * (u * scale)[latents], W_dec, selection)

        change = least_squares(contribution, scale * 0, residual, steps)
        rows = W_dec * (1 + change * scale)[:, None]
    with torch.no_grad():
        new.W_dec.copy_(rows)
    new.metadata = sae.metadata.model_copy(update={"fingerprint": None})
    return new


def _inverse(sizes: Tensor) -> Tensor:
    return torch.where(sizes > 0, 1 / sizes, torch.zeros_like(sizes))


def least_squares(forward: Callable[[Tensor], Tensor], start: Tensor, goal: Tensor, steps: int) -> Tensor:
    """The u that minimises ||goal - forward(u)||^2, forward linear: conjugate gradients on the normal equations.

    Args:
        forward: linear and differentiable; columns of like size make it quick.
        start: zeros of u's shape.
        goal: of the shape of forward(u).
        steps: at most; it ends early where the gradient has fallen to rounding.
    """

    def adjoint(y: Tensor) -> Tensor:
        with torch.enable_grad():
            u = torch.zeros_like(start, requires_grad=True)
            return torch.autograd.grad(forward(u), u, y)[0]

    u, residual = start.clone(), goal
    gradient = direction = adjoint(residual)
    size = first = gradient.pow(2).sum()
    for _ in range(steps):
        if size <= first * torch.finfo(goal.dtype).eps ** 2 or not size > 0:
            break
        with torch.no_grad():
            moved = forward(direction)
        step = size / moved.pow(2).sum()
        u, residual = u + step * direction, residual - step * moved
        gradient = adjoint(residual)
        size, before = gradient.pow(2).sum(), size
        direction = gradient + (size / before) * direction
    return u
