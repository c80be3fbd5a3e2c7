"""What a line says is ordered by the strongest firings and says what stands before them; the rule stays as it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from ruled import TRUTH, Ruled

from monosem.explain.evidence import Evidence, Sample
from monosem.explain.find import Found, find_rule
from monosem.explain.rules import _said_as_word  # pyright: ignore[reportPrivateUsage]
from monosem.explain.say import Sayer
from monosem.explain.strongest import Strongest, common_peak, stands_before, strongest_first
from monosem.features import Clause, Rule


@pytest.fixture(scope="module")
def evidence(ruled: Ruled) -> Evidence:
    return Evidence(ruled.store, 0)


def firing_at(evidence: Evidence, tokens: np.ndarray, activation: np.ndarray) -> Evidence:
    """The same text and counts, of a latent whose strongest passages are those."""
    n = len(tokens)
    ones = np.ones(n)
    sample = Sample(np.zeros(n, np.int64), np.zeros(n, np.int64), tokens, activation, ones, ones == 0, np.arange(n))
    of = SimpleNamespace(of=lambda latent: sample)
    return cast(Evidence, SimpleNamespace(text=evidence.text, counts=evidence.counts, kinds=evidence.kinds, samples=of))


def places(evidence: Evidence, n: int, **said: Any) -> np.ndarray:
    found = evidence.text.where_clause(Clause(**said))
    assert len(found) >= n
    return found[:n]


@pytest.mark.parametrize("latent", TRUTH)
def test_a_rule_in_another_order_foretells_the_same(ruled: Ruled, evidence: Evidence, latent: int) -> None:
    found = find_rule(evidence, latent)
    assert found is not None
    ordered = strongest_first(evidence, latent, found)
    text = ruled.held_out.text
    assert text.where(ordered.rule).tolist() == text.where(found.rule).tolist()
    strongest = Strongest(evidence, latent)
    for clause, strong, items in zip(ordered.rule.clauses, ordered.strong, ordered.items, strict=True):
        holds = [place in text_of(evidence, clause) for place in strongest.at.tolist()]
        assert strong == pytest.approx(float(strongest.weight[holds].sum()))
        assert list(items) == sorted(items, reverse=True)


def text_of(evidence: Evidence, clause: Clause) -> set[int]:
    return set(evidence.text.where_clause(clause).tolist())


def test_what_is_strongest_is_said_first_and_what_is_weak_last(evidence: Evidence) -> None:
    """Many weak firings on "the", a few strong ones on "time": the rule lists them in the order of how many."""
    the, time = places(evidence, 20, words=("the",)), places(evidence, 6, words=("time",))
    fires = firing_at(evidence, np.concatenate([the, time]), np.repeat([0.3, 1.0], [20, 6]))
    found = Found(Rule(clauses=(Clause(words=("the", "time"), share=1.0),)), 0.5, (1.0,), (1.0,))
    ordered = strongest_first(fires, 0, found)
    assert ordered.rule.clauses[0].words == ("time", "the")
    split = Found(Rule(clauses=(Clause(words=("the",)), Clause(words=("time",)))), 0.5, (0.8, 0.2), (1.0, 1.0))
    assert Sayer(evidence).line(strongest_first(fires, 0, split)) == "*time*; also *the*"


def test_what_stands_before_all_strong_firings_is_said(evidence: Evidence) -> None:
    """The word "time" fires after "the" alone, which the word has not by itself; "the" after anything."""
    after = places(evidence, 6, words=("time",), after=("the",))
    rule = Rule(clauses=(Clause(words=("time",)),))
    assert stands_before(firing_at(evidence, after, np.ones(6)), 0, rule) == Clause(after=("the",))
    told = Rule(clauses=(Clause(words=("time",), after=("the",)),))
    assert stands_before(firing_at(evidence, after, np.ones(6)), 0, told) is None
    anything = places(evidence, 40, words=("time",))
    assert stands_before(firing_at(evidence, anything, np.ones(40)), 0, rule) is None
    few = firing_at(evidence, after[:3], np.ones(3))
    assert stands_before(few, 0, rule) is None


def test_the_token_of_most_of_the_strongest_passages(evidence: Evidence) -> None:
    the, time = places(evidence, 4, tokens=(" the",)), places(evidence, 6, words=("time",))
    assert common_peak(firing_at(evidence, np.concatenate([the, time[:3]]), np.ones(7)), 0) == Clause(tokens=(" the",))
    assert common_peak(firing_at(evidence, the[:3], np.ones(3)), 0) is None


def test_what_is_said_as_a_word_is_not_called_unclear_where_it_stands_first() -> None:
    """At the beginning of a context a token may be a piece of a word that is cut off: no rule of words holds of it."""
    rule = Rule(clauses=(Clause(words=("there",)), Clause(tokens=(" here",))))
    found = Found(rule, 0.67, (0.2, 0.1), (0.9, 0.9), ((1.0,), (1.0,)))
    assert _said_as_word(Clause(tokens=("there",)), found)
    assert _said_as_word(Clause(tokens=(" there",)), found)
    assert not _said_as_word(Clause(tokens=(" here",)), found)
    assert not _said_as_word(Clause(tokens=("fore",)), found)
    assert not _said_as_word(Clause(tokens=("there",), behind=("o",)), found)
    assert not _said_as_word(None, found)
    assert not _said_as_word(Clause(tokens=("there",)), None)
