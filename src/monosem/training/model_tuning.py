"""Fine-tuning of a whole language model on text: the one loop that changes a model's own weights.

Kill it at any moment: with a file it goes on from there to the same bits.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from monosem.data import PackedText
from monosem.data.packing import ContextBatch
from monosem.errors import DivergenceError, FileError, MismatchError, TrainingInterrupted
from monosem.files import parse_json, reading, regular_file, write_safetensors
from monosem.models.subject import SubjectModel
from monosem.work import StopRequest, doing

CHECKPOINT_SECONDS = 120.0
AT_ONCE = 4096
"""Tokens that go through forward and backward at a time; a step adds up as many as it has."""
REMEDY = "delete it to begin again"


@dataclass(frozen=True)
class TuningConfig:
    """How a model is fine-tuned. AdamW, gradients clipped to norm 1, no dropout."""

    tokens: int = 1_000_000
    batch_tokens: int = 4_096
    """Tokens of a step, in whole contexts."""
    lr: float = 6e-4
    """At its highest: it rises during the warm-up, then falls to zero as a cosine."""
    weight_decay: float = 0.1
    """Of matrices; biases and norms have none."""
    betas: tuple[float, float] = (0.9, 0.95)


class Changes:
    """What changes a model between steps, beside the optimiser: nothing, as of the control."""

    def before(self, step: int, tokens: Int[Tensor, "batch pos"]) -> None:
        """Called before every step, with what it will read."""

    def see(self, tokens: Int[Tensor, "batch pos"]) -> None:
        """Called before every forward pass, with what it reads."""

    def state(self) -> dict[str, Tensor]:
        """What a file must keep of it."""
        return {}

    def load(self, state: dict[str, Tensor], step: int) -> None:
        """Be as after that step."""


@dataclass
class Tuning:
    """A model being fine-tuned."""

    model: SubjectModel
    contexts: PackedText
    config: TuningConfig
    steps: int
    warm_up: float
    changes: Changes = field(default_factory=Changes)
    losses: list[float] = field(default_factory=list[float])
    """Of every step so far, nats a token."""

    def __post_init__(self) -> None:
        self.parameters = dict(self.model.module.named_parameters())  # before modules are put around others
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        groups = [
            {"params": [p for p in self.parameters.values() if p.ndim > 1], "weight_decay": self.config.weight_decay},
            {"params": [p for p in self.parameters.values() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.config.lr, betas=self.config.betas)
        self.contexts_a_step = max(1, self.config.batch_tokens // self.contexts.context_length)

    def run(self, name: str, file: Path | None, identity: dict[str, Any]) -> None:
        """All steps, or those that the file says are left.

        Raises:
            MismatchError: the file is of another run.
            TrainingInterrupted: the user has stopped it; the file has all that was done.
            DivergenceError: the loss is no number any more.
        """
        if file is not None and file.exists():
            self._load(file, identity)
        saved, a_step = time.monotonic(), self.contexts_a_step * self.contexts.context_length
        with ExitStack() as stack:
            stop = stack.enter_context(StopRequest())
            work = stack.enter_context(doing(name, self.steps * a_step, done=len(self.losses) * a_step, unit="tokens"))
            while len(self.losses) < self.steps:
                self._step(len(self.losses))
                work.advance(a_step)
                done, now = len(self.losses) == self.steps, time.monotonic()
                if file is not None and (done or stop.requested or now - saved > CHECKPOINT_SECONDS):
                    self._save(file, identity, done)
                    saved = now
                if stop.requested and not done:
                    kept = f"{file} has it: the same call goes on from there" if file else "give path= to keep it"
                    raise TrainingInterrupted(f"stopped after step {len(self.losses):,} of {self.steps:,}. {kept}")
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None

    def _step(self, step: int) -> None:
        batch = self.contexts.read(step * self.contexts_a_step, (step + 1) * self.contexts_a_step)
        tokens = batch.tokens.to(self.model.device)
        self.changes.before(step, tokens)
        rising = min(1.0, (step + 1) / max(1.0, self.warm_up))
        falling = (step - self.warm_up) / max(1.0, self.steps - self.warm_up)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * rising * (1 + math.cos(math.pi * max(0.0, falling))) / 2
        n, total = int(next_known(batch).sum()), 0.0
        self.optimizer.zero_grad()
        at_once = max(1, AT_ONCE // tokens.shape[1])
        with torch.enable_grad():
            for start in range(0, len(batch), at_once):
                part = batch[start : start + at_once]
                loss = losses_of(self.model, part, self.changes)[next_known(part)].sum() / n
                loss.backward()
                total += loss.item()
        if not math.isfinite(total):
            raise DivergenceError(f"the loss at step {step + 1:,} is {total}: lower the learning rate (lr)")
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        self.optimizer.step()
        self.losses.append(total)

    def _save(self, file: Path, identity: dict[str, Any], done: bool) -> None:
        tensors = {f"weight.{name}": p for name, p in self.parameters.items()} | self.changes.state()
        if not done:  # moments are not needed any more
            for name, p in self.parameters.items():
                of_p: dict[str, Tensor] = self.optimizer.state[p]
                tensors |= {f"optimizer.{key}.{name}": x for key, x in of_p.items()}
        said = {"losses": self.losses, "identity": identity}
        write_safetensors(file, tensors, {"tuning": json.dumps(said)})

    def _load(self, file: Path, identity: dict[str, Any]) -> None:
        from safetensors import safe_open

        regular_file(file, remedy=REMEDY)
        with reading(file, REMEDY), safe_open(file, "pt") as opened:
            words = parse_json((opened.metadata() or {}).get("tuning", "{}"), file, dict[str, Any], REMEDY)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        there = words.get("identity", {})
        differing = [key for key in identity if there.get(key) != identity[key]]
        if differing:
            key = differing[0]
            raise MismatchError(
                f"{file} is of a run with another {key} ({there.get(key)!s:.60} then, {identity[key]!s:.60} now): "
                "give another path, or delete it to begin again"
            )
        with reading(file, REMEDY):
            losses = [float(loss) for loss in words["losses"]]
            if len(losses) > self.steps:
                raise FileError(f"{file} has more steps than the run: {REMEDY}")
            with torch.no_grad():
                for name, p in self.parameters.items():
                    p.copy_(tensors[f"weight.{name}"])
                    if len(losses) < self.steps:
                        keys = ("step", "exp_avg", "exp_avg_sq")
                        state = {key: tensors[f"optimizer.{key}.{name}"] for key in keys}
                        self.optimizer.state[p] = {k: x if k == "step" else x.to(p.device) for k, x in state.items()}
            self.changes.load({name: x.to(self.model.device) for name, x in tensors.items()}, len(losses))
        self.losses = losses


def next_known(batch: ContextBatch) -> Tensor:
    """Positions whose next token is there to be predicted, (contexts, pos - 1)."""
    return ~batch.padding[:, 1:]


def losses_of(model: SubjectModel, batch: ContextBatch, changes: Changes | None = None) -> Tensor:
    """Cross-entropy of every next token, (contexts, pos - 1), nats; with gradients where they are enabled."""
    tokens = batch.tokens.to(model.device)
    if changes is not None:
        changes.see(tokens)
    arguments = model.inputs.arguments({"input_ids": tokens}, model.device)
    assert isinstance(arguments, dict)
    logits = model.module(**arguments).logits[:, :-1]
    entropy = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
    return entropy.unflatten(0, (len(tokens), -1))


def available(contexts: PackedText, wanted: int) -> int | None:
    """How many contexts there are before the text comes again, if that are fewer than wanted; else None."""
    contexts.read(wanted - 1, wanted)
    state = contexts.state()
    epochs: Sequence[int] = state["marks"][0::3]
    again = next((start for start, epoch in zip(state["starts"], epochs, strict=True) if epoch), None)
    a_context = contexts.context_length - (contexts._bos is not None)
    return again // a_context if again is not None and again < wanted * a_context else None
