"""A text being written, a token at every step: one model writes many at once, and any may end between two steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from monosem.errors import DataError
from monosem.explorer.pieces import Spelling
from monosem.explorer.watch import Found, Watch
from monosem.models import SubjectModel
from monosem.models.subject import Edit
from monosem.models.writing import Sampling, Written, end_tokens, require_writing, write


class Ways(NamedTuple):
    """How a text goes on, and what is told of it."""

    sampling: Sampling | None
    """None: no token is written."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """The text ends before any of these."""
    top: int | None = None
    """Log-probabilities to give: of the token drawn, and of so many of the likeliest."""
    echo: bool = False
    """Tell of the prompt too: its text, and the log-probabilities of its tokens."""


class Chance(NamedTuple):
    """A token and its log-probability, in nats, before temperature; None for the first of a text."""

    token: int
    log_probability: float | None
    likeliest: list[tuple[int, float]]


class Piece(NamedTuple):
    """What a step has added."""

    text: str
    """May be empty: half a character, or what may begin a stop."""
    chances: list[Chance]
    features: list[Found]
    """Of tokens that the model has read: every token but, where features are not watched, the last."""
    finish: str | None
    """`stop` or `length` at the end."""


class Writing:
    """One continuation. Edits are in the model within a step alone: between two steps it is anybody's."""

    def __init__(
        self,
        model: SubjectModel,
        prompt: Sequence[int],
        ways: Ways,
        edits: Sequence[Edit] = (),
        watch: Watch | None = None,
    ) -> None:
        """Check everything; nothing is computed yet. Only on the thread that runs the model.

        Args:
            model: a language model.
            prompt: token ids.
            ways: how to go on.
            edits: what changes the model meanwhile.
            watch: which features to tell of.

        Raises:
            ConfigError: the model writes no text.
            MismatchError: an edit does not fit it.
            DataError: prompt and continuation do not fit the model's context.
        """
        require_writing(model)
        most, new = model.context_length, 0 if ways.sampling is None else ways.sampling.max_new_tokens
        if most is not None and len(prompt) + new > most:
            raise DataError(
                f"{len(prompt)} tokens of the prompt and {new} new ones do not fit the model's context of {most}: "
                "shorten the prompt or lower max_tokens"
            )
        self.model, self.ways, self.watch = model, ways, watch
        self.prompt, self.written = list(prompt), list[int]()
        self.given = len(edits)
        self._force = model.edit([*edits, *([] if watch is None else [watch])])
        self._spelling = Spelling(model.tokenizer, self.prompt, ways.stop)
        self._ends = frozenset(end_tokens(model))
        self._steps = self._run()

    def step(self) -> Piece:
        """Another token, or the end. Only on the thread that runs the model."""
        return next(self._steps)

    def reports(self) -> list[str]:
        """What each edit has done, in words."""
        return [report.said() for report in self._force.reports[: self.given]]

    @torch.no_grad()
    def _run(self) -> Iterator[Piece]:
        text, chances = (self._spelling.prompt, self._of_prompt()) if self.ways.echo else ("", [])
        finish = "length"
        for written in self._going():
            token, logits = int(written.tokens[0]), written.logits[0].float()
            if not bool(torch.isfinite(logits).all()):
                raise DataError("the model's logits are no numbers any more: make the interventions weaker")
            if self._spelling.stopped or token in self._ends:  # after a stop, the model has only read the last token
                finish = "stop"
                break
            self.written.append(token)
            text += self._spelling.add(token)
            chances += [] if self.ways.top is None else [_chance(logits, token, self.ways.top)]
            if self._spelling.stopped and self.watch is None:
                finish = "stop"
                break
            yield Piece(text, chances, self._features(), None)
            text, chances = "", []
        text += self._spelling.rest()
        yield Piece(text, chances, self._features(), "stop" if self._spelling.stopped else finish)

    def _going(self) -> Iterator[Written]:
        sampling = self.ways.sampling
        if sampling is None:
            return iter(())
        tokens = {"input_ids": torch.tensor([self.prompt], device=self.model.device)}
        read_last = self.watch is not None
        return write(self.model, tokens, sampling, [self.ways.seed], edits=self._force, read_last=read_last)

    def _features(self) -> list[Found]:
        return [] if self.watch is None else self.watch.take()

    def _of_prompt(self) -> list[Chance]:
        """Log-probabilities of the prompt's own tokens, of a forward pass of its own."""
        if self.ways.top is None:
            return []
        with self._force:
            logits = self.model(torch.tensor([self.prompt], device=self.model.device))[0].float()
        if self.ways.sampling is not None:
            self._features()
        rows = zip(logits[:-1], self.prompt[1:], strict=True)
        return [Chance(self.prompt[0], None, []), *(_chance(row, token, self.ways.top) for row, token in rows)]


def _chance(logits: Tensor, token: int, top: int) -> Chance:
    logs = logits.log_softmax(-1)
    best = logs.topk(top)
    return Chance(token, float(logs[token]), list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
