"""A text being written, a token at every step: one model writes many at once, and any may end between two steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from monosem.codes import SparseCodes
from monosem.errors import DataError
from monosem.interventions import Writing as Stream
from monosem.models import SubjectModel
from monosem.models.edits import Edit
from monosem.models.writing import Sampling, end_tokens, require_writing
from monosem.sae import SAE


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


class Shown(NamedTuple):
    """The features to tell of."""

    top: int | None
    """So many of every token, the strongest; or else ..."""
    latents: tuple[int, ...]
    """... these, on or off."""

    def of(self, codes: SparseCodes) -> list[tuple[int, float]]:
        """Latent and activation of one token, (n_latents,)."""
        on = dict(zip(codes.indices.tolist(), codes.values.tolist(), strict=True))
        if self.top is None:
            return [(latent, on.get(latent, 0.0)) for latent in self.latents]
        return sorted(((latent, value) for latent, value in on.items() if value > 0), key=lambda p: -p[1])[: self.top]


class Chance(NamedTuple):
    """A token and its log-probability, in nats, before temperature; None for the first of a text."""

    token: int
    log_probability: float | None
    likeliest: list[tuple[int, float]]


class Found(NamedTuple):
    """The features of a token that the model has read."""

    position: int
    features: list[tuple[int, float]]


class Piece(NamedTuple):
    """What a step has added."""

    text: str
    """May be empty: half a character, or what may begin a stop."""
    chances: list[Chance]
    features: list[Found]
    """A token is read a step after it was written."""
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
        shown: tuple[SAE, Shown] | None = None,
    ) -> None:
        """Check everything; nothing is computed yet. Only on the thread that runs the model.

        Args:
            model: a language model.
            prompt: token ids.
            ways: how to go on.
            edits: what changes the model meanwhile.
            shown: an SAE and which of its features to tell of.

        Raises:
            ConfigError: the model writes no text.
            MismatchError: an edit does not fit it.
            DataError: prompt and continuation do not fit the model's context.
        """
        require_writing(model)
        most, new = model.context_length, 1 if ways.sampling is None else ways.sampling.max_new_tokens
        if most is not None and len(prompt) + new > most:
            raise DataError(
                f"{len(prompt)} tokens of the prompt and {new} new ones do not fit the model's context of {most}: "
                "shorten the prompt or lower max_tokens"
            )
        self.model, self.ways = model, ways
        self.prompt, self.written = list(prompt), list[int]()
        self.shown = None if shown is None else shown[1]
        self._tokens = torch.tensor([self.prompt], device=model.device)
        features = None if shown is None else shown[0]
        self._stream = Stream(model, self._tokens, ways.sampling or ONE, edits, features, ways.seed, ways.stop)
        self._ends = frozenset(end_tokens(model))
        self._told = self._passes = 0
        """Tokens whose features were told, and forward passes looked at for it."""
        self._steps = self._run()

    def step(self) -> Piece:
        """Another token, or the end. Only on the thread that runs the model."""
        return next(self._steps)

    def reports(self) -> list[str]:
        """What each edit has done, in words."""
        return [report.said() for report in self._stream.reports]

    @torch.no_grad()
    def _run(self) -> Iterator[Piece]:
        text, chances = (self._said(), self._of_prompt()) if self.ways.echo or self.ways.sampling is None else ("", [])
        if self.ways.sampling is None:
            yield Piece(text if self.ways.echo else "", chances, self._features(), "length")
            return
        stream = iter(self._stream)
        for piece in stream:
            logits = piece.logits
            if logits is None or not bool(torch.isfinite(logits).all()):
                raise DataError("the model's logits are no numbers any more: make the interventions weaker")
            if piece.finish != "stop" or piece.token not in self._ends:
                self.written.append(piece.token)
                chances += [] if self.ways.top is None else [_chance(logits.float(), piece.token, self.ways.top)]
            features = self._features()
            if piece.finish is not None:
                list(stream)  # it reads the last token, if that is wanted
                features += self._features()
            yield Piece(text + piece.text, chances, features, piece.finish)
            text, chances = "", []

    def _features(self) -> list[Found]:
        """Of tokens read since it was last asked."""
        reader, found = self._stream.reader, list[Found]()
        if reader is None or self.shown is None:
            return found
        for codes in reader.codes[self._passes :]:
            for row in range(codes.shape[1]):
                if self._told < len(self.prompt) + len(self.written):
                    found.append(Found(self._told, self.shown.of(codes[0][row])))
                self._told += 1
        self._passes = len(reader.codes)
        return found

    def _said(self) -> str:
        return self.model.tokenizer.decode(self.prompt, skip_special_tokens=True)

    def _of_prompt(self) -> list[Chance]:
        """Log-probabilities of the prompt's own tokens, of a forward pass of its own."""
        with self._stream.force:
            logits = self.model(self._tokens)[0].float()
        if self.ways.sampling is not None and self._stream.reader is not None:
            self._stream.reader.codes.clear()
        if self.ways.top is None:
            return []
        rows = zip(logits[:-1], self.prompt[1:], strict=True)
        return [Chance(self.prompt[0], None, []), *(_chance(row, token, self.ways.top) for row, token in rows)]


ONE = Sampling(1)


def _chance(logits: Tensor, token: int, top: int) -> Chance:
    logs = logits.log_softmax(-1)
    best = logs.topk(top)
    return Chance(token, float(logs[token]), list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
