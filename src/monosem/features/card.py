"""A feature as a card in a notebook. Text from data is escaped; nothing is fetched and no script runs."""

from __future__ import annotations

import base64
import functools
from html import escape

from monosem.features.feature import Example, Feature
from monosem.features.labels import Rows
from monosem.features.pictures import Pictures
from monosem.features.show import LEAST_SHADE, visible

STYLE = (
    "font:14px/1.5 system-ui,sans-serif;max-width:60em;"
    "--on:255,140,0;--effect:#3572b0;--dim:color-mix(in srgb,currentColor 60%,transparent)"
)
PASSAGES, IMAGES = 5, 12


def feature_card(feature: Feature) -> str:
    """HTML of one feature: figures, histogram, tokens, its strongest and its typical passages."""
    title = f"<b>latent {feature.latent}</b> «{escape(feature.title)}»"
    if not feature.count or feature.max is None:
        return _box(f"{title} {_dim(f'never fired in {feature.n_tokens:,} {feature.things}')}")
    figures = f"fires on {feature.rate:.3%} of {feature.n_tokens:,} {feature.things} · max {feature.max:.3g}"
    if feature.neighbours:
        figures += f" · cosine to nearest {feature.neighbours[0].cosine:.2f}"
    parts = [f"<div>{title} {_dim(figures)}</div>", _histogram(feature), _sources(feature), _tokens(feature)]
    rows = functools.partial(_images, feature.pictures) if feature.pictures is not None else _rows
    if feature.rows is not None:
        rows = functools.partial(_vectors, feature.rows)
    n = PASSAGES if feature.one_per == "text" else IMAGES
    parts.append(f"<div>{_dim(f'strongest, one per {feature.one_per}')}</div>{rows(feature.top[:n], feature.max)}")
    for interval in feature.intervals():
        label = f"{interval.low:.3g} to {interval.high:.3g}: {interval.share:.1%} of firings"
        parts.append(_folded(label, rows(interval.examples, feature.max)))
    for label, examples in (("near misses", feature.near_misses), ("silent", feature.silent)):
        parts.append(_folded(label, rows(examples, feature.max)))
    return _box("".join(parts))


def _box(content: str) -> str:
    return f'<div style="{STYLE}">{content}</div>'


def _dim(text: str) -> str:
    return f'<span style="color:var(--dim)">{text}</span>'


def _histogram(feature: Feature) -> str:
    """Bars of firings by activation; both axes are logarithmic."""
    counts = feature.histogram.counts
    heights = [0.0 if c == 0 else 4 + 36 * float(c) ** 0.5 / float(counts.max()) ** 0.5 for c in counts]
    bars = "".join(
        f'<rect x="{6 * i}" y="{40 - h:.1f}" width="5" height="{h:.1f}" fill="rgb(255,140,0)">'
        f"<title>{low:.3g} to {high:.3g}: {int(c):,}</title></rect>"
        for i, (h, c, low, high) in enumerate(
            zip(heights, counts, feature.histogram.edges, feature.histogram.edges[1:], strict=False)
        )
    )
    label = "firings by activation, in bins of a sixth of an octave; height by square root"
    return f'<svg width="{6 * len(heights)}" height="40" role="img" aria-label="{label}">{bars}</svg>'


def _tokens(feature: Feature) -> str:
    lines: list[str] = []
    for label, effects in (("promotes", feature.promoted), ("suppresses", feature.suppressed)):
        if effects:
            words = " ".join(f"{_token(e.text, 'color:var(--effect)')} {_dim(f'{e.weight:+.2f}')}" for e in effects)
            lines.append(f"<div>{_dim(label)} {words}</div>")
    if feature.firing_tokens:
        words = " ".join(f"{_token(t.text)} {_dim(f'{t.share:.0%}')}" for t in feature.firing_tokens)
        lines.append(f"<div>{_dim('fires on')} {words}</div>")
    return "".join(lines)


def _sources(feature: Feature) -> str:
    """What it has of each of several sources: bars of its shares, and its tokens there."""
    lines = [f"<div>{_dim('reads')} {escape(feature.reads)}</div>"] if feature.reads is not None else []
    for part in feature.parts:
        bar = f'<span style="display:inline-block;height:8px;width:{80 * part.share:.0f}px;background:var(--effect)">'
        words = " ".join(_token(effect.text, "color:var(--effect)") for effect in part.promoted[:4])
        said = _dim(f"{part.share:.0%} of its norm, {part.norm:.3g}")
        lines.append(f"<div>{bar}</span> {escape(part.source)} {said} {words}</div>")
    return "".join(lines)


def _token(text: str, style: str = "") -> str:
    return f'<code style="white-space:pre;background:none;{style}">«{escape(visible(text))}»</code>'


def _folded(label: str, content: str) -> str:
    return f"<details><summary>{_dim(escape(label))}</summary>{content}</details>" if content else ""


def _rows(examples: list[Example], maximum: float) -> str:
    return "".join(
        f'<div style="white-space:pre-wrap;unicode-bidi:plaintext;font-family:ui-monospace,monospace;font-size:13px">'
        f"{_dim(f'{example.activation:.3g}')} {_shaded(example, maximum)}</div>"
        for example in examples
    )


def _vectors(rows: Rows, examples: list[Example], maximum: float) -> str:
    return "".join(
        f"<div>{_dim(f'{example.activation:.3g}')} {escape(rows.name(example.document))}</div>" for example in examples
    )


def _images(pictures: Pictures, examples: list[Example], maximum: float) -> str:
    shown = "".join(_image(pictures, example, maximum) for example in examples)
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{shown}</div>' if shown else ""


def _image(pictures: Pictures, example: Example, maximum: float) -> str:
    """A thumbnail with its patches shaded; under it activation, class, and what the class token does."""
    rows, columns = pictures.rows, pictures.columns
    source = base64.b64encode(pictures.png(example.document)).decode()
    shades = "".join(
        f'<rect x="{i % columns}" y="{i // columns}" width="1" height="1" '
        f'style="fill:rgba(var(--on),{0.7 * a / maximum:.2f})"><title>{a:.3g}</title></rect>'
        for i, a in enumerate(pictures.patches(example.activations).ravel().tolist())
        if a > 0 and maximum > 0
    )
    special = example.activations[: pictures.n_special]
    words = [f"{example.activation:.3g}", pictures.label(example.document) or ""]
    words += [f"class token {special[0]:.3g}"] if len(special) and special[0] > 0 else []
    return (
        f'<figure style="margin:0;font-size:12px"><svg width="96" height="{96 * rows // columns}" '
        f'viewBox="0 0 {columns} {rows}" role="img" aria-label="image {example.document}">'
        f'<image href="data:image/png;base64,{source}" width="{columns}" height="{rows}" preserveAspectRatio="none"'
        f' style="image-rendering:pixelated"/>{shades}</svg>'
        f"<figcaption>{_dim(escape(' '.join(filter(None, words))))}</figcaption></figure>"
    )


def _shaded(example: Example, maximum: float) -> str:
    pieces: list[str] = []
    for i, (text, activation) in enumerate(zip(example.texts, example.activations.tolist(), strict=True)):
        share = min(1.0, activation / maximum) if maximum > 0 else 0.0
        style = f"background:rgba(var(--on),{share:.2f})" if share >= LEAST_SHADE else ""
        style += ";text-decoration:underline" if i == example.peak else ""
        title = f' title="{activation:.3g}"' if activation > 0 else ""
        shown = escape(visible(text))
        pieces.append(f'<span style="{style}"{title}>{shown}</span>' if style or title else shown)
    return "".join(pieces)


Feature.as_card = feature_card
