"""Select, encode, decode: the differentiable face of the kernels.

Two operations, each the other's adjoint, are enough for every architecture:

    encode   value[e]  = x[row(e)] . W_enc[latent(e)] + b_enc[latent(e)]
    decode   out[row]  = sum over the row's entries of value[e] * W_dec[latent(e)]
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from monosem import ranks
from monosem.errors import DivergenceError
from monosem.kernels.matmul import fast_bfloat16, fastest, integer_levels, product
from monosem.kernels.rounding import WEIGHT_LEVELS, Precision
from monosem.kernels.screening import GROUP, n_rough
from monosem.kernels.sums import index_add_

DENSE_ABOVE = 0.3
"""Share of latents on above which dense matmuls are faster (measured on CPU: benchmarks/crossover.py)."""

SUMMED_ROWS = 256
SCREENED = 2048
"""Latents from which screens pay."""
WIDE = 16384
"""Latents from which the bounds of eight bits pay."""
SCREENED_ROWS = 512
"""Rows from which it pays to round all weights: a prompt, or a text that is being written, has fewer."""

_forced: str | None = None


@contextmanager
def use_backend(name: str) -> Generator[None]:
    """Within this block all kernels come from one backend: "cpu" (numba), "cuda" (Triton) or "plain" (torch)."""
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def _backend(x: Tensor) -> ModuleType:
    half = x.dtype in (torch.float16, torch.bfloat16)
    fastest = "cuda" if x.device.type == "cuda" and importlib.util.find_spec("triton") else "plain"
    name = _forced or ("cpu" if x.device.type == "cpu" and not half else fastest)
    return importlib.import_module(f"monosem.kernels.{name}")


def dense_is_faster(share_on: float) -> bool:
    """Whether dense matmuls are the faster way to evaluate a selection of that share of all latents."""
    return share_on > DENSE_ABOVE


@dataclass(frozen=True, eq=False)
class Selection:
    """Which latents are on in which row; remembers its own transpose, which both weight gradients need."""

    indices: Int32[Tensor, " entries"]
    offsets: Int[Tensor, " rows_plus_1"]
    n_latents: int
    _orders: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict[str, Any], repr=False)

    def keep(self, kept: Bool[Tensor, " entries"]) -> Selection:
        """Only some of the entries."""
        before = torch.zeros(kept.numel() + 1, dtype=torch.int64, device=kept.device)
        torch.cumsum(kept, 0, out=before[1:])
        return Selection(self.indices[kept], before[self.offsets], self.n_latents)

    @property
    def dense(self) -> bool:
        """Whether so many latents are on that dense matmuls are the faster way to evaluate them."""
        return dense_is_faster(self.indices.numel() / max(1, (self.offsets.numel() - 1) * self.n_latents))

    def by_latent(self, backend: ModuleType) -> tuple[Tensor, Tensor, Tensor]:
        """The entries in the order of their latents, as a backend wants them."""
        if backend.__name__ not in self._orders:
            self._orders[backend.__name__] = backend.by_latent(self.indices, self.offsets, self.n_latents)
        return self._orders[backend.__name__]


def top_k(
    x: Float[Tensor, "rows d"],
    W: Float[Tensor, "n d"],
    bias: Float[Tensor, " n"],
    k: int,
    *,
    screen: Precision | None = None,
) -> tuple[Float[Tensor, " entries"], Selection]:
    """The k largest pre-activations of each row. Not differentiable: pass the values to `encode` for gradients.

    They are found in few bits where that is faster, and it is proven that none is missed: values and choice are those
    of float32. A step of training names the precision of its `screen`, and is content with the largest of
    the few candidates that it shows: values are exact, the choice between latents that are all but equal at the edge
    may differ.
    """
    with torch.no_grad():
        own = min(k, W.shape[0])
        if not own:  # all that are asked for are elsewhere
            values, indices = x.new_zeros(len(x), 0), torch.zeros(len(x), 0, dtype=torch.int32, device=x.device)
        elif (precision := _screen(x, W, own, screen)) is not None:
            values, indices = _backend(x).top_k_screened(x, W, bias, own, precision, screen is None)
        else:
            values, indices = _backend(x).top_k(x, W, bias, own)
        offsets = torch.arange(x.shape[0] + 1, device=x.device) * own
        selection = Selection(indices.reshape(-1), offsets, W.shape[0])
        if ranks.division().latents.size == 1:
            return values.reshape(-1), selection
        kept = _among_all(values, k).reshape(-1)
        return values.reshape(-1)[kept], selection.keep(kept)


def _screen(x: Tensor, W: Tensor, k: int, asked: Precision | None) -> Precision | None:
    """In which precision candidates are looked for; None where everything is evaluated at once."""
    if x.dtype != torch.float32 or W.dtype != torch.float32 or asked == "float32":
        return None
    if asked is not None:
        return asked if n_rough(k, asked) < len(W) else None
    if len(x) < SCREENED_ROWS or len(W) < SCREENED or k * 2 * GROUP > len(W):
        return None
    backend = _backend(x).__name__
    if backend == "monosem.kernels.cuda":
        return "bfloat16" if fast_bfloat16(x.device) else None
    if backend != "monosem.kernels.cpu":
        return None
    best = fastest(x.device, x.shape[1])
    if best == "float32" or (best == "int8" and (len(W) < WIDE or integer_levels() < WEIGHT_LEVELS)):
        return None
    return best


def _among_all(values: Float[Tensor, "rows own"], k: int) -> Bool[Tensor, "rows own"]:
    """Which of the candidates that this rank has are among the k largest of each row, of all ranks.

    Of equal ones at the edge those of the first ranks are; every rank sends k numbers a row, however many latents.
    """
    others = ranks.division().latents
    padded = F.pad(values, (0, k - values.shape[1]), value=float("-inf"))
    every = torch.cat(others.gather(padded), 1)
    edge = every.topk(k, dim=1).values[:, -1:]
    above, at = every > edge, every == edge
    kept = above | (at & (at.cumsum(1) <= k - above.sum(1, keepdim=True)))
    return kept[:, others.rank * k :][:, : values.shape[1]]


def above(
    x: Float[Tensor, "rows d"],
    W: Float[Tensor, "n d"],
    bias: Float[Tensor, " n"],
    threshold: Tensor | float,
    *,
    screen: Precision | None = None,
) -> tuple[Float[Tensor, " entries"], Selection]:
    """The pre-activations above a threshold (one number, or one per latent).

    They are found in few bits where that is faster (or in those of the `screen` that is named), and none is missed.
    """
    with torch.no_grad():
        limit = threshold if isinstance(threshold, Tensor) else x.new_tensor(threshold)
        precision = _screen(x, W, 1, screen)
        if precision is not None and (not isinstance(threshold, Tensor) or limit.device.type == "cpu"):
            few = abs(threshold) < 1e3 if not isinstance(threshold, Tensor) else bool((limit > -1e3).all())
            precision = precision if few else None
        if precision is not None:
            values, indices, offsets = _backend(x).above_screened(x, W, bias, limit, precision)
        else:
            values, indices, offsets = _backend(x).above(x, W, bias, limit)
        return values, Selection(indices, offsets, W.shape[0])


def batch_top_k(
    x: Float[Tensor, "rows d"],
    W: Float[Tensor, "n d"],
    bias: Float[Tensor, " n"],
    total: int,
    guess: float,
    *,
    screen: Precision | None = None,
) -> tuple[Float[Tensor, " entries"], Selection, Float[Tensor, ""]]:
    """The `total` largest pre-activations of the whole batch, and the smallest of them. Not differentiable.

    `guess` and `screen` decide the time it takes, not the result: see `largest` and `above`.
    """
    return largest(lambda limit: above(x, W, bias, limit, screen=screen), total, guess)


def largest(
    candidates: Callable[[float], tuple[Tensor, Selection]], total: int, guess: float
) -> tuple[Float[Tensor, " entries"], Selection, Float[Tensor, ""]]:
    """The `total` largest of all entries, and the smallest of them. Not differentiable.

    `candidates` returns the entries above a number. `guess` should lie a little below the smallest one wanted: all
    entries above the guess are candidates, and if there are too few, a lower guess is tried. `total` counts for the
    rows at hand; where others have more rows, or more latents, all compete.

    Raises:
        DivergenceError: there are not so many, as not all of them are numbers.
    """
    division = ranks.division()
    with torch.no_grad():
        total *= division.rows.size
        if not division.alone:
            guess = division.every.least_(torch.tensor(guess, dtype=torch.float64)).item()
        while True:
            values, selection = candidates(guess)
            found = values.numel()
            if not division.alone:
                found = int(division.every.sum_(torch.tensor(found)))
            if found >= total:
                break
            if guess == float("-inf"):
                raise DivergenceError(
                    f"of the {total:,} largest pre-activations {total - found:,} are not finite: the weights "
                    "or the activations are not"
                )
            guess = guess - max(0.5 * abs(guess), 0.1) if guess > -1e30 else float("-inf")
        own = division.every.rank
        parts = division.every.gather_ragged(values)
        every = parts[0] if division.alone else torch.cat(parts)
        if found == total:
            return values, selection, every.min()
        cut = every.kthvalue(found - total + 1).values
        kept = values > cut
        at_the_edge = (values == cut).nonzero()[:, 0]
        wanted = total - int((every > cut).sum()) - sum(int((part == cut).sum()) for part in parts[:own])
        kept[at_the_edge[: max(0, wanted)]] = True
        return values[kept], selection.keep(kept), cut


def by_group(
    select: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Selection]],
    x: Float[Tensor, "rows d"],
    W: Float[Tensor, "n d"],
    bias: Float[Tensor, " n"],
    sizes: Sequence[int],
) -> tuple[Float[Tensor, " entries"], Selection]:
    """A selection in which each group of rows sees an equal share of the latents: one matmul a group, on its share.

    Args:
        select: a selection without gradient, such as `above`, of rows, weights and biases.
        x: the rows, group after group.
        W: the weights; the first group's share comes first.
        bias: as W.
        sizes: rows of each group; a group may be empty.
    """
    share, parts, first_entry = W.shape[0] // len(sizes), list[tuple[Tensor, Tensor, Tensor]](), 0
    starts = [torch.zeros(1, dtype=torch.int64, device=x.device)]
    for group, rows in enumerate(x.split(list(sizes))):  # pyright: ignore
        if not len(rows):
            continue
        latents = slice(group * share, (group + 1) * share)
        values, chosen = select(rows, W[latents], bias[latents])
        parts.append((values, chosen.indices + group * share, chosen.offsets[1:] + first_entry))
        first_entry += values.numel()
    if not parts:
        return x.new_zeros(0), Selection(torch.zeros(0, dtype=torch.int32, device=x.device), starts[0], W.shape[0])
    values, indices, ends = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return values, Selection(indices, torch.cat([*starts, ends]), W.shape[0])


def encode(
    x: Float[Tensor, "rows d"],
    W_enc: Float[Tensor, "n d"],
    b_enc: Float[Tensor, " n"],
    b_dec: Float[Tensor, " d"] | None,
    selection: Selection,
    values: Float[Tensor, " entries"] | None = None,
) -> Float[Tensor, " entries"]:
    """The selected pre-activations `W_enc (x - b_dec) + b_enc`, with gradients.

    `x` must have had `b_dec` subtracted already; `b_dec` is named so that its gradient can be had without a matmul
    (the column sums of the gradients of the values, times W_enc). `values` are those that the selection has computed.
    """
    if values is None:
        products = _gather_dot(x.detach(), W_enc.detach(), selection)
        values = products + b_enc.detach()[selection.indices]
    return _Encode.apply(x, W_enc, b_enc, b_dec, selection, values)  # pyright: ignore


def adam_(
    parameter: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    mean: Float[Tensor, "*shape"],
    square: Float[Tensor, "*shape"],
    settings: tuple[float, float, float, float, float, float],
    *,
    unit_rows: bool,
) -> None:
    """One step of Adam in place, in one pass over memory.

    Args:
        parameter: changed in place, as are mean and square.
        grad: its gradient.
        mean: running mean of gradients.
        square: running mean of their squares.
        settings: lr, beta1, beta2, eps, and the bias corrections 1 - beta1^t and 1 - beta2^t.
        unit_rows: drop from the gradient what would change the norm of a row, and give rows norm 1 afterwards.
    """
    _backend(parameter).adam_(parameter, grad, mean, square, settings, unit_rows)


def decode(
    values: Float[Tensor, " entries"], W_dec: Float[Tensor, "n d"], selection: Selection
) -> Float[Tensor, "rows d"]:
    """The sum of each row's values times their decoder rows, with gradients."""
    return ranks.over_latents(_Decode.apply(values, W_dec, selection))  # pyright: ignore


