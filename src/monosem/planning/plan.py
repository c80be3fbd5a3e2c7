"""plan: what a run will take on named hardware, before anything is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from monosem.activations import StoreFolder
from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.kernels import Precision
from monosem.planning import labour, memory
from monosem.planning.calibrate import calibrate as measure
from monosem.planning.hardware import GIB, Hardware
from monosem.planning.hardware import hardware as known_hardware
from monosem.planning.labour import Stage
from monosem.planning.memory import Moment, Part
from monosem.planning.planned import Plan
from monosem.planning.remedies import remedies
from monosem.planning.shapes import Subject, shapes_of
from monosem.runs import RunConfig
from monosem.work import as_job, doing

FEATURE_BYTES = 3_000
"""Of the features on disk, for each latent; 2,900 in the demo's run, with explanations."""
FEATURE_LOG_BYTES = 20_000_000
CHECKPOINTS = 3
"""Two that are kept, and one that is being written."""


@checked
@as_job
def plan(
    config: RunConfig | str | Path | Mapping[str, Any],
    *,
    hardware: str | None = None,
    gpus: int = 1,
    store: bool = False,
    evaluation: bool = True,
    dtype: str = "bfloat16",
    calibrate: bool = False,
    progress: bool = True,
) -> Plan:
    """Predict memory, disk, arithmetic, tokens a second and hours of a run, from configs alone.

    The model is gone through without numbers: its config gives the shapes, its weights are not read. Of a dictionary
    whose number of latents on is learned (relu, jumprelu, gated), the time is a guess.

    Args:
        config: the description of a run, its file, or its keys and values.
        hardware: of the table: h100, h200, a100, cpu; what there is here if not given.
        gpus: how many devices (of a CPU: processes) share the work.
        store: plan `monosem store` of the run in place of its training.
        evaluation: plan the evaluation after training too.
        dtype: of the stored numbers.
        calibrate: measure this machine first, for half a minute at most; then memory and time are of it.
        progress: show where it is.

    Raises:
        ConfigError: the description does not fit the model, or there is no such hardware.
        FileError: a file is missing.
        HookError: the model has no such hook point.
    """
    described = config if isinstance(config, RunConfig) else _described(config)
    if gpus < 1:
        raise ConfigError(f"gpus must be at least 1, got {gpus}")
    if dtype not in labour.STORED_BYTES:
        raise ConfigError(f"dtype: {dtype!r} is none of {', '.join(labour.STORED_BYTES)}")
    machine = known_hardware(hardware)
    with doing("reading configs"):
        subject = shapes_of(described)
    if store and not subject.outlines:
        raise ConfigError(f"the run reads ready vectors ({described.vectors}): there is nothing to store")
    _require_divisible(subject, gpus)
    asked = described.training.matmul
    screen = machine.screen(max(one.d_in for one in subject.dictionaries)) if asked == "auto" else asked
    rates, remarks = machine.rates(screen), list[str]()
    start = machine.start_s
    if calibrate:
        found = measure(subject, machine, screen)
        rates, remarks, start = found.rates, found.remarks, found.start_s
        if machine.is_cpu:
            machine = machine.model_copy(update={"libraries_gib": found.libraries_bytes / GIB})
    made = _planned(subject, machine, gpus, screen, store, evaluation, dtype)
    slower = start / machine.start_s  # what follows a pass is work of Python and of loops, as starting is
    stages = [replace(one, other_s=one.other_s * (slower if one.name == "evaluation" else 1)) for one in made.stages]
    made = replace(made, stages=stages, rates=rates, start_s=start, calibrated=calibrate, remarks=remarks)
    made = replace(made, remarks=[*remarks, *_remarks(made)])
    refusals = _refusals(made, local=hardware in (None, "cpu"))
    if not refusals:
        return made
    with doing("looking for what would fit"):
        again = remedies(subject, gpus, lambda s, n: _planned(s, machine, n, screen, store, evaluation, dtype))
    return replace(made, refusals=refusals, remedies=again)


def _described(config: str | Path | Mapping[str, Any]) -> RunConfig:
    return RunConfig.of(dict(config)) if isinstance(config, Mapping) else RunConfig.read(config)


