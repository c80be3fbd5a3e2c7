"""ms.generate: continue texts and chats with edits in force, and see which features each token has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from monosem.arguments import NotNegative, checked
from monosem.codes import SparseCodes
from monosem.errors import ConfigError, DataError
from monosem.interventions.reading import Features
from monosem.interventions.where import Where
from monosem.models import EditReport, Sampling, SubjectModel, write
from monosem.models.edits import Edit
from monosem.models.writing import end_tokens, require_writing
from monosem.sae import SAE
from monosem.text import well_formed

Message = Mapping[str, Any]
Prompt = str | Sequence[str] | Sequence[Message] | Sequence[Sequence[Message]] | Tensor | Mapping[str, Tensor]
"""A text or several; one chat (messages with `role` and `content`) or several; token ids (batch, pos)."""
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
BEFORE = 4
"""Tokens of the prompt that decide how what follows is spelled: many tokenizers drop the first space of a text."""


@dataclass(frozen=True)
class Piece:
    """What has just been written of one row."""

    row: int
    text: str
    """May be empty: a token may be part of a letter, or of what may become a stop string."""
    token: int
    finish: Literal["stop", "length"] | None = None
    """Why it ends here, if so."""
    logits: Tensor | None = field(default=None, compare=False, repr=False)
    """(vocabulary,) what the token was drawn from."""


@dataclass
class Generation:
    """A continuation of one prompt."""

    prompt: str
    text: str
    """What was written, up to the end or to a stop string."""
    prompt_tokens: list[int]
    tokens: list[int]
    """What was written, the token that ends the text included."""
    finish: Literal["stop", "length"]
    """An end of text or a stop string, or `max_new_tokens`."""
    reports: list[EditReport] = field(default_factory=list[EditReport], repr=False)
    """Of each edit what it did in all rows together; `report.said(row)` is of one."""
    row: int = 0
    """Its number among the prompts."""
    features: SparseCodes | None = field(default=None, repr=False)
    """(prompt tokens + tokens, latents): the codes of every token with the edits in force. Empty where the SAE reads
    nothing, as at special tokens."""

    def said(self) -> list[str]:
        """In words, what each edit did in this text."""
        return [report.said(self.row) for report in self.reports]

    def __str__(self) -> str:
        return self.prompt + self.text


@checked
def generate(
    model: SubjectModel,
    prompt: Prompt,
    *,
    edits: Sequence[Edit] = (),
    features: SAE | None = None,
    max_new_tokens: int = 50,
    temperature: float = 0.9,
    top_k: int = 40,
    top_p: float = 1.0,
    seed: NotNegative | Sequence[NotNegative] = 0,
    stop: str | Sequence[str] = (),
    stream: Callable[[Piece], object] | None = None,
    cached: bool = True,
) -> Any:
    """Continue a prompt, or several at once, with edits in force.

    out = ms.generate(model, "The history of", edits=[ms.Add(sae, 12, 4.0)], features=sae)
    print(out.text, out.said())

    Args:
        model: a causal language model.
        prompt: a text, a list of texts, a chat (a list of messages with `role` and `content`, put into the model's own
            template), a list of chats, or token ids.
        edits: interventions, in this order; settings of a row each belong to the prompts in their order.
        features: an SAE whose codes of every token are wanted, as they are with the edits in force.
        max_new_tokens: at most so many.
        temperature: 0 takes the likeliest token.
        top_k: draw from so many of the likeliest tokens alone; 0 from all.
        top_p: draw from the likeliest tokens alone that together have this probability.
        seed: of the first row, the next ones have the numbers that follow; or one for each row. A row comes out as it
            does alone with its seed.
        stop: strings at which a text ends; they are cut off.
        stream: called with every piece as soon as it is written; what it raises ends the generation.
        cached: keep keys and values; without, everything is read again for each token, to the same end.

    Returns:
        A `Generation`; a list of them where several prompts are given.

    Raises:
        ConfigError: the model writes no text, has no chat template, or a setting is wrong.
        DataError: there is no prompt, or it does not fit the context.
    """
    options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    writing = Writing(model, prompt, Sampling(**options), edits, features, seed, stop, cached)
    for piece in writing:
        if stream is not None:
            stream(piece)
    return writing.generations if writing.several else writing.generations[0]


@checked
def stream(model: SubjectModel, prompt: Prompt, **options: Any) -> Writing:
    """As `generate`, but piece by piece: `for piece in ms.stream(...)`; then its `generations` are there.

    Between the pieces nothing of the edits is in force, and whoever stops taking them ends the generation.
    """
    sampling = {name: options.pop(name) for name in tuple(options) if name in Sampling.__dataclass_fields__}
    return Writing(model, prompt, Sampling(**sampling), **options)


class Writing:
    """Texts that are being written: an iterator of pieces."""

    def __init__(
        self,
        model: SubjectModel,
        prompt: Prompt,
        sampling: Sampling,
        edits: Sequence[Edit] = (),
        features: SAE | None = None,
        seed: int | Sequence[int] = 0,
        stop: str | Sequence[str] = (),
        cached: bool = True,
    ) -> None:
        """Look at everything; nothing is written yet."""
        require_writing(model)
        self.model, self.sampling, self.cached = model, sampling, cached
        self.inputs, self.several = read_prompt(model, prompt)
        model.inputs.arguments(self.inputs, model.device)  # are they tokens, and of this model
        self.stop = [stop] if isinstance(stop, str) else list(stop)
        if not all(isinstance(end, str) and end for end in self.stop):
            raise ConfigError(f"stop is one or several strings, not empty, got {stop!r}")
        n = len(self.inputs["input_ids"])
        self.seeds = [seed + row for row in range(n)] if isinstance(seed, int) else list(seed)
        if len(self.seeds) != n:
            raise ConfigError(f"there are {len(self.seeds)} seeds for {n} prompts")
        lengths = self.inputs["attention_mask"].sum(1)
        for edit in edits:
            where = getattr(edit, "where", None)
            if isinstance(where, Where):
                where.require_reachable(int(lengths.max()), int(lengths.max()) + sampling.max_new_tokens)
        self.reader = None if features is None else Features(features)
        self.force = model.edit([*edits, *([] if self.reader is None else [self.reader])])
        self.reports = self.force.reports[: len(edits)]
        self.generations: list[Generation] = []
        self.prompts = [
            row[mask.bool()].tolist()
            for row, mask in zip(self.inputs["input_ids"], self.inputs["attention_mask"], strict=True)
        ]
        given = [prompt] if isinstance(prompt, str) else prompt
        as_given = isinstance(given, list | tuple) and all(isinstance(text, str) for text in given)
        self.texts: list[str] = list(given) if as_given else [model.tokenizer.decode(ids) for ids in self.prompts]  # type: ignore[arg-type]
        self._ends = set(end_tokens(model))

    def __iter__(self) -> Iterator[Piece]:
        texts = [_Text(self.model.tokenizer, self.stop, self._ends, prompt) for prompt in self.prompts]
        written = write(
            self.model,
            self.inputs,
            self.sampling,
            self.seeds,
            edits=self.force,
            cached=self.cached,
            read_last=self.reader is not None,
        )
        for number, step in enumerate(written, 1):
            last = number == self.sampling.max_new_tokens
            for row, (text, token) in enumerate(zip(texts, step.tokens.tolist(), strict=True)):
                if text.finish is None:
                    yield Piece(row, text.add(token, last), token, text.finish, step.logits[row])
            if self.reader is None and all(text.finish for text in texts):
                break
            if all(text.finish for text in texts) and not bool(step.ended.all()) and not last:
                break  # by stop strings: the last token stays unread
        self.generations = [
            Generation(prompt, text.text, tokens, text.tokens, text.finish or "length", self.reports, row)
            for row, (prompt, tokens, text) in enumerate(zip(self.texts, self.prompts, texts, strict=True))
        ]
        if self.reader is not None:
            kept = self.inputs["attention_mask"].bool()
            for row, generation in enumerate(self.generations):
                n = len(generation.tokens)
                generation.features = self.reader.of(row, kept[row], n)


class _Text:
    """One row's text as it grows."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], ends: set[int], prompt: Sequence[int]) -> None:
        self.tokenizer, self.stop, self.ends = tokenizer, stop, ends
        self._before = list(prompt[-BEFORE:])
        self._skipped = len(self._decode(self._before))
        self.tokens: list[int] = []
        self.text = ""
        self.finish: Literal["stop", "length"] | None = None
        self._told = 0

    def add(self, token: int, last: bool) -> str:
        """Take one more token; returns the text that is certain now and has not been told."""
        self.tokens.append(token)
        whole = self._decode([*self._before, *self.tokens])[self._skipped :]
        found = [at for end in self.stop if (at := whole.find(end)) >= 0]
        if found:
            whole, self.finish = whole[: min(found)], "stop"
        elif token in self.ends:
            self.finish = "stop"
        elif last:
            self.finish = "length"
        self.text = whole
        certain = len(whole) if self.finish else self._certain(whole)
        new = whole[self._told : certain]
        self._told = max(self._told, certain)
        return new

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def _certain(self, whole: str) -> int:
        """Up to where the text will stay: letters may be unfinished, and a stop string may have begun."""
        certain = len(whole.rstrip(UNFINISHED))
        for end in self.stop:
            for size in range(min(len(end) - 1, certain), 0, -1):
                if whole[:certain].endswith(end[:size]):
                    certain -= size
                    break
        return certain


