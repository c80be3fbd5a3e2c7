"""The kernels in plain torch: any device, any dtype. Rows are processed in tiles so that memory stays bounded."""

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor
from torch.nn import functional as F

from monosem.kernels.matmul import linear
from monosem.kernels.rounding import Precision
from monosem.kernels.screening import n_rough
from monosem.kernels.sums import index_add_

TILE_ROWS = 1024
TILE_ENTRIES = 16384


def top_k(
    x: Float[Tensor, "rows d"], weight: Float[Tensor, "n d"], bias: Float[Tensor, " n"], k: int
) -> tuple[Float[Tensor, "rows k"], Int32[Tensor, "rows k"]]:
    """The k largest of `x @ weight.T + bias` in each row."""
    tiles = [torch.topk(linear(tile, weight, bias), k, dim=-1, sorted=False) for tile in _tiles(x, TILE_ROWS)]
    return torch.cat([t.values for t in tiles]), torch.cat([t.indices for t in tiles]).to(torch.int32)


def top_k_screened(
    x: Float[Tensor, "rows d"],
    weight: Float[Tensor, "n d"],
    bias: Float[Tensor, " n"],
    k: int,
    precision: Precision,
    exact: bool,
) -> tuple[Float[Tensor, "rows k"], Int32[Tensor, "rows k"]]:
    """As `top_k`, among the few that are largest when the matmul is done in few bits: here in bfloat16."""
    if exact:
        raise NotImplementedError("only the backend for CPU proves what a screen finds")
    half, n_candidates = (weight.bfloat16(), bias.bfloat16()), n_rough(k, precision)
    tiles = [torch.topk(linear(t.bfloat16(), *half), n_candidates, sorted=False) for t in _tiles(x, TILE_ROWS)]
    candidates = torch.cat([t.indices for t in tiles]).to(torch.int32)
    offsets = torch.arange(len(x) + 1, device=x.device) * n_candidates
    exact_values = gather_dot(x, weight, candidates.reshape(-1), offsets).reshape(candidates.shape) + bias[candidates]
    best = torch.topk(exact_values, k, sorted=False)
    return best.values, candidates.gather(1, best.indices)


def above(
    x: Float[Tensor, "rows d"], weight: Float[Tensor, "n d"], bias: Float[Tensor, " n"], threshold: Tensor
) -> tuple[Float[Tensor, " entries"], Int32[Tensor, " entries"], Int[Tensor, " rows_plus_1"]]:
    """Entries of `x @ weight.T + bias` above the threshold (one number, or one per latent), with offsets."""
    values: list[Tensor] = []
    indices: list[Tensor] = []
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device)]
    for tile in _tiles(x, TILE_ROWS):
        pre = linear(tile, weight, bias)
        on = pre > threshold
        values.append(pre[on])
        indices.append(on.nonzero()[:, 1].to(torch.int32))
        counts.append(on.sum(1))
    return torch.cat(values), torch.cat(indices), torch.cat(counts).cumsum(0)


def above_screened(
    x: Float[Tensor, "rows d"],
    weight: Float[Tensor, "n d"],
    bias: Float[Tensor, " n"],
    threshold: Tensor,
    precision: Precision,
) -> tuple[Float[Tensor, " entries"], Int32[Tensor, " entries"], Int[Tensor, " rows_plus_1"]]:
    """As `above`, among the entries that can be when the matmul is done in few bits: here in bfloat16."""
    half, limits = (weight.bfloat16(), bias.bfloat16()), row_limits(x, weight, bias, threshold)
    parts = zip(_tiles(x, TILE_ROWS), _tiles(limits, TILE_ROWS), strict=True)
    on = torch.cat([linear(tile.bfloat16(), *half).float() > limit[:, None] for tile, limit in parts])
    indices = on.nonzero()[:, 1].to(torch.int32)
    offsets = F.pad(on.sum(1).cumsum(0), (1, 0))
    values = gather_dot(x, weight, indices, offsets) + bias[indices]
    return only_above(values, indices, offsets, threshold.expand(len(weight))[indices])


def row_limits(x: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor) -> Float[Tensor, " rows"]:
    """What a matmul in bfloat16 must exceed in a row for an entry to be above the threshold.

    Rounding x, weight, bias and the sum to 8 bits errs by at most 2^-7 ||x|| ||w|| + 2^-8 (|bias| + |sum|); entries
    near the threshold have |sum| near it.
    """
    norms = x.pow(2).sum(-1).sqrt() * weight.pow(2).sum(-1).max().sqrt()
    error = 1.02 * (2**-7 * norms + 2**-8 * (2 * bias.abs().max() + threshold.abs().max()))
    return threshold.min() - error


def only_above(
    values: Float[Tensor, " entries"],
    indices: Int32[Tensor, " entries"],
    offsets: Int[Tensor, " rows_plus_1"],
    threshold: Tensor,
) -> tuple[Float[Tensor, " entries"], Int32[Tensor, " entries"], Int[Tensor, " rows_plus_1"]]:
    """The entries above their threshold."""
    kept = values > threshold
    return values[kept], indices[kept], F.pad(kept.cumsum(0), (1, 0))[offsets]


