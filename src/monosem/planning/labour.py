"""The work of a run by kind, and how long it takes at given rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from monosem.kernels import Precision
from monosem.models.outline import Rehearsal
from monosem.planning.hardware import Hardware, Kind
from monosem.planning.memory import FIT_ROWS, buffer_rows, dictionary_numbers, own_rows, vocabulary
from monosem.planning.shapes import Dictionary, Subject

SCREENED = {"float32": 0.0, "bfloat16": 1.25, "int8": 2.0, "float8": 2.0}
"""Candidates that are evaluated exactly for every latent that is on, where few bits find them."""
ROUNDED = {"float32": 0.0, "bfloat16": 6.0, "int8": 11.0, "float8": 9.0}
"""Bytes of memory that rounding the encoder moves, for each of its numbers: eight bits want the largest first."""
COMPARED = 12
"""Times that a row's logits are read or written, where the model's output with a reconstruction is compared."""
UNSPARSE = 0.1
"""Share of a run in which an architecture that learns its L0 has so many latents on that it is evaluated densely."""
LEARNED_K = 64
"""Latents on in a row, where nothing says how many will be."""
STORED_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PLACE_BYTES = 12
"""Document, position and token of a stored row."""
STEP_S, FIRING_S, LATENT_S = 0.004, 1.2e-7, 12.5e-3
"""Seconds on a CPU that starts in the time of the table: of a step beside its arithmetic, of a firing in a harvest, of
raising, writing and explaining a latent."""


@dataclass(frozen=True)
class Stage:
    """A part of a run, with all its work for one device."""

    name: str
    tokens: int
    """Rows that it is measured by."""
    work: dict[Kind, float] = field(default_factory=dict)
    steps: float = 0
    other_s: float = 0.0
    """Seconds that do not depend on the device."""

    def seconds(self, rates: Mapping[Kind, float]) -> float:
        """How long it takes: one kind of work after another."""
        return sum(amount / rates[kind] for kind, amount in self.work.items()) + self.other_s


def training(
    subject: Subject,
    rehearsed: Sequence[Rehearsal],
    hardware: Hardware,
    processes: int,
    dtype: str = "bfloat16",
    screen: Precision = "bfloat16",
) -> Stage:
    """Training all dictionaries, for one of so many processes."""
    tokens, work = subject.tokens, dict[Kind, float]()
    sent, made = gathered_bytes(subject, processes), 0
    for one in subject.dictionaries:
        made += one.steps
        sent += one.steps * sent_bytes(one, processes)
        for kind, amount in step_work(one, own_rows(one, processes), screen).items():
            work[kind] = work.get(kind, 0.0) + one.steps * amount
    steps = max(one.steps for one in subject.dictionaries)
    way: Kind = "network" if processes > hardware.devices_a_node else "link"
    if sent:
        work[way] = sent
    if subject.live:
        work["model"] = flops_a_token(rehearsed) * positions_read(subject) / processes
        work["memory"] = work.get("memory", 0.0) + 16.0 * subject.columns * positions_read(subject)
    elif subject.config.store is not None:
        work["disk"] = float(tokens * subject.columns * STORED_BYTES[dtype])
    for one in subject.dictionaries:
        if one.config.loss.end_to_end:
            for kind, amount in reading_on_work(subject, one).items():
                work[kind] = work.get(kind, 0.0) + amount * one.config.tokens / processes
    return Stage("training", tokens, work, steps, STEP_S * made)


def reading_on_work(subject: Subject, one: Dictionary) -> dict[Kind, float]:
    """Of one row of an end-to-end loss.

    The model runs as it is, and from the hook point on with reconstructions, there and back for the gradient.
    Contexts that lie in two batches are gone through twice.
    """
    twice = 1 + subject.length / one.batch
    flops = sum(each.flops_a_position for each in subject.reads_on(one))
    places = len(subject.reads_on(one))
    return {"model": twice * flops, "memory": 4.0 * COMPARED * vocabulary(subject) * places}


def step_work(one: Dictionary, rows: int, screen: Precision) -> dict[Kind, float]:
    """One step of one dictionary, of so many rows, on one process.

    The encoder multiplies every row with every latent. After selection, four sums touch the rows of latents that are
    on: the reconstruction, its products with the error, and the gradients of decoder and encoder. Adam reads four
    numbers for every parameter and writes three; the gradient is written once.
    """
    share = 1 / one.parts
    k = (one.k or LEARNED_K) * share
    dense = UNSPARSE if one.k is None else 0.0
    screened = SCREENED[screen] * one.read
    weights = one.sae.n_latents * share
    own = dictionary_numbers(one)
    return {
        "matmul": 2.0 * rows * (one.encoder * share + dense * weights * (3 * one.written + one.read)),
        "sparse": 4.0 * rows * (1 - dense) * k * (one.read + 3 * one.written + screened),
        "memory": 32.0 * own
        + ROUNDED[screen] * one.sae.W_enc.numel() * share
        + 4.0 * rows * 10 * (one.d_in + one.d_out),
    }


def sent_bytes(one: Dictionary, processes: int) -> float:
    """What a process sends in one step, for one dictionary; an all-reduce of s bytes over n sends 2 s (n-1)/n.

    Latents over p processes: k candidates of each row to p - 1 others, and a sum of the reconstructions of its rows and
    of the gradients of what all have: nothing of it grows with n_latents. Rows over q groups: a sum of the gradients of
    the latents that a process has.
    """
    parts, bands = one.parts, max(1, processes // one.parts)
    rows = own_rows(one, processes)
    within = rows * 4.0 * ((one.k or LEARNED_K) * (parts - 1) + 2 * one.d_out * (parts - 1) / parts)
    between = 4.0 * dictionary_numbers(one) * 2 * (bands - 1) / bands
    return within + between


def gathered_bytes(subject: Subject, processes: int) -> float:
    """What a process gets of the activations that others' passes of the model give: every one has the whole buffer."""
    return 4.0 * subject.columns * positions_read(subject) * (processes - 1) / processes if subject.live else 0.0


