"""What a run holds in memory, part by part, at the moments at which it holds most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monosem.features import HarvestSettings
from monosem.features.state import HELD
from monosem.features.streaming import N_BINS, Layout
from monosem.kernels import Precision
from monosem.models.outline import Rehearsal
from monosem.planning.hardware import Hardware
from monosem.planning.shapes import Dictionary, Subject

TILE_ROWS, TILE_BYTES = 256, 2**30
"""Rows of pre-activations at a time on a CPU; bytes on a GPU."""
INITIALISED_ON = 65_536
"""Rows on which a dictionary begins, in float64."""
FIT_ROWS = 32_768
"""Rows on which an evaluation fits its controls."""
POOL_ROWS = 131_072
"""Rows of ready vectors that are shuffled together."""
LOSS_POSITIONS, LOSS_COPIES = 4_096, 5
"""Positions whose logits are there at a time, and how many times."""
MIXED, KEPT = 2.5, 1.5
"""Buffers of a live source: when one is filled and is put into its new order, and while its rows are used. Beside its
own rows, half as many are there for the next one."""

ROWS_HELD = {"skip_transcoder": 6.5, "matryoshka": 11.2, "cross_layer_transcoder": 8.1, "matching_pursuit": 10.6}
ROWS_HELD_ELSE, REVIVED = 5.6, 1.3
"""Tensors as large as a batch that a step has at most, and how many of them are of dead latents; counted."""
DENSE = {"relu": 13.0, "prolu": 13.4, "jumprelu": 24.5, "jumprelu_skip_transcoder": 24.5, "gated": 29.2}
"""Bytes for every row and latent, where half of the latents are on as a run begins."""
COPIED = {"crosscoder": 4.0, "matryoshka": 5.6, "relu": 4.0, "prolu": 4.0}
"""Bytes for each number of W_enc: it is laid out anew with sources side by side, or gradients are made in parts."""
READING_ON = "model: reading on from reconstructions"
AN_ENTRY = 24
"""Bytes for every latent that is on in a row."""


@dataclass(frozen=True)
class Part:
    """Something that takes room."""

    name: str
    bytes: float
    counted: str
    """How it is reckoned, in words."""
    host: bool = False
    """Whether it is in the memory of the host, where a GPU has its own."""


@dataclass(frozen=True)
class Moment:
    """A time at which much is held."""

    name: str
    parts: list[Part]

    def total(self, host: bool | None = None) -> float:
        """Bytes: of the host, of the device, or of both."""
        return sum(part.bytes for part in self.parts if host is None or part.host == host)


def buffer_rows(subject: Subject) -> int:
    """Rows of the shuffle buffer: whole contexts."""
    if not subject.outlines:
        return POOL_ROWS
    wished = subject.config.activations.buffer_tokens
    return wished if subject.config.store is not None else max(1, wished // subject.length) * subject.length


def standing(subject: Subject, hardware: Hardware, screen: Precision, reads: bool = False) -> list[Part]:
    """What is there all the time of training: the model, and the state of all dictionaries.

    Args:
        subject: the run.
        hardware: where.
        screen: in which precision candidates are looked for.
        reads: whether the model is run, whatever training does.
    """
    found = [
        Part(
            "Python and its libraries",
            hardware.libraries_gib * 2**30,
            "of a run that is small",
            host=not hardware.is_cpu,
        )
    ]
    if hardware.context_gib:
        found.append(Part("CUDA context", hardware.context_gib * 2**30, "the driver's, about"))
    if subject.loaded or (reads and subject.outlines):
        n = sum(outline.n_parameters for outline in subject.outlines)
        found.append(Part("model", subject.weight_bytes, f"{n:,} numbers of 4 bytes"))
    each = subject.dictionaries
    own = sum(dictionary_numbers(one) for one in each)
    gradients = own if hardware.is_cpu else max(dictionary_numbers(one) for one in each)
    found.append(Part("dictionary: parameters", 4 * own, f"{own:,} numbers of 4 bytes"))
    found.append(Part("dictionary: gradients", 4 * gradients, "as many"))
    found.append(Part("dictionary: optimiser", 8 * own, "two means for each"))
    if screen != "float32":
        a_number = 2 if screen == "bfloat16" or hardware.is_cpu else 1  # a CPU has integers twice: packed, too
        copies = [a_number * one.sae.W_enc.numel() / one.parts for one in each]
        size = sum(copies) if hardware.is_cpu else max(copies)
        counted = f"{a_number} byte{'s' if a_number > 1 else ''} for each number of W_enc"
        found.append(Part(f"dictionary: encoder in {screen}", size, counted))
    return found


def dictionary_numbers(one: Dictionary) -> int:
    """Numbers of a dictionary's parameters that one process has: its share of what belongs to latents, and the rest."""
    if one.parts == 1:
        return one.parameters
    by_latent = sum(p.numel() for p in one.sae.parameters() if p.ndim and len(p) == one.sae.n_latents)
    return -(-by_latent // one.parts) + one.parameters - by_latent


def step_bytes(one: Dictionary, rows: int, hardware: Hardware) -> float:
    """What one step makes on the way, beside gradients.

    The most of: two tiles of pre-activations beside the batch, while latents are selected; and a few tensors as large
    as the batch, with all that is on, while gradients are made.
    """
    sae, n = one.sae, one.sae.n_latents // one.parts
    seen = n // getattr(sae, "n_experts", getattr(sae, "n_layers", 1))
    at_once = rows // getattr(sae, "n_experts", 1)
    tile = min(at_once, 2 * TILE_ROWS) * seen * 4 if hardware.is_cpu else min(rows * seen * 4, 2 * TILE_BYTES)
    selecting = tile + rows * (8 * one.d_in + 8 * (one.k or 0))
    dense = DENSE.get(sae.architecture, 0.0) * n
    held = ROWS_HELD.get(sae.architecture, ROWS_HELD_ELSE) if not dense else 4.0
    if not dense and one.config.training.revival.method != "aux_k":
        held -= REVIVED
    evaluating = rows * (held * 2 * (one.d_in + one.d_out) + AN_ENTRY * (one.k or 0) + dense)
    return max(selecting, evaluating) + COPIED.get(sae.architecture, 0.0) * sae.W_enc.numel() / one.parts


def training(
    subject: Subject, hardware: Hardware, screen: Precision, rehearsed: Sequence[Rehearsal], processes: int
) -> list[Moment]:
    """The moments of training: the beginning, a step, and where the buffer is filled."""
    always, columns = standing(subject, hardware, screen), subject.columns
    rows, live = buffer_rows(subject), subject.live
    words = f"{rows:,} rows of {columns:,} numbers of 4 bytes"
    pool = rows * columns * 4.0
    sample = min(INITIALISED_ON, rows // 2 if live else rows)
    widest = max(max(one.d_in, one.d_out) for one in subject.dictionaries)
    kept = Part("shuffle buffer", pool * (KEPT if live else 1), (f"{KEPT} x " if live else "") + words)
    begun = Part("shuffle buffer", pool, words)
    fitting = Part("fitting the input transform", 24.0 * sample * widest, f"{sample:,} rows in float64, three times")
    most = max(subject.dictionaries, key=lambda one: step_bytes(one, own_rows(one, processes), hardware))
    batch = own_rows(most, processes)
    step = Part("a step", step_bytes(most, batch, hardware), f"{batch:,} rows: tiles, residuals, latents that are on")
    on = [reading_on_part(subject, one) for one in subject.dictionaries if one.config.loss.end_to_end]
    always += [max(on, key=lambda part: part.bytes)] if on else []
    early = [part for part in always if part.name not in ("dictionary: gradients", READING_ON)]
    found = [Moment("beginning", [*early, begun, fitting]), Moment("a step", [*always, kept, step])]
    if live:
        found.append(Moment("filling the buffer", [*always, kept, forward_part(rehearsed)]))
        mixing = Part("shuffle buffer", MIXED * pool, f"{MIXED} x {words}")
        found.append(Moment("shuffling the buffer", [*always, mixing]))
    return found


def reading_on_part(subject: Subject, one: Dictionary) -> Part:
    """What a model makes, and keeps for the gradient, as it reads on from reconstructions."""
    read = subject.reads_on(one)
    positions = max(each.positions for each in read)
    logits = 4.0 * positions * vocabulary(subject)
    size = 2 * logits + max(each.tensor_bytes for each in read)
    return Part(READING_ON, size, f"{positions:,} positions at a time, kept for the gradient")


def own_rows(one: Dictionary, processes: int) -> int:
    """Rows of a batch that one process has."""
    return max(1, one.batch * one.parts // processes)


def forward_part(rehearsed: Sequence[Rehearsal]) -> Part:
    """What one forward pass makes on the way."""
    positions = max((one.positions for one in rehearsed), default=0)
    size = max((one.tensor_bytes for one in rehearsed), default=0)
    return Part("model: forward pass", size, f"{positions:,} positions at a time, to the last hook point")


def evaluation(
    subject: Subject, hardware: Hardware, to_hook: Sequence[Rehearsal], whole: Sequence[Rehearsal]
) -> list[Moment]:
    """The moments of an evaluation with its harvest, of the largest dictionary."""
    one = max(subject.dictionaries, key=lambda each: each.parameters)
    own, always = (
        subject.config.evaluation,
        [part for part in standing(subject, hardware, "float32", reads=True) if "dictionary" not in part.name],
    )
    copies = 2 if own.controls else 1
    words = "with an untrained one beside it" if copies == 2 else "as they are"
    always.append(Part("dictionary: parameters", 4.0 * one.parameters * copies, f"{one.parameters:,} numbers, {words}"))
    always.append(Part("harvest", harvest_bytes(one, subject), "fixed for each latent, and the log", host=True))
    rows = min(FIT_ROWS, own.tokens)
    fitting = Part("fitting PCA", (4 + 24) * rows * float(one.d_out), f"{rows:,} rows, in float64 too")
    found = [Moment("evaluating", [*always, fitting, forward_part(to_hook)])]
    if own.loss_tokens and whole:
        share = min(1.0, LOSS_POSITIONS / max(1, whole[0].positions))
        outputs = max(share * each.tensor_bytes for each in whole)
        logits = LOSS_COPIES * 4.0 * LOSS_POSITIONS * max(vocabulary(subject), 1)
        losses = Part("losses", outputs + logits, f"logits of {LOSS_POSITIONS:,} positions, {LOSS_COPIES} times")
        found.append(Moment("measuring losses", [*always, losses]))
    return found


def vocabulary(subject: Subject) -> int:
    """Tokens that the model predicts among; 0 where it predicts none."""
    sizes = [getattr(outline.model.module.config, "vocab_size", 0) or 0 for outline in subject.outlines]
    return max(sizes, default=0)


def harvest_bytes(one: Dictionary, subject: Subject, settings: HarvestSettings | None = None) -> float:
    """What a harvest holds of one dictionary: arrays of fixed size for each latent, and the log of firings."""
    s, n = settings or HarvestSettings(), one.sae.n_latents
    return n * (latent_bytes(s, subject.length, vocabulary(subject))) + 1.25 * s.log_firings * (4 if n <= 2**16 else 6)


def latent_bytes(s: HarvestSettings, context_length: int, vocabulary_size: int) -> float:
    """Of a harvest, for each latent: its examples with their windows, its totals, and its bit of silent windows."""
    layout = Layout(HELD * s.top, s.sample, s.near, s.before, s.after, s.seed)
    window = min(context_length, s.before + s.after + 1)
    token = 2 if vocabulary_size <= 2**16 else 4
    an_example = 8 + 4 + 4 + 4 + 4 + 2 + np.min_scalar_type(window).itemsize + window * (token + 1)
    return layout.slots * an_example + layout.n_top * 4 + (8 + 8 + 8 + 4 + N_BINS * 4) + s.silent_windows / 8


def storing(subject: Subject, hardware: Hardware, rehearsed: Sequence[Rehearsal]) -> list[Moment]:
    """The moment of `monosem store`: no more than the model and what it gives at a time."""
    always = [part for part in standing(subject, hardware, "float32", reads=True) if "dictionary" not in part.name]
    positions = max((one.positions for one in rehearsed), default=0)
    rows = Part("rows on their way", 3 * 4.0 * positions * subject.columns, f"{positions:,} rows, three times")
    return [Moment("storing", [*always, forward_part(rehearsed), rows])]
