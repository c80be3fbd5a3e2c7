"""ms.decompose: which features a vector is made of, and how much of it each explains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.arguments import Positive, ZeroOrMore, checked
from monosem.codes import SparseCodes
from monosem.errors import ConfigError, DataError
from monosem.sae import SAE, pursue
from monosem.steering.vectors import SteeringVector

Method = Literal["encoder", "pursuit", "omp", "task"]
Loss = Callable[[Float[Tensor, " d"]], Float[Tensor, ""]]
"""Of a vector, what is to be small; with gradient."""
PATIENCE, LEAST = 8, 1e-3
"""An optimisation ends when so many steps have not lowered what it lowers by this share of the first loss."""
SMALL = 0.02
"""Of the largest contribution: what is smaller is dropped at the end of an optimisation."""


@dataclass(frozen=True)
class Decomposition:
    """A vector as features: vector = offset + sum of amount times decoder row + left, exactly."""

    hook: str | None
    vector: Float[Tensor, " d"]
    latents: list[int]
    """Strongest share first."""
    amounts: list[float]
    shares: list[float]
    """Of the vector's squared length: amount <row, vector> / ||vector||^2. What least squares finds ("omp") shares so
    out just what is explained."""
    made: Float[Tensor, " d"]
    """The sum of the features."""
    offset: Float[Tensor, " d"]
    """What the SAE adds to every reconstruction; 0 for a direction."""
    method: str

    @property
    def left(self) -> Float[Tensor, " d"]:
        """What no feature explains."""
        return self.vector - self.offset - self.made

    @property
    def reconstruction(self) -> Float[Tensor, " d"]:
        return self.offset + self.made

    @property
    def explained(self) -> float:
        """1 - ||left||^2 / ||vector - offset||^2: 1 is all, below 0 is worse than nothing."""
        return 1 - float(self.left.pow(2).sum() / (self.vector - self.offset).pow(2).sum())

    @property
    def cosine(self) -> float:
        """Between the sum of the features and the vector."""
        return float(torch.cosine_similarity(self.made, self.vector - self.offset, dim=0))

    def steering_vector(self) -> SteeringVector:
        """The features alone as a vector to steer with, what they leave unexplained left out."""
        if self.hook is None:
            raise ConfigError("this SAE does not know its hook point: set sae.metadata.hook = 'resid_post.2'")
        return SteeringVector(self.hook, self.reconstruction, f"{len(self.latents)} features, by {self.method}")

    def __str__(self) -> str:
        lines = [
            f"{len(self.latents)} features by {self.method}: {self.explained:.1%} explained, cosine {self.cosine:.3f}"
        ]
        lines += [
            f"{latent:>8}  amount {amount:>9.3f}  share {share:>6.1%}"
            for latent, amount, share in list(zip(self.latents, self.amounts, self.shares, strict=True))[:12]
        ]
        hidden = len(self.latents) - 12
        return "\n".join([*lines, f"{hidden:>8} more"] if hidden > 0 else lines)


@checked
def decompose(
    vector: SteeringVector | Float[Tensor, " d"] | Sequence[float],
    sae: SAE,
    method: Method = "omp",
    *,
    k: int = 16,
    of: Literal["direction", "activation"] = "direction",
    loss: Loss | None = None,
    penalty: ZeroOrMore = 0.01,
    steps: Positive = 150,
) -> Decomposition:
    """Which features a vector is made of.

    - "encoder": what the SAE's encoder says. It was trained on activations; of a direction it reads the one that stands
      off what the SAE adds to everything by the vector, which may be like nothing that it has seen.
    - "pursuit": gradient pursuit, k steps.
    - "omp": orthogonal matching pursuit, k steps, refitted by nonnegative least squares after each.
    - "task": the nonnegative code that keeps the task's own loss low with few features: see `clean`.

    Args:
        vector: to decompose, in the model's own units.
        sae: a dictionary with one W_dec, of the vector's hook point.
        method: as above.
        k: steps of the two pursuits.
        of: "direction" for what is added to activations, such as steering vectors; "activation" for what stands in
            their place: of it what the SAE adds to everything (b_dec, the mean) is taken off first.
        loss: for "task": of a vector, what is to be small.
        penalty: for "task": see `clean`.
        steps: for "task": of the optimiser.

    Raises:
        ConfigError: an unknown method, or a loss is missing or useless.
        DataError: the vector has another width, is 0 or not finite.
    """
    if (method == "task") != (loss is not None):
        raise ConfigError('method="task" needs the task\'s loss, a function of the vector, and no other method does')
    x, origin, offset = _prepared(vector, sae, of)
    if method == "encoder":
        codes = _encoded(sae, x + origin)
    elif method == "task":
        assert loss is not None
        return clean(vector, sae, loss, [penalty], of=of, steps=steps)[0]
    else:
        how = "gradient" if method == "pursuit" else "omp"
        codes = pursue(sae, (x + origin)[None], k=min(k, sae.n_latents), method=how)
    on = codes.values != 0
    return _decomposition(sae, x, offset, codes.indices[on].long(), codes.values[on].detach(), method)


@torch.no_grad()
def _prepared(vector: Any, sae: SAE, of: str) -> tuple[Tensor, Tensor, Tensor]:
    """The vector, what to add to it before the SAE reads it, and what the SAE adds of its own to its reconstruction."""
    if len(sae.out_shape) > 1 or not sae.autoencodes:
        raise ConfigError(
            f"a {sae.architecture} does not write what it reads: decompose needs an autoencoder of one site"
        )
    if sae.transform.per_row:
        raise ConfigError(
            f"transform {sae.transform.kind!r} scales each activation by itself: a direction has no scale"
        )
    x = (vector.vector if isinstance(vector, SteeringVector) else torch.as_tensor(vector)).detach().to(sae.W_dec)
    if isinstance(vector, SteeringVector) and sae.metadata.hook not in (None, vector.hook):
        raise DataError(f"the vector is of {vector.hook}, the SAE of {sae.metadata.hook}")
    if x.shape != (sae.d_out,):
        raise DataError(f"this SAE makes up vectors of width {sae.d_out}, got {tuple(x.shape)}")
    if not bool(x.isfinite().all()) or not bool(x.any()):
        raise DataError("the vector is 0 or not finite: there is nothing to decompose")
    base = sae.target_transform.inverse(sae.b_dec.detach()[None])[0]
    nothing = torch.zeros_like(base)
    return (x, base, nothing) if of == "direction" else (x, nothing, base)


@torch.no_grad()
def _encoded(sae: SAE, x: Float[Tensor, " d"]) -> SparseCodes:
    return sae.encode(x[None])


@torch.no_grad()
def _decomposition(sae: SAE, x: Tensor, offset: Tensor, latents: Tensor, amounts: Tensor, method: str) -> Decomposition:
    rows = sae.decoder_directions(latents)
    shares = amounts * (rows @ (x - offset)) / (x - offset).pow(2).sum()
    order = shares.argsort(descending=True)
    return Decomposition(
        sae.metadata.hook,
        x,
        latents[order].tolist(),
        amounts[order].tolist(),
        shares[order].tolist(),
        amounts @ rows if len(amounts) else torch.zeros_like(x),
        offset,
        method,
    )


def clean(
    vector: SteeringVector | Float[Tensor, " d"] | Sequence[float],
    sae: SAE,
    loss: Loss,
    penalties: Sequence[float],
    *,
    of: Literal["direction", "activation"] = "direction",
    steps: int = 150,
) -> list[Decomposition]:
    """Few nonnegative amounts of the features of a vector with a low loss, for each of some growing penalties.

    Adam on loss(offset + sum of amount times row) + penalty times the sum of amounts, each counted in shares of their
    sum at the start times the loss there, so that a penalty of 0.1 pays a tenth of that loss for losing all features.
    It begins with what the encoder finds, and goes on from one penalty to the next; each ends after `steps`, or when
    `PATIENCE` of them have brought nothing. Only features of the start take part, so their number falls. What is small
    at an end is dropped from what is returned.

    Source: Kharlapenko et al., Scaling Sparse Feature Circuits for Studying In-Context Learning, 2025 (task vector
    cleaning).

    Raises:
        ConfigError: there is no feature to begin with, or the loss has no gradient.
    """
    x, origin, offset = _prepared(vector, sae, of)
    start = _encoded(sae, x + origin)
    on = start.values > 0
    latents, first = start.indices[on].long(), start.values[on].detach()
    if not len(latents):
        raise ConfigError("the SAE finds no feature in this vector: there is nothing to clean")
    for penalty in penalties:
        if not 0 <= penalty < float("inf"):
            raise ConfigError(f"penalty must be at least 0 and finite, got {penalty}")
    rows = sae.decoder_directions(latents)
    strength = rows.norm(dim=1)
    scale = (first * strength).sum()
    amounts = (first * strength / scale).clone().requires_grad_()  # lengths of the contributions, which sum to 1
    optimiser = torch.optim.Adam([amounts], lr=0.1 / len(latents) ** 0.5)
    unit: Tensor | None = None
    found: list[Decomposition] = []
    for penalty in penalties:
        lowest, since = float("inf"), 0
        for _ in range(steps):
            with torch.enable_grad():
                cost = loss(offset + (amounts * scale / strength) @ rows)
                unit = cost.detach().abs() if unit is None else unit
                total = cost + penalty * unit * amounts.sum()
                (gradient,) = torch.autograd.grad(total, [amounts], allow_unused=True)
            if gradient is None:
                raise ConfigError("the loss does not depend on the vector: it needs a gradient")
            amounts.grad = gradient
            optimiser.step()
            with torch.no_grad():
                amounts.clamp_(min=0)
            better = float(total.detach()) < lowest - LEAST * float(unit)
            lowest, since = (float(total.detach()), 0) if better else (lowest, since + 1)
            if since >= PATIENCE:
                break
        now = amounts.detach().clone()
        kept = now > SMALL * now.max()
        found.append(_decomposition(sae, x, offset, latents[kept], (now * scale / strength)[kept], "task"))
    return found
