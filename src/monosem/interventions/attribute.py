"""ms.attribute: by how much each active feature moves one number, for all of them at once, by gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.arguments import Positive, checked
from monosem.codes import SparseCodes
from monosem.errors import ConfigError
from monosem.interventions.base import joined_once, reads
from monosem.interventions.number import Of, number_of
from monosem.interventions.way import Put, Site, Way, like, midpoints
from monosem.kernels import index_add_
from monosem.models import EditContext, SubjectModel
from monosem.sae import SAE

Method = Literal["gradient", "integrated"]


@dataclass(frozen=True)
class Attribution:
    """By how much each feature, where it is on, moves a number of each context."""

    codes: SparseCodes
    """(contexts, pos, latents), the features that are on."""
    scores: SparseCodes
    """The same entries: the part of the number that goes away, to first order or along the path, without each."""
    errors: Float[Tensor, "contexts pos"]
    """The part of what the SAE leaves unexplained, to first order."""
    metric: Float[Tensor, " contexts"]
    """The number."""
    baseline: Float[Tensor, " contexts"] | None
    """The number without any of the features, where that was asked for: for the integrated gradients."""
    method: Method
    through_reconstructions: SparseCodes | None = field(default=None, repr=False)
    """Of each score the part that runs through what later SAEs reconstruct; the rest runs through their errors."""

    @property
    def through_errors(self) -> SparseCodes | None:
        """Of each score the part that runs through what a later SAE leaves unexplained."""
        through = self.through_reconstructions
        return None if through is None else like(self.scores, self.scores.values - through.values)

    @property
    def incompleteness(self) -> Float[Tensor, " contexts"]:
        """Sum of the scores, less (metric - baseline): near 0 for integrated gradients of enough steps.

        Raises:
            ConfigError: there is no baseline.
        """
        if self.baseline is None:
            raise ConfigError('there is no baseline: ms.attribute(..., method="integrated")')
        return self.total() - (self.metric - self.baseline)

    def total(self) -> Float[Tensor, " contexts"]:
        """The sum of all scores of each context."""
        sums = torch.zeros_like(self.metric)
        rows = self.scores.rows() // self.scores.batch_shape[1]
        return index_add_(sums, rows, self.scores.values.to(sums))

    def by_latent(self) -> Float[Tensor, " n_latents"]:
        """The sum of each latent's scores over contexts and positions."""
        sums = torch.zeros(self.codes.n_latents, dtype=self.scores.values.dtype, device=self.scores.device)
        return index_add_(sums, self.scores.indices, self.scores.values)

    def top(self, k: int = 10) -> list[tuple[int, float]]:
        """The latents with the largest sums, whatever their sign, and these."""
        sums = self.by_latent()
        order = sums.abs().topk(min(k, len(sums))).indices.tolist()
        return [(latent, float(sums[latent])) for latent in order if sums[latent] != 0]

    def __str__(self) -> str:
        named = ", ".join(f"{latent} {score:+.3g}" for latent, score in self.top(8))
        return f"{float(self.metric.sum()):.4g} = {named or 'no feature'}, ..., errors {float(self.errors.sum()):+.3g}"


@checked
def attribute(
    model: SubjectModel,
    sae: SAE,
    inputs: Any,
    of: Of = "loss",
    *,
    method: Method = "gradient",
    steps: Positive = 16,
    position: int = -1,
    hook: str | None = None,
    through: Sequence[SAE] = (),
) -> Attribution:
    """Which active features move a number, and by how much, at every position, in one backward pass.

    found = ms.attribute(model, sae, "When Mary and John went out, John gave it to", of=(" Mary", " John"))
    found.top(10)

    gradient: score = code * d number / d code, what would go away without the feature if the number were linear.
    integrated: the same with the gradient averaged along the way from no features (errors kept) to all of them, at the
    middles of equal steps: then the scores add up to number - number without features, but for O(1 / steps^2).

    Sources: Sundararajan et al., Axiomatic Attribution for Deep Networks, 2017; Marks et al., Sparse Feature Circuits,
    2024.

    Args:
        model: the model.
        sae: an SAE of one hook point.
        inputs: what the model reads: a text or several, token ids, pixels, a mapping.
        of: "loss" (mean cross-entropy of the next token), a token (its logit), two of them (the difference of their
            logits), `(hook, direction)` (the product there), or a function of what the model returns, as a reward
            head's `lambda out: out.logits[:, 0]`.
        method: "gradient", or "integrated".
        steps: of the integrated gradients, a forward and backward pass each.
        position: the token at which logits and directions are taken; negative: from the end of each text.
        hook: the SAE's hook point, if it does not know it.
        through: SAEs of later hook points: also tell which part of each score runs through what they reconstruct.

    Raises:
        ConfigError: it is not known what is asked for.
        DataError: the SAE reads nothing there, or the number is not finite, or none for each context.
        MismatchError: the SAE does not fit the model.
    """
    name = hook or sae.metadata.hook
    if name is None:
        raise ConfigError("this SAE does not know its hook point: attribute(..., hook='resid_post.2')")
    if not sae.autoencodes or len(sae.in_shape) > 1:
        raise ConfigError(f"a {sae.architecture} does not rebuild what it reads: attribute takes an SAE of one place")
    joined_once(sae, model, name)
    for later in through:
        joined_once(later, model, later.metadata.hook or [])
    if isinstance(inputs, list | tuple) and all(isinstance(text, str) for text in inputs):
        inputs = model.padded(list(inputs))
    site = Site(sae, name)
    way = Way(model, [site], inputs, number_of(model, of, position))
    shares = [1.0] if method == "gradient" else midpoints(steps)
    found = [way.gradients(share) for share in shares]
    metric = found[0][1] if method == "gradient" else way.value()
    gradient = torch.stack([g for (g,), _ in found]).mean(0)
    scores = site.scores(gradient)
    parts = None
    if through:
        splices = {str(later.metadata.hook): _splice(later) for later in through}
        spliced = [way.gradients(share, splices)[0][0] for share in shares]
        parts = site.scores(torch.stack(spliced).mean(0))
    baseline = way.value(0.0) if method == "integrated" else None
    return Attribution(site.codes, scores, site.errors(gradient), metric, baseline, method, parts)


def _splice(later: SAE) -> Put:
    """What a later SAE reconstructs carries the gradient; its error is a constant."""

    def rebuilt(x: Tensor, context: EditContext) -> Tensor:
        kept = reads(later.metadata, x.detach(), context)
        out = x.detach().clone()
        rows = x[kept]
        whole = later(rows).reconstruction.to(x.dtype)
        out[kept] = whole + (rows - whole).detach()
        return out

    return rebuilt
