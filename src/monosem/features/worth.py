"""Steering worth: what raising each latent does to the model's next token, measured for all latents in one pass.

Sources: Arad et al., SAEs Are Good for Steering - If You Select the Right Features, 2025, for the output score; for the
change of token confidence arXiv 2510.03659, 2025. Both are differences of probabilities here.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.errors import ConfigError
from monosem.features.log import Logged
from monosem.features.statistics import Ranked
from monosem.models import EditContext, SubjectModel
from monosem.models.replay import Replay
from monosem.models.writing import new_cache, require_writing
from monosem.sae import SAE
from monosem.work import doing

LENGTH = 24
"""Tokens of a context, the last of which is edited."""
ROWS = {"cpu": 128, "cuda": 1024}
"""Contexts with an edit each, at a time."""


class Worth(NamedTuple):
    """Of every latent, NaN where it never fired."""

    output_score: np.ndarray
    """(n_latents,) by how much the probability of the tokens that it promotes rises when it is raised."""
    confidence_change: np.ndarray
    """(n_latents,) by how much the probability of the likeliest token changes when it is raised."""


def contexts_of(logged: Logged, n: int) -> Int[Tensor, "contexts pos"] | None:
    """The beginnings of the first contexts of a log that are read at their last token; None if there are none."""
    starts = np.concatenate([[0], np.cumsum(logged.n_tokens)])[:-1]
    found: list[np.ndarray] = []
    read = logged.read
    for start, length in zip(starts.tolist(), logged.n_tokens.tolist(), strict=True):
        last = start + LENGTH - 1
        if length >= LENGTH and read[last]:
            found.append(logged.tokens[start : last + 1])
        if len(found) == n:
            break
    return torch.from_numpy(np.stack(found).astype(np.int64)) if found else None


@torch.no_grad()
def steering_worth(
    sae: SAE,
    model: SubjectModel,
    hook: str,
    contexts: Int[Tensor, "contexts pos"],
    largest: Float[np.ndarray, " n_latents"],
    promoted: Ranked,
) -> Worth | None:
    """Raise every latent by its largest activation at the last token of some contexts, and look at what comes next.

    The contexts are read once; for each latent the model reads their last token alone, with what it keeps of the rest,
    and of that what comes after the hook point.
    None where the model writes no text, keeps nothing, or the SAE does not write where it reads.

    Args:
        sae: an SAE of one place.
        model: its model.
        hook: its hook point.
        contexts: token ids.
        largest: each latent's largest activation; 0 where it never fired.
        promoted: (n_latents, m) the tokens that each promotes.
    """
    cache = _cache(model)
    if cache is None or not sae.autoencodes or len(sae.in_shape) > 1:
        return None
    n, length = contexts.shape
    group = max(1, ROWS.get(model.device.type, ROWS["cuda"]) // n)
    fired = torch.from_numpy(np.flatnonzero(largest > 0))
    amounts = torch.from_numpy(np.asarray(largest, np.float32))
    known = torch.from_numpy(np.maximum(promoted.indices, 0)).to(model.device)
    changes: list[Tensor] = [torch.zeros(0)]

    def raised(x: Tensor, _: EditContext) -> Tensor:
        added = changes[0].to(x.device)
        rows = x.flatten(0, -2).to(added.dtype)
        return (rows + sae.target_transform.raw_changes(added, rows)).reshape(x.shape)

    tokens = contexts.repeat(group, 1).to(model.device)
    arguments = {"past_key_values": cache, "use_cache": True}
    if length > 1:
        model._call({"input_ids": tokens[:, :-1], **arguments})
    last = {"input_ids": tokens[:, -1:], **arguments}
    score, confidence = np.full(sae.n_latents, np.nan, np.float32), np.full(sae.n_latents, np.nan, np.float32)

    kept = list(cache.layers)

    def chances(logits: Float[Tensor, "rows 1 vocabulary"]) -> Float[Tensor, "rows vocabulary"]:
        """Of the next token; what is kept of the contexts is as before."""
        cache.layers[:] = map(_copied, kept)
        return logits[:, -1].float().softmax(-1)

    cache.layers[:] = map(_copied, kept)
    with Replay(model, [hook], contexts[:1]).of(last) as logits:
        plain = chances(logits)[:n]
        sure = plain.amax(-1)
        with model.edit({hook: raised}), doing("raising latents", len(fired), unit="latents") as work:
            for part in fired.split(group):
                short = torch.nn.functional.pad(part, (0, group - len(part)), value=int(part[-1]))
                W_dec = sae.part(short.to(sae.W_dec.device))[2]
                changes[0] = (amounts[short].to(W_dec)[:, None] * W_dec).repeat_interleave(n, 0)
                found = chances(model(last)).reshape(group, n, -1)[: len(part)]
                among = known[part.to(known.device)]
                index = among[:, None, :].expand(-1, n, -1)
                before = plain.expand(len(part), -1, -1).gather(-1, index).sum(-1)
                at = part.numpy()
                score[at] = (found.gather(-1, index).sum(-1) - before).mean(1).cpu().numpy()
                confidence[at] = (found.amax(-1) - sure).mean(1).cpu().numpy()
                work.advance(len(part))
    return Worth(score, confidence)


def _copied(layer: Any) -> Any:
    """What a layer keeps. Keys and values are put together anew with each token; other memories are written over."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    grows = type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
    return copy.copy(layer) if grows else copy.deepcopy(layer)


def _cache(model: SubjectModel) -> Any:
    """An empty memory of what was read; None of a model that writes no text or keeps none."""
    try:
        require_writing(model)
    except ConfigError:
        return None
    return new_cache(model)
