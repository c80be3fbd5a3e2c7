# pyright: basic
"""Strongest first: which parts of a rule hold for a latent's strongest firings, and what stands before these.

A rule is chosen so that it foretells all firings, most of which are weak; a reader looks at the strongest passages. So
what is said is ordered by these, and where all of them share what stands before, which other occurrences of the same
tokens do not, that is said too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from monosem.analysis import kinds
from monosem.explain.evidence import Evidence, Sample
from monosem.explain.find import Found
from monosem.features import Clause, Rule

POWER = 8
"""To which activations are taken, so that half of the maximum counts for next to nothing."""
STRONG = 0.5
"""Share of the maximum from which a firing is a strong one."""
CHARACTERS = 3
"""Of several tokens, that are named."""
HALF = 0.5
"""Of the weight of the strongest firings those must have before which the same stands."""
FEWEST, SHARED, LIFT = 5, 0.75, 2.0
"""Strong firings that there must be; the share of them before which the same stands; and how many times that share of
all occurrences of their tokens this must be."""


class Strongest:
    """The firings of a latent that its line is made from, each weighted by how strong it is."""

    def __init__(self, evidence: Evidence, latent: int) -> None:
        """Half of the weight is that of the strongest passages, half that of the random ones."""
        samples: Sample = evidence.samples.of(latent)
        used = (samples.kind <= 1) & ~samples.test
        top = samples.kind[used] == 0
        self._text, self.at, self.activation = evidence.text, samples.token[used], samples.activation[used]
        weight = np.where(top, 1.0, samples.weight[used]) * self.activation**POWER
        for part in (top, ~top):
            weight[part] /= max(1e-30, float(weight[part].sum()))
        self.weight = weight / max(1e-30, float(weight.sum()))

    def holds(self, clause: Clause) -> np.ndarray:
        """(firings,) whether a clause holds."""
        return self._text.holds(clause, self.at)

    def share(self, clause: Clause) -> float:
        """The share of their weight for which a clause holds."""
        return float(self.weight @ self.holds(clause))


def strongest_first(evidence: Evidence, latent: int, found: Found) -> Found:
    """A rule whose `strong` are shares of the strongest firings, and whose words stand in the order of theirs."""
    strongest = Strongest(evidence, latent)
    ordered = [_ordered(clause, strongest) for clause in found.rule.clauses]
    clauses = tuple(clause for clause, _ in ordered)
    strong = tuple(strongest.share(clause) for clause in clauses)
    return Found(Rule(clauses=clauses), found.f1, strong, found.precise, tuple(items for _, items in ordered))


def _ordered(clause: Clause, strongest: Strongest) -> tuple[Clause, tuple[float, ...]]:
    """Its words, or its tokens if it has no words, strongest first; and how strong each is."""
    name = "words" if clause.words else "tokens"
    items = getattr(clause, name)
    shares = {item: strongest.share(clause.model_copy(update={name: (item,)})) for item in items}
    order = tuple(sorted(items, key=lambda item: -shares[item]))
    return clause.model_copy(update={name: order}), tuple(shares[item] for item in order)


def stands_before(evidence: Evidence, latent: int, rule: Rule) -> Clause | None:
    """What stands before nearly all strong firings, and before much fewer of all occurrences of their tokens or words.

    Where the strong firings share nothing, those are asked of which the clause holds that holds of most of them.

    Returns:
        A clause of that alone; None if there is no such thing, or if the rule says it.
    """
    strongest = Strongest(evidence, latent)
    strong = strongest.activation >= STRONG
    main = max(rule.clauses, key=strongest.share)
    for among in (strong, strong & strongest.holds(main)):
        found = _shared(evidence, strongest.at[among], rule)
        if found is not None and strongest.weight[among].sum() >= HALF:
            return None if any(_says(clause, found) for clause in rule.clauses) else found
    return None


def common_peak(evidence: Evidence, latent: int) -> Clause | None:
    """The token of half of the strongest passages, with the token before it in the word if that is the same too."""
    samples, text = evidence.samples.of(latent), evidence.text
    at = samples.token[(samples.kind == 0) & ~samples.test]
    least = max(FEWEST - 1, HALF * len(at))
    if len(at) < least:
        return None
    token, n = _commonest(text.tokens[at])
    if n < least:
        return None
    said: dict[str, Any] = {"tokens": (text.vocabulary.text(token),)}
    inner = at[(text.tokens[at] == token) & (text.piece[at] > 0)]
    if len(inner):
        front, n = _commonest(text.tokens[inner - 1])
        if n >= least:
            return Clause(**said, behind=(text.vocabulary.text(front),))
    return Clause(**said)


def characters(evidence: Evidence, latent: int) -> str:
    """The characters of several tokens that a latent fires on, strongest first, where it fires on parts of some."""
    strongest, text = Strongest(evidence, latent), evidence.text
    found: dict[str, float] = {}
    for at, weight in zip(strongest.at.tolist(), strongest.weight.tolist(), strict=True):
        if "\ufffd" in text.vocabulary.text(int(text.tokens[at])):
            for one in {c for c in text.words.spelled[text.word[text.place[at]]] if not c.isascii() and c != "\ufffd"}:
                found[one] = found.get(one, 0.0) + weight
    return ", ".join(f"*{one}*" for one in sorted(found, key=lambda one: (-found[one], one))[:CHARACTERS])


def _shared(evidence: Evidence, at: np.ndarray, rule: Rule) -> Clause | None:
    """What stands before most of some tokens."""
    text, least = evidence.text, max(FEWEST, SHARED * len(at))
    first, before = text.piece[at] == 0, text.before()[text.place[at]]
    found = _behind(evidence, at, rule, least) if len(at) - first.sum() >= least else None
    known = before[before >= 0]
    return _after(evidence, at, known, least) if found is None and len(known) >= least else found


def _behind(evidence: Evidence, at: np.ndarray, rule: Rule, least: float) -> Clause | None:
    """One token of the same word, if the rule does not show it in whole words."""
    text, counts = evidence.text, evidence.counts
    token, n = _commonest(text.tokens[at - 1][text.piece[at] > 0])
    usual = sum(counts.pair(token, t) / max(1, counts.token[t]) for t in text.tokens[at].tolist())
    shown = [text.holding(clause, at) for clause in rule.clauses if clause.words and clause.tokens]
    if n < max(least, LIFT * usual) or len(np.unique(np.concatenate([*shown, at[:0]]))) > len(at) / 2:
        return None
    return Clause(behind=(text.vocabulary.text(token),))


def _after(evidence: Evidence, at: np.ndarray, known: np.ndarray, least: float) -> Clause | None:
    """One word, or words of one kind: more often than before the same words, or before the same pieces of words."""
    text, counts, starts = evidence.text, evidence.counts, evidence.text.words.starts
    place, token = text.place[at], text.tokens[at]
    word, whole = text.word[place], starts[place + 1] - starts[place] == 1
    n = np.maximum(1, np.where(whole, counts.word[word, 1], counts.token[token]))
    before, times = _commonest(known)
    same = np.full(len(at), before)
    if times >= max(least, LIFT * (np.where(whole, counts.next(same, word), counts.behind(same, token)) / n).sum()):
        return Clause(after=(text.words.texts[before],))
    sums = evidence.kinds[known].sum(0)
    for k in np.argsort(-sums, kind="stable").tolist():
        if sums[k] < least:
            return None
        of_token, of_word = counts.behind_kind(k)
        if sums[k] >= LIFT * (np.where(whole, of_word[word], of_token[token]) / n).sum():
            return Clause(after_kinds=(kinds.names()[k],))
    return None


def _commonest(values: np.ndarray) -> tuple[int, int]:
    there, times = np.unique(values, return_counts=True)
    best = int(np.argmax(times))
    return int(there[best]), int(times[best])


def _says(clause: Clause, found: Clause) -> bool:
    """Whether a clause tells of the same place; a word before it, more than the kind of that word."""
    if found.behind:
        pieces = {token.strip() for token in (*clause.behind, clause.begins or "")}
        return found.behind[0].strip() in pieces
    return set(found.after) <= set(clause.after) and bool(found.after or clause.after or clause.after_kinds)
