"""Features in the terminal: passages as prose, tokens shaded by activation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from monosem.analysis import TokenEffects
from monosem.features.examples import Example, Examples

ORANGE = (255, 140, 0)
LEAST_SHADE = 0.08
"""Share of a feature's maximum from which a token is shaded."""


def print_features(
    console: Console,
    latents: Sequence[int],
    examples: Examples,
    tokenizer: Any,
    effects: Sequence[TokenEffects] | None = None,
    n_passages: int = 5,
) -> None:
    """Each latent: how often and how strongly it fires, what it promotes and suppresses, its strongest passages."""
    for i, latent in enumerate(latents):
        found = examples[latent]
        if not found:
            console.print(Text(f"latent {latent}", "bold"), f"never fired in {examples.n_tokens:,} tokens\n")
            continue
        maximum = found[0].activation
        head = Text().append(f"latent {latent}", "bold")
        head.append(f"  fires on {examples.firing_rate(latent):.3%} of tokens, max {maximum:.3g}", "dim")
        console.print(head)
        if effects is not None:
            _line(console, _effects("promotes  ", effects[i].promoted))
            _line(console, _effects("suppresses", effects[i].suppressed))
        for example in found[:n_passages]:
            _line(console, _passage(example, maximum, tokenizer, console.width, console.color_system is None))
        console.print()


def token_text(tokenizer: Any, tokens: np.ndarray) -> list[str]:
    """The text of each token; a character that spans several tokens stands at the last of them."""
    texts: list[str] = []
    pending: list[int] = []
    for token in tokens.tolist():
        pending.append(token)
        text = tokenizer.decode(pending)
        if text.endswith("�") and len(pending) < 4:
            texts.append("")
            continue
        texts.append(text)
        pending = []
    return texts


def peaks_on_a_word(tokenizer: Any) -> Callable[[Example], bool]:
    """Whether a passage peaks on a whole word of at least three letters, and not on a fragment or a mark."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])

    def telling(example: Example) -> bool:
        peak = texts[example.tokens[example.peak]]
        after = example.tokens[example.peak + 1 : example.peak + 2]
        whole = not (len(after) and texts[after[0]][:1].isalpha())
        return whole and peak.startswith(" ") and len(peak) > 3 and peak[1:].isalpha()

    return telling


def _line(console: Console, text: Text) -> None:
    console.print(text, no_wrap=True, overflow="ellipsis", crop=True)


def _effects(label: str, pairs: list[tuple[str, float]]) -> Text:
    line = Text().append(f"  {label} ", "dim")
    for token, weight in pairs:
        line.append(f"«{_visible(token)}»", "blue")
        line.append(f" {weight:+.2f}  ", "dim")
    return line


def _passage(example: Example, maximum: float, tokenizer: Any, width: int, plain: bool) -> Text:
    """One line, cut around the peak so that it fits. Without colour the strongest token stands in «guillemets»."""
    texts = [_visible(t) for t in token_text(tokenizer, example.tokens)]
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


def _shade(share: float) -> str:
    """Orange over black, linear in activation; the text is black where the ground is bright."""
    ground = tuple(round(channel * min(share, 1.0)) for channel in ORANGE)
    ink = "#000000" if share > 0.45 else "#ffffff"
    return f"{ink} on rgb({ground[0]},{ground[1]},{ground[2]})"


def _visible(text: str) -> str:
    text = text.replace("\n", "↵").replace("\t", "⇥").replace("<|endoftext|>", "‖")
    return "".join(c if c.isprintable() else f"<{ord(c):02x}>" for c in text)
