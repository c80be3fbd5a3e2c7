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
RATHER = 2.0
"""How many times the share of strong firings of what is often must be that of what is seldom, that it is said first."""
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
        seldom = [i for i in order if i not in often]
        main = [i for i in often if found.strong[i] >= MAIN]
        rather = bool(seldom) and found.strong[seldom[0]] > RATHER * max([MAIN, *(found.strong[i] for i in main)])
        main = main or ([] if rather else often[:1])
        parts = [
            ("", main, FIRST, GROUPS),
            ("also ", [i for i in often if i not in main], LISTED, MORE),
            ("sometimes ", seldom, LISTED, MORE),
        ]
        if rather:
            parts = [parts[-1], *parts[:-1]]
        said: list[str] = []
        named: set[str] = set()
        lines: list[str] = []
        for lead, chosen, most, limit in parts:
            phrases = self._phrases(found, chosen, most, named)
            new = [phrase for phrase in phrases if phrase not in said][:limit]
            said += new
            lines += [lead + "; ".join(new)] if new else []
        return "; ".join(lines)

    def _phrases(self, of: Found, chosen: Sequence[int], most: int, named: set[str]) -> list[str]:
        """Of some clauses a phrase each; tokens and words that are fired on by themselves stand together, each once."""
        alone: dict[str, float] = {}
        found: list[str | None] = []
        for i in chosen:
            clause = of.rule.clauses[i]
            bare = clause.model_copy(update={"share": 0, "tokens": (), "words": ()})
            if bare == Clause() and not (clause.words and clause.tokens):
                if not alone:
                    found.append(None)
                words = [self.token(token) for token in clause.tokens] or [f"*{shown(word)}*" for word in clause.words]
                strong = of.items[i] if of.items else [of.strong[i]] * len(words)
                for word, share in zip(words, strong, strict=True):
                    alone[word] = max(share, alone.get(word, 0.0))
            else:
                found.append(self.phrase(clause, most))
        listed = _some([word for word in sorted(alone, key=lambda word: -alone[word]) if word not in named], most)
        named.update(alone)
        phrases = [listed if phrase is None else phrase for phrase in dict.fromkeys(found)]
        return [phrase for phrase in phrases if phrase]

    def phrase(self, clause: Clause, most: int = LISTED) -> str:
        """One clause."""
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
        before = self.where(clause, most)
        if clause.behind and what == ANY:
            what = "pieces of words"
        what += f" {before}" if before else ""
        if clause.following:
            what += " with " + _some([f"*{shown(word)}*" for word in clause.following], most) + " before"
        if clause.line_start:
            what += " at the start of a line"
        if clause.positions is not None:
            first, stop = clause.positions
            what += f" at places {first} to {stop - 1} of the text" if first else f" among the first {stop} of the text"
        return what

    def where(self, clause: Clause, most: int = LISTED) -> str:
        """What stands right before: tokens of the same word, or the word before."""
        if clause.behind:
            return "right after " + _some([f"*{shown(token.strip() or token)}*" for token in clause.behind], most)
        words = [f"*{shown(word)}*" for word in clause.after] + list(clause.after_kinds)
        return f"after {_some(words, most)}" if words else ""

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
