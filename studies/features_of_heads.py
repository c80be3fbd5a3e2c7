"""What the study of heads reads off features: dictionaries of what heads bring, where it is from, what features are.

A dictionary of `attn_z.L` reads the results of all heads of a layer side by side, so that a feature's pre-activation is
a sum over heads and the tokens that they look at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import monosem as ms
from monosem.activations.inputs import open_text
from monosem.analysis.logit_lens import direction_logits
from monosem.circuits import head_shares
from monosem.circuits.heads.scores import Reading, readings
from monosem.circuits.heads.successors import rows_of
from monosem.circuits.heads.weights import n_heads, output_matrix
from monosem.circuits.sites import Neurons
from monosem.intervals import draws
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.sae.control import random_sae
from monosem.text import first_token

K = 16
TOP = 10
"""Features of each head, by weights."""
CONTEXTS, SAME = 10, 8
"""Of so many strongest contexts, each of another document, so many must hold one word at one place."""
PLACES = ("this", "before", "next", "source")
"""Where a word may be: the token itself, those beside it, and the one from which the head brings most."""


def trained(model: SubjectModel, tokens: int, latents: int) -> list[SAE]:
    """A dictionary of the results of all heads of each layer, on one pass."""
    hooks = [f"attn_z.{layer}" for layer in range(model.n_layers)]
    source: Any = ms.activations(model, hooks, text="bundled", buffer_tokens=16_384)
    saes: dict[str, SAE] = {hook: ms.TopKSAE(model.width(hook), latents, k=K) for hook in hooks}
    ms.train_together(saes, {hook: source.select(hook) for hook in hooks}, tokens=tokens)
    return list(saes.values())


@dataclass
class Feature:
    """One of a head's features, with the strongest context in every document in which it is on."""

    latent: int
    share: float
    """Of its decoder row the head's part, by weights."""
    contexts: list[tuple[float, dict[str, str]]] = field(default_factory=list[tuple[float, dict[str, str]]])
    """Value, and the word at each place."""

    def shared(self) -> tuple[str, str, int]:
        """Place and word that the most of the strongest contexts have in common, and how many."""
        best = sorted(self.contexts, key=lambda each: -each[0])[:CONTEXTS]
        counts = Counter((place, words[place]) for _, words in best for place in PLACES if words[place])
        ((place, word), count) = counts.most_common(1)[0] if counts else (("", ""), 0)
        return place, word, count

    def holding(self, place: str, word: str) -> int:
        """How many of the strongest contexts hold a word at a place."""
        best = sorted(self.contexts, key=lambda each: -each[0])[:CONTEXTS]
        return sum(words.get(place) == word for _, words in best)


Chosen = dict[str, dict[tuple[int, int], list[Feature]]]
"""By set of features, the top ones of each head."""


@dataclass
class Seen:
    """What some documents show."""

    sources: dict[str, np.ndarray]
    """Of each kind (documents, layers, heads): of all that a head adds to features that are on, the share that comes
    from the kind's place."""
    chosen: Chosen

    def above(self, kind: str, least: float) -> set[tuple[int, int]]:
        """Heads where the lower end of the 95 % interval over documents is above something."""
        values = self.sources[kind]
        flat = values.reshape(len(values), -1)
        low = np.quantile(draws(len(values), 0) @ flat / len(values), 0.025, axis=0).reshape(values.shape[1:])
        return {(int(a), int(b)) for a, b in np.argwhere(low > least)}


def sets_of(model: SubjectModel, saes: Sequence[SAE], rows: Sequence[Tensor]) -> dict[str, list[SAE]]:
    """The dictionaries of all layers and their controls: such as never learned, and the coordinates of the results."""
    return {
        "features": list(saes),
        "random dictionary": [random_sae(sae, x) for sae, x in zip(saes, rows, strict=True)],
        "coordinates": [Neurons(x.shape[1], f"attn_z.{layer}", x.dtype) for layer, x in enumerate(rows)],
    }


