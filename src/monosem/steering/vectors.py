"""ms.steering_vector: directions to steer along, from features, contrasts of texts, or a probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.interventions import AddVector
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.steering.reading import of_texts
from monosem.text import special_tokens

Method = Literal["mean", "probe"]
At = Literal["mean", "last"]
PROBE_RIDGE = 0.01


@dataclass(frozen=True)
class SteeringVector:
    """A direction at a hook point, in the model's own units: `vector.edit(strength)` adds it."""

    hook: str
    vector: Float[Tensor, " d"]
    about: str
    """Where it is from, in words."""

    @property
    def norm(self) -> float:
        return float(self.vector.norm())

    def edit(self, strength: Any = 1.0, where: Any = None) -> AddVector:
        """The intervention that adds it, so many times; see `ms.AddVector`."""
        return AddVector(self.hook, self.vector, strength=strength, where=where)

    def __repr__(self) -> str:
        return f"SteeringVector({self.hook!r}, {self.about}, norm {self.norm:.4g})"


@checked
@torch.no_grad()
def steering_vector(
    source: SAE | SubjectModel,
    what: int | Sequence[int] | Mapping[int, float] | None = None,
    *,
    positive: Sequence[str] = (),
    negative: Sequence[str] = (),
    hook: str | None = None,
    method: Method = "mean",
    at: At = "mean",
) -> SteeringVector:
    """A direction to steer along.

    ms.steering_vector(sae, 12)                      # one unit of a feature
    ms.steering_vector(sae, {12: 1.0, 40: -0.5})     # several features
    ms.steering_vector(model, positive=angry, negative=calm, hook="resid_post.15")
    ms.steering_vector(model, positive=angry, negative=calm, hook="resid_post.15", method="probe")

    Args:
        source: an SAE, for features; a model, for texts.
        what: latents, or latents and how much of each.
        positive: texts that have what is wanted.
        negative: texts that have not.
        hook: where; an SAE may know its own.
        method: "mean", the mean of the positive texts less that of the negative ones; "probe", the direction by which
            a logistic regression tells them apart, as long as the difference of the means.
        at: what of a text is read: the mean over its tokens ("mean"; special tokens and sinks of attention are left
            out), or its last token ("last").

    Raises:
        ConfigError: a latent does not exist, a setting is wrong or missing, or the vector would be 0.
        DataError: there are no texts.

    Source: contrasts: Turner et al., Activation Addition, 2023; Rimsky et al., Contrastive Activation Addition, 2024.
    """
    if isinstance(source, SAE):
        return _of_features(source, what, hook)
    if what is not None or hook is None:
        raise ConfigError(
            "from a model: give positive and negative texts, and hook='resid_post.15'; from features: an SAE"
        )
    special = torch.tensor(sorted(special_tokens(source.tokenizer)), dtype=torch.int64)
    high, low = (of_texts(source, hook, texts, at, special) for texts in (positive, negative))
    vector = high.mean(0) - low.mean(0)
    if method == "probe":
        vector = _probe(high, low) * vector.norm()
    words = {"mean": "difference of the means", "probe": "probe"}[method]
    return _made(hook, vector, f"{words} of {len(high)} and {len(low)} texts")


def _of_features(sae: SAE, what: int | Sequence[int] | Mapping[int, float] | None, hook: str | None) -> SteeringVector:
    name = hook or sae.metadata.hook
    if name is None:
        raise ConfigError("this SAE does not know its hook point: give hook='resid_post.2'")
    if len(sae.out_shape) > 1:
        raise ConfigError(f"a {sae.architecture} writes to several places: a steering vector has one")
    if isinstance(what, Mapping):
        weights: dict[int, float] = dict(what)
    else:
        weights = dict.fromkeys(
            [what] if isinstance(what, int) else [] if what is None else [int(latent) for latent in what], 1.0
        )
    if not weights:
        raise ConfigError("give the latents to steer with: ms.steering_vector(sae, 12), or {12: 1.0, 40: -0.5}")
    rows = sae.decoder_directions(list(weights))
    vector = torch.tensor(list(weights.values()), dtype=rows.dtype, device=rows.device) @ rows
    words = ", ".join(f"{latent}" if w == 1 else f"{w:g} x {latent}" for latent, w in list(weights.items())[:4])
    return _made(name, vector, f"latent{'s' * (len(weights) > 1)} {words}{', ...' * (len(weights) > 4)}")


@torch.enable_grad()
def _probe(high: Float[Tensor, "n d"], low: Float[Tensor, "m d"]) -> Float[Tensor, " d"]:
    """Of norm 1, towards the positive side: logistic regression on standardised rows, both sides of equal weight."""
    x = torch.cat([high, low]).detach().double()
    scale = x.std(0).clamp_min(1e-6)
    rows = (x - x.mean(0)) / scale
    sign = torch.cat([x.new_ones(len(high)) / len(high), -x.new_ones(len(low)) / len(low)])
    w = x.new_zeros(x.shape[1] + 1, requires_grad=True)
    optimiser = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        margins = sign.sign() * (rows @ w[:-1] + w[-1])
        loss = (sign.abs() * torch.nn.functional.softplus(-margins)).sum() + PROBE_RIDGE * w[:-1].pow(2).sum()
        loss.backward()
        return loss

    optimiser.step(closure)  # pyright: ignore[reportArgumentType]
    direction = (w.detach()[:-1] / scale).to(high)
    return direction / direction.norm()


def _made(hook: str, vector: Tensor, about: str) -> SteeringVector:
    if not bool(vector.isfinite().all()) or not float(vector.norm()) > 0:
        raise ConfigError(f"the vector of {about} is 0 or not finite: there is no direction in it")
    return SteeringVector(hook, vector.detach().cpu(), about)
