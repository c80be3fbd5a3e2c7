"""What would fit, where a run does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from monosem.planning.hardware import GIB
from monosem.planning.planned import Plan
from monosem.planning.shapes import Subject, resized

LEAST_BATCH, LEAST_BUFFER, MOST_GPUS = 256, 8_192, 4096

Planner = Callable[[Subject, int], Plan]


def remedies(subject: Subject, gpus: int, planned: Planner) -> list[str]:
    """Changes each of which is enough by itself; if none is, those that are together.

    Args:
        subject: what does not fit.
        gpus: on so many devices.
        planned: makes a plan of another.
    """

    def needs(changed: Subject, n: int = gpus) -> float:
        return planned(changed, n).memory_bytes

    have = planned(subject, gpus).hardware.memory_gib * GIB
    found = list[str]()
    for words, changed, n in _alone(subject, gpus):
        size = needs(changed, n)
        if size <= have:
            found.append(f"{words} ({size / GIB:,.1f} GiB)")
    if found:
        return list({line.partition("=")[0]: line for line in reversed(found)}.values())[::-1]
    said, least = list[str](), subject
    for words, values in _least(subject):
        least = _with(least, values)
        said.append(words)
        for n in _numbers(gpus):
            if n > gpus and not _can_divide(subject):
                break
            changed = _with(least, {"latent_ranks": n}) if n > 1 and _can_divide(subject) else least
            if needs(changed, n) <= have:
                shard = f", latents over {n} devices" if n > 1 else ""
                return [f"{' and '.join(said)}{shard} ({needs(changed, n) / GIB:,.1f} GiB)"]
    return []


def _alone(subject: Subject, gpus: int) -> Iterator[tuple[str, Subject, int]]:
    """One change at a time, the mildest of a kind first."""
    if subject.live:
        yield "store=FOLDER, written by monosem store", _with(subject, {"store": "activations"}), gpus
    batch = subject.dictionaries[0].batch
    while (batch := batch // 2) >= LEAST_BATCH:
        yield f"training.batch_size={batch}", _with(subject, {"batch_size": batch}), gpus
    rows = subject.config.activations.buffer_tokens
    while subject.outlines and (rows := rows // 2) >= LEAST_BUFFER:
        yield f"activations.buffer_tokens={rows}", _with(subject, {"buffer_tokens": rows}), gpus
    if _can_divide(subject):
        for n in _numbers(gpus):
            if n > 1:
                yield f"training.latent_ranks={n} on {n} devices", _with(subject, {"latent_ranks": n}), n
    n_latents = max(one.sae.n_latents for one in subject.dictionaries)
    while len(subject.dictionaries) == 1 and (n_latents := n_latents // 2) >= 1024:
        smaller = resized(subject, n_latents)
        if smaller is not None:
            yield f"sae.n_latents={n_latents}", smaller, gpus


def _least(subject: Subject) -> Iterator[tuple[str, dict[str, Any]]]:
    """Changes one upon the other."""
    if subject.live:
        yield "a store (store=FOLDER)", {"store": "activations"}
    if subject.outlines:
        yield f"activations.buffer_tokens={LEAST_BUFFER}", {"buffer_tokens": LEAST_BUFFER}
    yield f"training.batch_size={LEAST_BATCH}", {"batch_size": LEAST_BATCH}


def _numbers(gpus: int) -> Iterator[int]:
    n = max(1, gpus)
    while n <= MOST_GPUS:
        yield n
        n *= 2


def _can_divide(subject: Subject) -> bool:
    """Whether latents may be divided over processes."""
    known = "latent_ranks" in type(subject.config.training).model_fields
    return known and all(one.sae.architecture not in ("switch", "matching_pursuit") for one in subject.dictionaries)


def _with(subject: Subject, values: dict[str, Any]) -> Subject:
    """The same with other settings."""
    config = subject.config
    own = {name: value for name, value in values.items() if name in ("store",)}
    acts = {name: value for name, value in values.items() if name == "buffer_tokens"}
    training = {name: value for name, value in values.items() if name in ("batch_size", "latent_ranks")}
    changed = config.model_copy(
        update={
            **own,
            "activations": config.activations.model_copy(update=acts),
            "training": config.training.model_copy(update=training),
        }
    )
    each = [
        replace(
            one,
            config=one.config.model_copy(update={"training": one.config.training.model_copy(update=training)}),
        )
        for one in subject.dictionaries
    ]
    return replace(subject, config=changed, dictionaries=each)
