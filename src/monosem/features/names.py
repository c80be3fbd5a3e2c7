"""What a latent is called, and how clear that is: the words that it fires on, or the class of its strongest images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from monosem.features.described import Described, name_of
from monosem.features.state import Harvest
from monosem.features.streaming import EMPTY
from monosem.features.words import Words
from monosem.models.vocabulary import Vocabulary

LATENTS_A_TILE = 4_096


class Named(NamedTuple):
    """Of every latent."""

    names: list[str | None]
    """Of text as `described.TextName`; of images the commonest class, or without labels the commonest place. None if it
    never fired, or if nothing describes it."""
    pieces: list[tuple[int, int] | None]
    """The characters of the name at which it fires, if not on all of it."""
    clarity: np.ndarray
    """(n,) of text the share of its strong firings, by weight, that the name describes, 0 where there is none. Of
    images and rows the share of its strongest examples that are of the name, times the activation of the weakest of
    them over that of the strongest; an example that is not there counts as another's. 0 if it never fired."""


def named_by_words(found: Described, called: list[str], words: Words, vocabulary: Vocabulary) -> Named:
    """Names of latents of text."""
    names = [name_of(latent, found, called, words, vocabulary) for latent in range(len(found.piece))]
    clarity = np.array([one.share if one.name is not None else 0.0 for one in names])
    return Named([one.name for one in names], [one.piece for one in names], clarity)


def named_by_documents(
    harvest: Harvest, shown: np.ndarray, vocabulary: Vocabulary, peaks: np.ndarray, named: Callable[[int], str] | None
) -> Named:
    """Names of latents of images or rows, from the strongest examples.

    Args:
        harvest: of images or of rows.
        shown: (n_latents, held) which of the strongest places count.
        vocabulary: the places of images.
        peaks: (n_latents,) the commonest place at the peaks; -1 if there are none.
        named: what a document is called: classes of images, labels of rows; None: they have no names.
    """
    names: list[str | None] = []
    clarity = np.zeros(harvest.n_latents)
    for first in range(0, harvest.n_latents, LATENTS_A_TILE):
        part = slice(first, min(harvest.n_latents, first + LATENTS_A_TILE))
        for i, said in enumerate(_said(harvest, shown, vocabulary, part, named), first):
            token = vocabulary.text(int(peaks[i])) if peaks[i] >= 0 else None
            if said and named is not None and harvest.context_length == 1:  # rows: there is no place in them
                token = said[0][1]
            name, clarity[i] = _name(said, token, harvest.settings.top)
            names.append(name)
    return Named(names, [None] * len(names), clarity)


def _name(said: list[tuple[float, str]], token: str | None, n_top: int) -> tuple[str | None, float]:
    """A name and its clarity, from activations and words, strongest first."""
    if not said or token is None:
        return None, 0.0
    ((common, count),) = Counter(word.lower() for _, word in said).most_common(1)
    clarity = count / n_top * said[-1][0] / said[0][0]
    if 2 * count >= len(said):
        ((token, _),) = Counter(word for _, word in said if word.lower() == common).most_common(1)
    return token.strip() or repr(token), clarity


def _said(
    harvest: Harvest, shown: np.ndarray, vocabulary: Vocabulary, part: slice, named: Callable[[int], str] | None
) -> list[list[tuple[float, str]]]:
    """Of some latents the activations of their strongest examples, and the class, or place of the peak, of each."""
    top = harvest.layout.n_top
    place, activation = harvest.slots.place[part, :top], harvest.slots.activation[part, :top]
    if named is not None:
        documents = np.where(place == EMPTY, 0, harvest.slots.document[part, :top])
        words = [[named(document) for document in row] for row in documents.tolist()]
    else:
        words = [[vocabulary.text(offset) for offset in row] for row in np.where(place == EMPTY, 0, place & 0xFFFF)]
    order = np.lexsort((place, -activation))
    kept = shown[part][np.arange(len(place))[:, None], order]
    return [[(float(activation[i, j]), words[i][j]) for j in order[i, kept[i]].tolist()] for i in range(len(place))]
