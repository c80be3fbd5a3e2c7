"""What a latent has of each of several sources: a crosscoder's models or layers, the layers a transcoder writes to."""

from __future__ import annotations

from collections.abc import Mapping as Named
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from monosem.activations import Mapping
from monosem.errors import ConfigError
from monosem.features import statistics
from monosem.features.statistics import LogitEffects, Ranked
from monosem.models import ModelSet, SubjectModel
from monosem.sae import SAE, CrossLayerTranscoder

TILE_ENTRIES = 2**24
WRITES_TO_RESIDUAL = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""Hook points in the space of the residual stream, for which the logit lens says something."""


@dataclass(frozen=True)
class Parts:
    """Of every latent and source."""

    names: list[str]
    """Of the sources: what is predicted."""
    reads: list[str] | None
    """Of a cross-layer transcoder the layers that its latents read, in order; else None: a latent reads all."""
    norms: np.ndarray
    """(n_latents, source) lengths of the decoder rows, in raw units; 0 where a latent writes nothing."""
    shares: np.ndarray
    """(n_latents, source) shares of the decoder norms as they were trained, where each source has the same energy."""
    cosines: np.ndarray
    """(n_latents, source, source) between a latent's decoder rows for two sources; NaN where one is zero."""
    logits: list[LogitEffects | None]
    """Of each source by itself; None where the logit lens says nothing."""
    together: LogitEffects | None
    """Of what all write, if that is one stream; else of the source of the largest share."""

    def read_by(self, latents: np.ndarray) -> np.ndarray | None:
        """Which of `reads` each latent reads."""
        return None if self.reads is None else latents // (len(self.norms) // len(self.reads))


def source_names(sae: SAE, model: SubjectModel | ModelSet | None, hook: Any = None) -> dict[str, list[str]] | None:
    """The names of the sources of what reads or writes several, `{"predicts": [...], "reads": [...]}`; else None."""
    if len(sae.out_shape) == 1:
        return None
    if model is None:
        numbers = [f"source {i}" for i in range(sae.out_shape[0])]
        return {"predicts": numbers, "reads": numbers}
    mapping = Mapping(sae, model, hook)
    return {"predicts": list(mapping.predicted), "reads": list(mapping.read_from)}


@torch.no_grad()
def parts_of(sae: SAE, model: SubjectModel | ModelSet | None, hook: Any, m: int, tokens: np.ndarray) -> Parts | None:
    """What the latents of a dictionary have of its sources; None where it has one.

    Args:
        sae: the dictionary.
        model: its model, or models; None for ready vectors.
        hook: its hook points, where the SAE does not know them.
        m: promoted and suppressed tokens to list.
        tokens: ids that count.
    """
    names = source_names(sae, model, hook)
    if names is None:
        return None
    norms, shares, cosines = zip(*(_geometry(sae, tile) for tile in _tiles(sae)), strict=True)
    norms, shares, cosines = np.concatenate(norms), np.concatenate(shares), np.concatenate(cosines)
    places = {} if model is None else Mapping(sae, model, hook).predicted
    logits = [_logits(sae, places, source, m, tokens) for source in range(len(names["predicts"]))]
    layered = isinstance(sae, CrossLayerTranscoder)
    together = _summed(sae, places, m, tokens) if layered else _of_largest(logits, shares.argmax(1))
    return Parts(names["predicts"], names["reads"] if layered else None, norms, shares, cosines, logits, together)


def _tiles(sae: SAE) -> tuple[Tensor, ...]:
    width = int(np.prod(sae.out_shape))
    return torch.arange(sae.n_latents).split(max(1, TILE_ENTRIES // width))


def _geometry(sae: SAE, tile: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = sae.decoder_directions(tile).float()
    trained = sae.part(tile.to(sae.W_enc.device))[2].unflatten(1, sae.out_shape).float().norm(dim=-1)
    norms = rows.norm(dim=-1)
    unit = rows / norms[..., None]  # NaN where it is zero
    cosines = (unit @ unit.transpose(1, 2)).clamp(-1, 1)
    shares = trained / trained.sum(-1, keepdim=True).clamp_min(1e-30)
    return norms.cpu().numpy(), shares.cpu().numpy(), cosines.cpu().numpy()


def _logits(
    sae: SAE, places: Named[str, tuple[SubjectModel, str]], source: int, m: int, tokens: np.ndarray
) -> LogitEffects | None:
    if not places:
        return None
    model, hook = list(places.values())[source]
    if hook.partition(".")[0] not in WRITES_TO_RESIDUAL:
        return None
    try:
        return statistics.logits_of(
            lambda tile: sae.decoder_directions(tile)[:, source], sae.n_latents, model, m, tokens
        )
    except ConfigError:  # no output embeddings, or of another width
        return None


def _summed(sae: SAE, places: Named[str, tuple[SubjectModel, str]], m: int, tokens: np.ndarray) -> LogitEffects | None:
    """All that a latent writes goes into one residual stream, if every layer's output does."""
    if not places or any(hook.partition(".")[0] not in ("attn_out", "mlp_out") for _, hook in places.values()):
        return None
    model = next(iter(places.values()))[0]
    try:
        return statistics.logits_of(lambda tile: sae.decoder_directions(tile).sum(1), sae.n_latents, model, m, tokens)
    except ConfigError:
        return None


def _of_largest(logits: list[LogitEffects | None], largest: np.ndarray) -> LogitEffects | None:
    known = [each for each in logits if each is not None]
    if len(known) < len(logits):
        return None
    at = (largest, np.arange(len(largest)))

    def chosen(side: str) -> Ranked:
        ranked: list[Ranked] = [getattr(each, side) for each in known]
        return Ranked(*(np.stack(column)[at] for column in zip(*ranked, strict=True)))

    moments = np.stack([each.moments for each in known])[at]
    return LogitEffects(chosen("promoted"), chosen("suppressed"), moments)


def parts_table(parts: Parts, first: int, stop: int) -> pa.Table:
    """One row a latent and source, but for sources to which a latent writes nothing."""
    latents, sources = np.nonzero(parts.norms[first:stop] > 0)
    latents = latents + first
    columns: dict[str, Any] = {
        "latent": pa.array(latents, pa.int32()),
        "source": pa.array(sources, pa.int16()),
        "norm": pa.array(parts.norms[latents, sources], pa.float32()),
        "share": pa.array(parts.shares[latents, sources], pa.float32()),
        "cosines": pa.array(list(parts.cosines[latents, sources]), pa.list_(pa.float32()), from_pandas=True),
    }
    for side in ("promoted", "suppressed"):
        ranked = [None if each is None else getattr(each, side) for each in parts.logits]
        rows = [(ranked[s], i) for i, s in zip(latents.tolist(), sources.tolist(), strict=True)]
        tokens = [[] if of is None else of.indices[i] for of, i in rows]
        weights = [[] if of is None else of.values[i] for of, i in rows]
        columns[f"{side}_tokens"] = pa.array(tokens, pa.list_(pa.int32()))
        columns[f"{side}_weights"] = pa.array(weights, pa.list_(pa.float32()))
    return pa.table(columns)