def read_prompt(model: SubjectModel, prompt: Prompt) -> tuple[dict[str, Tensor], bool]:
    """Token ids and mask, with padding in front, and whether several prompts were given.

    Raises:
        ConfigError: there is no chat template, or it is something else.
        DataError: a prompt is empty.
    """
    if isinstance(prompt, Mapping):
        tokens = prompt["input_ids"]
        mask = prompt.get("attention_mask", torch.ones_like(tokens))
        return {"input_ids": tokens, "attention_mask": mask}, True
    if isinstance(prompt, Tensor):
        return read_prompt(model, {"input_ids": prompt if prompt.ndim == 2 else prompt[None]})[0], prompt.ndim == 2
    if isinstance(prompt, str):
        return _beside(model, [model.tokens(prompt)[0].tolist()]), False
    several = list(prompt) if isinstance(prompt, Sequence) else []
    if several and all(isinstance(text, str) for text in several):
        return _beside(model, [model.tokens(text)[0].tolist() for text in several]), True  # type: ignore[arg-type]
    if several and all(isinstance(message, Mapping) for message in several):
        return _beside(model, [_chat(model, several)]), False  # type: ignore[arg-type]
    if several and all(isinstance(chat, Sequence) and not isinstance(chat, str) for chat in several):
        return _beside(model, [_chat(model, chat) for chat in several]), True  # type: ignore[arg-type]
    raise DataError(
        "a prompt is a text, a chat (messages with role and content), a list of such, or token ids; got "
        + ("nothing" if not several else type(prompt).__name__)
    )


def _chat(model: SubjectModel, messages: Sequence[Any]) -> list[int]:
    """A chat in the model's template, up to where its answer begins."""
    if not messages or not all(isinstance(m, Mapping) and {"role", "content"} <= set(m) for m in messages):
        raise DataError("a chat is a list of messages, each with role and content")
    if getattr(model.tokenizer, "chat_template", None) is None:
        raise ConfigError(f"{model.name} has no chat template: give a text instead of messages")
    text = model.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    return model.tokenizer(well_formed(text), add_special_tokens=False)["input_ids"]


def _beside(model: SubjectModel, ids: list[list[int]]) -> dict[str, Tensor]:
    """Prompts of any lengths in one batch, with padding in front."""
    width, pad = max(map(len, ids)), getattr(model.tokenizer, "pad_token_id", None) or 0
    tokens: Int[Tensor, "batch pos"] = torch.tensor([[pad] * (width - len(row)) + row for row in ids])
    mask: Int[Tensor, "batch pos"] = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    return {"input_ids": tokens.to(model.device), "attention_mask": mask.to(model.device)}
