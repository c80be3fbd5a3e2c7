"""Pursuit: codes found by search among decoder rows, in place of an encoder (inference-time optimisation)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from monosem import kernels
from monosem.arguments import checked
from monosem.codes import SparseCodes
from monosem.errors import ConfigError, DataError
from monosem.kernels import Selection
from monosem.sae.base import SAE, TrainingContext, TrainingLoss
from monosem.sae.weights import row_norms

PursuitMethod = Literal["omp", "gradient", "matching"]

TILE_NUMBERS = 2**23
"""Numbers in the largest tensor of a search: so many rows are searched for at once."""


@checked
@torch.no_grad()
def pursue(
    sae: SAE,
    x: Float[Tensor, "*batch d_out"],
    *,
    k: int,
    method: PursuitMethod = "omp",
    nonnegative: bool = True,
    refit: bool = False,
) -> SparseCodes:
    """At most k latents whose decoder rows make up x, whatever the encoder says: min ||u(x) - b_dec - codes W_dec||.

    All methods take k steps, and each step looks for the row of W_dec (at norm 1) nearest to what is left of x:

    - "omp": coefficients of all rows chosen so far are solved for anew, by least squares (by NNLS if nonnegative).
    - "gradient": they take one step down the error's gradient, as long as serves best; negative ones become 0.
    - "matching": the coefficient of the new row alone is set; rows may be chosen again.

    Such codes are not those that the encoder makes: do not compare them with its thresholds.

    Args:
        sae: any dictionary with one W_dec.
        x: raw activations to make up; a transcoder's targets.
        k: steps, and the largest number of latents on.
        method: how coefficients follow from the choice.
        nonnegative: let only rows that point towards x take part, as an encoder with ReLU does.
        refit: solve for the coefficients of the rows found, at the end; "omp" does in any case.

    Raises:
        ConfigError: an unknown method, a k out of range, or an SAE without one W_dec, or with a skip beside it.
        DataError: x has another width.

    Source: Pati et al., Orthogonal Matching Pursuit, 1993; Mallat & Zhang, Matching Pursuits, 1993; Blumensath &
    Davies, Gradient Pursuits, 2008; for SAEs: Nanda et al., Progress Update #1 from the GDM Mech Interp Team, 2024.
    """
    if "W_dec" not in dict(sae.named_parameters()):
        raise ConfigError(f"a {sae.architecture} has no single W_dec to search in: use its encoder")
    if sae.other_writers():
        raise ConfigError(
            f"what a {sae.architecture} writes beside its latents takes its inputs, of which a search knows nothing: "
            "use its encoder, or a transcoder"
        )
    if not 1 <= k <= sae.n_latents:
        raise ConfigError(f"k must be between 1 and n_latents = {sae.n_latents}, got {k}")
    split = x.ndim - len(sae.out_shape)
    if split < 0 or tuple(x.shape[split:]) != sae.out_shape:
        raise DataError(f"this SAE makes up activations of shape {sae.out_shape}, got {tuple(x.shape)}")
    flat = x.reshape(math.prod(x.shape[:split]), -1 if x.numel() else math.prod(sae.out_shape)).to(sae.W_dec)
    wanted = sae.target_transform(flat) - sae.b_dec
    norms = row_norms(sae.W_dec).clamp_min(torch.finfo(sae.W_dec.dtype).tiny)
    atoms = sae.W_dec / norms
    table = _table(atoms, len(wanted), k, method)
    largest = k * max(k, atoms.shape[1]) if table is None else len(atoms)
    found = [
        _search(rows, atoms, k, method, nonnegative, refit)
        if table is None
        else _search_in_table(rows, atoms, table, k, nonnegative, refit)
        for rows in wanted.split(max(1, TILE_NUMBERS // largest))
    ]
    indices, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    values, selection = _stored(values, indices, values != 0, sae.n_latents)
    values = values / norms[selection.indices, 0]
    return SparseCodes(values, selection.indices, selection.offsets, sae.n_latents, tuple(x.shape[:split]))


def _stored(
    values: Float[Tensor, "rows k"], indices: Int[Tensor, "rows k"], kept: Bool[Tensor, "rows k"], n_latents: int
) -> tuple[Float[Tensor, " entries"], Selection]:
    """Only some of the entries, as a selection."""
    offsets = torch.zeros(len(kept) + 1, dtype=torch.int64, device=kept.device)
    torch.cumsum(kept.sum(1), 0, out=offsets[1:])
    return values[kept], Selection(indices[kept].to(torch.int32), offsets, n_latents)


def _search(
    x: Float[Tensor, "rows d"],
    atoms: Float[Tensor, "n d"],
    k: int,
    method: PursuitMethod,
    nonnegative: bool,
    refit: bool,
) -> tuple[Int[Tensor, "rows k"], Float[Tensor, "rows k"]]:
    """The atoms chosen by each row and their coefficients; -1 and 0 where there are fewer than k."""
    slots = torch.full((len(x), k), -1, dtype=torch.int64, device=x.device)
    chosen, w = x.new_zeros(len(x), k, x.shape[1]), x.new_zeros(len(x), k)
    every_row = torch.arange(len(x), device=x.device)
    nothing = _nothing(x)
    residual = x
    for step in range(k):
        scores, picks = nearest(residual, atoms, nonnegative)
        known = slots == picks[:, None]
        slot = torch.where(known.any(1), known.int().argmax(1), step)
        useful = (scores if nonnegative else scores.abs()) > nothing
        rows, at = every_row[useful], slot[useful]
        slots[rows, at], chosen[rows, at] = picks[useful], atoms[picks[useful]]
        taken = chosen[:, : step + 1]
        if method == "matching":
            w[rows, at] += scores[useful]
        elif method == "omp":
            w[:, : step + 1] = solve(taken, x, slots[:, : step + 1] >= 0, nonnegative, w[:, : step + 1])
        else:
            on = w != 0
            on[rows, at] = True
            slope = (chosen @ residual[:, :, None])[:, :, 0] * on
            change = (slope[:, None] @ chosen)[:, 0]
            length = (change * residual).sum(-1) / change.pow(2).sum(-1).clamp_min(torch.finfo(x.dtype).tiny)
            w = w + length[:, None] * slope
            w = w.clamp_min(0) if nonnegative else w
        residual = x - (w[:, None] @ chosen)[:, 0]
    if refit and method != "omp":
        w = solve(chosen, x, w != 0, nonnegative)
    return slots, w


def _table(atoms: Float[Tensor, "n d"], rows: int, k: int, method: PursuitMethod) -> Float[Tensor, "n n"] | None:
    """The products of all atoms with one another, where so much is to be searched for that they save time."""
    if method != "gradient" or atoms.device.type != "cpu":
        return None
    from monosem.kernels import gram_pursuit  # imports numba

    return atoms @ atoms.T if gram_pursuit.worth_while(rows, k, atoms) else None


def _search_in_table(
    x: Float[Tensor, "rows d"],
    atoms: Float[Tensor, "n d"],
    table: Float[Tensor, "n n"],
    k: int,
    nonnegative: bool,
    refit: bool,
) -> tuple[Int[Tensor, "rows k"], Float[Tensor, "rows k"]]:
    """Gradient pursuit, as `_search`."""
    from monosem.kernels.gram_pursuit import gradient_pursuit

    slots, w = gradient_pursuit(x @ atoms.T, table, _nothing(x), k, nonnegative)
    tile = max(1, TILE_NUMBERS // (k * max(k, atoms.shape[1])))
    for start in range(0, len(x) if refit else 0, tile):
        part = slice(start, start + tile)
        w[part] = solve(atoms[slots[part].clamp_min(0)], x[part], w[part] != 0, nonnegative)
    return slots, w


def _nothing(x: Float[Tensor, "rows d"]) -> Float[Tensor, " rows"]:
    """The product with an atom that counts as none."""
    return 16 * torch.finfo(x.dtype).eps * x.pow(2).sum(-1).sqrt()


def nearest(
    residual: Float[Tensor, "rows d"],
    atoms: Float[Tensor, "n d"],
    nonnegative: bool = True,
    *,
    screen: kernels.Precision | None = None,
) -> tuple[Float[Tensor, " rows"], Int[Tensor, " rows"]]:
    """The largest product of each row with an atom, and whose it is; by magnitude, unless nonnegative."""
    no_bias = atoms.new_zeros(len(atoms))
    scores, selection = kernels.top_k(residual, atoms, no_bias, 1, screen=screen)
    if nonnegative:
        return scores, selection.indices.long()
    opposite, other = kernels.top_k(-residual, atoms, no_bias, 1, screen=screen)
    towards = scores >= opposite
    return torch.where(towards, scores, -opposite), torch.where(towards, selection.indices, other.indices).long()


# Least squares ----------------------------------------------------------------------------------------------------


def solve(
    chosen: Float[Tensor, "rows k d"],
    x: Float[Tensor, "rows d"],
    allowed: Bool[Tensor, "rows k"],
    nonnegative: bool,
    start: Float[Tensor, "rows k"] | None = None,
) -> Float[Tensor, "rows k"]:
    """Coefficients w of the allowed atoms with the least ||x - w chosen||, for every row; in float64 inside.

    Args:
        chosen: the atoms of every row.
        x: what they are to make up.
        allowed: those that may have a coefficient.
        nonnegative: whether no coefficient may be negative.
        start: a nonnegative solution for some of the atoms, from which to go on.
    """
    wide = chosen.double()
    gram, dots = wide @ wide.mT, (wide @ x.double()[:, :, None])[:, :, 0]
    if nonnegative:
        begin = torch.zeros_like(dots) if start is None else start.double()
        return _nnls(gram, dots, allowed, begin).to(x.dtype)
    return _solve_free(gram, dots, allowed).to(x.dtype)


def _solve_free(
    gram: Float[Tensor, "rows k k"], dots: Float[Tensor, "rows k"], free: Bool[Tensor, "rows k"]
) -> Float[Tensor, "rows k"]:
    """Gram w = dots, where all that is not free stays 0."""
    both = free[:, :, None] & free[:, None, :]
    system = gram * both + torch.diag_embed((~free).to(gram.dtype))
    return torch.linalg.solve(system, dots * free)  # pyright: ignore


def _nnls(
    gram: Float[Tensor, "rows k k"],
    dots: Float[Tensor, "rows k"],
    allowed: Bool[Tensor, "rows k"],
    w: Float[Tensor, "rows k"],
) -> Float[Tensor, "rows k"]:
    """The algorithm of Lawson & Hanson (Solving Least Squares Problems, 1974), for all rows at once.

    Coefficients are free or held at 0. In each round the held one of steepest descent becomes free; the free ones are
    solved for; on the way there, those that would become negative are held again.
    """
    free = (w > 0) & allowed
    enough = 1e-13 * gram.diagonal(dim1=1, dim2=2).sqrt().amax(1) * dots.abs().amax(1)
    for _ in range(3 * dots.shape[1]):
        slope = (dots - (gram @ w[:, :, None])[:, :, 0]).masked_fill(free | ~allowed, -torch.inf)
        steepest, entering = slope.max(1)
        enters = steepest > enough
        if not enters.any():
            break
        free = free.scatter(1, entering[:, None], enters[:, None] | free.gather(1, entering[:, None]))
        while True:
            goal = _solve_free(gram, dots, free)
            negative = free & (goal <= 0)
            if not negative.any():
                w = goal
                break
            way = torch.where(negative, w / (w - goal).clamp_min(torch.finfo(w.dtype).tiny), torch.inf)
            shortest = way.amin(1, keepdim=True)
            w = w + shortest.clamp_max(1) * (goal - w)
            free = free & ~(negative & (way <= shortest))
            w = w * free
    return w


# Matching pursuit as an architecture ------------------------------------------------------------------------------


class MatchingPursuitSAE(SAE):
    """The encoder is k steps of matching pursuit in the decoder's own rows. With r_0 = t(x) - b_dec, in step s:

        i = argmax W_dec r,  z_s = ReLU(W_dec_i r),  codes_i += z_s,  r -= z_s W_dec_i
        loss = ||target - reconstruction||^2 / d

    W_enc is W_dec, and there is no b_enc. What is left is orthogonal to the latent just chosen, so that latents which
    resemble each other, parents and children of a hierarchy, can follow one another. Gradients go through all steps.
    An encoding costs k of TopK's.

    Source: Costa et al., From Flat to Hierarchical: Extracting Sparse Representations with Matching Pursuit, 2025.
    """

    architecture: ClassVar[str] = "matching_pursuit"
    good_for: ClassVar[str] = "hierarchical and correlated features; k times the encoding cost of topk"

    @checked
    def __init__(self, d_in: int, n_latents: int, *, k: int = 32, **common: Any) -> None:
        """Make an untrained SAE.

        Args:
            d_in: width of the activations.
            n_latents: size of the dictionary.
            k: steps, and the largest number of latents on.
            **common: `transform, dtype, device, seed`, as in `SAE`.

        Raises:
            ConfigError: k is not between 1 and n_latents, or d_out is given.
        """
        super().__init__(d_in, n_latents, **common)
        if not 1 <= k <= n_latents:
            raise ConfigError(f"k must be between 1 and n_latents = {n_latents}, got {k}")
        if not self.subtract_b_dec:
            raise ConfigError(
                "matching pursuit searches for what it reads, less b_dec: leave d_out and subtract_b_dec out"
            )
        self.k = k
        del self.W_enc, self.b_enc  # W_enc is named anew after W_dec, whose name the optimiser then knows it by
        self.W_enc = self.W_dec
        self.register_buffer("b_enc", torch.zeros_like(self.W_dec[:, 0]).detach(), persistent=False)

    @property
    def settings(self) -> dict[str, Any]:
        return {"k": self.k}

    def steps(
        self, x: Float[Tensor, "rows d_in"], *, screen: kernels.Precision | None = None
    ) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"], Float[Tensor, "rows d_in"]]:
        """What each step finds, without gradient: its value, its latent, and what is left after the last."""
        with torch.no_grad():
            residual, values, picks = x.clone(), list[Tensor](), list[Tensor]()
            for _ in range(self.k):
                score, pick = nearest(residual, self.W_dec, screen=screen)
                values.append(score.relu())
                picks.append(pick)
                residual -= values[-1][:, None] * self.W_dec[pick]
            return torch.stack(values, 1), torch.stack(picks, 1), residual

    def merge(
        self, values: Float[Tensor, "rows k"], picks: Int[Tensor, "rows k"]
    ) -> tuple[Float[Tensor, " entries"], Selection]:
        """Codes: the values of steps that chose the same latent, together."""
        first = (picks[:, :, None] == picks[:, None, :]).int().argmax(2)
        row = torch.arange(len(values), device=values.device)[:, None] * values.shape[1]
        sums = kernels.index_add_(torch.zeros_like(values).flatten(), (row + first).flatten(), values.flatten())
        sums = sums.view_as(values)
        return _stored(sums, picks, sums.detach() > 0, self.n_latents)

    def select(self, x: Float[Tensor, "rows d_in"]) -> tuple[Float[Tensor, " entries"], Selection]:
        return self.merge(*self.steps(x)[:2])

    def activate(self, x: Float[Tensor, "rows d_in"]) -> tuple[Float[Tensor, " entries"], Selection]:
        values, _, picks = self._unrolled(x)
        return self.merge(values, picks)

    def _unrolled(
        self, x: Float[Tensor, "rows d_in"], *, screen: kernels.Precision | None = None
    ) -> tuple[Float[Tensor, "rows k"], Float[Tensor, "rows d_in"], Int[Tensor, "rows k"]]:
        """The values and what is left, with gradients; and the latents."""
        values, picks, residual = self.steps(x, screen=screen)
        found = _Unrolled.apply(x, self.W_dec, values, picks, residual)  # pyright: ignore
        values, residual = cast(tuple[Tensor, Tensor], found)
        return values, residual, picks

    def training_loss(
        self, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"], context: TrainingContext
    ) -> TrainingLoss:
        values, residual, picks = self._unrolled(self.centred(x), screen=context.screen)
        error = target - (x - residual)
        loss = context.cost_of(error)
        fired = self.count_fired(*self.merge(values.detach(), picks))
        return TrainingLoss(loss, error.detach(), fired, {"mse": kernels.mean_square(error.detach())})

    @torch.no_grad()
    def scale_encoder(
        self, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"] | None = None
    ) -> Float[Tensor, ""]:
        """Nothing to scale: a step takes out of what is left just what there is."""
        return self.b_dec.new_ones(())


class _Unrolled(torch.autograd.Function):
    """Gradients through the steps of matching pursuit, whose states are computed again backwards from the last.

    With g the gradient of what is left after a step and h that of its value, the step r' = r - z d, z = d . r passes on

        grad_z = h - g . d,    grad_d = grad_z r - z g,    grad_r = g + grad_z d.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, values: Tensor, picks: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(W, values, picks, residual)
        return values.view_as(values), residual.view_as(residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore
        W, values, picks, residual = ctx.saved_tensors
        grad_values, grad, residual = grads[0], grads[1].clone(), residual.clone()
        grad_W = torch.zeros_like(W)
        for step in reversed(range(picks.shape[1])):
            value, pick = values[:, step, None], picks[:, step]
            atom = W[pick]
            residual += value * atom
            grad_value = (grad_values[:, step] - (grad * atom).sum(-1))[:, None] * (value > 0)
            kernels.index_add_(grad_W, pick, grad_value * residual - value * grad)
            grad += grad_value * atom
        return grad, grad_W, None, None, None
