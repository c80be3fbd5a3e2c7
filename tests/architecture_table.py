"""What every architecture does behind every transform: declared once, tested in test_architecture_table.py.

`python tests/architecture_table.py` writes the table in docs/architectures.md from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from monosem.sae.transform import TransformKind

DOCS = Path(__file__).parents[1] / "docs" / "architectures.md"
BEGIN, END = "<!-- the table: python tests/architecture_table.py -->", "<!-- end of the table -->"

ALIKE = {"standardise": "layer_norm", "row_norm": "layer_norm", "row_centre": "layer_norm"}
"""Transforms of which all that is true of another is true."""
TRANSFORMS: tuple[TransformKind, ...] = tuple(kind for kind in get_args(TransformKind) if kind not in ALIKE)

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "topk": ("topk", {"k": 3}),
    "batchtopk": ("batchtopk", {"k": 3}),
    "matryoshka": ("matryoshka", {"k": 3}),
    "relu": ("relu", {}),
    "relu, tied": ("relu", {"tied": True}),
    "gated": ("gated", {}),
    "gated, d_out": ("gated", {"d_out": 5}),
    "prolu": ("prolu", {}),
    "prolu, d_out": ("prolu", {"d_out": 5}),
    "jumprelu": ("jumprelu", {}),
    "jumprelu, d_out": ("jumprelu", {"d_out": 5}),
    "switch": ("switch", {"k": 2, "n_experts": 4}),
    "transcoder": ("transcoder", {"k": 3, "d_out": 5}),
    "skip_transcoder": ("skip_transcoder", {"k": 3, "d_out": 5}),
    "jumprelu_skip_transcoder": ("jumprelu_skip_transcoder", {"d_out": 5}),
    "cross_layer_transcoder": ("cross_layer_transcoder", {"k": 3, "n_layers": 3, "d_out": 5}),
    "crosscoder": ("crosscoder", {"k": 3, "n_sources": 2}),
    "crosscoder, l1": ("crosscoder", {"n_sources": 2, "sparsity": "l1", "k": 3}),
    "matching_pursuit": ("matching_pursuit", {"k": 3}),
}
"""Rows: every architecture, and variants of which something else is true; with d_out, predicting another site."""

OPERATIONS: dict[str, str] = {
    "fold": "same reconstructions, same latents on",
    "unfold": "same reconstructions, same latents on",
    "prune": "same codes of those that stay",
    "convert": "to jumprelu: same codes",
    "fix_suppression": "same latents on, an error that is no larger",
    "pursue": "what is left is orthogonal to the rows chosen",
    "save": "loaded, the same bits",
    "evaluate": "on ready rows: the FVU of its definition",
    "aux_k": "dead latents learn, others do not notice",
    "ghost": "as aux_k",
    "ghost_scaled": "as aux_k",
    "pre_activation": "as aux_k",
    "resample": "dead latents start anew, others do not notice",
}
"""Columns, and the identity that is tested."""

LIVE: dict[str, str] = {
    "train_together": "all at once from one pass of a model",
    "resume": "stopped and called again, the same bits",
    "check": "fits its own model, and no other",
    "harvest": "into a store, of several sources too",
    "explore": "cards, neighbours by raw rows, matches in another dictionary",
}
"""Those that need a model, tested in test_architecture_table_live.py."""

EVERY = tuple(ARCHITECTURES)
SEVERAL = ("cross_layer_transcoder", "crosscoder", "crosscoder, l1")
PER_ROW_OR_WHITE: tuple[TransformKind, ...] = ("layer_norm", "whiten", "whiten_pca")


@dataclass(frozen=True)
class Refusal:
    """Cells in which an error says why not and what serves instead."""

    operations: tuple[str, ...]
    architectures: tuple[str, ...]
    transforms: tuple[TransformKind, ...]
    words: str
    """Part of the message, as a regular expression."""
    because: str


REFUSED = (
    Refusal(
        ("make",),
        SEVERAL,
        PER_ROW_OR_WHITE,
        "choose centre_scale",
        "several sources are each centred and scaled, that alone",
    ),
    Refusal(
        ("fold", "unfold"),
        tuple(kind for kind in EVERY if kind not in SEVERAL),
        ("layer_norm",),
        "no weights can hold",
        "layer_norm is another map for every row, which no weights can hold",
    ),
    Refusal(
        ("fold", "unfold"),
        ("relu, tied",),
        ("centre_scale", "scale", "whiten", "whiten_pca"),
        "convert",
        "one matrix cannot be multiplied as encoder and divided as decoder: convert it to jumprelu first",
    ),
    Refusal(
        ("fold", "unfold"),
        ("prolu, d_out",),
        ("centre_scale", "centre", "whiten", "whiten_pca"),
        "convert",
        "its bias cannot take up a shift of what it reads: convert it to jumprelu first",
    ),
    Refusal(
        ("fold", "unfold"),
        ("matching_pursuit",),
        ("whiten", "whiten_pca"),
        "angles",
        "it searches by angles, which whitening changes; `decoder_directions` gives its rows in raw units",
    ),
    Refusal(
        ("fold", "unfold"),
        ("crosscoder",),
        ("centre_scale", "scale"),
        "scaled unlike",
        "its latents compete by norms over sources that are scaled unlike; `decoder_directions` gives raw rows",
    ),
    Refusal(
        ("prune",),
        ("switch", "cross_layer_transcoder"),
        TRANSFORMS,
        "of equal size",
        "latents belong to experts or layers of equal size",
    ),
    Refusal(
        ("convert",),
        (
            *("topk", "switch", "transcoder", "skip_transcoder", "jumprelu", "jumprelu, d_out", "matching_pursuit"),
            "jumprelu_skip_transcoder",
            *SEVERAL,
        ),
        TRANSFORMS,
        "cannot be converted",
        "no other architecture has these codes",
    ),
    Refusal(
        ("fix_suppression",),
        ("relu, tied", "matching_pursuit"),
        TRANSFORMS,
        "encodes with its decoder",
        "its encoder is its decoder, which cannot change alone: convert relu to jumprelu first",
    ),
    Refusal(("fix_suppression",), SEVERAL, TRANSFORMS, "several places", "what it writes to several places decides"),
    Refusal(
        ("pursue",),
        ("cross_layer_transcoder",),
        TRANSFORMS,
        "no single W_dec",
        "decoders of several layers: use its encoder",
    ),
    Refusal(
        ("pursue",),
        ("skip_transcoder", "jumprelu_skip_transcoder"),
        TRANSFORMS,
        "takes its inputs",
        "its skip takes inputs of which a search knows nothing: use its encoder, or a transcoder",
    ),
    Refusal(
        ("resample",),
        ("cross_layer_transcoder",),
        TRANSFORMS,
        "choose another revival",
        "decoders of several layers: choose another revival",
    ),
)


def refusal(operation: str, architecture: str, transform: TransformKind) -> Refusal | None:
    """The refusal of one cell, if it is one."""
    for known in REFUSED:
        if operation in known.operations and architecture in known.architectures and transform in known.transforms:
            return known
    return None


def made(architecture: str) -> list[TransformKind]:
    """The transforms that an architecture can have."""
    return [transform for transform in TRANSFORMS if refusal("make", architecture, transform) is None]


def table() -> str:
    """The table in Markdown: "yes", or the transforms that are refused and the number of the reason below."""
    operations = [*OPERATIONS, *LIVE]
    reasons = list(dict.fromkeys(known.because for known in REFUSED))
    lines = [f"| | transforms | {' | '.join(operations)} |", "|" + "---|" * (len(operations) + 2)]
    for architecture in ARCHITECTURES:
        transforms = made(architecture)
        every = "all" if len(transforms) == len(TRANSFORMS) else f"{', '.join(transforms)} (1)"
        cells = [_cell(operation, architecture, transforms, reasons) for operation in operations]
        lines.append(f"| {architecture} | {every} | {' | '.join(cells)} |")
    lines += ["", "What is exact where it says yes:", ""]
    lines += [f"- `{name}`: {identity}" for name, identity in {**OPERATIONS, **LIVE}.items()]
    lines += ["", "Refused, in words, because", ""]
    lines += [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join(lines) + "\n"


def _cell(operation: str, architecture: str, transforms: list[TransformKind], reasons: list[str]) -> str:
    found = {transform: refusal(operation, architecture, transform) for transform in transforms}
    refused = {transform: known for transform, known in found.items() if known is not None}
    if not refused:
        return "yes"
    numbers = sorted({reasons.index(known.because) + 1 for known in refused.values()})
    said = f"({', '.join(map(str, numbers))})"
    return f"no {said}" if len(refused) == len(transforms) else f"not {', '.join(refused)} {said}"


def written(page: str) -> str:
    """A page with the table in its place."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    DOCS.write_text(written(DOCS.read_text()))
