"""ms.attribute: by how much each active feature moves one number, for all of them at once, by gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosem.activations.check import join
from monosem.codes import SparseCodes
from monosem.errors import ConfigError, DataError, HookError
from monosem.interventions.base import reads
from monosem.interventions.effects import log_likelihood
from monosem.interventions.reading import spread
from monosem.models import EditContext, SubjectModel
from monosem.sae import SAE

Method = Literal["gradient", "integrated"]
Metric = Callable[[Any], Tensor]
Of = str | int | tuple[int | str, int | str] | tuple[str, Tensor] | Metric
"""A number of each context: "loss"; a token, by its id or text; two tokens, whose logits are subtracted; a hook point
and a direction there; or a function of what the model returns that gives one number, or one for each context."""


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
        return None if through is None else _like(self.scores, self.scores.values - through.values)

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
        return sums.index_add_(0, rows, self.scores.values.to(sums))

    def by_latent(self) -> Float[Tensor, " n_latents"]:
        """The sum of each latent's scores over contexts and positions."""
        sums = torch.zeros(self.codes.n_latents, dtype=self.scores.values.dtype, device=self.scores.device)
        return sums.index_add_(0, self.scores.indices, self.scores.values)

    def top(self, k: int = 10) -> list[tuple[int, float]]:
        """The latents with the largest sums, whatever their sign, and these."""
        sums = self.by_latent()
        order = sums.abs().topk(min(k, len(sums))).indices.tolist()
        return [(latent, float(sums[latent])) for latent in order if sums[latent] != 0]

    def __str__(self) -> str:
        named = ", ".join(f"{latent} {score:+.3g}" for latent, score in self.top(8))
        return f"{float(self.metric.sum()):.4g} = {named or 'no feature'}, ..., errors {float(self.errors.sum()):+.3g}"


