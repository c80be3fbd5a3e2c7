"""What a completion is made of: a request becomes texts to be written, their pieces become answers of the protocol."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from monosem.errors import ConfigError, DataError
from monosem.explorer.wire import ChatRequest, CompletionRequest, Request
from monosem.explorer.writing import Chance, Found, Piece, Shown, Ways, Writing
from monosem.interventions import edit_from_json
from monosem.interventions.generate import UNFINISHED
from monosem.models import SubjectModel
from monosem.models.edits import Edit
from monosem.models.writing import Sampling
from monosem.sae import SAE
from monosem.text import well_formed

DEFAULT_COMPLETION, DEFAULT_CHAT = 16, 512
"""New tokens where a request does not say how many; the first is the protocol's own."""
MOST_TEXTS = 16
"""In one answer."""


class Answer:
    """The answer to one request: its texts, and how they are told. Made on the model's thread."""

    def __init__(self, request: CompletionRequest | ChatRequest, sae: SAE | None, model: SubjectModel) -> None:
        """Read the request against the model.

        Raises:
            ConfigError: it cannot be done with this model or dictionary.
            DataError: its text does not fit.
        """
        self.model, self.chat = model, isinstance(request, ChatRequest)
        prompts = [chat_tokens(model, request)] if isinstance(request, ChatRequest) else _prompts(model, request)
        top, echo = _top(request), not isinstance(request, ChatRequest) and bool(request.echo)
        seed = request.seed if request.seed is not None else random.SystemRandom().getrandbits(62)
        self.writings: list[Writing] = []
        for prompt in prompts:
            for i in range(request.n or 1):
                new = _length(request, len(prompt), model.context_length)
                temperature = 1.0 if request.temperature is None else request.temperature
                top_p = 1.0 if request.top_p is None else request.top_p
                sampling = Sampling(new, temperature, 0, top_p) if new else None
                ways = Ways(sampling, (seed + i) % 2**63, request.stops, top, echo)
                edits = _edits(request, sae)
                self.writings.append(Writing(model, prompt, ways, edits, _shown(request, sae)))
        if len(self.writings) > MOST_TEXTS:
            raise ConfigError(f"{len(self.writings)} texts in one request: at most {MOST_TEXTS}")
        self.read = sum(map(len, prompts))
        self._told = [0] * len(self.writings)
        """Characters of each text that log-probabilities were given of."""

    def usage(self) -> dict[str, int]:
        """Tokens read and written."""
        written = sum(len(writing.written) for writing in self.writings)
        return {"prompt_tokens": self.read, "completion_tokens": written, "total_tokens": self.read + written}

    def reports(self, index: int) -> list[str]:
        """What each intervention did in a text."""
        return self.writings[index].reports()

    # Answers of the protocol -------------------------------------------------------------------------------------

    def part(self, index: int, piece: Piece, first: bool) -> dict[str, Any]:
        """A choice of a chunk of a stream."""
        choice = self._choice(index, [piece])
        if self.chat:
            delta = {"content": choice.pop("message")["content"]}
            choice["delta"] = {"role": "assistant", **delta} if first else delta
        return choice

    def whole(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """A choice of an answer in one."""
        return self._choice(index, pieces)

    def _choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        chances = [chance for piece in pieces for chance in piece.chances]
        finish = pieces[-1].finish if pieces else None
        choice: dict[str, Any] = {"index": index, "finish_reason": finish, "logprobs": None}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        if chances:
            choice["logprobs"] = self._chat_chances(chances) if self.chat else self._chances(index, chances)
        writing = self.writings[index]
        if writing.shown is not None:
            choice["features"] = [self._features(writing, found) for piece in pieces for found in piece.features]
        if finish is not None and writing.reports():
            choice["interventions"] = self.reports(index)
        return choice

    def _features(self, writing: Writing, found: Found) -> dict[str, Any]:
        tokens = [*writing.prompt, *writing.written]
        return {
            "position": found.position,
            "token": self._text(tokens[found.position]),
            "generated": found.position >= len(writing.prompt),
            "features": found.features,
        }

    def _chances(self, index: int, chances: Sequence[Chance]) -> dict[str, Any]:
        offsets: list[int] = []
        for chance in chances:
            offsets.append(self._told[index])
            self._told[index] += len(self._text(chance.token))
        return {
            "tokens": [self._text(chance.token) for chance in chances],
            "token_logprobs": [chance.log_probability for chance in chances],
            "top_logprobs": [
                {self._text(token): log for token, log in chance.likeliest} if chance.likeliest else None
                for chance in chances
            ],
            "text_offset": offsets,
        }

    def _chat_chances(self, chances: Sequence[Chance]) -> dict[str, Any]:
        def one(token: int, log: float | None) -> dict[str, Any]:
            text = self._text(token)
            whole = None if UNFINISHED in text else list(text.encode())
            return {"token": text, "logprob": log, "bytes": whole}

        content = [
            {
                **one(chance.token, chance.log_probability),
                "top_logprobs": [one(token, log) for token, log in chance.likeliest],
            }
            for chance in chances
        ]
        return {"content": content, "refusal": None}

    def _text(self, token: int) -> str:
        return self.model.tokenizer.decode([token], clean_up_tokenization_spaces=False)


def chat_tokens(model: SubjectModel, request: ChatRequest) -> list[int]:
    """What is said, through the model's own template, with the beginning of the answer.

    Raises:
        ConfigError: the model has no template.
        DataError: the template refuses these messages.
    """
    import jinja2

    if getattr(model.tokenizer, "chat_template", None) is None:
        raise ConfigError(f"{model.name} has no chat template: it completes texts, at /v1/completions")
    messages = [
        {"role": "system" if each.role == "developer" else each.role, "content": each.text} for each in request.messages
    ]
    try:
        given = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    except (jinja2.TemplateError, ValueError) as error:
        raise DataError(f"messages: the template of {model.name} refuses them: {error}") from error
    return list(given)


def _prompts(model: SubjectModel, request: CompletionRequest) -> list[list[int]]:
    """Texts and token ids as token ids."""
    given: Any = request.prompt
    several = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    size = len(model.tokenizer)
    prompts = [model.tokens(well_formed(each))[0].tolist() if isinstance(each, str) else each for each in several]
    for prompt in prompts:
        if max(prompt) >= size:
            raise DataError(f"prompt: there is no token {max(prompt)}: {model.name} has 0 to {size - 1}")
    return prompts


def _top(request: CompletionRequest | ChatRequest) -> int | None:
    if isinstance(request, ChatRequest):
        return (request.top_logprobs or 0) if request.logprobs else None
    return request.logprobs


def _length(request: CompletionRequest | ChatRequest, read: int, context: int | None) -> int:
    """New tokens: as asked, or by default as many as fit."""
    asked, default = request.max_tokens, DEFAULT_COMPLETION
    if isinstance(request, ChatRequest):
        asked, default = asked if asked is not None else request.max_completion_tokens, DEFAULT_CHAT
    if asked is not None:
        return asked
    return default if context is None else max(0, min(default, context - read))


def _edits(request: Request, sae: SAE | None) -> list[Edit]:
    """Edits of one text alone: each tells of itself."""
    found: list[Edit] = []
    for number, data in enumerate(request.interventions):
        try:
            found.append(edit_from_json(data, () if sae is None else sae))
        except ConfigError as error:
            raise ConfigError(f"interventions[{number}]: {error}") from error
    return found


def _shown(request: Request, sae: SAE | None) -> tuple[SAE, Shown] | None:
    if request.features is None:
        return None
    if sae is None:
        raise ConfigError("features: this model is served without a dictionary")
    latents = request.features.latents or []
    wrong = [latent for latent in latents if latent >= sae.n_latents]
    if wrong:
        raise ConfigError(f"features: there is no feature {wrong[0]}: there are 0 to {sae.n_latents - 1}")
    return sae, Shown(request.features.top, tuple(latents))
