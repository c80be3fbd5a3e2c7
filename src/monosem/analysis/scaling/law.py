"""A scaling law: how the loss of a dictionary falls with its width and its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from monosem.analysis.scaling.best import Recommendation, best_width, flat_around, rounded
from monosem.analysis.scaling.fit import EXPONENTS, Axes, fitted, predicted, refitted
from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.intervals import Interval

DRAWS = 400
LEAST_WIDTHS = LEAST_TOKENS = 3
LEAST_POINTS = 8
LOOSE = 8.0
"""Times its low end that the high end of a recommended width's interval may be; wider, it says nothing."""
UNEXPLAINED = 0.1
"""Of the variance of log loss, at most, that may be left."""
MISSED = 0.05
"""Relative error, at most, of the losses of the largest compute, as the smaller runs foretell them."""
FELT = 0.02
"""Of the loss, at least, that the widths, and the tokens, of the sweep make a difference of."""
FAR = 32.0
"""Times the largest compute of the sweep up to which it is extrapolated."""
NAMES = ("floor", "a", "alpha", "b", "beta")


def require_budget(compute: float, overhead: float = 0.0) -> None:
    """See that a budget, and what a token costs beside the dictionary, are numbers that can be.

    Raises:
        ConfigError: they are not.
    """
    if not 0 < compute < float("inf") or not 0 <= overhead < float("inf"):
        raise ConfigError(f"a budget must be above 0 and an overhead not negative, got {compute} and {overhead}")


