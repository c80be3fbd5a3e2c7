"""What latents are made of, where a meta-SAE is kept beside the store: of one latent, of one meta-latent, of all."""

from __future__ import annotations

import math

from monosem.analysis import MetaSAE, Part
from monosem.explorer import shapes
from monosem.explorer.dictionary import Dictionary
from monosem.explorer.shapes import MadeOf, MeasuredColumn, MetaExplained, MetaLatent, MetaLatents, MetaPart, Weighted
from monosem.intervals import Interval

OTHERS, SHOWN, OF_ONE = 3, 4, 200
"""Latents beside a part, in the list of all, and of one meta-latent, at most."""


def made_of(dictionary: Dictionary, latent: int) -> MadeOf | None:
    """The meta-latents of a latent, each with its strongest other latents; None without a meta-SAE."""
    meta = dictionary.meta
    if meta is None or bool(meta.similarity[latent].isnan()):
        return None
    found = [(part, meta.latents_of(part.number)) for part in meta.made_of(latent)]
    others = [[one for one in latents if one.number != latent][:OTHERS] for _, latents in found]
    named = dictionary.all_named(one.number for several in others for one in several)
    parts = [
        MetaPart(
            meta=part.number,
            weight=part.weight,
            count=len(latents),
            others=[Weighted(**named[one.number], weight=one.weight) for one in several],
        )
        for (part, latents), several in zip(found, others, strict=True)
    ]
    return MadeOf(cosine=float(meta.similarity[latent]), parts=parts)


def meta_latent(dictionary: Dictionary, number: int) -> MetaLatent:
    """One meta-latent.

    Raises:
        IndexError: there is no such one, or no meta-SAE.
    """
    meta = required(dictionary)
    if not 0 <= number < meta.n_latents:
        raise IndexError(f"{dictionary.name} has meta-latents 0 to {meta.n_latents - 1}, not {number}")
    return _told(dictionary, {number: meta.latents_of(number)}, OF_ONE)[0]


def meta_latents(dictionary: Dictionary) -> MetaLatents:
    """All meta-latents, those that most latents are made of first.

    Raises:
        IndexError: there is no meta-SAE.
    """
    meta = required(dictionary)
    entries = sorted(
        zip(meta.codes.indices.tolist(), meta.codes.rows().tolist(), meta.codes.values.tolist(), strict=True),
        key=lambda entry: -entry[2],
    )
    latents: dict[int, list[Part]] = {number: [] for number in range(meta.n_latents)}
    for number, latent, weight in entries:
        if weight:
            latents[number].append(Part(latent, weight))
    metas = _told(dictionary, latents, SHOWN)
    some = ~meta.similarity.isnan()
    return MetaLatents(
        latents=int(some.sum()),
        each=float(meta.codes.l0()[some].double().mean()),
        explained=[
            MetaExplained(rows=name, trained=_column(name, one.trained), held_out=_column(name, one.held_out))
            for name, one in meta.explained.items()
        ],
        metas=sorted(metas, key=lambda one: -one["count"]),
    )


def required(dictionary: Dictionary) -> MetaSAE:
    """The meta-SAE.

    Raises:
        IndexError: there is none.
    """
    if dictionary.meta is None:
        raise IndexError(f"{dictionary.name} has no meta-latents: ms.meta_sae(sae, path=RUN + '/meta_sae') finds them")
    return dictionary.meta


def _told(dictionary: Dictionary, latents: dict[int, list[Part]], most: int) -> list[MetaLatent]:
    named = dictionary.all_named(one.number for several in latents.values() for one in several[:most])
    return [
        MetaLatent(
            meta=number,
            count=len(several),
            latents=[Weighted(**named[one.number], weight=one.weight) for one in several[:most]],
        )
        for number, several in latents.items()
    ]


def _column(name: str, interval: Interval) -> MeasuredColumn:
    value = interval.value if math.isfinite(interval.value) else None
    return shapes.MeasuredColumn(name=name, value=value, low=interval.low, high=interval.high)
