"""ms.effects: what ablating one latent does to every token's likelihood, exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosem.arguments import checked
from monosem.errors import ConfigError, DataError
from monosem.interventions.features import Ablate
from monosem.models import EditContext, Replay, SubjectModel
from monosem.sae import SAE
from monosem.work import doing

MOST_LOGITS = 2**25
"""Logits that are held at a time."""


@dataclass(frozen=True)
class Effects:
    """What ablating a latent over whole contexts does to the log-likelihood of each of their tokens."""

    latent: int
    tokens: Int[Tensor, "contexts pos"]
    mask: Bool[Tensor, "contexts pos"]
    """False where a token is padding."""
    activations: Float[Tensor, "contexts pos"]
    """The latent's codes."""
    change: Float[Tensor, "contexts pos"]
    """In nats, of the token that stands there, by what is before it: below 0 where the latent makes it likelier, 0
    where nothing predicts it."""
    log_likelihood: Float[Tensor, "contexts pos"]
    """Without the ablation, in nats."""

    @property
    def did_something(self) -> bool:
        """Whether the latent was on anywhere where something follows."""
        return bool((self.change != 0).any())

    @property
    def total(self) -> Float[Tensor, " contexts"]:
        """By how many nats each context is less likely without the latent (below 0) or more."""
        return self.change.sum(1)

    def __str__(self) -> str:
        if not bool((self.activations > 0).any()):
            return f"latent {self.latent} is never on here: its ablation changes nothing"
        largest = self.change.flatten().abs().argmax()
        where = divmod(int(largest), self.change.shape[1])
        return (
            f"ablating latent {self.latent}, on at {int((self.activations > 0).sum()):,} of {int(self.mask.sum()):,} "
            f"tokens: {float(self.change.sum()):+.3g} nats in all, {float(self.change[where]):+.3g} at most, at token "
            f"{where[1]}" + (f" of context {where[0]}" if len(self.change) > 1 else "")
        )


@checked
@torch.no_grad()
def effects(
    model: SubjectModel,
    sae: SAE,
    inputs: str | Sequence[str] | Tensor | Mapping[str, Tensor],
    latent: int,
    *,
    hook: str | None = None,
    keep_error: bool = True,
) -> Effects:
    """For every token, the change of its log-likelihood when a latent is ablated over the whole context, exactly.

    found = ms.effects(model, sae, "The history of the city began in the", 12)
    print(found); found.change[0]

    A second pass is made of the contexts alone in which the latent is on, and of the layers alone that come after it.

    Args:
        model: a language model.
        sae: the SAE.
        inputs: a text or several, token ids (contexts, pos), or a mapping with `input_ids` and `attention_mask`.
        latent: which.
        hook: the SAE's hook point, if it does not know it.
        keep_error: leave what the SAE does not explain as it is.

    Raises:
        ConfigError: there is no such latent, or the model predicts no tokens.
        MismatchError: the SAE does not fit the model.
    """
    edit = Ablate(sae, latent, hook=hook, keep_error=keep_error)
    if edit.sites.elsewhere:
        raise ConfigError(
            f"a {sae.architecture} does not write where it reads: put ms.Ablate(sae, {edit.latents[0]}) into the model "
            "by model.edit([...]) and compare its logits"
        )
    edit.join(model)
    given = read_inputs(model, inputs)
    tokens, mask = given["input_ids"], given["attention_mask"].bool()
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    replay: Replay | None = None
    vocabulary = getattr(getattr(model.module, "config", None), "vocab_size", None) or 1
    most = max(1, MOST_LOGITS // (vocabulary * tokens.shape[1]))
    at_once = min(model.contexts_at_once(tokens.shape[1]), most)
    with doing("ablating", len(tokens), unit="contexts") as work:
        for start in range(0, len(tokens), at_once):
            part = {name: x[start : start + at_once] for name, x in given.items()}
            replay = replay or Replay(model, edit.hooks, {name: x[:1] for name, x in part.items()})
            parts.append(_of_part(model, edit, part, replay))
            work.advance(len(part["input_ids"]))
    activations, change, likelihood = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return Effects(edit.latents[0], tokens, mask, activations, change, likelihood)


def _of_part(
    model: SubjectModel, edit: Ablate, inputs: dict[str, Tensor], replay: Replay
) -> tuple[Tensor, Tensor, Tensor]:
    """Activations, change and log-likelihood, each (contexts, pos)."""
    looked: list[Tensor] = []
    replaced: list[Tensor] = []

    def look(x: Tensor, context: EditContext) -> Tensor:
        """Once, what stands there; then, whenever it is called again, what stands there without the latent."""
        if replaced:
            return replaced[0]
        kept, without = edit.chosen(x, context), x.clone()
        codes = x.new_zeros(kept.shape, dtype=edit.sae.W_enc.dtype)
        if bool(kept.any()):
            rows = x[kept]
            codes[kept], new = edit.without(rows)
            without[kept] = new.to(x.dtype)
        looked.append(codes)
        replaced.append(without)
        return x

    with model.edit({edit.hook: look}), replay.of(inputs) as logits:
        likelihood = log_likelihood(logits, inputs)
        change = torch.zeros_like(likelihood)
        if bool((looked[0] != 0).any()):
            change = log_likelihood(model(inputs), inputs) - likelihood
    return looked[0], change, likelihood


def log_likelihood(logits: Tensor, inputs: Mapping[str, Tensor]) -> Float[Tensor, "contexts pos"]:
    """Of each token by what is before it, in nats; 0 for the first and for padding."""
    tokens, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    before = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    found = before.gather(-1, tokens[:, 1:, None])[..., 0] - before.logsumexp(-1)
    return torch.nn.functional.pad(found * (mask[:, 1:] & mask[:, :-1]), (1, 0))


def read_inputs(model: SubjectModel, inputs: Any) -> dict[str, Tensor]:
    """Texts or token ids with their mask.

    Raises:
        ConfigError: the model is not one that predicts the next token.
        DataError: they are neither.
    """
    if not model.writes_text:
        raise ConfigError(f"{model.name} does not predict the next token")
    if isinstance(inputs, str):
        inputs = model.tokens(inputs)
    elif isinstance(inputs, Sequence):
        inputs = model.padded(list(inputs))
    if isinstance(inputs, Tensor):
        inputs = {"input_ids": inputs if inputs.ndim == 2 else inputs[None]}
    if not isinstance(inputs, Mapping) or "input_ids" not in inputs:
        raise DataError("give a text, several, token ids (contexts, pos), or a mapping with input_ids")
    model.inputs.arguments(inputs, model.device)  # are they tokens, and of this model
    tokens = inputs["input_ids"].to(model.device)
    mask = inputs.get("attention_mask", torch.ones_like(tokens)).to(model.device)
    return {"input_ids": tokens, "attention_mask": mask}
