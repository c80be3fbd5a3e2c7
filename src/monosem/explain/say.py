"""A rule in plain words, on one line."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from monosem.explain.evidence import Evidence
from monosem.explain.find import GROUPS, Found
from monosem.features import Clause

MOSTLY = 0.8
"""Share of a token's occurrences from which it is a word, a beginning or an ending."""
FIRST, LISTED = 5, 3
"""Words that are listed, of what comes first and of what follows."""
PRECISE = 0.2
"""Share of its tokens on which a latent must fire, that a clause is said without a "sometimes"."""
MORE = 2
"""Phrases that follow."""
MAIN = 0.06
"""Share of strong firings from which a clause is of the main ones."""
CLEAR_Z = 6.0
"""Standard deviations above the mean at which a latent promotes a token clearly."""
PROMOTED = 4
ANY = "any word"


class Sayer:
    """Puts rules on the latents of one part of a store into words."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        text, n = evidence.text, evidence.counted
        place = text.place[:n]
        self._whole, self._begins, self._ends = (self._shares(mask) for mask in self._edges(place))

    def _edges(self, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        starts, n = self._evidence.text.words.starts, len(place)
        first = starts[place] == np.arange(n)
        last = starts[place + 1] == np.arange(n) + 1
        return first & last, first, last

    def _shares(self, mask: np.ndarray) -> np.ndarray:
        """(vocabulary,) the share of each token's occurrences for which a mask holds."""
        tokens, size = self._evidence.text.tokens[: len(mask)], self._evidence.counts.size
        return np.bincount(tokens[mask], minlength=size) / np.maximum(1, np.bincount(tokens, minlength=size))

    def line(self, found: Found) -> str:
        """What the latent fires on, strongest first."""
        order = sorted(range(len(found.strong)), key=lambda i: (-found.strong[i], i))
        often = [i for i in order if found.precise[i] >= PRECISE]
        main = [i for i in often if found.strong[i] >= MAIN] or often[:1]
        parts = (
            ("", main, FIRST, GROUPS),
            ("also ", [i for i in often if i not in main], LISTED, MORE),
            ("sometimes ", [i for i in order if i not in often], LISTED, MORE),
        )
        said: list[str] = []
        lines: list[str] = []
        for lead, chosen, most, limit in parts:
            phrases = self._phrases([found.rule.clauses[i] for i in chosen], most)
            new = [phrase for phrase in phrases if phrase not in said][:limit]
            said += new
            lines += [lead + "; ".join(new)] if new else []
        return "; ".join(lines)

    def _phrases(self, clauses: Sequence[Clause], most: int) -> list[str]:
        """Of each clause a phrase; tokens and words that are fired on by themselves stand together."""
        alone: dict[str, None] = {}
        found: list[str | None] = []
        for clause in clauses:
            bare = clause.model_copy(update={"share": 0, "tokens": (), "words": ()})
            if bare == Clause() and not (clause.words and clause.tokens):
                if not alone:
                    found.append(None)
                words = [f"*{shown(word)}*" for word in clause.words]
                alone.update(dict.fromkeys([self.token(token) for token in clause.tokens] or words))
            else:
                found.append(self._phrase(clause, most))
        listed = _some(list(alone), most)
        return [listed if phrase is None else phrase for phrase in dict.fromkeys(found)]

    def _phrase(self, clause: Clause, most: int) -> str:
        if clause.words and clause.tokens:
            return "in " + _some([f"*{self._marked(word, clause.tokens)}*" for word in clause.words], most)
        what = ANY
        if clause.kinds:
            what = self._kind(clause)
        elif clause.begins:
            what = f"words that begin with *{clause.begins}…*"
        elif clause.ends:
            what = f"words that end in *…{clause.ends}*"
        elif clause.tokens:
            what = _some([self.token(token) for token in clause.tokens], most)
        elif clause.words:
            what = _some([f"*{shown(word)}*" for word in clause.words], most)
        if clause.capitals:
            what += {"first": " with a capital", "all": " in capitals", "none": " without capitals"}[clause.capitals]
        if clause.piece == "later":
            what = f"later pieces of {what}"
        elif clause.piece == "first" and (clause.begins or clause.ends):
            what = f"the first piece of {what}"
        if clause.behind:
            before = _some([f"*{shown(token.strip() or token)}*" for token in clause.behind], most)
            what = f"pieces of words right after {before}" if what == ANY else f"{what} right after {before}"
        if clause.after or clause.after_kinds:
            before = [f"*{shown(word)}*" for word in clause.after] + list(clause.after_kinds)
            what += f" after {_some(before, most)}"
        if clause.following:
            what += " with " + _some([f"*{shown(word)}*" for word in clause.following], most) + " before"
        if clause.line_start:
            what += " at the start of a line"
        if clause.positions is not None:
            first, stop = clause.positions
            what += f" at places {first} to {stop - 1} of the text" if first else f" among the first {stop} of the text"
        return what

    def _kind(self, clause: Clause) -> str:
        (kind,) = clause.kinds
        return f"{kind} ({', '.join(f'*{word}*' for word in self._commonest(kind))})"

    @functools.lru_cache(512)  # noqa: B019
    def _commonest(self, kind: str) -> list[str]:
        from monosem.analysis import kinds

        text, counts = self._evidence.text, self._evidence.counts
        times = counts.word[:, 1] * text.kinds[:, kinds.names().index(kind)]
        best = np.argsort(-times)[:3]
        return [shown(text.words.spelled[i]) for i in best.tolist() if times[i]]

    def token(self, text: str) -> str:
        """A token, marked where words go on before or behind it."""
        number = self._evidence.text.ids[text][0]
        bare = shown(text.strip() or text)
        if self._whole[number] >= MOSTLY or not bare[:1].isalnum():
            return f"*{bare}*"
        before = "" if self._begins[number] >= MOSTLY else "…"
        after = "" if self._ends[number] >= MOSTLY else "…"
        return f"*{before}{bare}{after}*"

    def _marked(self, word: str, tokens: Sequence[str]) -> str:
        """A word with its piece that is meant set off."""
        for token in sorted(tokens, key=len, reverse=True):
            piece = token.strip().lower()
            at = word.find(piece) if piece else -1
            if at >= 0 and len(piece) < len(word):
                return "·".join(part for part in (word[:at], piece, word[at + len(piece) :]) if part)
        return shown(word)


def shown(text: str) -> str:
    """A word or token that can be read on one line."""
    if text == " ":
        return "space"
    return text.replace("\n", "↵").replace("\t", "⇥").replace("*", "∗")


def _some(words: Sequence[str], most: int) -> str:
    """The first of a list, and how many more there are."""
    unique = list(dict.fromkeys(words))
    rest = len(unique) - most
    if rest <= 1:
        return ", ".join(unique)
    return f"{', '.join(unique[:most])} and {rest} more"