def squared_error(
    values: Float[Tensor, " entries"],
    W_dec: Float[Tensor, "n d"],
    b_dec: Float[Tensor, " d"],
    selection: Selection,
    target: Float[Tensor, "rows d"],
    cost: Callable[[Float[Tensor, "rows d"]], Float[Tensor, ""]] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "rows d"]]:
    """The mean over all elements of (target - decode(values) - b_dec)^2, and that error without gradient.

    The gradient of the values costs nothing beside the decode: a row's decoder rows are still in the cache. Where other
    ranks have other latents, the error is known only once all have decoded. With a `cost`, that of the error instead.
    """
    if cost is not None:
        error = target - b_dec - decode(values, W_dec, selection)
        return cost(error), error.detach()
    loss, error = _SquaredError.apply(values, W_dec, b_dec, selection, target)  # pyright: ignore
    return ranks.over_rows(loss) / ranks.division().rows.size, error  # pyright: ignore


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, b: Tensor, b_dec: Tensor | None, selection: Selection, values: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, W)
        ctx.selection, ctx.latents, ctx.common = selection, ranks.division().latents, ranks.common_weight(W)
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, W = ctx.saved_tensors
        selection: Selection = ctx.selection
        grad: Tensor = grads[0].contiguous()
        need_x, need_W, need_b, need_b_dec = ctx.needs_input_grad[:4]
        grad_x = _weighted_sum(grad, selection, W) if need_x else None
        grad_W = _weight_gradient(grad, selection, x, ctx.common) if need_W else None
        grad_b = None
        if need_b or need_b_dec:
            grad_b = index_add_(grad.new_zeros(selection.n_latents), selection.indices, grad)
        grad_b_dec = None
        if need_b_dec and grad_b is not None:  # all latents read it, those of other ranks too
            grad_b_dec = ctx.latents.sum_(-_sum_of_rows(grad_b, W))
        return grad_x, grad_W, grad_b if need_b else None, grad_b_dec, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W: Tensor, selection: Selection) -> Tensor:
        ctx.selection, ctx.common = selection, ranks.common_weight(W)
        if selection.dense:
            codes = _to_dense(values, selection)
            ctx.save_for_backward(codes, W)
            return product(codes, W)
        ctx.save_for_backward(values, W)
        return _weighted_sum(values, selection, W)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore
        values, W = ctx.saved_tensors
        selection: Selection = ctx.selection
        grad: Tensor = grads[0].contiguous()
        need_values, need_W = ctx.needs_input_grad[:2]
        grad_values = _gather_dot(grad, W, selection) if need_values else None
        grad_W = _weight_gradient(values, selection, grad, ctx.common) if need_W else None
        return grad_values, grad_W, None


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, W: Tensor, b_dec: Tensor, selection: Selection, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        latents, kept = ranks.division().latents, _to_dense(values, selection) if selection.dense else values
        if selection.dense or latents.size > 1:
            decoded = product(kept, W) if selection.dense else _weighted_sum(values, selection, W)
            error = torch.sub(target, latents.sum_(decoded), out=decoded).sub_(b_dec)
            dots = _gather_dot(error, W, selection)
        else:
            error, dots = _backend(W).decode_error(values, selection.indices, selection.offsets, W, b_dec, target)
        ctx.save_for_backward(kept, error, dots)
        ctx.selection, ctx.common = selection, ranks.common_weight(W)
        ctx.mark_non_differentiable(error)
        return error.pow(2).mean(), error

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore
        kept, error, dots = ctx.saved_tensors
        selection: Selection = ctx.selection
        need_values, need_W, need_b_dec, _, need_target = ctx.needs_input_grad
        scale = grads[0] * (2 / max(1, error.numel()))
        grad_values = dots * -scale if need_values else None
        grad_W = _weight_gradient(kept * -scale, selection, error, ctx.common) if need_W else None
        grad_b_dec = error.sum(0) * -scale if need_b_dec else None
        return grad_values, grad_W, grad_b_dec, None, error * scale if need_target else None