def gather_dot(
    x: Float[Tensor, "rows d"],
    weight: Float[Tensor, "n d"],
    indices: Int32[Tensor, " entries"],
    offsets: Int[Tensor, " rows_plus_1"],
) -> Float[Tensor, " entries"]:
    """For every entry, its row of x times its latent's row of weight."""
    rows = _rows(offsets, indices.numel())
    parts = zip(_tiles(rows, TILE_ENTRIES), _tiles(indices.long(), TILE_ENTRIES), strict=True)
    return torch.cat([(x[r] * weight[i]).sum(-1) for r, i in parts])


def weighted_sum(
    values: Float[Tensor, " entries"],
    indices: Int32[Tensor, " entries"],
    offsets: Int[Tensor, " rows_plus_1"],
    weight: Float[Tensor, "n d"],
) -> Float[Tensor, "rows d"]:
    """For every row, the sum of value x its latent's row of weight."""
    if weight.device.type == "cuda" and values.numel():
        return F.embedding_bag(
            indices.long(), weight, offsets[:-1], mode="sum", per_sample_weights=values.to(weight.dtype)
        )
    rows = _rows(offsets, indices.numel())
    out = weight.new_zeros(offsets.numel() - 1, weight.shape[1])
    for v, r, i in zip(*(_tiles(t, TILE_ENTRIES) for t in (values, rows, indices.long())), strict=True):
        index_add_(out, r, v[:, None] * weight[i])
    return out


def decode_error(
    values: Float[Tensor, " entries"],
    indices: Int32[Tensor, " entries"],
    offsets: Int[Tensor, " rows_plus_1"],
    weight: Float[Tensor, "n d"],
    bias: Float[Tensor, " d"],
    target: Float[Tensor, "rows d"],
) -> tuple[Float[Tensor, "rows d"], Float[Tensor, " entries"]]:
    """The error `target - bias - weighted_sum`, and for every entry its row of the error times its row of weight."""
    error = target - bias - weighted_sum(values, indices, offsets, weight)
    return error, gather_dot(error, weight, indices, offsets)


def scatter_outer(
    values: Float[Tensor, " entries"],
    order: Int[Tensor, " entries"],
    latent_offsets: Int[Tensor, " n_plus_1"],
    rows: Int[Tensor, " entries"],
    y: Float[Tensor, "rows d"],
) -> Float[Tensor, "n d"]:
    """For every latent, the sum of value x its row of y: the gradient of a weight. Entries come ordered by latent."""
    latents = _rows(latent_offsets, order.numel())
    out = y.new_zeros(latent_offsets.numel() - 1, y.shape[1])
    for o, latent, row in zip(*(_tiles(t, TILE_ENTRIES) for t in (order, latents, rows)), strict=True):
        index_add_(out, latent, values[o][:, None] * y[row])
    return out


def by_latent(
    indices: Int32[Tensor, " entries"], offsets: Int[Tensor, " rows_plus_1"], n_latents: int
) -> tuple[Int[Tensor, " entries"], Int[Tensor, " n_plus_1"], Int[Tensor, " entries"]]:
    """The entries ordered by latent: their numbers, where each latent's begin, and their rows, in that order."""
    order = torch.argsort(indices, stable=True)
    counts = torch.bincount(indices, minlength=n_latents)
    latent_offsets = torch.zeros(n_latents + 1, dtype=torch.int64, device=indices.device)
    torch.cumsum(counts, 0, out=latent_offsets[1:])
    return order, latent_offsets, _rows(offsets, indices.numel())[order]


def to_dense(
    values: Float[Tensor, " entries"],
    indices: Int32[Tensor, " entries"],
    offsets: Int[Tensor, " rows_plus_1"],
    n_latents: int,
) -> Float[Tensor, "rows n"]:
    """The dense matrix of the entries."""
    rows = _rows(offsets, indices.numel())
    dense = values.new_zeros(offsets.numel() - 1, n_latents)
    return dense.index_put_((rows, indices.long()), values)


def from_dense(
    dense: Float[Tensor, "rows n"], indices: Int32[Tensor, " entries"], offsets: Int[Tensor, " rows_plus_1"]
) -> Float[Tensor, " entries"]:
    """The entries of a dense matrix."""
    return dense[_rows(offsets, indices.numel()), indices.long()]


def adam_(
    parameter: Float[Tensor, "n d"],
    grad: Float[Tensor, "n d"],
    mean: Float[Tensor, "n d"],
    square: Float[Tensor, "n d"],
    settings: tuple[float, float, float, float, float, float],
    unit_rows: bool,
) -> None:
    """One step of Adam in place, see reference.py; `settings` are lr, beta1, beta2, eps and both bias corrections."""
    lr, beta1, beta2, eps, correction1, correction2 = settings
    if unit_rows:
        grad = grad - (grad * parameter).sum(-1, keepdim=True) * parameter
    mean.lerp_(grad, 1 - beta1)
    square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    parameter.addcdiv_(mean, (square / correction2).sqrt_().add_(eps), value=-lr / correction1)
    if unit_rows:
        norms = parameter.pow(2).sum(-1, keepdim=True).sqrt_()
        parameter.div_(norms.clamp_min_(torch.finfo(parameter.dtype).tiny))


def _rows(offsets: Tensor, n_entries: int) -> Tensor:
    numbers = torch.arange(offsets.numel() - 1, device=offsets.device)
    return torch.repeat_interleave(numbers, offsets.diff(), output_size=n_entries)


def _tiles(tensor: Tensor, size: int) -> list[Tensor]:
    return [tensor[start : start + size] for start in range(0, max(1, len(tensor)), size)]
