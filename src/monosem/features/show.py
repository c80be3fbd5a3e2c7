"""Features in the terminal: passages as prose, tokens shaded by activation."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from monosem.features.explanations import Explanation, Explanations
from monosem.features.feature import Example, Feature
from monosem.features.pictures import Pictures

ORANGE = (255, 140, 0)
SHADES = "·░▒▓█"
LEAST_SHADE = 0.08
"""Share of a feature's maximum from which a token is shaded."""


def print_features(
    console: Console, features: Sequence[Feature], n_passages: int = 5, explanations: Explanations | None = None
) -> None:
    """Each feature: how often and how strongly it fires, what it means, what it promotes and suppresses, its passages.

    Passages are the strongest; what it means is said where explanations are given.
    """
    for feature in features:
        if not feature.count or feature.max is None:
            console.print(
                Text(f"latent {feature.latent}", "bold"),
                f"never fired in {feature.n_tokens:,} {feature.things}\n",
                soft_wrap=True,
            )
            continue
        head = Text().append(f"latent {feature.latent}", "bold")
        if feature.name is not None:
            head.append(f"  {visible(feature.name)}", "bold")
        head.append(f"  fires on {feature.rate:.3%} of {feature.things}, max {feature.max:.3g}", "dim")
        console.print(head)
        for said in explanations.of(feature.latent) if explanations is not None else ():
            console.print(_explained(said))
        _sources(console, feature)
        for label, effects in (("promotes  ", feature.promoted), ("suppresses", feature.suppressed)):
            if effects:
                _line(console, _effects(label, [(effect.text, effect.weight) for effect in effects]))
        for example in feature.top[:n_passages]:
            _line(console, _example(feature, example, console.width, console.color_system is None))
        console.print()


def _explained(said: Explanation) -> Table:
    """What it means, who says so, and how well that holds; on several lines if need be."""
    label = "  means      " if said.side == "input" else "  does       "
    named = {"rule": "F1"}
    scores = ", ".join(f"{named.get(name, name)} {score.value:.2f}" for name, score in said.scores.items())
    line = Table.grid()
    line.add_row(Text(label, "dim"), Text(said.text).append(f"  ({said.explainer}{scores and ': '}{scores})", "dim"))
    return line


def _example(feature: Feature, example: Example, width: int, plain: bool) -> Text:
    if feature.rows is not None:
        return Text().append(f"  {example.activation:7.3g}  ", "dim").append(feature.rows.name(example.document))
    if feature.pictures is not None:
        return _image(example, feature.pictures, feature.max or 0.0)
    return _passage(example, feature.max or 0.0, width, plain)


def _sources(console: Console, feature: Feature) -> None:
    """What it has of each of several sources, a line each."""
    if feature.reads is not None:
        _line(console, Text().append("  reads      ", "dim").append(feature.reads))
    verb = "writes to " if feature.reads is not None else "source    "
    for part in feature.parts:
        line = Text().append(f"  {verb} ", "dim").append(part.source)
        cosines = [c for other, c in zip(feature.parts, part.cosines, strict=False) if other is not part]
        alike = "  cos " + " ".join("-" if c is None else f"{c:.2f}" for c in cosines) if cosines else ""
        line.append(f"  {part.share:.0%} of its norm, {part.norm:.3g}{alike if feature.reads is None else ''}", "dim")
        if part.promoted:
            line.append("  ").append(" ".join(f"«{visible(effect.text)}»" for effect in part.promoted[:4]), "blue")
        _line(console, line)


def feature_text(feature: Feature, width: int = 110) -> str:
    """A feature as plain text: its strongest passages, and what is typical of every range of activation."""
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, highlight=False)
    print_features(console, [feature])
    for interval in feature.intervals(examples=2):
        if interval.count:
            console.print(f"  {interval.low:.3g} to {interval.high:.3g}: {interval.share:.1%} of firings")
            for example in interval.examples:
                _line(console, _example(feature, example, width, plain=True))
    for label, pairs in (
        ("fires on", [(f"«{visible(t.text)}»", f"{t.share:.0%}") for t in feature.firing_tokens]),
        ("nearest", [(str(n.latent), f"{n.cosine:.2f}") for n in feature.neighbours]),
        ("fires with", [(str(c.latent), f"{c.share:.0%}, {c.lift:.3g} times chance") for c in feature.cofiring]),
    ):
        if pairs:
            _line(console, Text(f"  {label}: " + "  ".join(f"{name} ({value})" for name, value in pairs)))
    return out.getvalue().rstrip()


def _line(console: Console, text: Text) -> None:
    console.print(text, no_wrap=True, overflow="ellipsis", crop=True)


def _effects(label: str, pairs: list[tuple[str, float]]) -> Text:
    line = Text().append(f"  {label} ", "dim")
    for token, weight in pairs:
        line.append(f"«{visible(token)}»", "blue")
        line.append(f" {weight:+.2f}  ", "dim")
    return line


def _passage(example: Example, maximum: float, width: int, plain: bool) -> Text:
    """One line, cut around the peak so that it fits. Without colour the strongest token stands in «guillemets»."""
    texts = [visible(t) for t in example.texts]
    sizes = [cell_len(text) for text in texts]
    line = Text().append(f"  {example.activation:7.3g}  ", "dim")
    first, last = example.peak, example.peak
    room = width - len(line) - sizes[example.peak] - (2 if plain else 0)
    while True:
        before = sizes[first - 1] if first > 0 else 10**6
        after = sizes[last + 1] if last + 1 < len(texts) else 10**6
        if min(before, after) > room:
            break
        if (before <= room and (last - example.peak) * 2 >= example.peak - first) or after > room:
            first, room = first - 1, room - before
        else:
            last, room = last + 1, room - after
    for i in range(first, last + 1):
        share = float(example.activations[i]) / maximum
        text = f"«{texts[i]}»" if plain and i == example.peak else texts[i]
        line.append(text, _shade(share) if share >= LEAST_SHADE else "")
    return line


def _image(example: Example, pictures: Pictures, maximum: float) -> Text:
    """One line: the image, its class, where the feature is strongest, and its patches, row by row, as shades."""
    label = pictures.label(example.document)
    line = Text().append(f"  {example.activation:7.3g}  ", "dim")
    line.append(f"image {example.document}" + (f" ({label})" if label else "") + f", {example.texts[example.peak]}  ")
    for row in pictures.patches(example.activations):
        line.append("".join(SHADES[min(4, int(np.ceil(4 * a / maximum)))] if a > 0 else SHADES[0] for a in row) + " ")
    return line


def _shade(share: float) -> str:
    """Orange over black, linear in activation; the text is black where the ground is bright."""
    ground = tuple(round(channel * min(share, 1.0)) for channel in ORANGE)
    ink = "#000000" if share > 0.45 else "#ffffff"
    return f"{ink} on rgb({ground[0]},{ground[1]},{ground[2]})"


def visible(text: str) -> str:
    """Text with its line ends, tabs, separators and control characters made visible."""
    text = text.replace("\n", "↵").replace("\t", "⇥").replace("<|endoftext|>", "‖")
    return "".join(c if c.isprintable() else f"<{ord(c):02x}>" for c in text)


Feature.as_text = feature_text
