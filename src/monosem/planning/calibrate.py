"""What this machine does in a second, measured on the run's own shapes with random weights."""

from __future__ import annotations

import copy
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from monosem.errors import MonosemError
from monosem.kernels import Precision
from monosem.models import SubjectModel
from monosem.models.outline import Outline, made, outline_of
from monosem.planning.hardware import Hardware, Kind
from monosem.planning.labour import STEP_S, step_work
from monosem.planning.shapes import Dictionary, Subject
from monosem.training import Trainer
from monosem.work import doing

MODEL_S, STEPS_S = 4.0, 5.0
"""Seconds for the model's forward pass, and for the dictionary's steps."""
MODEL_NUMBERS, DICTIONARY_NUMBERS, BATCH = 2**28, 2**26, 4096
"""Numbers of the model and of the dictionary that are made at most, and rows of a step."""

SMALL_RUN = """
import resource, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import monosem as ms
import monosem.runs
acts = ms.activations(ms.load_model("bundled"), "resid_post.2", buffer_tokens=1024)
sae = ms.TopKSAE(d_in=acts.d_in, n_latents=64, k=4)
ms.train(sae, acts, tokens=1024, config=ms.TrainingConfig(batch_size=256), progress=False)
status = Path("/proc/self/status")  # what getrusage says of a process begins with what started it
lines = status.read_text().splitlines() if status.exists() else []
own = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
print(1024 * (own or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])[0])
"""
"""A run of which all but Python and its libraries is small."""


@dataclass(frozen=True)
class Measured:
    """What was found."""

    rates: dict[Kind, float]
    libraries_bytes: float
    start_s: float
    remarks: list[str]


def calibrate(subject: Subject, hardware: Hardware, screen: Precision) -> Measured:
    """Measure this machine for half a minute at most: a small run, a forward pass, steps of the largest dictionary.

    Model and dictionary have the run's shapes and random weights, cut down where they are large: fewer layers, fewer
    latents, fewer rows.
    """
    rates, remarks = hardware.rates(screen), list[str]()
    with doing("calibrating", 3, unit="") as stage:
        libraries, start = _small_run(hardware)
        stage.advance(1)
        if subject.live or subject.outlines:
            found = [_model_rate(outline, subject) for outline in subject.outlines]
            rates["model"] = sum(found) / len(found)
        stage.advance(1)
        one = max(subject.dictionaries, key=lambda each: each.parameters)
        factor = _step_factor(one, rates, screen)
        for kind in ("matmul", "sparse", "memory"):
            rates[kind] /= factor
    remarks.append(
        f"calibrated: {rates['model'] / 1e9:,.0f} GFLOP/s in the model; steps take {factor:.2f} x the table's time"
    )
    return Measured(rates, libraries, start, remarks)


def _small_run(hardware: Hardware) -> tuple[float, float]:
    """Bytes and seconds of a run of which nothing is large."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", SMALL_RUN], capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode or not last.isdigit():
        raise MonosemError(f"calibrating: a small run failed: {done.stderr.strip().rpartition(chr(10))[2]}")
    return float(last), seconds


def _model_rate(outline: Outline, subject: Subject) -> float:
    """Multiplications and additions a second of a forward pass, to its last hook point."""
    cut = _cut(outline)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = SubjectModel(made(cut.cls, cut.config).to(device), None, cut.model.name)
    hook = f"resid_post.{cut.model.n_layers - 1}"
    known = [name for name in subject.hooks if name in cut.model.hook_points]
    hooks = known if len(known) == len(subject.hooks) else [hook]
    contexts = model.contexts_at_once(subject.length)
    shape = model.inputs.image_shape
    inputs = torch.zeros(contexts, *shape) if shape else torch.ones(contexts, subject.length, dtype=torch.int64)
    flops = cut.rehearse(hooks, contexts, subject.length).flops
    return flops / _seconds(lambda: model.capture(inputs, hooks), MODEL_S, device)


def _cut(outline: Outline) -> Outline:
    """The same model with as many layers as are worth making."""
    config, layers = copy.deepcopy(outline.config), outline.model.n_layers
    if outline.n_parameters <= MODEL_NUMBERS or layers < 2 or not hasattr(config, "num_hidden_layers"):
        return outline
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    return outline_of(outline.cls, config, outline.model.name)


def _step_factor(one: Dictionary, rates: dict[Kind, float], screen: Precision) -> float:
    """Times the table's seconds that a step takes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    n, least = one.sae.n_latents, max(64, 4 * (one.k or 1))
    while n > least and one.parameters * (n / one.sae.n_latents) > DICTIONARY_NUMBERS:
        n //= 2
    rows = min(one.batch, BATCH)
    settings = {**one.sae.common, "device": device, "dtype": torch.float32}
    sae = type(one.sae)(one.sae.d_in, n, **one.sae.settings, **settings)
    config = one.config.training.model_copy(update={"batch_size": rows})
    trainer = Trainer(sae, config, total_tokens=one.config.tokens)
    generator = torch.Generator(device).manual_seed(0)
    x, y = (torch.randn(rows, *shape, generator=generator, device=device) for shape in (sae.in_shape, sae.out_shape))
    target = None if sae.autoencodes else y
    seconds = _seconds(lambda: trainer.step(x, target), STEPS_S, device)
    small = replace(one, sae=sae)
    work = step_work(small, rows, screen)
    expected = sum(amount / rates[kind] for kind, amount in work.items())
    return max(seconds - STEP_S, seconds / 10) / expected


def _seconds(work: Callable[[], Any], most: float, device: torch.device) -> float:
    """Of one call, at the median of those that there is time for, after the first two."""
    times, began = list[float](), time.monotonic()
    while len(times) < 3 or (time.monotonic() - began < most and len(times) < 200):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
        if len(times) >= 3 and time.monotonic() - began > 2 * most:
            break
    return sorted(times[2:])[len(times[2:]) // 2]
