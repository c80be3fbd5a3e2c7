"""A feature as JSON: everything on its page."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from monosem.explorer import shapes
from monosem.explorer.answers import Ready, Rounded, digits
from monosem.explorer.dictionary import Dictionary
from monosem.explorer.metas import made_of
from monosem.explorer.said import explanation
from monosem.explorer.shapes import Code, FiringToken, Moments, Named, Other, Preview, SourcePart, TokenWeight
from monosem.features import Example, Feature
from monosem.features.explanations import PERSON, Explanations

AN_INTERVAL = 5
A_PREVIEW = 3


def features_json(dictionary: Dictionary, latents: Sequence[int]) -> list[shapes.Feature]:
    """Some features, in the order asked for.

    Raises:
        IndexError: there is no such latent.
    """
    for latent in latents:
        dictionary.check(latent)
    explained = [dictionary.explanations(maker) for maker in dictionary.explainers()]
    features = dictionary.store.features(latents)
    others = (other.latent for feature in features for other in (*feature.neighbours, *feature.cofiring))
    names = dictionary.all_named(others)
    return [_feature(dictionary, feature, explained, names) for feature in features]


def previews(dictionary: Dictionary, latents: Sequence[int], words: str = "") -> list[Preview]:
    """Names and three passages each, those that hold all the words before others."""
    for latent in latents:
        dictionary.check(latent)
    wanted = [re.compile(rf"(?<!\w){re.escape(word)}(?!\w)") for word in words.lower().split()]

    def lacking(example: Example) -> int:
        text = "".join(example.texts).lower()
        return sum(word.search(text) is None for word in wanted)

    names = dictionary.all_named(latents)
    return [
        Preview(
            **names[feature.latent],
            max=feature.max,
            passages=[_example(example, feature) for example in sorted(feature.top, key=lacking)[:A_PREVIEW]],
        )
        for feature in dictionary.store.features(latents)
    ]


def python_code(dictionary: Dictionary, latent: int) -> Code:
    """Python that opens a feature."""
    dictionary.check(latent)
    lines = [
        "import monosem as ms",
        "",
        f"store = ms.FeatureStore({str(dictionary.path)!r})",
        f"feature = store[{latent}]",
        "print(feature)  # in a notebook, a line with `feature` shows its card",
    ]
    if dictionary.can["map"] is None:
        run = dictionary.path.parent if dictionary.path.resolve().name == "features" else dictionary.path
        lines += ["", f"sae = ms.load_sae({str(run)!r})", f"direction = sae.decoder_directions([{latent}])[0]"]
    return Code(code="\n".join(lines) + "\n")


def _feature(
    dictionary: Dictionary, feature: Feature, explained: Sequence[Explanations], names: Mapping[int, Named]
) -> shapes.Feature:
    drawn = _in_order_of_draw(feature)
    at = np.array([example.activation for example in drawn])
    intervals: list[shapes.Interval] = []
    for i, interval in enumerate(feature.intervals(examples=0)):
        inside = (at > interval.low) & (at <= interval.high) if i else at > interval.low
        chosen = sorted(np.flatnonzero(inside)[:AN_INTERVAL].tolist(), key=lambda j: -at[j])
        intervals.append(
            shapes.Interval(
                low=interval.low, high=interval.high, count=interval.count, share=interval.share, examples=chosen
            )
        )
    logits = feature.logits
    return shapes.Feature(
        dictionary=dictionary.name,
        latent=feature.latent,
        n_latents=dictionary.n_latents,
        n_tokens=feature.n_tokens,
        name=feature.name,
        name_piece=None if feature.name_piece is None else list(feature.name_piece),
        clarity=feature.clarity,
        note=dictionary.notes[feature.latent],
        explanations=_explanations(explained, feature.latent),
        count=feature.count,
        rate=feature.rate,
        mean=feature.mean,
        deviation=feature.deviation,
        max=feature.max,
        decoder_norm=feature.decoder_norm,
        encoder_cosine=feature.encoder_cosine,
        output_score=feature.output_score,
        confidence_change=feature.confidence_change,
        histogram=shapes.Histogram(edges=feature.histogram.edges.tolist(), counts=feature.histogram.counts.tolist())
        if len(feature.histogram.counts)
        else shapes.Histogram(edges=[], counts=[]),
        promoted=[cast(TokenWeight, effect._asdict()) for effect in feature.promoted],
        suppressed=[cast(TokenWeight, effect._asdict()) for effect in feature.suppressed],
        logits=cast(Moments, logits._asdict()) if logits else None,
        firing_tokens=[cast(FiringToken, token._asdict()) for token in feature.firing_tokens],
        counted=feature.counted_tokens == feature.n_tokens,
        counted_tokens=feature.counted_tokens,
        neighbours=[
            Other(**names[latent], cosine=cosine, share=None, lift=None) for latent, cosine in feature.neighbours
        ],
        cofiring=[
            Other(**names[latent], cosine=None, share=share, lift=lift) for latent, share, lift in feature.cofiring
        ],
        top=[_example(example, feature) for example in feature.top],
        samples=[_example(example, feature) for example in drawn],
        intervals=intervals,
        near_misses=[_example(example, feature) for example in feature.near_misses],
        silent=[_example(example, feature) for example in feature.silent],
        matches=None,
        parts=[
            SourcePart(
                source=part.source,
                norm=part.norm,
                share=part.share,
                cosines=part.cosines,
                promoted=[cast(TokenWeight, effect._asdict()) for effect in part.promoted],
                suppressed=[cast(TokenWeight, effect._asdict()) for effect in part.suppressed],
            )
            for part in feature.parts
        ],
        reads=feature.reads,
        made_of=made_of(dictionary, feature.latent),
        made_image=_made_image(dictionary, feature.latent),
    )


def _made_image(dictionary: Dictionary, latent: int) -> shapes.MadeImage | None:
    """What is known of the image made for a latent, if there is one."""
    kept = dictionary.optimised
    facts = None if kept is None else kept.facts.get(latent)
    if facts is None:
        return None
    return shapes.MadeImage(
        activation=facts["activation"],
        activations=facts["activations"],
        peak=int(np.argmax(facts["activations"])),
        start=facts["start"],
        random=facts["random"],
        natural=facts["natural"],
        n_natural=facts["n_natural"],
        n_random=facts["n_random"],
    )


def _explanations(explained: Sequence[Explanations], latent: int) -> list[shapes.Explanation]:
    """Of every explainer, the best first."""
    items = [item for maker in explained for item in maker.of(latent)]
    items.sort(key=lambda item: (item.explainer != PERSON, 1.0 if item.value is None else -item.value))
    return [explanation(item) for item in items]


def _in_order_of_draw(feature: Feature) -> list[Example]:
    """The samples so that the first n within any range are those that a draw of n by weight from that range gives."""
    return [feature.samples[i] for i in feature._draw(np.arange(len(feature.samples)), len(feature.samples))]


@functools.lru_cache(1 << 16)
def _level(activation: float) -> float:
    """With four digits. A feature's passages have 256 levels among them, most of which come often."""
    return digits(activation, 4) if activation else 0


def _example(example: Example, feature: Feature) -> shapes.Example:
    on, labels = bool(example.activations.any()), feature.pictures or feature.rows
    shown = shapes.Example(
        activation=digits(example.activation),
        weight=digits(example.weight),
        texts=example.texts if feature.rows is None else [feature.rows.name(example.document)],
        activations=Rounded(map(_level, example.activations.tolist())) if on else [],
        peak=example.peak,
        document=example.document,
        position=example.position,
        text=example.text,
        context=example.context,
        before=example.before,
        after=example.after,
        passage=example.passage,
        start=example.start,
        label=labels.label(example.document) if labels is not None else None,
    )
    return cast(shapes.Example, Ready(shown))