def top_features(sets: dict[str, list[SAE]], rows: Sequence[Tensor], heads: int) -> Chosen:
    """Of every head the features, on at all in some rows, of whose decoder rows it makes most."""
    found: Chosen = {name: {} for name in sets}
    for name, dictionaries in sets.items():
        for layer, (sae, x) in enumerate(zip(dictionaries, rows, strict=True)):
            shares = head_shares(sae, heads) * (sae.encode(x).firing_counts() > 0)[:, None]
            for head in range(heads):
                best = shares[:, head].topk(TOP)
                pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                found[name][layer, head] = [Feature(latent, share) for latent, share in pairs]
    return found


def contexts_of(model: SubjectModel, texts: Sequence[str], documents: int) -> Iterator[Reading]:
    """Documents with their probes, as `ms.heads` reads them."""
    length = min(model.context_length or 256, 256)
    contexts, facts = open_text(model, list(texts), context_length=length, packing=False, seed=0)
    return readings(contexts, int(facts["prepend_bos"]), documents, 1, 0)


@torch.no_grad()
def look(model: SubjectModel, sets: dict[str, list[SAE]], readings: Iterator[Reading], chosen: Chosen) -> Seen:
    """Read documents: where what features take comes from, and what stands around their strongest firings."""
    chosen = {
        name: {head: [Feature(each.latent, each.share) for each in own] for head, own in of.items()}
        for name, of in chosen.items()
    }
    layers, heads = range(model.n_layers), n_heads(model)
    hooks = [f"{site}.{layer}" for layer in layers for site in ("attn_z", "attn_v", "attn_pattern")]
    kinds: dict[str, list[np.ndarray]] = {"induction": [], "previous": [], "duplicate": []}
    for reading in readings:
        got = model.capture({"input_ids": reading.tokens, "attention_mask": reading.mask.long()}, hooks)
        length, probe = int(reading.mask[0].sum()), reading.probe_lengths[0]
        words = [word_of(model, token) for token in reading.tokens[0, :length].tolist()]
        second = torch.arange(probe - 1) + reading.begins + probe
        rows: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
        for layer, sae in enumerate(sets["features"]):
            z, pattern = got[f"attn_z.{layer}"], got[f"attn_pattern.{layer}"]
            values = got[f"attn_v.{layer}"].unflatten(-1, (-1, z.shape[-1] // heads))
            values = values.repeat_interleave(heads // values.shape[2], dim=2)
            plain = brought(sae, z[0], pattern[0], values[0], torch.arange(2, length))
            rows["previous"].append(share(plain, torch.arange(1, length - 1)))
            repeated = brought(sae, z[1], pattern[1], values[1], second)
            rows["induction"].append(share(repeated, second - probe + 1))
            rows["duplicate"].append(share(repeated, second - probe))
            for name, of in sets.items():
                note(of[layer], z[0, :length], pattern[0], values[0], words, chosen[name], layer)
        for kind, found in rows.items():
            kinds[kind].append(torch.stack(found).double().numpy())
    return Seen({kind: np.stack(found) for kind, found in kinds.items()}, chosen)


def brought(sae: SAE, z: Tensor, pattern: Tensor, values: Tensor, queries: Tensor) -> Tensor:
    """(queries, heads, sources): what each head adds, from each token, to the pre-activations of features that are on.

    What it takes away does not count.
    """
    codes = sae.encode(z[queries])
    encoders = sae.encoder_directions().unflatten(-1, (values.shape[1], -1))
    found = torch.zeros(len(queries), values.shape[1], len(values))
    latents, of = codes.indices.long().unique(return_inverse=True)
    each = torch.einsum("lhd,shd->lhs", encoders[latents], values)
    on = codes.values > 0
    for row, query in enumerate(queries.tolist()):
        own = of[codes.offsets[row] : codes.offsets[row + 1]][on[codes.offsets[row] : codes.offsets[row + 1]]]
        found[row] = (each[own] * pattern[:, query]).clamp(min=0).sum(0)
    return found


def share(brought: Tensor, sources: Tensor) -> Tensor:
    """Of each head the share that came from one source of each query."""
    at = brought.gather(2, sources[:, None, None].expand(-1, brought.shape[1], 1)).sum((0, 2))
    return at / brought.sum((0, 2)).clamp(min=1e-12)


def note(
    sae: SAE,
    z: Tensor,
    pattern: Tensor,
    values: Tensor,
    words: list[str],
    chosen: dict[tuple[int, int], list[Feature]],
    layer: int,
) -> None:
    """Note the strongest context of each of the layer's features in a document; the first token does not count."""
    features = [(head, feature) for (at, head), own in chosen.items() if at == layer for feature in own]
    codes = sae.encode(z[1:]).select([feature.latent for _, feature in features]).to_dense()
    best, at = codes.max(0)
    encoders = sae.encoder_directions([feature.latent for _, feature in features])
    encoders = encoders.unflatten(-1, (values.shape[1], -1))
    for number, (head, feature) in enumerate(features):
        if best[number] <= 0:
            continue
        query = int(at[number]) + 1
        source = int((pattern[head, query, : len(z)] * (values[: len(z), head] @ encoders[number, head])).argmax())
        places = {"this": query, "before": query - 1, "next": query + 1, "source": source}
        said = {place: words[i] if i < len(words) else "" for place, i in places.items()}
        feature.contexts.append((float(best[number]), said))


def word_of(model: SubjectModel, token: int) -> str:
    """A token without case and space; the beginning of the sequence is none."""
    if token == first_token(model.tokenizer):
        return ""
    text = model.tokenizer.decode([token])
    return text.strip().lower() or repr(text)


@torch.no_grad()
def successors(model: SubjectModel, saes: Sequence[SAE]) -> np.ndarray:
    """(pairs, layers, heads): whether what a head's features write of a word of a row raises the next most, of all.

    The word stands alone behind the beginning of the sequence; of each head's result only what features explain.
    """
    heads, first = n_heads(model), first_token(model.tokenizer)
    hooks = [f"attn_z.{layer}" for layer in range(model.n_layers)]
    found: list[np.ndarray] = []
    for row in rows_of(model).values():
        before = [] if first is None else [first]
        got = model.capture(torch.tensor([[*before, token] for token in row[:-1]]), hooks)
        of_layers: list[Tensor] = []
        for layer, sae in enumerate(saes):
            codes = sae.encode(got[f"attn_z.{layer}"][:, -1])
            written = (codes.to_dense() @ sae.decoder_directions()).unflatten(-1, (heads, -1))
            stream = torch.einsum("phd,hed->phe", written, output_matrix(model, layer))
            logits = direction_logits(stream.flatten(0, 1), model)[:, row].unflatten(0, stream.shape[:2])
            of_layers.append(logits.argmax(-1) == torch.arange(1, len(row))[:, None])
        found.append(torch.stack(of_layers, 1).double().numpy())
    return np.concatenate(found) if found else np.zeros((0, model.n_layers, heads))


@dataclass
class Sense:
    """Of a head's features."""

    known: int
    """How many are on in enough documents of both halves."""
    monosemantic: int
    said: list[str]


def sense(one: list[Feature], other: list[Feature]) -> Sense:
    """Which features are one thing, by the rule: found on one half, confirmed on the other."""
    known = monosemantic = 0
    said: list[str] = []
    for first, second in zip(one, other, strict=True):
        if min(len(first.contexts), len(second.contexts)) < CONTEXTS:
            said.append(f"{first.latent} seldom")
            continue
        known += 1
        place, word, count = first.shared()
        if count >= SAME and second.holding(place, word) >= SAME:
            monosemantic += 1
            said.append(f"{first.latent} `{word}` ({place})")
        else:
            said.append(f"{first.latent} -")
    return Sense(known, monosemantic, said)