@dataclass(frozen=True)
class ScalingLaw:
    """loss(N, D) = floor + a (N / N0)^-alpha + b (D / D0)^-beta, of N latents trained on D tokens.

    N0 and D0 are the middles (geometric means) of what was swept, so that `a` and `b` are losses: what is lost there
    for want of latents and of tokens. Compute is N D, latents times tokens: what one step multiplies is proportional to
    it in every architecture (times 2 d for the encoder's forward pass).

    Intervals are 95 %: losses are drawn anew from the fit with residuals of other points, made larger by
    sqrt(points / (points - 5)), and, where they are given, with the draws of the documents that they were measured on;
    each set is fitted again.

    Source: Hoffmann et al., Training Compute-Optimal Large Language Models, 2022; of dictionaries, Templeton et al.,
    Scaling Monosemanticity, 2024, and Gao et al., Scaling and Evaluating Sparse Autoencoders, 2024.
    """

    n_latents: Int[np.ndarray, " points"]
    tokens: Int[np.ndarray, " points"]
    losses: Float[np.ndarray, " points"]
    parameters: Float[np.ndarray, 5]
    """floor, a, alpha, b, beta."""
    draws: Float[np.ndarray, "draws 5"] = field(repr=False)
    held_out_error: float
    """Relative error (root mean square) with which the runs of less compute foretell those of the largest; NaN where
    these are too few to be fitted alone."""

    @staticmethod
    @checked
    def fit(
        n_latents: Sequence[int] | np.ndarray,
        tokens: Sequence[int] | np.ndarray,
        losses: Sequence[float] | np.ndarray,
        *,
        measured: Float[np.ndarray, "points draws"] | None = None,
        seed: int = 0,
    ) -> ScalingLaw:
        """Fit the law to measured losses.

        Args:
            n_latents: width of each dictionary.
            tokens: tokens that each was trained on, to the end of a schedule of its own.
            losses: held-out loss of each, such as FVU.
            measured: the losses with the measured documents drawn anew, the same ones for all dictionaries.
            seed: of the drawing.

        Raises:
            ConfigError: there are too few points, widths or numbers of tokens.
            DataError: a loss is not positive.
        """
        widths, lengths, values = np.array(n_latents), np.array(tokens), np.array(losses, float)
        require_enough(widths, lengths)
        axes = Axes(*(np.log(x) - np.log(x).mean() for x in (widths, lengths)))
        found = fitted(axes, values)
        model = np.log(predicted(found, *axes))
        residuals = np.log(values) - model
        residuals = (residuals - residuals.mean()) * np.sqrt(len(values) / (len(values) - len(NAMES)))
        rng = np.random.default_rng(seed)
        logs = model + rng.choice(residuals, (DRAWS, len(residuals)))
        if measured is not None:
            drawn = measured[:, rng.integers(measured.shape[1], size=DRAWS)].T
            logs = logs + np.where(drawn > 0, np.log(np.maximum(drawn, 1e-300) / values), 0.0)
        draws = refitted(axes, np.exp(logs), np.tile(found, (DRAWS, 1)))
        missed = _missed(axes, widths * lengths, values)
        return ScalingLaw(widths, lengths, values, found, draws, missed)

    def __getitem__(self, name: str) -> Interval:
        """floor, a, alpha, b or beta, with its interval."""
        if name not in NAMES:
            raise ConfigError(f"a law has {', '.join(NAMES)}, no {name!r}")
        place = NAMES.index(name)
        return Interval(float(self.parameters[place]), *_edges(self.draws[:, place]))

    @cached_property
    def middle(self) -> tuple[float, float]:
        """N0 and D0."""
        n, d = (float(np.exp(np.log(x).mean())) for x in (self.n_latents, self.tokens))
        return n, d

    @property
    def compute(self) -> np.ndarray:
        """(points,) latents times tokens of each."""
        return self.n_latents.astype(float) * self.tokens

    def loss(self, n_latents: Any, tokens: Any) -> np.ndarray:
        """What the law says of any widths and tokens."""
        return predicted(self.parameters, *self._axes(n_latents, tokens))

    @checked
    def foretell(self, n_latents: int, tokens: int) -> Interval:
        """The loss of one width and number of tokens, with the interval of the fit."""
        axes = self._axes([n_latents], [tokens])
        return Interval(float(predicted(self.parameters, *axes)[0]), *_edges(predicted(self.draws, *axes)[:, 0]))

    def _axes(self, n_latents: Any, tokens: Any) -> Axes:
        n0, d0 = self.middle
        return Axes(np.log(np.asarray(n_latents, float) / n0), np.log(np.asarray(tokens, float) / d0))

    @property
    def explained(self) -> float:
        """Share of the variance of log loss."""
        logs = np.log(self.losses)
        return 1 - float(((logs - np.log(self.loss(self.n_latents, self.tokens))) ** 2).mean() / logs.var())

    @property
    def too_poor(self) -> str | None:
        """Why nothing should be recommended from this fit; None where it is good enough."""
        if self.explained < 1 - UNEXPLAINED:
            return f"the law explains {self.explained:.0%} of the variance of log loss, less than {1 - UNEXPLAINED:.0%}"
        for what, swept, exponent in (("latents", self.n_latents, "alpha"), ("tokens", self.tokens, "beta")):
            size, power = (self[name].value for name in (("a", "alpha") if exponent == "alpha" else ("b", "beta")))
            ends = np.array([swept.min(), swept.max()]) / self.middle[exponent == "beta"]
            falls = float(size * (ends**-power)[0] - size * (ends**-power)[1]) / float(np.median(self.losses))
            if falls < FELT:
                return f"the loss falls by {falls:.1%} over all the {what} swept: too little to tell how it goes on"
            if not 1.05 * EXPONENTS[0] < power < EXPONENTS[1] / 1.05:
                return f"the loss does not fall with {what} as a power ({exponent} = {power:.2g})"
        if self.held_out_error > MISSED:
            return (
                f"the smaller runs foretell the losses of the largest compute with an error of "
                f"{self.held_out_error:.0%}, more than {MISSED:.0%}"
            )
        low, high = self.best_at(float(self.compute.max())).n_latents[1:]
        if low is None or high is None or high > LOOSE * low:
            return f"the best width is known no better than {rounded(low or 0)} to {rounded(high or 0)} latents"
        return None

    @checked
    def recommend(self, compute: float, overhead: float = 0.0) -> Recommendation:
        """The best width and tokens for a budget.

        Args:
            compute: latents times tokens.
            overhead: what a token costs beside the dictionary, in latents: as many as cost as much. 0 where the
                activations are there anyway; the model's parameters up to the hook point / its width, if not.

        Raises:
            ConfigError: the fit is too poor to recommend, or the budget is too far from what was swept.
        """
        require_budget(compute, overhead)
        if self.too_poor:
            raise ConfigError(f"the fit is too poor to recommend: {self.too_poor}. Sweep more widths and tokens")
        found = self.best_at(compute, overhead)
        if not 1 / FAR <= found.beyond <= FAR:
            way = "times the largest" if found.beyond > 1 else "of the largest"
            raise ConfigError(
                f"a budget of {compute:.3g} latents x tokens is {found.beyond:.3g} {way} compute of the sweep, more "
                f"than {FAR:.0f} times away: sweep nearer to it"
            )
        return found

    @checked
    def best_at(self, compute: float, overhead: float = 0.0) -> Recommendation:
        """As `recommend`, of any fit and any budget."""
        n0, d0 = self.middle
        log_c, beside = float(np.log(compute / n0 / d0)), overhead / n0
        every = np.concatenate([self.parameters[None], self.draws])
        log_n = best_width(every, log_c, beside)
        log_d = log_c - np.log(np.exp(log_n) + beside)
        losses = predicted(every[:, None], log_n[:, None, None], log_d[:, None, None])[:, 0, 0]
        n, d, loss = (Interval(float(x[0]), *_edges(x[1:])) for x in (n0 * np.exp(log_n), d0 * np.exp(log_d), losses))
        flat = flat_around(self.parameters, float(log_n[0]), log_c, beside)
        as_good = (n0 * float(np.exp(flat[0])), n0 * float(np.exp(flat[1])))
        swept = float(((self.n_latents + overhead) * self.tokens).max())
        return Recommendation(compute, n, d, loss, as_good, compute / swept)

    def table(self) -> Any:
        """The parameters, with intervals, and how well they fit."""
        from monosem.analysis.scaling.show import table

        return table(self)

    @checked
    def draw(self, path: str | Path) -> None:
        """Write the figure (SVG): iso-compute curves, and the losses over widths and tokens with the best of both."""
        from monosem.analysis.scaling.show import draw

        draw(self, Path(path))


