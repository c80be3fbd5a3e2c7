"""Evaluation on ready rows: no model, so reconstruction and firing alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monosem.activations import ActivationSource, Rows, first_rows
from monosem.activations.vectors import check_finite
from monosem.errors import ConfigError, DataError, MismatchError
from monosem.evaluation.controls import PCA
from monosem.evaluation.downstream import EVALUATING
from monosem.evaluation.reconstruction import Reconstruction
from monosem.sae import SAE
from monosem.sae.control import random_sae
from monosem.work import doing

ROWS = 8192
FIT_ROWS = 32_768


@dataclass
class RowSums:
    """What is measured of rows."""

    parts: dict[str, Reconstruction]
    pca: PCA | None


@torch.no_grad()
def measure_rows(
    sae: SAE, x: Tensor | np.ndarray, target: Tensor | np.ndarray | None, rows: int, controls: bool
) -> RowSums:
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
    _require_shape(x, sae.in_shape, "reads")
    if target is not None:
        _require_shape(target, sae.out_shape, "predicts")
        if len(target[:rows]) != len(x[:rows]):
            raise MismatchError(f"{len(x)} rows to read and {len(target)} to predict: give a target for every row")

    def pieces() -> Iterator[Rows]:
        for start in range(0, min(rows, len(x)), FIT_ROWS):
            stop = min(start + FIT_ROWS, rows)
            yield Rows(_tensor(x[start:stop]), None if target is None else _tensor(target[start:stop]), None)

    return _measured(sae, pieces, min(rows, len(x)), controls)


@torch.no_grad()
def measure_source(sae: SAE, source: ActivationSource, rows: int, controls: bool) -> RowSums:
    """As `measure_rows`, of the first rows of a source, a pool at a time; documents are those of a store."""
    n = rows if source.whole.n_rows is None else min(rows, source.whole.n_rows)
    return _measured(sae, lambda: first_rows(source, rows), n, controls)


def _measured(sae: SAE, pieces: Callable[[], Iterator[Rows]], n: int, controls: bool) -> RowSums:
    sample, found = list[tuple[Tensor, Tensor]](), 0
    for x, goal, _ in _read(sae, pieces()):
        sample.append((x, goal))
        found += len(x)
        if found >= FIT_ROWS:
            break
    if not found:
        raise DataError("there are no rows to evaluate on")
    x, goal = (torch.cat([side[i] for side in sample])[:FIT_ROWS] for i in (0, 1))
    first = goal.flatten(1)
    names = ("SAE", "mean", "PCA", "random") if controls else ("SAE",)
    parts = {name: Reconstruction(first.mean(0)) for name in names}
    pca, frozen = None, sae
    if controls:
        pca = PCA(first, max(1, round(sae.encode(x[:4096]).l0().double().mean().item())))
        frozen = random_sae(sae, x, None if sae.autoencodes else goal)
    with doing(EVALUATING, n, unit="rows") as stage:
        for inputs, targets, documents in _read(sae, pieces()):
            for x, wanted, own in zip(inputs.split(ROWS), targets.split(ROWS), documents.split(ROWS), strict=True):
                wanted, out = wanted.flatten(1), sae(x)
                parts["SAE"].add(wanted, out.reconstruction.flatten(1), own, out.codes)
                if pca is not None:
                    parts["mean"].add(wanted, first.mean(0).expand_as(wanted), own)
                    parts["PCA"].add(wanted, pca(wanted), own)
                    parts["random"].add(wanted, frozen(x).reconstruction.flatten(1), own)
                stage.advance(len(x))
    return RowSums(parts, pca)


def _read(sae: SAE, pieces: Iterator[Rows]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What an SAE reads and predicts, beside it, and the documents."""
    begun = 0
    for x, target, documents in pieces:
        if target is None and not sae.autoencodes:
            raise ConfigError(
                f"this {sae.architecture} predicts another site than it reads: give the rows that it must predict too, "
                "evaluate(sae, x, target=y)"
            )
        numbers = torch.arange(begun, begun + len(x))
        begun += len(x)
        inputs = _rows(sae, x, sae.in_shape, "reads", numbers)
        goal = inputs if target is None else _rows(sae, target, sae.out_shape, "predicts", numbers)
        yield inputs, goal, numbers if documents is None else documents


def _tensor(given: Tensor | np.ndarray) -> Tensor:
    """A copy of an array: a mapped file cannot be written to."""
    return torch.from_numpy(np.array(given)) if isinstance(given, np.ndarray) else given


def _rows(sae: SAE, given: Tensor, shape: tuple[int, ...], does: str, numbers: Tensor) -> Tensor:
    """Rows beside the SAE; `numbers` are their places in the data."""
    _require_shape(given, shape, does)
    found = given.to(sae.W_enc.device, torch.float32)
    check_finite(found.flatten(1), numbers)
    return found


def _require_shape(given: Tensor | np.ndarray, shape: tuple[int, ...], does: str) -> None:
    if tuple(given.shape[1:]) != shape or not given.ndim:
        wanted = " x ".join(map(str, shape))
        raise MismatchError(f"the SAE {does} rows of width {wanted}, got activations of shape {tuple(given.shape)}")
