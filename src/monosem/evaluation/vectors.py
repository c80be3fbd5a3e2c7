"""Evaluation on ready rows: no model, so reconstruction and firing alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from monosem.activations.vectors import check_finite
from monosem.errors import ConfigError, DataError, MismatchError
from monosem.evaluation.controls import PCA, random_sae
from monosem.evaluation.downstream import EVALUATING
from monosem.evaluation.reconstruction import Reconstruction
from monosem.sae import SAE
from monosem.work import each

ROWS = 8192
FIT_ROWS = 32_768


@torch.no_grad()
def measure_rows(
    sae: SAE, x: Tensor | np.ndarray, target: Tensor | np.ndarray | None, rows: int, controls: bool
) -> tuple[dict[str, Reconstruction], PCA | None]:
    """The sums of the SAE and its controls over ready activations, each row a document of its own.

    Args:
        sae: any dictionary.
        x: (rows, *in_shape), what it reads.
        target: (rows, *out_shape), what it must predict, if that is not x; several sources count as one long row.
        rows: as many of them, at most.
        controls: measure predicting the mean, PCA and a frozen random SAE too.

    Raises:
        MismatchError: they are of other shapes.
        ConfigError: this SAE predicts another site, and no target was given.
        DataError: there are no rows, or one is not finite.
    """
    x = _rows(sae, x, sae.in_shape, rows, "reads")
    if target is None and not sae.autoencodes:
        raise ConfigError(
            f"this {sae.architecture} predicts another site than it reads: give the rows that it must predict too, "
            "evaluate(sae, x, target=y)"
        )
    goal = x if target is None else _rows(sae, target, sae.out_shape, rows, "predicts")
    if len(goal) != len(x):
        raise MismatchError(f"{len(x)} rows to read and {len(goal)} to predict: give a target for every row")
    if not len(x):
        raise DataError("there are no rows to evaluate on")
    first = goal[:FIT_ROWS].flatten(1)
    names = ("SAE", "mean", "PCA", "random") if controls else ("SAE",)
    parts = {name: Reconstruction(first.mean(0)) for name in names}
    pca, frozen = None, sae
    if controls:
        pca = PCA(first, max(1, round(sae.encode(x[:4096]).l0().double().mean().item())))
        frozen = random_sae(sae, x[:FIT_ROWS], None if sae.autoencodes else goal[:FIT_ROWS])
    for start in each(EVALUATING, range(0, len(x), ROWS), ROWS, "rows"):
        inputs, wanted = x[start : start + ROWS], goal[start : start + ROWS].flatten(1)
        documents = torch.arange(start, start + len(inputs))
        out = sae(inputs)
        parts["SAE"].add(wanted, out.reconstruction.flatten(1), documents, out.codes)
        if pca is not None:
            parts["mean"].add(wanted, first.mean(0).expand_as(wanted), documents)
            parts["PCA"].add(wanted, pca(wanted), documents)
            parts["random"].add(wanted, frozen(inputs).reconstruction.flatten(1), documents)
    return parts, pca


def _rows(sae: SAE, given: Tensor | np.ndarray, shape: tuple[int, ...], rows: int, does: str) -> Tensor:
    """At most so many rows, as a tensor beside the SAE."""
    if isinstance(given, np.ndarray):
        given = torch.from_numpy(np.array(given[:rows]))  # a copy: a mapped file cannot be written to
    if tuple(given.shape[1:]) != shape or not given.ndim:
        wanted = " x ".join(map(str, shape))
        raise MismatchError(f"the SAE {does} rows of width {wanted}, got activations of shape {tuple(given.shape)}")
    found = given[:rows].to(sae.W_enc.device, torch.float32)
    check_finite(found.flatten(1))
    return found
