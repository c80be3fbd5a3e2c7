# pyright: basic
"""The offline explainer: a line and a rule for every latent, from the tables of a store, without any model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from monosem.explain.evidence import KINDS, Evidence
from monosem.explain.find import Found, find_rule
from monosem.explain.measure import estimated, with_score
from monosem.explain.say import CLEAR_Z, PROMOTED, Sayer, shown
from monosem.explain.strongest import characters, common_peak, stands_before, strongest_first
from monosem.features import Clause, Explanation, FeatureStore
from monosem.features.files import PART
from monosem.work import doing

NAME = "rules"
NEAR_MISS = KINDS.index("near_miss")
UNSURE = 0.5
"""Share of the strong firings that a rule must hold for: else it is unclear, and what a latent does at the output says
more, if that is clear."""
NEARLY, SEVERAL = 3, 2
"""Near misses that are named, and how many of them must stand at the same token."""
UNREADABLE = "*\ufffd*"
"""How a token of a part of a character reads."""
COMMON = 0.005
"""Share of the text from which a token is found anywhere."""
LETTERS = 0.5
"""Share of the strongest promotion's weight from which others are named beside it."""


class Rules:
    """Explains latents by rules. Reads a store, and nothing else."""

    name = NAME

    def __init__(self, estimate: bool = True) -> None:
        """Prepare.

        Args:
            estimate: score every rule from the store alone.
        """
        self._estimate = estimate

    def explain(self, store: FeatureStore, latents: Sequence[int]) -> list[Explanation]:
        """One or two explanations for every latent that fires: what it fires on; where that is unclear and the output
        is not, what it promotes.

        Raises:
            DataError: the store is not of text, or too old.
        """
        found: list[Explanation] = []
        with doing("explaining", len(latents), unit="features") as stage:
            for part in sorted({latent // PART for latent in latents}):
                evidence = Evidence(store, part)
                sayer, promotions = Sayer(evidence), _promotions(store, part)
                for latent in sorted({int(latent) for latent in latents if latent // PART == part}):
                    found += self._scored(evidence, _explained(evidence, sayer, latent, promotions.get(latent, [])))
                    stage.advance(1)
        return found

    def _scored(self, evidence: Evidence, items: list[Explanation]) -> list[Explanation]:
        if not self._estimate:
            return items
        return [
            item if item.rule is None else with_score(item, estimated(item.rule, item.latents[0], evidence))
            for item in items
        ]


def _explained(evidence: Evidence, sayer: Sayer, latent: int, promoted: list[str]) -> list[Explanation]:
    if not evidence.count[latent - evidence.first]:
        return []
    samples = evidence.samples.of(latent)
    used = (samples.kind <= 1) & ~samples.test
    seen = [int(row) for row in samples.row[~samples.test]]
    rule = find_rule(evidence, latent)
    rule = None if rule is None else strongest_first(evidence, latent, rule)
    sure = 0.0 if rule is None else _sure(evidence, latent, rule)
    promotes = f"promotes {', '.join(promoted)}" if promoted else ""
    said = _tokens_said(sayer, evidence, samples.token[used]) if rule is None else sayer.line(rule)
    peak = common_peak(evidence, latent) if sure < UNSURE else None
    if sure < UNSURE and not _said_as_word(peak, rule):
        said = f"unclear: {f'strongest on {sayer.phrase(peak)}; ' if peak else ''}{said}"
    elif rule is not None:
        before = stands_before(evidence, latent, rule.rule)
        said += f"; strongest {sayer.where(before)}" if before else ""
        nearly = _nearly(evidence, sayer, latent, rule)
        said += f"; nearly on {', '.join(nearly)}" if nearly else ""
    said = said.replace(UNREADABLE, characters(evidence, latent) or "parts of rare characters")
    text = f"{said}; {promotes}" if promotes else said
    common = {"latents": [latent], "explainer": NAME, "seen": seen}
    first = Explanation(**common, text=text, sure=round(sure, 3), rule=None if rule is None else rule.rule)
    if promotes and sure < UNSURE:
        return [first, Explanation(**common, text=promotes, side="output")]
    return [first]


def _said_as_word(peak: Clause | None, found: Found | None) -> bool:
    """Whether the rule says the strongest passages' token as a word: where a context begins, it may be a piece."""
    if peak is None or found is None or peak.behind:
        return False
    first = found.rule.clauses[0]
    return [said.strip() for said in (first.words or first.tokens)[:1]] == [peak.tokens[0].strip()]


def _tokens_said(sayer: Sayer, evidence: Evidence, at: np.ndarray) -> str:
    tokens = dict.fromkeys(sayer.token(evidence.text.vocabulary.text(int(t))) for t in evidence.text.tokens[at[:12]])
    return "fires on " + ", ".join(list(tokens)[:6]) if tokens else "no passage is kept"


def _nearly(evidence: Evidence, sayer: Sayer, latent: int, found: Found) -> list[str]:
    """The tokens at which several near misses stand, and for which the rule does not hold; common ones say nothing."""
    samples = evidence.samples.of(latent)
    at = samples.token[(samples.kind == NEAR_MISS) & ~samples.test]
    for clause in found.rule.clauses:
        at = np.setdiff1d(at, evidence.text.holding(clause, at))
    tokens = evidence.text.tokens[at]
    rare = tokens[evidence.counts.token[tokens] <= COMMON * evidence.counts.n]
    times = Counter(sayer.token(evidence.text.vocabulary.text(int(token))) for token in rare)
    return [token for token, n in times.most_common(NEARLY) if n >= SEVERAL]


def _sure(evidence: Evidence, latent: int, found: Found) -> float:
    """The share of the weight of its strong firings that the rule holds for, among the examples it was made from."""
    samples = evidence.samples.of(latent)
    used = np.flatnonzero((samples.kind <= 1) & ~samples.test)
    weight = samples.weight[used] * samples.activation[used] ** 4
    at = samples.token[used]
    inside = np.zeros(len(at), bool)
    for clause in found.rule.clauses:
        inside |= evidence.text.holds(clause, at)
    return float((weight * inside).sum() / max(1e-12, weight.sum()))


def _promotions(store: FeatureStore, part: int) -> dict[int, list[str]]:
    """The tokens that latents promote clearly, strongest first; of one word in several spellings the first."""
    first, stop = part * PART, min(store.n_latents, (part + 1) * PART)
    table = store.tables.run(
        "select d.latent, promoted_tokens, promoted_weights, logit_deviation from details d join features f using "
        f"(latent) where d.latent >= {first} and d.latent < {stop}"
    )
    found: dict[int, list[str]] = {}
    for latent, tokens, weights, deviation in zip(*(table.column(i).to_pylist() for i in range(4)), strict=True):
        if not weights or not deviation or weights[0] < CLEAR_Z * deviation:
            continue
        named: dict[str, str] = {}
        for token, weight in zip(tokens, weights, strict=True):
            text = store.vocabulary.text(token)
            if weight >= max(LETTERS * weights[0], CLEAR_Z * deviation):
                named.setdefault(text.strip().lower() or text, f"*{shown(text.strip() or text)}*")
        found[latent] = list(named.values())[:PROMOTED]
    return found