def _require_divisible(subject: Subject, gpus: int) -> None:
    for one in subject.dictionaries:
        if gpus % one.parts or one.batch % (gpus // one.parts):
            raise ConfigError(
                f"{gpus} processes do not divide into groups of training.latent_ranks = {one.parts} that share a batch "
                f"of {one.batch:,}: choose other numbers"
            )


def _planned(
    subject: Subject, machine: Hardware, gpus: int, screen: Precision, store: bool, evaluation: bool, dtype: str
) -> Plan:
    """The plan, at the table's rates."""
    config = subject.config
    to_hook = subject.rehearsed(machine.is_cpu) if subject.outlines else []
    stages, moments = list[Stage](), list[Moment]()
    if store:
        stages.append(labour.storing(subject, to_hook, gpus, dtype))
        moments += memory.storing(subject, machine, to_hook)
    else:
        stages.append(labour.training(subject, to_hook, machine, gpus, _stored_as(config, dtype), screen))
        moments += memory.training(subject, machine, screen, to_hook, gpus)
    if evaluation and not store:
        whole = (
            subject.rehearsed(machine.is_cpu, whole=True) if subject.outlines and config.evaluation.loss_tokens else []
        )
        stages.append(labour.evaluation(subject, to_hook, whole))
        moments += memory.evaluation(subject, machine, to_hook, whole)
    disk = _disk(subject, store, evaluation, dtype)
    return Plan(config, subject, machine, gpus, moments, disk, stages, machine.rates(screen), machine.start_s, False)


def _stored_as(config: RunConfig, dtype: str) -> str:
    """The type of the numbers of the store that a run reads, if it is there."""
    there = config.store is not None and Path(config.store).is_dir()
    return StoreFolder(config.store or "").index.dtype if there else dtype


def _disk(subject: Subject, store: bool, evaluation: bool, dtype: str) -> list[Part]:
    config, parts = subject.config, list[Part]()
    if config.store is not None or store:
        size = labour.stored_bytes(subject, dtype)
        parts.append(Part("stored activations", size, f"{subject.tokens:,} rows of {subject.columns:,} in {dtype}"))
    if not store:
        own = sum(one.parameters for one in subject.dictionaries)
        parts.append(Part("checkpoints", CHECKPOINTS * 12.0 * own, "two, and a third while it is written; one remains"))
        parts.append(Part("dictionaries", 4.0 * own, f"{own:,} numbers of 4 bytes"))
        if evaluation:
            n = sum(one.sae.n_latents for one in subject.dictionaries)
            size = FEATURE_BYTES * n + FEATURE_LOG_BYTES * len(subject.dictionaries)
            parts.append(Part("features", size, f"{n:,} latents, and the log of firings"))
    return parts


def _remarks(made: Plan) -> list[str]:
    found, subject = list[str](), made.subject
    if any(one.k is None for one in subject.dictionaries):
        found.append(
            f"how many latents will be on is learned: time is reckoned with {labour.LEARNED_K} a row after the first "
            f"{labour.UNSPARSE:.0%}"
        )
    if not made.calibrated and made.hardware.is_cpu:
        found.append("a CPU differs from the next: --calibrate measures this one")
    if not made.hardware.is_cpu:
        found.append("shares of the maker's peaks are assumed, not measured: --calibrate on the machine itself")
        drawn = max(16.0 * one.sae.n_latents * max(one.read, one.written) for one in subject.dictionaries)
        if drawn > 64 * GIB:
            found.append(f"a process draws the first weights in float64 on its host: {drawn / GIB:,.0f} GiB")
    return found


def _refusals(made: Plan, local: bool) -> list[str]:
    found, have = list[str](), made.hardware.memory_gib * GIB
    if made.memory_bytes > have:
        where = "the machine" if made.hardware.is_cpu else "a device"
        found.append(
            f"{made.peak.name} needs {made.memory_bytes / GIB:,.1f} GiB of memory, {where} has "
            f"{made.hardware.memory_gib:,.1f}"
        )
    if local:
        folder = Path(made.config.output).resolve()
        while not folder.is_dir():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if made.disk_bytes > free:
            found.append(f"it needs {made.disk_bytes / GIB:,.1f} GiB of disk, {folder} has {free / GIB:,.1f} free")
    return found