def flops_a_token(rehearsed: Sequence[Rehearsal]) -> float:
    """Of the models' forward passes to the last hook point."""
    return sum(one.flops_a_position for one in rehearsed)


def positions_read(subject: Subject) -> int:
    """Positions that go through the model for a run: whole buffers, of which the first one gives half its rows."""
    block = buffer_rows(subject)
    return (1 + max(0, math.ceil((subject.tokens - block / 2) / block))) * block


def storing(subject: Subject, rehearsed: Sequence[Rehearsal], processes: int, dtype: str) -> Stage:
    """`monosem store`: one pass of the model, and its rows to the disk."""
    tokens = subject.tokens
    work: dict[Kind, float] = {
        "model": flops_a_token(rehearsed) * tokens / processes,
        "disk": stored_bytes(subject, dtype),
        "memory": 12.0 * subject.columns * tokens / processes,
    }
    return Stage("storing", tokens, work)


def stored_bytes(subject: Subject, dtype: str) -> float:
    """Of a store with all the tokens of a run."""
    return subject.tokens * float(subject.columns * STORED_BYTES[dtype] + PLACE_BYTES)


def evaluation(subject: Subject, to_hook: Sequence[Rehearsal], whole: Sequence[Rehearsal]) -> Stage:
    """Evaluation, harvest and explanations of all dictionaries, one after the other, on one device."""
    own, work, other = subject.config.evaluation, dict[Kind, float](), 0.0
    hook, output = flops_a_token(to_hook), flops_a_token(whole)
    replaced = 2 + 1 + (3 if own.controls else 0) + 2  # the last two: random errors, in one context of three
    for one in subject.dictionaries:
        read = own.tokens + min(FIT_ROWS, own.tokens)
        dictionaries = 2 if own.controls else 1
        k = one.k or LEARNED_K
        amounts: dict[Kind, float] = {
            "model": hook * read,
            "matmul": 2.0 * read * one.encoder * dictionaries,
            "sparse": 4.0 * read * k * one.written * dictionaries,
        }
        if whole:
            amounts["model"] += own.loss_tokens * (output + replaced * max(output - hook, 0.0))
            amounts["memory"] = 4.0 * own.loss_tokens * vocabulary(subject) * 8 * (1 + replaced)
        for kind, amount in amounts.items():
            work[kind] = work.get(kind, 0.0) + amount
        other += FIRING_S * own.tokens * k + LATENT_S * one.sae.n_latents
    return Stage("evaluation", own.tokens * len(subject.dictionaries), work, 0, other)
