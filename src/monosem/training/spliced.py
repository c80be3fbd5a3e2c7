"""A model that reads on from rows put into it: what its output and its later activations lose, and the gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosem.activations import LiveActivations, Standing, Wanted, read_rows
from monosem.activations.reading import parts_of
from monosem.data import Batch
from monosem.errors import ConfigError
from monosem.models import EditContext, Replay, SubjectModel
from monosem.models.edits import EditFunction

POSITIONS, NUMBERS = 4_096, 2**27
"""Positions and logits at a time, at most: what the gradient needs is kept for as many."""
ROWS = 256
"""Of logits that are compared at a time."""
MEASURED = 32
"""Contexts that say how much activations vary."""


class Spliced:
    """One hook point of a model, from which it reads on.

    A few contexts at a time: the model runs as it is, then from the hook point on with the rows in their place; the
    gradient of what that costs goes into a table beside the rows, and all else is let go. So memory does not grow with
    the batch, and nothing of the model is kept from one context to the next.
    """

    def __init__(self, model: SubjectModel, hook: str, downstream: bool | Sequence[str], live: LiveActivations) -> None:
        """See that the model can be read on from there.

        Args:
            model: the model.
            hook: where rows are put in.
            downstream: later hook points; True: the residual stream after every block behind it.
            live: what reads the text.

        Raises:
            ConfigError: it gives no logits at every position, or comes to none of the later hook points after `hook`.
        """
        self.model, self.hook, self._live = model, hook, live
        example = live.contexts.read(0, 1).inputs
        self.vocabulary = vocabulary(model, example)
        self.later = [] if downstream is False else behind(model, hook, downstream, example)
        self._replay = Replay(model, [hook], example)
        self._variances: list[Tensor] | None = None

    def costs(
        self,
        rows: Float[Tensor, "rows d"],
        standing: Sequence[Standing],
        weights: tuple[float, float],
        gradient: Float[Tensor, "rows d"] | None,
    ) -> Tensor:
        """Two sums over the rows, in float64: of KL, and of the squared error at later hook points, a mean over these.

        Args:
            rows: raw, to be put in.
            standing: where they stand.
            weights: of both sums in the gradient.
            gradient: is added the gradient of the weighted sum.
        """
        sums, start = rows.new_zeros(2, dtype=torch.float64), 0
        for batch, where in standing:
            numbers = torch.zeros(where.shape, dtype=torch.int64)
            numbers[where] = torch.arange(start, start := start + int(where.sum()))
            for order, part in self._parts(batch):
                own = where[order, : part.tokens.shape[1]]
                if own.any():
                    chosen = numbers[order, : part.tokens.shape[1]][own].to(rows.device)
                    found, slope = self._part(part, own, rows[chosen], weights, gradient is not None)
                    sums += found.to(sums.device)
                    if gradient is not None and slope is not None:
                        gradient[chosen] += slope.to(gradient)
        return sums

    def _parts(self, batch: Batch) -> Iterator[tuple[Tensor, Batch]]:
        size = min(self.model.contexts_at_once(1), POSITIONS, max(1, NUMBERS // self.vocabulary))
        for order, part in parts_of(batch, size):
            at_once = max(1, size // part.tokens.shape[1])
            for first in range(0, len(part), at_once):
                yield order[first : first + at_once], part[first : first + at_once]

    def _part(
        self, batch: Batch, where: Tensor, rows: Tensor, weights: tuple[float, float], with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Sums of a few contexts, and the gradient by the rows in them."""
        inputs, where, variances = batch.inputs, where.to(self.model.device), self._usual()
        with ExitStack() as stack:
            stack.enter_context(frozen(self.model))
            with torch.no_grad(), self._kept() as clean:
                logits = stack.enter_context(self._replay.of(inputs))
            leaf = rows.to(logits.device).detach().requires_grad_(with_gradient)

            def put_in(x: Tensor, _: EditContext) -> Tensor:
                return x.index_put((where,), leaf.to(x))

            stack.enter_context(torch.set_grad_enabled(with_gradient))
            stack.enter_context(self.model.attach(self.model.hook_point(self.hook), put_in))
            kept = stack.enter_context(self._kept())
            out = self.model._call(inputs)
            new = getattr(out, "logits", out)
            kl, slope = divergence(logits, new.detach(), where, weights[0])
            ends, slopes, error = [new], [slope], kl.new_zeros(())
            for hook, variance in zip(self.later, variances, strict=True):
                share = 1 / (len(self.later) * variance.to(clean[hook]) * clean[hook].shape[-1])
                off = (kept[hook].detach() - clean[hook])[where]
                error = error + off.double().pow(2).sum() * share
                ends.append(kept[hook])
                slope = torch.zeros_like(kept[hook])
                slopes.append(slope.index_put_((where,), (2 * weights[1] * share * off).to(slope)))
            sums = torch.stack([kl, error]).detach()
            return sums, torch.autograd.grad(ends, [leaf], slopes)[0] if with_gradient else None

    @contextmanager
    def _kept(self) -> Iterator[dict[str, Tensor]]:
        """Within this block, what the model has at the later hook points."""
        found: dict[str, Tensor] = {}
        with ExitStack() as attached:
            for hook in self.later:
                attached.enter_context(self.model.attach(self.model.hook_point(hook), _keep(found, hook)))
            yield found

    @torch.no_grad()
    def _usual(self) -> list[Tensor]:
        """The variance of a number at each later hook point, on the first contexts of the text."""
        if self._variances is None and not self.later:
            self._variances = []
        if self._variances is None:
            batch = self._live.contexts.read(0, MEASURED)
            ((rows, _),) = read_rows(self.model, batch, [Wanted(self._live.metadata, self.later)])
            spreads = [(rows[hook] - rows[hook].mean(0)).double().pow(2).mean() for hook in self.later]
            self._variances = [spread.clamp_min(torch.finfo(torch.float32).tiny) for spread in spreads]
        return self._variances


