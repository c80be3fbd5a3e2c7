"""Text: tokens of some contexts, in words, in which the places where a rule holds are found."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from monosem.analysis import kinds
from monosem.features import Clause, Rule, Vocabulary
from monosem.features.log import UNREAD, Logged
from monosem.features.words import Words

FEW = 24
"""Numbers up to which one after the other is looked for."""
REACH = 10
"""Words before a token among which one that it follows is looked for."""
NO_WORD = -1


class Text:
    """Tokens of contexts, one after the other."""

    def __init__(
        self,
        tokens: np.ndarray,
        n_tokens: np.ndarray,
        vocabulary: Vocabulary,
        read: np.ndarray | None = None,
        offsets: np.ndarray | None = None,
    ) -> None:
        """Find its words.

        Args:
            tokens: (tokens,)
            n_tokens: (contexts,) of each.
            vocabulary: what they stand for.
            read: (tokens,) whether an SAE reads it; all but special tokens if not given.
            offsets: (contexts,) the place of the first token of each in its context, if it is a part of one.
        """
        self.tokens, self.vocabulary = tokens.astype(np.int64), vocabulary
        if read is None:
            read = ~np.isin(self.tokens, list(vocabulary.special))
        self.read = read
        zeros = np.zeros(len(n_tokens), np.int64)
        fired = np.where(read, np.uint32(0), UNREAD)
        none = np.zeros(0, np.int64)
        n_tokens = n_tokens.astype(np.int64)
        self.words = Words.of(Logged(zeros, zeros, n_tokens, zeros, self.tokens, fired, none, none), vocabulary)
        starts = self.words.starts
        self.place = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        """(tokens,) the place of a word that each stands in."""
        self.word = self.words.word.astype(np.int64)
        """(places,)"""
        ends = np.cumsum(n_tokens)
        self.context = np.searchsorted(ends, starts[:-1], side="right")
        """(places,) the context of each."""
        first = (ends - n_tokens) - (zeros if offsets is None else offsets)
        self.position = np.arange(len(tokens)) - np.repeat(first, n_tokens)
        """(tokens,) in its context."""
        self.piece = np.arange(len(tokens)) - starts[self.place]
        """(tokens,) how many tokens of its word stand before it."""
        self.numbers = {text: i for i, text in enumerate(self.words.texts)}

        self._before: dict[int, np.ndarray] = {}
        self._affixes: dict[tuple[str, str], np.ndarray] = {}

    def before(self, back: int = 1) -> np.ndarray:
        """(places,) the word so many places before, in the same context; NO_WORD if there is none."""
        if back not in self._before:
            words = np.full(len(self.word), NO_WORD, np.int64)
            words[back:] = self.word[:-back]
            words[back:][self.context[back:] != self.context[:-back]] = NO_WORD
            self._before[back] = words
        return self._before[back]

    @functools.cached_property
    def kinds(self) -> np.ndarray:
        """(words, kinds of words) which are of which kind."""
        return kinds.table(self.words.texts)

    @functools.cached_property
    def line_start(self) -> np.ndarray:
        """(places,) whether what stands before ends a line."""
        ends = np.array(["\n" in text for text in self.words.texts] + [False])
        return ends[self.before()]

    @functools.cached_property
    def capitals(self) -> np.ndarray:
        """(places,) 2: all letters are capitals, and there are several; 1: the first; 0: none."""
        of = [
            2 if len(text) > 1 and text.isupper() else 1 if text[:1].isupper() else 0 for text in self.words.spellings
        ]
        return np.array(of, np.int8)[self.words.spelling]

    @functools.cached_property
    def _by_word(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.word, kind="stable")
        return order, np.searchsorted(self.word[order], np.arange(len(self.words.texts) + 1))

    @functools.cached_property
    def _by_token(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.tokens, kind="stable")
        return order, np.searchsorted(self.tokens[order], np.arange(len(self.vocabulary) + 1))

    @functools.cached_property
    def ids(self) -> dict[str, list[int]]:
        """The tokens of every text of a token."""
        found: dict[str, list[int]] = {}
        for token in range(len(self.vocabulary)):
            found.setdefault(self.vocabulary.text(token), []).append(token)
        return found

    def where(self, rule: Rule) -> np.ndarray:
        """The tokens at which a rule holds and that are read, ascending."""
        found = [self.where_clause(clause) for clause in rule.clauses]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def where_clause(self, clause: Clause) -> np.ndarray:
        """The tokens at which a clause holds and that are read, ascending."""
        return self.holding(clause, self._candidates(clause))

    def holding(self, clause: Clause, tokens: np.ndarray) -> np.ndarray:
        """Those of some tokens at which a clause holds and that are read."""
        return tokens[self._at(clause, tokens)]

    def holds(self, clause: Clause, tokens: np.ndarray) -> np.ndarray:
        """(tokens,) whether a clause holds at each, and it is read."""
        mask = np.zeros(len(tokens), bool)
        mask[self._at(clause, tokens)] = True
        return mask

    def _at(self, clause: Clause, tokens: np.ndarray) -> np.ndarray:
        """Which of some tokens those are."""
        at = np.flatnonzero(self.read[tokens])
        if clause.tokens:
            at = at[_among(self.tokens[tokens[at]], self._tokens_of(clause.tokens))]
        if clause.piece is not None:
            at = at[(self.piece[tokens[at]] == 0) == (clause.piece == "first")]
        if clause.behind:
            at = at[self.piece[tokens[at]] > 0]
            at = at[_among(self.tokens[tokens[at] - 1], self._tokens_of(clause.behind))]
        if clause.positions is not None:
            where = self.position[tokens[at]]
            at = at[(where >= clause.positions[0]) & (where < clause.positions[1])]
        return at[self._holds(clause, self.place[tokens[at]])]

    def _holds(self, clause: Clause, places: np.ndarray) -> np.ndarray:
        """(places,) whether what is asked of words holds."""
        mask = np.ones(len(places), bool)
        if clause.words or clause.kinds or clause.begins or clause.ends:
            mask &= self._words_of(clause)[self.word[places]]
        if clause.after or clause.after_kinds:
            mask &= self._members(clause.after, clause.after_kinds)[self.before()[places]]
        if clause.following:
            members = self._members(clause.following, ())
            mask &= np.any([members[self.before(back)[places]] for back in range(1, REACH + 1)], axis=0)
        if clause.capitals is not None:
            mask &= self.capitals[places] == ("none", "first", "all").index(clause.capitals)
        if clause.line_start:
            mask &= self.line_start[places]
        return mask

    def _candidates(self, clause: Clause) -> np.ndarray:
        """Tokens among which are all at which it holds, ascending: by what is rarest and can be looked up."""
        if clause.words or clause.kinds or clause.begins or clause.ends:
            order, first = self._by_word
            places = _runs(order, first, np.flatnonzero(self._words_of(clause)[:-1]))
            return self._tokens_at(np.sort(places))
        if clause.tokens:
            order, first = self._by_token
            return np.sort(_runs(order, first, self._tokens_of(clause.tokens)))
        if clause.behind:
            order, first = self._by_token
            found = _runs(order, first, self._tokens_of(clause.behind)) + 1
            return np.sort(found[found < len(self.tokens)])
        if clause.after or clause.after_kinds:
            order, first = self._by_word
            places = _runs(order, first, np.flatnonzero(self._members(clause.after, clause.after_kinds)[:-1])) + 1
            return self._tokens_at(np.sort(places[places < len(self.word)]))
        return np.arange(len(self.tokens))

    def _tokens_at(self, places: np.ndarray) -> np.ndarray:
        starts = self.words.starts
        sizes = starts[places + 1] - starts[places]
        into = np.cumsum(sizes) - sizes
        return np.arange(int(sizes.sum())) - np.repeat(into - starts[places], sizes)

    def _tokens_of(self, texts: Sequence[str]) -> np.ndarray:
        return np.array(sorted(token for text in texts for token in self.ids.get(text, ())), np.int64)

    def _members(self, words: Sequence[str], named: Sequence[str]) -> np.ndarray:
        """(words + 1,) which are one of some, or of some kinds; the last: no word."""
        found = np.zeros(len(self.words.texts) + 1, bool)
        found[[self.numbers[word] for word in words if word in self.numbers]] = True
        for name in named:
            if name in kinds.names():
                found[:-1] |= self.kinds[:, kinds.names().index(name)]
        return found

    def _words_of(self, clause: Clause) -> np.ndarray:
        found = self._members(clause.words, clause.kinds)
        if not clause.words and not clause.kinds:
            found[:-1] = True
        if clause.begins:
            found[:-1] &= self._affix("begins", clause.begins)
        if clause.ends:
            found[:-1] &= self._affix("ends", clause.ends)
        return found

    @functools.cached_property
    def _texts(self) -> np.ndarray:
        return np.array(self.words.texts)

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        return np.strings.str_len(self._texts)

    def _affix(self, side: str, part: str) -> np.ndarray:
        """(words,) which begin, or end, with some letters, and have more."""
        if (side, part) not in self._affixes:
            holds = np.strings.startswith if side == "begins" else np.strings.endswith
            self._affixes[side, part] = holds(self._texts, part) & (self._lengths > len(part))
        return self._affixes[side, part]


def _runs(order: np.ndarray, first: np.ndarray, which: np.ndarray) -> np.ndarray:
    """`order[first[i] : first[i + 1]]` for every i of `which`, one after the other."""
    if len(which) == 1:
        return order[first[which[0]] : first[which[0] + 1]]
    return np.concatenate([order[first[i] : first[i + 1]] for i in which.tolist()] or [np.zeros(0, np.int64)])


def _among(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(values,) whether each is one of a few: what `np.isin` says, without its preparations."""
    if len(wanted) > FEW:
        return np.isin(values, wanted)
    found = np.zeros(len(values), bool)
    for one in wanted.tolist():
        found |= values == one
    return found
