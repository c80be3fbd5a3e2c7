"""Two dictionaries by what they do: correlations of activations over the same tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse

from monosem.activations import Wanted, read_rows, rows_a_context
from monosem.codes import SparseCodes
from monosem.explorer.dictionary import Dictionary, Unavailable
from monosem.explorer.subject import Subjects

TOKENS, CONTEXTS = 8_192, 8
FEWEST = 3
"""Firings without which a correlation says nothing: two that fire once, on the same token, correlate fully."""
WIDEST = 2**25
"""Entries of the table of correlations: 400 MB where every two fire together somewhere."""


class Best(NamedTuple):
    """Every latent's best match in another dictionary."""

    matches: np.ndarray
    similarities: np.ndarray
    measured: np.ndarray
    """Whether it can be said what its best match is."""


def correlated(subjects: Subjects, a: Dictionary, b: Dictionary) -> tuple[Best, Best, int]:
    """Best matches there and back, and over how many tokens: of the text that `a` was harvested on.

    Raises:
        Unavailable: a model, a text or the weights are not there, or the two do not read the same.
    """
    for each in (a, b):
        if each.can["prompt"]:
            raise Unavailable(f"{each.name}: {each.can['prompt']}")
    if a.model_name != b.model_name or a.index.get("model_fingerprint") != b.index.get("model_fingerprint"):
        raise Unavailable(f"{a.name} and {b.name} are of different models: their activations are not of the same")
    if a.n_latents * b.n_latents > WIDEST:
        raise Unavailable(f"{a.n_latents:,} times {b.n_latents:,} features are too many correlations of activations")
    subjects.ask(b, lambda *_: None)  # it loads, and fits the model
    one, other = subjects.ask(a, lambda _, model: _read_both(subjects, a, b, model))
    return *matched(one, other), one.shape[0]


def _read_both(subjects: Subjects, a: Dictionary, b: Dictionary, model: Any) -> tuple[Any, Any]:
    """(rows, n_latents) activations of both where both read, on the first tokens that `a` was harvested on."""
    text, rules = a.index["texts"][0], a.sae().metadata
    readers = [subjects.contexts(each, each.sae(), model, text["text"]) for each in (a, b)]
    first = text["first_context"]
    stop = min(text["stop_context"], first + max(1, int(TOKENS / rows_a_context(readers[0], rules))))
    hooks = [str(each.hook) for each in (a, b)]
    wanted = [Wanted(each.sae().metadata, [hook]) for each, hook in zip((a, b), hooks, strict=True)]
    rows: tuple[list[Any], list[Any]] = ([], [])
    for start in range(first, stop, CONTEXTS):
        batch, same = (reader.read(start, min(stop, start + CONTEXTS)) for reader in readers)
        if not torch.equal(batch.tokens, same.tokens):
            raise Unavailable(f"{a.name} and {b.name} read text cut differently: in length, beginnings or packing")
        found = read_rows(model, batch, wanted)
        both = found[0].kept & found[1].kept
        for each, read, hook, into in zip((a, b), found, hooks, rows, strict=True):
            x = read.rows[hook][both[read.kept].to(read.rows[hook].device)]
            into.append(_matrix(each.sae().encode(x.to(each.sae().W_enc.device))))
    return sparse.vstack(rows[0], "csr"), sparse.vstack(rows[1], "csr")


def _matrix(codes: SparseCodes) -> Any:
    values, indices, offsets = (part.detach().cpu().numpy() for part in (codes.values, codes.indices, codes.offsets))
    return sparse.csr_matrix((values.astype(np.float64), indices, offsets), (len(offsets) - 1, codes.n_latents))


def matched(a: Any, b: Any) -> tuple[Best, Best]:
    """The best matches of the columns of (rows, n_a) and (rows, n_b) activations, there and back."""
    table = correlate(a, b).tocsr()
    enough = [np.asarray((x > 0).sum(0)).ravel() >= FEWEST for x in (a, b)]
    table = sparse.diags(enough[0].astype(float)) @ table @ sparse.diags(enough[1].astype(float))
    return _best(table.tocsr(), enough[0]), _best(table.T.tocsr(), enough[1])


def _best(table: Any, measured: np.ndarray) -> Best:
    similarities = table.max(1).toarray().ravel().astype(np.float32)
    return Best(np.asarray(table.argmax(1)).ravel(), similarities, measured)


def correlate(a: Any, b: Any) -> Any:
    """Pearson correlations between the columns of sparse (rows, n_a) and (rows, n_b), sparse (n_a, n_b).

    Columns that are never on together, or one of which never varies, have no entry: they correlate by 0 or less.
    """
    n = a.shape[0]
    table = (a.T @ b).tocoo()
    means, deviations = zip(*(_moments(x, n) for x in (a, b)), strict=True)
    scale = deviations[0][table.row] * deviations[1][table.col]
    covariance = table.data / n - means[0][table.row] * means[1][table.col]
    value = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
    return sparse.coo_matrix((value, (table.row, table.col)), table.shape)


def _moments(x: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    mean = np.asarray(x.sum(0)).ravel() / n
    variance = np.asarray(x.multiply(x).sum(0)).ravel() / n - mean**2
    deviation = np.sqrt(np.maximum(variance, 0))
    return mean, np.where(deviation > 1e-9 * np.maximum(1, np.abs(mean)), deviation, 0)
