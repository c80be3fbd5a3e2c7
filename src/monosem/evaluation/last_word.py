"""Last-word accuracy: is the last word of a passage still guessed with reconstructions put in?

Paperno et al., The LAMBADA dataset, 2016. A word counts as guessed if all its tokens are the likeliest ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from monosem.data import read_documents
from monosem.data.documents import DocumentStream
from monosem.errors import ConfigError, DataError
from monosem.evaluation.language import LanguageLoss
from monosem.evaluation.losses import Losses
from monosem.evaluation.metric import Metric, Seen
from monosem.evaluation.model_reading import ModelReading
from monosem.evaluation.survey import Extra, Survey, pass_over
from monosem.intervals import Interval


class LastWord(Metric):
    """Over passages, each a context of its own."""

    def __init__(self, columns: Sequence[str], lengths: Sequence[int]) -> None:
        """`lengths` says of how many tokens the last word of each passage is."""
        super().__init__()
        self.columns, self.lengths = columns, np.array(lengths)

    def add(self, seen: Seen) -> None:
        for found in seen.predictions().values():
            documents, places = found.documents.numpy(), found.places.numpy()
            order = np.lexsort((-places, documents))
            present, starts, n = np.unique(documents[order], return_index=True, return_counts=True)
            rank = np.arange(len(order)) - np.repeat(starts, n)
            of_word = rank < np.repeat(self.lengths[present], n)
            known = n >= self.lengths[present]
            self.sums.add("rows", present, known)
            for name in ("clean", *self.columns):
                wrong = np.add.reduceat(of_word & ~found.right[name][order], starts)
                self.sums.add(name, present, known & (wrong == 0))

    def result(self, name: str) -> dict[str, Interval]:
        return {"last_word": self.sums.interval(lambda s: s[name] / s["rows"])}


WITH_LOSSES = "last_words is for a dictionary of one place of a language model, with loss_tokens above 0"


def passages(file: str | Path) -> list[str]:
    """The passages of a file: its lines, or what stands under the key "text" of each."""
    documents = read_documents(str(file))
    found = documents.window(0) if isinstance(documents, DocumentStream) else documents
    by_line = ".txt" in Path(file).suffixes
    return [
        text.strip() for one in found for text in (one.text.splitlines() if by_line else [one.text]) if text.strip()
    ]


def require_passages(file: str | Path, loss_tokens: int) -> None:
    """Say before all else what the last words, which come last, would end with.

    Raises:
        FileError: the file cannot be read.
        ConfigError: no losses are measured.
        DataError: no passage has two words.
    """
    if not loss_tokens:
        raise ConfigError(WITH_LOSSES)
    if not any(len(text.split()) > 1 for text in passages(file)):
        raise DataError(f"{file}: no passage has two words")


def last_words(survey: Survey) -> Extra | None:
    """The share of last words that are guessed, clean and with each column put in.

    Raises:
        ConfigError: the model does not write text.
        DataError: no passage has two words and fits into the model's context.
    """
    if survey.last_words is None:
        return None
    place = survey.one_place()
    if place is None or not isinstance(next(iter(place.losses.losses.values())), LanguageLoss):
        raise ConfigError(WITH_LOSSES)
    tokenizer, texts, lengths, longest = place.model.tokenizer, list[str](), list[int](), 0
    room = (place.model.context_length or 1024) - 1
    for text in passages(survey.last_words):
        context = text.rsplit(None, 1)[0] if len(text.split()) > 1 else ""
        whole, before = (
            len(tokenizer(one, add_special_tokens=False, verbose=False)["input_ids"]) for one in (text, context)
        )
        if context and before < whole <= room:
            texts.append(text)
            lengths.append(whole - before)
            longest = max(longest, whole)
    if not texts:
        raise DataError(f"{survey.last_words}: no passage of two words or more fits into the model's context")
    rules = {"packing": False, "context_length": longest + 1}
    hook = place.reading.first.hooks
    reading = ModelReading(survey.saes, place.model, hook, survey.loss_tokens, rules, text=texts)
    reading.work = "evaluating last words"
    columns = list(survey.columns)
    reading.losses = Losses(reading.first.predicted, columns, reading.contexts, reading.known, survey.loss_tokens)
    words = LastWord(columns, lengths)
    pass_over(reading, survey.columns, [words], survey.keeper("last_words", [words]))
    clean = words.result("clean")["last_word"].value
    facts: dict[str, str | int | float] = {
        "last_word_clean": clean,
        "last_words": int(words.sums.total("rows")),
        "last_words_of": str(survey.last_words),
    }
    return Extra({name: words.result(name) for name in columns}, facts=facts)