@torch.no_grad()
def divergence(
    clean: Float[Tensor, "batch pos vocabulary"],
    new: Float[Tensor, "batch pos vocabulary"],
    where: Bool[Tensor, "batch pos"],
    weight: float = 1.0,
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch pos vocabulary"]]:
    """KL(softmax(clean) || softmax(new)), a sum over some positions; and `weight` times its gradient by `new`."""
    kind, total, slope = torch.promote_types(clean.dtype, torch.float32), [], torch.zeros_like(new)
    clean_rows, new_rows, slope_rows = (logits.flatten(0, 1) for logits in (clean, new, slope))
    for some in where.flatten().nonzero()[:, 0].split(ROWS):
        expected, found = (torch.log_softmax(rows[some].to(kind), -1) for rows in (clean_rows, new_rows))
        chances = expected.exp()
        total.append((chances * (expected - found)).sum(dtype=torch.float64))
        slope_rows[some] = found.exp_().sub_(chances).mul_(weight).to(slope)
    return torch.stack(total).sum(), slope


def _keep(found: dict[str, Tensor], hook: str) -> EditFunction:
    def function(x: Tensor, _: EditContext) -> Tensor:
        found[hook] = x.clone()  # what follows may work in place
        return x

    return function


@contextmanager
def frozen(model: SubjectModel) -> Iterator[None]:
    """Within this block no weight of the model asks for a gradient."""
    asking = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def vocabulary(model: SubjectModel, inputs: Any) -> int:
    """How many tokens a model tells apart at every position.

    Raises:
        ConfigError: it gives no logits.
    """
    out = model(inputs)
    if not (isinstance(out, Tensor) and out.ndim == 3 and out.shape[-1] > 1 and out.is_floating_point()):
        shape = f"({', '.join(map(str, out.shape))})" if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise ConfigError(
            f"{model.name} gives no logits at every position ({shape}), by which an end-to-end loss could tell what "
            "its output loses: load it with its language-model head"
        )
    return out.shape[-1]


def behind(model: SubjectModel, hook: str, names: bool | Sequence[str], inputs: Any) -> list[str]:
    """The hook points of those named (True: of the residual stream after every block) that come after a hook point.

    Raises:
        ConfigError: there is none, or one that is named is not behind it.
    """
    asked = [n for n in model.hook_points if n.startswith("resid_post.")] if isinstance(names, bool) else list(names)
    reached: list[str] = []

    def reach(name: str) -> EditFunction:
        def function(x: Tensor, _: EditContext) -> Tensor:
            reached.append(name)
            return x

        return function

    with ExitStack() as attached:
        for name in dict.fromkeys([hook, *asked]):
            attached.enter_context(model.attach(model.hook_point(name), reach(name)))
        model(inputs)
    later = [name for name in asked if name in reached[reached.index(hook) + 1 :] and name != hook]
    early = [] if isinstance(names, bool) else [name for name in asked if name not in later]
    if early:
        raise ConfigError(
            f"downstream: {model.name} does not come to {early[0]} after {hook}: name what lies behind it"
        )
    if not later:
        raise ConfigError(f"downstream: {model.name} has no residual stream behind {hook}: leave downstream out")
    return later
