"""ms.remove_layer_norm: a model without norms, by fine-tuning, beside a control that was fine-tuned with them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosem.activations.inputs import described, open_text
from monosem.arguments import NotNegative, checked
from monosem.data import PackedText
from monosem.data.documents import Text
from monosem.errors import ConfigError, DataError
from monosem.files import named_folder, write_json
from monosem.intervals import DocumentSums, Interval
from monosem.models.subject import SubjectModel
from monosem.training.model_tuning import Changes, Tuning, TuningConfig, available, losses_of, next_known
from monosem.training.norm_schedule import NormSchedule, Removal
from monosem.training.norm_switches import Switches
from monosem.work import doing
from monosem.work.progress import as_job

FAR = 5.0
"""Nats by which a token's loss must rise to count as one of the tail."""


@dataclass(frozen=True)
class NormGap:
    """What removal costs on one text, nats a token; 95 % intervals over documents."""

    original: Interval
    control: Interval
    removed: Interval
    gap: Interval
    """Of the model without norms to the control, on the same tokens."""
    tail: float
    """Share of tokens whose loss is larger than the control's by 5 nats or more."""
    control_tail: float
    """The same share, of the control's loss above the original's."""
    worst: float
    """The gap in the context where it is largest."""
    tokens: int

    @property
    def cost(self) -> float:
        """Above the model as it was."""
        return self.removed.value - self.original.value


@dataclass
class LayerNormRemoval:
    """A model without norms, its control, and what it has cost."""

    model: SubjectModel
    """An ordinary model of its class: its norms have an epsilon beside which no variance counts."""
    control: SubjectModel
    """Fine-tuned with its norms on the same tokens."""
    schedule: NormSchedule
    removals: list[Removal]
    losses: dict[str, list[float]]
    """"removed" and "control": of every step."""
    on: dict[str, NormGap]
    """By text: "held out", and those that were asked for."""
    batch_tokens: int

    @property
    def gap(self) -> Interval:
        """On held-out text."""
        return self.on["held out"].gap

    def save(self, folder: str | Path) -> None:
        """Write both models, as `folder/model` and `folder/control`, and what was measured.

        Raises:
            FileError: the folder cannot be written.
        """
        folder = named_folder(folder, "folder")
        self.model.save(folder / "model")
        self.control.save(folder / "control")
        write_json(folder / "removal.json", self.facts(), indent=1)

    def facts(self) -> dict[str, Any]:
        """Plain values of all that was measured."""
        return {
            "schedule": vars(self.schedule),
            "removals": [removal._asdict() for removal in self.removals],
            "losses": self.losses,
            "on": {name: dict(vars(gap)) for name, gap in self.on.items()},
        }

    def __str__(self) -> str:
        head = f"{'':12}  {'original':>9}  {'control':>9}  {'removed':>9}"
        head += f"  {'gap to control':>26}  {'tail':>7}  {'worst':>6}"
        lines = [f"{self.model.name}: {len(self.losses['removed']):,} steps of {self.batch_tokens:,} tokens", head]
        for name, one in self.on.items():
            of = "  ".join(f"{each.value:9.4f}" for each in (one.original, one.control, one.removed))
            gap = _between(one.gap)
            lines.append(f"{name[:12]:12}  {of}  {gap:>26}  {one.tail:7.2%}  {one.worst:6.2f}")
        lines.append("nats a token; tail: tokens whose loss is 5 nats or more above the control's; worst: of a context")
        return "\n".join(lines)