def attribute(
    model: SubjectModel,
    sae: SAE,
    inputs: Any,
    of: Of = "loss",
    *,
    method: Method = "gradient",
    steps: int = 16,
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
    if method not in ("gradient", "integrated") or steps < 1:
        raise ConfigError(f'method is "gradient" or "integrated" of 1 step or more, got {method!r} of {steps}')
    join(sae, model, name)
    for later in through:
        join(later, model, later.metadata.hook)
    if isinstance(inputs, list | tuple) and all(isinstance(text, str) for text in inputs):
        inputs = model.padded(list(inputs))
    number = _number(model, of, position)
    way = _Way(model, sae, name, inputs, number)
    shares = [1.0] if method == "gradient" else [(step + 0.5) / steps for step in range(steps)]
    gradients = [way.gradient(share) for share in shares]
    metric = gradients[0][1] if method == "gradient" else way.value(1.0)
    gradient = torch.stack([g for g, _ in gradients]).mean(0)
    scores = way.scores(gradient)
    parts = None
    if through:
        spliced = [way.gradient(share, through)[0] for share in shares]
        parts = way.scores(torch.stack(spliced).mean(0))
    baseline = way.value(0.0) if method == "integrated" else None
    return Attribution(way.codes, scores, way.errors(gradient), metric, baseline, method, parts)


class _Way:
    """Between no features and all of them at one hook point: activations, numbers and gradients there."""

    def __init__(self, model: SubjectModel, sae: SAE, hook: str, inputs: Any, number: _Number) -> None:
        self.model, self.sae, self.hook, self.inputs, self.number = model, sae, hook, inputs, number
        self.x: Tensor | None = None
        self.kept: Bool[Tensor, "contexts pos"] = torch.zeros(0)
        self.codes: SparseCodes = SparseCodes.from_dense(torch.zeros(1, 1))

    def look(self, x: Tensor, context: EditContext) -> None:
        """What stands there, once."""
        if self.x is not None:
            return
        self.x, self.kept = x.detach().clone(), reads(self.sae.metadata, x, context)
        if not bool(self.kept.any()):
            raise DataError(
                f"the SAE reads nothing at {self.hook}: only special tokens, or positions that it leaves out"
            )
        self.rows = self.x[self.kept]
        encoded = self.sae.encode(self.rows).detach()
        self.codes = spread(encoded, self.kept)
        with torch.no_grad():
            none = SparseCodes(torch.zeros_like(encoded.values), encoded.indices, encoded.offsets, encoded.n_latents)
            self.entries = encoded
            self.rebuilt = self.sae.decode(encoded, self.rows)
            self.explained = torch.zeros_like(self.x)
            self.explained[self.kept] = (self.rebuilt - self.sae.decode(none, self.rows)).to(self.x.dtype)

    def at(self, share: float) -> Tensor:
        """Activations with so large a share of every code."""
        assert self.x is not None
        return self.x if share == 1.0 else self.x - (1 - share) * self.explained

    @torch.no_grad()
    def value(self, share: float) -> Float[Tensor, " contexts"]:
        """The number of each context."""

        def put(x: Tensor, context: EditContext) -> Tensor:
            self.look(x, context)
            return self.at(share)

        return self._run({self.hook: put})

    def gradient(self, share: float, through: Sequence[SAE] = ()) -> tuple[Tensor, Tensor]:
        """That of the number by the activations, and the number; with `through`, by way of reconstructions alone."""
        leaves: list[Tensor] = []

        def put(x: Tensor, context: EditContext) -> Tensor:
            self.look(x, context)
            torch.set_grad_enabled(True)  # what comes before needs no graph
            leaf = self.at(share).detach().clone().requires_grad_()
            leaves.append(leaf)
            return leaf.clone()

        def splice(later: SAE) -> Callable[[Tensor, EditContext], Tensor]:
            def rebuilt(x: Tensor, context: EditContext) -> Tensor:
                kept = reads(later.metadata, x.detach(), context)
                out = x.detach().clone()
                rows = x[kept]
                whole = later(rows).reconstruction.to(x.dtype)
                out[kept] = whole + (rows - whole).detach()
                return out

            return rebuilt

        functions: dict[str, Callable[[Tensor, EditContext], Tensor]] = {self.hook: put}
        functions |= {str(later.metadata.hook): splice(later) for later in through}
        with torch.no_grad():
            values = self._run(functions)
        if not leaves:
            raise HookError(f"the forward pass of {self.model.name} never reached {self.hook}")
        if not values.requires_grad:
            raise DataError("the number does not depend on the activations: it is of what comes before, or a constant")
        (gradient,) = torch.autograd.grad(values.sum(), leaves[0], allow_unused=True)
        return torch.zeros_like(leaves[0]) if gradient is None else gradient, values.detach()

    def _run(self, functions: dict[str, Callable[[Tensor, EditContext], Tensor]]) -> Tensor:
        edits = functions | {hook: look for hook, look in self.number.hooks.items() if hook not in functions}
        for hook in self.number.hooks.keys() & functions.keys():
            first, second = functions[hook], self.number.hooks[hook]
            edits[hook] = lambda x, context, first=first, second=second: second(first(x, context), context)
        with self.model.edit(edits):
            out = self.model._call(self.inputs)
        return self.number.of(out, self.model, self.inputs)

    def scores(self, gradient: Float[Tensor, "contexts pos d"]) -> SparseCodes:
        """Code times gradient by code, of every entry."""
        values = self.entries.values.detach().clone().requires_grad_()
        with torch.enable_grad():
            leaf = SparseCodes(values, self.entries.indices, self.entries.offsets, self.entries.n_latents)
            rebuilt = self.sae.decode(leaf, self.rows)
        (by_code,) = torch.autograd.grad(rebuilt, values, gradient[self.kept].to(rebuilt.dtype))
        return _like(self.codes, self.entries.values.detach() * by_code)

    def errors(self, gradient: Float[Tensor, "contexts pos d"]) -> Float[Tensor, "contexts pos"]:
        """Gradient times what the SAE leaves unexplained."""
        found = torch.zeros(self.kept.shape, dtype=gradient.dtype, device=gradient.device)
        found[self.kept] = ((self.rows - self.rebuilt.to(self.rows.dtype)) * gradient[self.kept]).sum(-1)
        return found


# What is asked for ----------------------------------------------------------------------------------------------------


@dataclass
class _Number:
    """One number of each context."""

    of: Callable[[Any, SubjectModel, Any], Tensor]
    """From what the model returns, the model, and its inputs."""
    hooks: dict[str, Callable[[Tensor, EditContext], Tensor]]
    """What must be looked at on the way."""


def _number(model: SubjectModel, of: Of, position: int) -> _Number:
    if callable(of):
        return _Number(lambda out, _model, _inputs: _one_each(of(out)), {})
    if isinstance(of, str) and of == "loss":
        return _Number(_loss, {})
    if isinstance(of, tuple) and len(of) == 2 and isinstance(of[1], Tensor):
        return _along(model, str(of[0]), of[1], position)
    tokens = [_token(model, one) for one in (of if isinstance(of, tuple) else (of,))]
    if len(tokens) > 2:
        raise ConfigError(f"of is one token, or two, got {len(tokens)}")

    def logits_of(out: Any, model: SubjectModel, inputs: Any) -> Tensor:
        logits = getattr(out, "logits", out)
        if logits.ndim == 2:
            last = logits
        else:
            at = _places(model, inputs, logits.shape[:2], position)
            last = logits[torch.arange(len(logits), device=logits.device), at]
        return last[:, tokens[0]] - (last[:, tokens[1]] if len(tokens) == 2 else 0)

    return _Number(logits_of, {})


def _loss(out: Any, model: SubjectModel, inputs: Any) -> Tensor:
    given = model._arguments(inputs)
    tokens = given["input_ids"] if isinstance(given, Mapping) else given
    mask = (
        given.get("attention_mask", torch.ones_like(tokens)) if isinstance(given, Mapping) else torch.ones_like(tokens)
    )
    read = {"input_ids": tokens, "attention_mask": mask}
    predicted = (mask[:, 1:].bool() & mask[:, :-1].bool()).sum(1)
    return -log_likelihood(getattr(out, "logits", out), read).sum(1) / predicted.clamp(min=1)


def _along(model: SubjectModel, hook: str, direction: Tensor, position: int) -> _Number:
    place = model.hook_point(hook).name
    seen: list[Tensor] = []

    def look(x: Tensor, _: EditContext) -> Tensor:
        if x.shape[-1] != len(direction):
            raise DataError(f"the direction has width {len(direction)}, {place} has width {x.shape[-1]}")
        seen.append(x)
        return x

    def of(_out: Any, model: SubjectModel, inputs: Any) -> Tensor:
        x = seen.pop()
        at = _places(model, inputs, x.shape[:2], position)
        return x[torch.arange(len(x), device=x.device), at] @ direction.to(x)

    return _Number(of, {hook: look})


def _places(model: SubjectModel, inputs: Any, shape: tuple[int, ...], position: int) -> Tensor:
    """Which column of each context is meant."""
    given = model._arguments(inputs)
    mask = given.get("attention_mask") if isinstance(given, Mapping) else None
    mask = torch.ones(*shape, dtype=torch.int64, device=model.device) if mask is None else mask.long()
    first, lengths = mask.argmax(1), mask.sum(1)
    at = position + (lengths if position < 0 else 0)
    if bool(((at < 0) | (at >= lengths)).any()):
        raise DataError(f"position {position} is outside the text, which has {int(lengths.min())} tokens")
    return first + at


def _token(model: SubjectModel, token: Any) -> int:
    if isinstance(token, int) and not isinstance(token, bool):
        return token
    if not isinstance(token, str):
        raise ConfigError(f'of is "loss", tokens, (hook, direction) or a function, got {token!r}')
    ids = model.tokens(token, prepend_bos=False)[0].tolist()
    if len(ids) != 1:
        raise ConfigError(f"{token!r} is {len(ids)} tokens, not one: the model reads it in pieces")
    return ids[0]


def _one_each(values: Any) -> Tensor:
    if not isinstance(values, Tensor) or values.ndim > 1 or not torch.is_floating_point(values):
        raise ConfigError("the function must give one number, or one for each context, as a tensor")
    return values.reshape(-1)


def _like(codes: SparseCodes, values: Tensor) -> SparseCodes:
    return SparseCodes(values, codes.indices, codes.offsets, codes.n_latents, codes.batch_shape)
