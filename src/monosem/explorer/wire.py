"""Requests of the OpenAI protocol: its fields, and two of our own; whatever else is sent is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from monosem.explorer.shapes import Words

MOST_CHOICES = 16
"""Texts that one request may ask for."""
LONGEST_PROMPT = 1_000_000
LIKELIEST = 20
Stop = Annotated[Words, Field(min_length=1, max_length=200)]
Text = Annotated[Words, Field(min_length=1, max_length=LONGEST_PROMPT)]
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=LONGEST_PROMPT)]
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "logit_bias": (None, {}),
    "best_of": (1, None),
    "suffix": (None, ""),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "store": (None, False),
    "service_tier": (None, "auto", "default"),
    "parallel_tool_calls": (None, True, False),
}
"""Fields of the protocol that are known but not followed: only what changes nothing is taken."""


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool = False


class Shown(BaseModel):
    """Which features to show beside the text: the strongest of every token, or some latents wherever they are."""

    model_config = ConfigDict(extra="forbid")

    top: Annotated[int, Field(ge=1, le=128)] | None = None
    latents: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=256)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Shown:
        if (self.top is None) == (self.latents is None):
            raise ValueError("give one of top (a number) and latents (a list of numbers)")
        return self


class Request(BaseModel):
    """What both kinds have."""

    model_config = ConfigDict(extra="forbid")

    model: Words
    """The name of a run, as /v1/models lists it."""
    max_tokens: Annotated[int, Field(ge=0, le=LONGEST_PROMPT)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Words | None = None
    metadata: dict[str, Any] | None = None
    interventions: Annotated[list[dict[str, Any]], Field(max_length=64)] = []
    """Edits as data, as `edit.to_json()` writes them; where one names no SAE, it is the run's own."""
    features: Shown | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, given: Any) -> Any:
        """Leave out fields that are known and change nothing; refuse those that would."""
        if not isinstance(given, dict):
            return given
        for name, neutral in NEUTRAL.items():
            if name in given and not any(given[name] == each for each in neutral):
                raise ValueError(f"{name} is not supported here: leave it out")
        return {name: value for name, value in given.items() if name not in NEUTRAL}

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts before which it ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionRequest(Request):
    """POST /v1/completions."""

    prompt: Text | Tokens | Annotated[list[Text] | list[Tokens], Field(min_length=1, max_length=MOST_CHOICES)]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=LIKELIEST)] | None = None


class Part(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: Words


class Message(BaseModel):
    """What somebody has said."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Words, Field(max_length=LONGEST_PROMPT)] | Annotated[list[Part], Field(max_length=100)]
    name: Words | None = None

    @property
    def text(self) -> str:
        """Its parts in one."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Request):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1_000)]
    max_completion_tokens: Annotated[int, Field(ge=0, le=LONGEST_PROMPT)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=LIKELIEST)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs takes logprobs: true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("give one of max_tokens and max_completion_tokens")
        return self