@checked
@as_job
def remove_layer_norm(
    model: SubjectModel,
    text: Text = "bundled",
    *,
    tokens: int = 1_000_000,
    batch_tokens: int = 4_096,
    context_length: int | None = None,
    lr: float = 6e-4,
    weight_decay: float = 0.1,
    schedule: NormSchedule | None = None,
    held_out: Text | None = None,
    held_out_tokens: int = 50_000,
    elsewhere: Mapping[str, Text] | None = None,
    seed: NotNegative = 0,
    path: str | Path | None = None,
    progress: bool = True,
) -> LayerNormRemoval:
    """Remove the norms of a language model by fine-tuning it while they go, one after the other.

    done = ms.remove_layer_norm(model, tokens=1_000_000, path="no_norms")
    print(done)                                            # what it costs, beside the control
    graph = ms.trace(ms.load_model("no_norms/model"), ...)

    A norm that goes divides by the mean of what it divided by, from then on a constant. First goes what stands before
    MLPs, from the lowest layer up, then before queries and keys, before values, and before the head. The first position
    and separators, whose scales are far from all others', have constants of their own, which go last. In the end the
    constants are folded into weights, and epsilon is so large that variances do not count: the model is an ordinary one
    of its class, linear in all its norms. The model given is left as it is.

    Source: Heimersheim, You can remove GPT2's LayerNorm by fine-tuning, 2024. Unlike there, what is read is read once,
    scales are measured when a norm goes, and tails are reported: of tokens, of contexts, and on other texts.

    Args:
        model: a causal language model whose norms stand before attention, MLPs and head, LayerNorms or RMS norms.
        text: what `ms.activations` takes.
        tokens: to read, once; a second time by the control.
        batch_tokens: of a step.
        context_length: tokens in a context; the model's own if not given, at most 1,024.
        lr: the highest learning rate.
        weight_decay: of matrices.
        schedule: the published one, of that many steps and layers, if not given.
        held_out: the text to measure on; of "bundled" its held-out part.
        held_out_tokens: how much of it.
        elsewhere: more texts to measure on, by name: of other kinds, where tails show.
        seed: of the order of documents.
        path: a folder for checkpoints and both models; a run that was killed goes on from it, to the same bits.
        progress: show how far it is.

    Raises:
        ConfigError: the model has no norms, or such as this cannot remove.
        DataError: there is less text than tokens, or fewer steps than the schedule needs.
        MismatchError: the folder is of another run.
        TrainingInterrupted: it was stopped; the folder has what was done.
    """
    if held_out is None and text != "bundled":
        raise ConfigError("give held_out=, the text to measure on")
    if tokens < 1 or batch_tokens < 1 or not lr > 0:
        raise ConfigError(f"tokens, batch_tokens and lr are above 0, got {tokens}, {batch_tokens} and {lr}")
    Switches(model)  # refuses
    contexts, known = open_text(model, text, context_length=context_length, seed=seed)
    length = contexts.context_length
    a_step = max(1, batch_tokens // length) * length
    steps = tokens // a_step
    schedule = schedule or NormSchedule.over(steps, model.n_layers)
    schedule.require_room(steps, model.n_layers, a_step)
    found = available(contexts, steps * a_step // length)
    if found is not None:
        raise DataError(
            f"{described(text, 'texts')} has {found * length:,} tokens, {tokens:,} were asked for: lower tokens"
        )
    texts: dict[str, Text] = {"held out": "bundled:held_out" if held_out is None else held_out, **(elsewhere or {})}
    measured = {name: open_text(model, one, context_length=length)[0] for name, one in texts.items()}
    config = TuningConfig(tokens, a_step, lr, weight_decay)
    identity = {
        "model": model.fingerprint(),
        "text": known["text"],
        "seed": seed,
        "context_length": length,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in vars(config).items()},
        **{f"schedule.{key}": value for key, value in vars(schedule).items()},
    }
    folder = None if path is None else named_folder(path)
    ready = (model, contexts, config, steps, schedule, identity, folder)
    control = _tuned(*ready, removing=False)
    removed = _tuned(*ready, removing=True)
    on = {
        name: _gap({"original": model, "control": control[0], "removed": removed[0]}, one, held_out_tokens, name)
        for name, one in measured.items()
    }
    losses = {"control": control[1], "removed": removed[1]}
    result = LayerNormRemoval(
        removed[0], control[0], schedule, schedule.removals(model.n_layers), losses, on, config.batch_tokens
    )
    if folder is not None:
        result.save(folder)
    return result


class _Removing(Changes):
    """Removes norms when the schedule says so."""

    def __init__(self, switches: Switches, removals: list[Removal]) -> None:
        self.switches, self.removals = switches, removals

    def before(self, step: int, tokens: Tensor) -> None:
        now = [removal for removal in self.removals if removal.step == step]
        if now:
            self.see(tokens)
            self.switches.remove(now, lambda: self.switches.model.module(tokens, use_cache=False))

    def see(self, tokens: Tensor) -> None:
        self.switches.see(tokens)

    def state(self) -> dict[str, Tensor]:
        return self.switches.state()

    def load(self, state: dict[str, Tensor], step: int) -> None:
        self.switches.load(state, [removal for removal in self.removals if removal.step < step])


def _tuned(
    model: SubjectModel,
    contexts: PackedText,
    config: TuningConfig,
    steps: int,
    schedule: NormSchedule,
    identity: dict[str, Any],
    folder: Path | None,
    removing: bool,
) -> tuple[SubjectModel, list[float]]:
    """A copy that was fine-tuned, and its losses."""
    name = "removed" if removing else "control"
    said = "without norms" if removing else "fine-tuned with norms"
    module = copy.deepcopy(model.module).float().eval()
    mine = SubjectModel(module, model.tokenizer, f"{model.name}, {said}")
    file = None if folder is None else folder / "checkpoints" / f"{name}.safetensors"
    stage = "removing norms" if removing else "tuning the control"
    if not removing:
        tuning = Tuning(mine, contexts, config, steps, schedule.warm_up)
        tuning.run(stage, file, identity)
        return mine, tuning.losses
    switches = Switches(mine)
    tuning = Tuning(
        mine, contexts, config, steps, schedule.warm_up, _Removing(switches, schedule.removals(model.n_layers))
    )
    with switches.within():
        tuning.run(stage, file, identity)
    switches.fold()
    return mine, tuning.losses


@torch.no_grad()
def _gap(models: Mapping[str, SubjectModel], contexts: PackedText, tokens: int, name: str) -> NormGap:
    """Losses of the same tokens by all models."""
    sums, far, control_far, worst, n = DocumentSums(), 0, 0, -np.inf, 0
    at_once = max(1, 4096 // contexts.context_length)
    with doing("measuring", tokens, unit="tokens") as work:
        while n < tokens and len(
            batch := contexts.read(n // contexts.context_length, n // contexts.context_length + at_once)
        ):
            known = next_known(batch) & (batch.document[:, 1:] >= 0)
            losses = {key: losses_of(one, batch).cpu() for key, one in models.items()}
            documents = batch.document[:, 1:][known].numpy()
            for key, values in losses.items():
                sums.add(key, documents, values[known].double().numpy())
            sums.add("predictions", documents, np.ones(len(documents)))
            rise = losses["removed"] - losses["control"]
            far += int((rise[known] >= FAR).sum())
            control_far += int((losses["control"] - losses["original"])[known].ge(FAR).sum())
            each = torch.where(known, rise, 0).sum(1) / known.sum(1).clamp(min=1)
            worst = max(worst, float(each.max()))
            n += len(batch) * contexts.context_length
            work.advance(len(batch) * contexts.context_length)
    if "predictions" not in sums:
        raise DataError(f"the text {name!r} has nothing to measure on")
    count = int(sums.total("predictions"))

    def mean(*keys: str) -> Interval:
        return sums.interval(lambda s: (s[keys[0]] - (s[keys[1]] if len(keys) > 1 else 0)) / s["predictions"])

    of = {key: mean(key) for key in models}
    return NormGap(
        of["original"],
        of["control"],
        of["removed"],
        mean("removed", "control"),
        far / count,
        control_far / count,
        worst,
        count,
    )


def _between(interval: Interval) -> str:
    if interval.low is None:
        return f"{interval.value:+.4f}"
    return f"{interval.value:+.4f} ({interval.low:+.4f} - {interval.high:+.4f})"