def require_enough(n_latents: Sequence[int] | np.ndarray, tokens: Sequence[int] | np.ndarray) -> None:
    """See that a law can be fitted to such a sweep.

    Raises:
        ConfigError: there are too few points, widths or numbers of tokens.
    """
    if len(n_latents) != len(tokens) or min((*n_latents, *tokens), default=0) < 1:
        raise ConfigError("a law is fitted to as many widths as tokens, all of 1 or more")
    widths, lengths = len(set(map(int, n_latents))), len(set(map(int, tokens)))
    if widths < LEAST_WIDTHS or lengths < LEAST_TOKENS or len(n_latents) < LEAST_POINTS:
        raise ConfigError(
            f"a law of five parameters needs {LEAST_WIDTHS} widths, {LEAST_TOKENS} numbers of tokens and "
            f"{LEAST_POINTS} dictionaries or more, got {widths}, {lengths} and {len(n_latents)}"
        )


def _missed(axes: Axes, compute: np.ndarray, losses: np.ndarray) -> float:
    """See `held_out_error`: held out are the runs of the largest compute, a fifth of all at least."""
    order = np.argsort(compute, kind="stable")
    kept = order[compute[order] < compute[order[-max(1, len(order) // 5)]]]
    if len(kept) <= len(NAMES):
        return float("nan")
    away = np.setdiff1d(order, kept)
    found = fitted(Axes(*(x[kept] for x in axes)), losses[kept])
    errors = np.log(predicted(found, *(x[away] for x in axes)) / losses[away])
    return float(np.sqrt((errors**2).mean()))


def _edges(values: np.ndarray) -> list[float]:
    return np.quantile(values, [0.025, 0.975]).tolist()
