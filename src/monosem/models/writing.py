"""Continuing texts, token by token: one loop, in which edits in force apply and nothing stays behind between tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from monosem.errors import ConfigError, DataError
from monosem.models.alone import as_studied
from monosem.models.edits import Continued
from monosem.models.inputs import Inputs


class Writer(Protocol):
    """What is needed of a `SubjectModel`."""

    module: nn.Module
    tokenizer: Any
    name: str
    inputs: Inputs
    continued: Continued | None

    @property
    def device(self) -> torch.device: ...
    @property
    def context_length(self) -> int | None: ...


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from the logits, and for how long."""

    max_new_tokens: int = 50
    temperature: float = 0.9
    """0 takes the likeliest token."""
    top_k: int = 40
    """Only so many of the likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature must be 0 or a positive number, got {self.temperature}")
        if self.top_k < 0:
            raise ConfigError(f"top_k must be 0 (all tokens) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    def probabilities(self, logits: Float[Tensor, "batch vocabulary"]) -> Float[Tensor, "batch vocabulary"]:
        """Of what is drawn, for a temperature above 0."""
        least = torch.finfo(logits.dtype).tiny
        logits = (logits - logits.amax(-1, keepdim=True)) / max(self.temperature, least)
        if 0 < self.top_k < logits.shape[-1]:
            last = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < last, -torch.inf)
        if self.top_p < 1:
            ordered, order = logits.sort(descending=True)
            before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
            beyond = before >= max(self.top_p, least)  # never the likeliest
            logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
        return logits.softmax(-1)

    def draw(
        self, logits: Float[Tensor, "batch vocabulary"], chance: Sequence[torch.Generator]
    ) -> Int[Tensor, " batch"]:
        """The next token of every row, each by its own generator."""
        if self.temperature == 0:
            return logits.argmax(-1)
        rows = zip(self.probabilities(logits), chance, strict=True)
        return torch.stack([torch.multinomial(row, 1, generator=generator)[0] for row, generator in rows])


class Written(NamedTuple):
    """One more token of every row."""

    tokens: Int[Tensor, " batch"]
    """Where a row had ended before, its last token again."""
    ended: Bool[Tensor, " batch"]
    """Rows that are at an end: this token ends the text, or one before it did."""
    logits: Float[Tensor, "batch vocabulary"]
    """What the tokens were drawn from."""


def require_writing(model: Writer) -> None:
    """Raise ConfigError where a model does not continue texts."""
    config = getattr(model.module, "config", None)
    if not getattr(model.module, "can_generate", lambda: False)() or getattr(config, "is_encoder_decoder", False):
        raise ConfigError(f"{model.name} writes no text: generate needs a causal language model")


def end_tokens(model: Writer) -> list[int]:
    """The tokens that end a text, by the model and its tokenizer."""
    found: list[int] = []
    for owner in (getattr(model.module, "generation_config", None), model.module.config, model.tokenizer):
        ids = getattr(owner, "eos_token_id", None)
        found += ids if isinstance(ids, list) else [] if ids is None else [ids]
    return sorted(set(found))


@torch.no_grad()
def write(
    model: Writer,
    prompts: Mapping[str, Tensor],
    sampling: Sampling,
    seeds: Sequence[int],
    *,
    edits: AbstractContextManager[Any] | None = None,
    cached: bool = True,
    read_last: bool = False,
) -> Iterator[Written]:
    """Continue prompts until all rows have ended, or `max_new_tokens`.

    Edits are in force in the forward passes alone: whoever takes the tokens may use the model in between, and may stop
    at any time.

    Args:
        model: a causal language model.
        prompts: `input_ids` (batch, pos) and, with padding in front, `attention_mask`.
        sampling: how tokens are drawn.
        seeds: one for each row, which draws by a generator of its own: a row comes out as it does alone.
        edits: what `model.edit` returns.
        cached: keep keys and values of what was read; else everything is read again for each token, to the same end.
        read_last: let the model read the last token too, of which nothing is drawn.

    Raises:
        ConfigError: the model writes no text.
        DataError: prompt and continuation do not fit the model's context.
    """
    require_writing(model)
    tokens = prompts["input_ids"].to(model.device)
    mask = prompts.get("attention_mask", torch.ones_like(tokens)).to(model.device)
    if not bool(mask[:, -1].all()):
        raise DataError("prompts of unequal length need their padding in front, to be continued")
    longest = int(mask.sum(1).max())
    if model.context_length is not None and longest + sampling.max_new_tokens > model.context_length:
        raise DataError(
            f"{longest} prompt tokens and {sampling.max_new_tokens} new ones do not fit the context of "
            f"{model.context_length}: shorten the prompt or lower max_new_tokens"
        )
    chance = [torch.Generator(model.device).manual_seed(seed) for seed in seeds]
    ends = torch.tensor(end_tokens(model), device=tokens.device)
    reader = _Reader(model, Continued(tokens.shape[1], mask.sum(1)), edits or nullcontext(), cached)
    ended, unread = torch.zeros_like(mask[:, 0], dtype=torch.bool), tokens
    for number in range(sampling.max_new_tokens):
        logits = reader.read(unread, mask)
        drawn = sampling.draw(logits, chance)
        drawn = torch.where(ended, unread[:, -1], drawn)
        ended = ended | torch.isin(drawn, ends)
        yield Written(drawn, ended, logits)
        done = number + 1 == sampling.max_new_tokens or bool(ended.all())
        if done and not read_last:
            return
        unread = drawn[:, None]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        if done:
            reader.read(unread, mask)
            return


class _Reader:
    """The model, and what it keeps of the tokens that it has read."""

    def __init__(self, model: Writer, continued: Continued, edits: AbstractContextManager[Any], cached: bool) -> None:
        self.model, self.continued, self.edits = model, continued, edits
        self.cache = new_cache(model) if cached else None
        self.read_before: list[Tensor] = []
        self.named = model.inputs.optional

    def read(self, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch columns"]) -> Float[Tensor, "batch v"]:
        """Logits of what follows the last token."""
        if self.cache is None:
            self.read_before.append(tokens)
            tokens = torch.cat(self.read_before, dim=1)
        arguments: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask}
        if "position_ids" in self.named:
            positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
            arguments["position_ids"] = positions + self.model.inputs.first_position
        if "logits_to_keep" in self.named:
            last = tokens.shape[1] - 1  # an index makes a copy in order: a slice makes torch copy the head for each row
            arguments["logits_to_keep"] = torch.tensor([last], device=tokens.device)
        if "use_cache" in self.named:
            arguments["use_cache"] = self.cache is not None
        if self.cache is not None:
            arguments["past_key_values"] = self.cache
        before, self.model.continued = self.model.continued, self.continued
        try:
            with as_studied(self.model.module, self.model.device), self.edits:
                out = self.model.module(**arguments)
        finally:
            self.model.continued = before
        return out.logits[:, -1]


def new_cache(model: Writer) -> Any:
    """An empty cache of keys and values; None where the model has another kind of memory."""
    from transformers.cache_utils import DynamicCache

    module: Any = model.module
    if not getattr(module, "_supports_default_dynamic_cache", lambda: False)():
        return None
    if "past_key_values" not in model.inputs.optional:
        return None
    return DynamicCache(config=module.config)