def _to_dense(values: Tensor, selection: Selection) -> Tensor:
    return _backend(values).to_dense(values, selection.indices, selection.offsets, selection.n_latents)


def _weighted_sum(values: Tensor, selection: Selection, W: Tensor) -> Tensor:
    if selection.dense:
        return product(_to_dense(values, selection), W)
    return _backend(W).weighted_sum(values, selection.indices, selection.offsets, W)


def _sum_of_rows(weights: Tensor, W: Tensor) -> Tensor:
    """`weights @ W`, in parts of fixed size: a library's product of vector and matrix depends on the threads."""
    starts = torch.arange(0, len(W), SUMMED_ROWS, device=W.device)
    offsets = torch.cat([starts, starts.new_tensor([len(W)])])
    everything = torch.arange(len(W), dtype=torch.int32, device=W.device)
    return _backend(W).weighted_sum(weights, everything, offsets, W).sum(0)


def _gather_dot(x: Tensor, W: Tensor, selection: Selection) -> Tensor:
    backend = _backend(W)
    if selection.dense:
        return backend.from_dense(product(x, W.T), selection.indices, selection.offsets)
    return backend.gather_dot(x, W, selection.indices, selection.offsets)


def _weight_gradient(
    values: Tensor, selection: Selection, y: Tensor, common: ranks.CommonWeight | None
) -> Tensor | None:
    """Every latent's sum of rows of y, times its values there (of a dense selection, all values).

    Of a matrix that ranks have in common this one's latents get their sums over the rows of all, which are handed over:
    None is returned.
    """
    backend = _backend(y)
    if common is not None and backend.__name__ == "monosem.kernels.cpu":
        order, starts, rows = selection.by_latent(backend)
        ordered = values if selection.dense else values.index_select(0, order)
        every = common.group.laid_out(ordered, starts, rows, y, willing=not selection.dense)
        if every is not None:
            common.add(backend.scatter_outer_of_all(every, common.own))
            return None
    if selection.dense:
        return product((values if values.ndim == 2 else _to_dense(values, selection)).T, y)
    return backend.scatter_outer(values, *selection.by_latent(backend), y)
