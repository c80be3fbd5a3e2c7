"""Scorers without a judge: surprisal, by a language model here, and similarity, by an encoder of sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from monosem.arguments import checked
from monosem.errors import ConfigError, DataError
from monosem.explain.cases import Case
from monosem.explain.questions import Answer, Question
from monosem.explain.scorers import separation
from monosem.explain.windows import plain
from monosem.features import Example
from monosem.features.explanations import Score
from monosem.models import SubjectModel

AT_ONCE = 16
NOTHING = "Various unrelated sentences."
"""In place of an explanation, as published."""
QUERY = "Instruct: Retrieve sentences that fit the description.\nQuery: "

Encoder = Callable[[list[str]], Any]
"""From sentences to vectors (sentences, width): an array or a tensor."""


class Surprisal:
    """Is the text less of a surprise to a language model that has read the explanation? (Paulo et al., 2024.)

    Each window's mean cross-entropy (nats a token) behind "Various unrelated sentences." less that behind the
    explanation. Value: the area under the ROC curve of this gain, firing against silent windows; 0.5 is chance.
    """

    name = "surprisal"
    chance = 0.5

    @checked
    def __init__(self, model: SubjectModel) -> None:
        if not model.writes_text or model.tokenizer is None:
            raise ConfigError(f"{model.name} predicts no text: surprisal needs a language model with a tokenizer")
        self.model = model
        self._without: dict[str, float] = {}

    def questions(self, case: Case) -> list[Question]:
        return []

    def score(self, case: Case, answers: Sequence[Answer], judge: str | None) -> Score | None:
        texts = list(dict.fromkeys(plain(example) for example in [*case.firings, *case.silent, *case.near]))
        new = [text for text in texts if text not in self._without]
        self._without |= dict(zip(new, self._losses(NOTHING, new), strict=True))
        given = dict(zip(texts, self._losses(case.explanation.text, texts), strict=True))
        return separation(case, lambda e: self._without[plain(e)] - given[plain(e)], self.model.name)

    def _losses(self, before: str, texts: Sequence[str]) -> list[float]:
        """Mean cross-entropy of each text behind the words."""
        begin = self.model.tokens(f"The following text is about: {before}\n\n")[0].tolist()
        pieces = [self.model.tokens(text or " ", prepend_bos=False)[0].tolist() for text in texts]
        room = min((self.model.context_length or math.inf) - len(ids) for ids in pieces) if pieces else math.inf
        if room < 1:
            raise DataError(f"{self.model.name} reads {self.model.context_length} tokens: windows have more")
        begin = begin[-int(min(room, len(begin))) :]
        losses: list[float] = []
        for at in range(0, len(pieces), AT_ONCE):
            losses += self._losses_of(begin, pieces[at : at + AT_ONCE])
        return losses

    @torch.no_grad()
    def _losses_of(self, begin: list[int], pieces: Sequence[list[int]]) -> list[float]:
        longest = max(map(len, pieces))
        ids = torch.tensor([[*begin, *ids, *[0] * (longest - len(ids))] for ids in pieces], device=self.model.device)
        lengths = torch.tensor([len(ids) for ids in pieces], device=ids.device)
        there = torch.arange(longest, device=ids.device)[None] < lengths[:, None]
        mask = torch.cat([there.new_ones(len(pieces), len(begin)), there], 1).long()
        logits = self.model.forward({"input_ids": ids, "attention_mask": mask})[:, len(begin) - 1 : -1].float()
        losses = torch.nn.functional.cross_entropy(logits.mT, ids[:, len(begin) :], reduction="none")
        return ((losses * there).sum(1) / lengths).tolist()


class Similarity:
    """Is the text close to the explanation, for an encoder of sentences?

    The cosine of the vectors of explanation and window. Value: the area under the ROC curve, firing against silent
    windows; 0.5 is chance.
    """

    name = "similarity"
    chance = 0.5

    @checked
    def __init__(self, encoder: Encoder, query: str = QUERY) -> None:
        """Take an encoder: a function from a list of sentences to vectors.

        Args:
            encoder: the function.
            query: what is put before an explanation; "" for encoders that know no instructions.
        """
        self.encoder, self.query = encoder, query
        self.encoder_name = getattr(encoder, "name", None) or getattr(encoder, "__name__", type(encoder).__name__)

    def questions(self, case: Case) -> list[Question]:
        return []

    def score(self, case: Case, answers: Sequence[Answer], judge: str | None) -> Score | None:
        windows = [*case.firings, *case.silent, *case.near]
        vectors = self._vectors([self.query + case.explanation.text, *(plain(example) for example in windows)])
        cosines = dict(zip(map(id, windows), (vectors[1:] @ vectors[0]).tolist(), strict=True))

        def cosine(example: Example) -> float:
            return cosines[id(example)]

        return separation(case, cosine, str(self.encoder_name))

    def _vectors(self, sentences: list[str]) -> np.ndarray:
        made: Any = self.encoder(sentences)
        vectors = np.asarray(made.detach().cpu() if hasattr(made, "detach") else made, np.float64)
        if vectors.ndim != 2 or len(vectors) != len(sentences) or not np.isfinite(vectors).all():
            raise DataError(f"the encoder gave {vectors.shape} for {len(sentences)} sentences: it must give (n, width)")
        return vectors / np.maximum(1e-12, np.linalg.norm(vectors, axis=1, keepdims=True))
