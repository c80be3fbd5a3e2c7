"""What a latent is called, and how clear that is: the word, or the class of image, of its strongest examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from monosem.features.state import Harvest
from monosem.features.streaming import EMPTY
from monosem.features.vocabulary import Vocabulary

LATENTS_A_TILE = 4_096


class Named(NamedTuple):
    """Of every latent."""

    names: list[str | None]
    """The commonest word at the peaks of its strongest examples if it stands at half of them, else the peak token; of
    images the commonest class, or without labels the commonest place. None if it never fired."""
    clarity: np.ndarray
    """(n,) share of its strongest examples that are of the commonest word (class, place), times the activation of the
    weakest of them over that of the strongest; an example that is not there counts as another's. 0 if it never fired.
    """


def names_of(
    harvest: Harvest,
    shown: np.ndarray,
    vocabulary: Vocabulary,
    peaks: np.ndarray,
    named: Callable[[int], str] | None = None,
) -> Named:
    """Names from the strongest examples.

    Args:
        harvest: of text, of images or of rows.
        shown: (n_latents, held) which of the strongest places count.
        vocabulary: its tokens, or places of images.
        peaks: (n_latents,) the commonest token at the peaks; -1 if there are none.
        named: what a document is called, if the words are those: classes of images, labels of rows.
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
    return Named(names, clarity)


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
    """Of some latents the activations of their strongest examples, and the word (class, place) at the peak of each."""
    top = harvest.layout.n_top
    place, activation = harvest.slots.place[part, :top], harvest.slots.activation[part, :top]
    if named is not None:
        documents = np.where(place == EMPTY, 0, harvest.slots.document[part, :top])
        words = [[named(document) for document in row] for row in documents.tolist()]
    else:
        words = _words(harvest, vocabulary, part)
    order = np.lexsort((place, -activation))
    kept = shown[part][np.arange(len(place))[:, None], order]
    return [[(float(activation[i, j]), words[i][j]) for j in order[i, kept[i]].tolist()] for i in range(len(place))]


def _words(harvest: Harvest, vocabulary: Vocabulary, part: slice) -> list[list[str]]:
    """The words at the peaks of the strongest examples: the peak token, and what joins it before and after."""
    layout = harvest.layout
    place, tokens = harvest.slots.place[part, : layout.n_top], harvest.slots.tokens[part, : layout.n_top]
    offset = np.where(place == EMPTY, 0, place & 0xFFFF)
    begin, length = (column[part, : layout.n_top] for column in (harvest.slots.start, harvest.slots.length))
    peak, at = (offset - begin)[..., None], np.arange(tokens.shape[2])
    goes_in, goes_on = _joints(vocabulary)
    apart = np.ones(tokens.shape, bool)  # whether a token begins a word
    apart[..., 1:] = ~(goes_on[tokens[..., :-1]] & goes_in[tokens[..., 1:]])
    start = np.where(apart & (at <= peak), at, 0).max(2)
    stop = np.where((apart | (at >= length[..., None])) & (at > peak), at, tokens.shape[2]).min(2)
    stop = np.minimum(stop, length)
    pieces = vocabulary.pieces

    def word(row: np.ndarray, first: int, last: int) -> str:
        text = b"".join([pieces[token] for token in row[first:last].tolist()]).decode(errors="replace")
        return text.strip() or text

    return [[word(tokens[i, j], start[i, j], stop[i, j]) for j in range(tokens.shape[1])] for i in range(len(tokens))]


def _joints(vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Of every token, whether it goes on with a word that stands before it, and whether what comes after may."""
    texts = [vocabulary.text(token) for token in range(len(vocabulary))]
    inner = [token not in vocabulary.special for token in range(len(vocabulary))]
    # A part of a character that several tokens make up reads as a replacement character: within a word, mostly.
    goes_in = [bool(text) and (text[0].isalnum() or text[0] == "\ufffd") for text in texts]
    goes_on = [bool(text) and (text[-1].isalnum() or text[-1] == "\ufffd") for text in texts]
    return np.array(goes_in) & inner, np.array(goes_on) & inner
