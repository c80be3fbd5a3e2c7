# pyright: basic
"""The rule of a latent: of what may be said of its firings, what together foretells them best.

Where F1 is to be as large as it can be, a group of tokens belongs in the rule if the latent fires on more than half of
F1 of them (Lipton et al., 2014): so every candidate's gain is its firings less F1 / 2 times its tokens, and F1 is found
by going through this a few times (Dinkelbach, 1967).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from monosem.analysis import kinds
from monosem.explain.evidence import Evidence, OnWords
from monosem.features import Clause, Rule

ROUNDS = 3
MOST = 6
"""Kinds, and beginnings and endings, that are tried: those with most firings."""
KINDS_BEFORE = 3
"""Kinds of words before that are tried."""
GROUPS, WORDS = 6, 32
"""Clauses of groups, and words, that a rule has at most."""
LEAST = 0.004
"""Share of a latent's firings that a group must gain."""
SIMPLER = 0.2
"""Share of what its words gain by themselves that a group of three or more may lose."""
TRUST = 2.0
"""Of samples that are alike, how many must there be that they count for half of what they stand for; one says nothing.
"""
DOUBT = 1.0
"""Tokens on which a latent is taken not to fire, added to those of every word: few occurrences prove little."""
BLEND = 0.5
"""How much of what a group gains is counted by a power of activations: so that strong firings are not left out."""
OFTEN = 0.5
"""Share of a latent's firings behind one word from which that is tried together with the words that it fires on."""
FEW, OF_FEW = 3, 0.85
"""Share of a beginning's or an ending's firings that so few words may have: else these say more."""
POWER, WEAK = 3, 0.3
"""To which an activation is taken where strong firings are to count most."""
PEAKED = 8 / POWER
"""To which that power is taken where words are ordered: by their strongest firings."""
PIECES = (None, "first", "later")


class Atoms(NamedTuple):
    """A latent's firings, each in one of these."""

    word: np.ndarray
    """-1: of several words."""
    token: np.ndarray
    behind: np.ndarray
    """The token before it in its word; -1 if it is the first, or of several."""
    later: np.ndarray
    """Whether the token is a later one of its word."""
    whole: np.ndarray
    mass: np.ndarray
    """Firings."""
    strong: np.ndarray
    """The same, each counted by a power of its activation."""
    n: np.ndarray
    """Tokens of the text."""
    listed: np.ndarray
    """Whether it can be a clause's word."""
    guessed: np.ndarray
    """Whether it is one sample, which stands for many firings of which nothing else is known."""
    of_sample: np.ndarray
    """(samples,) the atom of each."""


class Candidate(NamedTuple):
    """What may be said of a latent's firings."""

    said: dict[str, Any]
    """The conditions of its clause."""
    inside: np.ndarray
    """(atoms,) the share of each for which it holds."""
    n: float
    """Tokens of the text for which it holds."""


class Found(NamedTuple):
    """A rule, and what is expected of it."""

    rule: Rule
    f1: float
    strong: tuple[float, ...]
    """Of every clause, the share of the latent's firings where each counts by a power of its activation."""
    precise: tuple[float, ...]
    """On which share of the tokens for which it holds the latent fires."""
    items: tuple[tuple[float, ...], ...] = ()
    """Of every clause, how strong each of its words is, or of its tokens if it has no words."""


def find_rule(evidence: Evidence, latent: int) -> Found | None:
    """The rule of a latent; None if nothing is known of where it fires."""
    atoms = _atoms(evidence, latent)
    total = float(atoms.mass.sum())
    if not len(atoms.mass) or total <= 0:
        return None
    candidates = _candidates(evidence, latent, atoms)
    half, best = 0.1, Found(Rule(clauses=()), 0.0, (), ())
    for _ in range(ROUNDS):
        found, strong, precise, n = _chosen(evidence, atoms, candidates, half, total)
        hits = sum(clause.share for clause in found) * total
        f1 = 2 * hits / (total + n) if n else 0.0
        if f1 <= best.f1:
            break
        best, half = Found(Rule(clauses=tuple(found)), f1, tuple(strong), tuple(precise)), f1 / 2
    return best if best.rule.clauses else None


def _atoms(evidence: Evidence, latent: int) -> Atoms:
    text, counts = evidence.text, evidence.counts
    samples, rows = evidence.samples.of(latent), evidence.on_words.of(latent)
    tokens, times = evidence.firing_tokens(latent)
    at = samples.token
    token, word, firing = text.tokens[at], text.word[text.place[at]], samples.kind <= 1
    size, n_rows = counts.size, len(rows.word)
    row_keys = rows.word * size + rows.token
    order = np.argsort(row_keys)
    of_sample = np.full(len(at), -1)
    if n_rows:
        whole = dict(zip(rows.word[rows.whole].tolist(), np.flatnonzero(rows.whole).tolist(), strict=True))
        near = np.minimum(np.searchsorted(row_keys[order], word * size + token), len(order) - 1)
        same = row_keys[order][near] == word * size + token
        of_sample = np.where(same, order[near], [whole.get(w, -1) for w in word.tolist()])
    of_token = {t: n_rows + i for i, t in enumerate(tokens.tolist())}
    of_sample = np.where(of_sample >= 0, of_sample, [of_token.get(t, -1) for t in token.tolist()])
    mass = np.concatenate([rows.fires.astype(float), times])
    n = np.concatenate([rows.n, counts.token[tokens]]).astype(float)
    mass[n_rows:], n[n_rows:] = _beside(evidence, rows, tokens, times)
    tested = of_sample[(of_sample >= 0) & samples.test & (samples.kind == 1)]
    np.subtract.at(mass, tested, 1)
    np.subtract.at(n, tested, 1)
    alone = np.flatnonzero(firing & ~samples.test & (of_sample < 0) & (samples.kind == 1))
    of_sample[alone] = len(mass) + np.arange(len(alone))
    logged = float(evidence.logged[latent - evidence.first]) - (samples.test & (samples.kind == 1)).sum()
    mass, n = np.maximum(mass, 0), np.maximum(n, 0)
    over = max(0.0, mass.sum() - logged)  # of tokens whose words are known only in part
    mass[n_rows:] *= 1 - min(1.0, over / max(1e-9, mass[n_rows:].sum()))
    rest = max(0.0, logged - mass.sum())
    weight = samples.weight[alone]
    mass = np.concatenate([mass, rest * weight / max(1e-9, weight.sum())])
    first = counts.token_first[tokens] * 2 > counts.token[tokens]
    inner = text.piece[at] > 0
    pieces = np.concatenate([rows.behind >= 0, ~first, inner[alone]])
    before = np.where(inner, text.tokens[at - 1], -1)[alone]
    none = np.zeros(len(alone))
    power = _power(samples, of_sample, len(mass))
    power[:n_rows] = rows.strength**POWER
    return Atoms(
        word=np.concatenate([rows.word, np.full(len(tokens), -1), word[alone]]),
        token=np.concatenate([rows.token, tokens, token[alone]]),
        behind=np.concatenate([rows.behind, np.full(len(tokens), -1), before]),
        later=pieces,
        whole=np.concatenate([rows.whole, np.zeros(len(tokens) + len(alone), bool)]),
        mass=mass,
        strong=mass * power,
        n=np.concatenate([n, none]),
        listed=np.arange(len(mass)) < n_rows,
        guessed=np.arange(len(mass)) >= n_rows + len(tokens),
        of_sample=of_sample,
    )


def _beside(evidence: Evidence, rows: OnWords, tokens: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is left of tokens beside the words that are known: firings, and occurrences."""
    counts, left, n = evidence.counts, times.astype(float), evidence.counts.token[tokens].astype(float)
    for i, t in enumerate(tokens.tolist()):
        there = counts.in_word(rows.word, np.full(len(rows.word), t))
        there = np.where(rows.whole | (rows.token == t), there, 0)
        left[i] -= (rows.fires * there / np.maximum(1, rows.n)).sum()
        n[i] -= there.sum()
    return left, n


def _power(samples, of_sample: np.ndarray, size: int) -> np.ndarray:
    """(atoms,) mean of a power of the activations of its samples; of none, that of a weak firing."""
    used = (of_sample >= 0) & (samples.kind == 1) & ~samples.test
    atom, weight = of_sample[used], samples.weight[used]
    sums = np.bincount(atom, weight * samples.activation[used] ** POWER, size)
    weights = np.bincount(atom, weight, size)
    return np.where(weights > 0, sums / np.maximum(weights, 1e-9), WEAK**POWER)


def _candidates(evidence: Evidence, latent: int, atoms: Atoms) -> list[Candidate]:
    """Tokens, kinds of words, beginnings and endings, and what stands before."""
    vocabulary, counts, found = evidence.text.vocabulary, evidence.counts, []
    for t in np.unique(atoms.token[~atoms.listed & (atoms.word < 0)]).tolist():
        found.append(
            Candidate({"tokens": (vocabulary.text(t),)}, (atoms.token == t).astype(float), float(counts.token[t]))
        )
    known = atoms.word >= 0
    word = np.maximum(atoms.word, 0)
    forms = np.stack([known, known & ~atoms.later, known & atoms.later], 1)
    of_kind = evidence.kinds[word]
    affixes, of_word, affix_counts = evidence.affixes
    for form, piece in enumerate(PIECES):
        inside = forms[:, form]
        hits = (atoms.mass * inside) @ of_kind
        for k in np.argsort(-hits)[:MOST].tolist():
            if hits[k] > 0:
                found.append(
                    Candidate({"kinds": (kinds.names()[k],), "piece": piece}, inside * of_kind[:, k],
                              evidence.kind_counts[k, form])
                )  # fmt: skip
        numbers = np.where(inside[:, None], of_word[word], -1)
        flat, mass = numbers.reshape(-1), np.repeat(atoms.mass, numbers.shape[1])
        there, place = np.unique(flat[flat >= 0], return_inverse=True)
        sums = np.bincount(place.reshape(-1), mass[flat >= 0], len(there))
        for i in np.argsort(-sums)[:MOST].tolist():
            side, part = affixes[there[i]]
            holds = (numbers == there[i]).any(1)
            if holds.sum() > FEW and np.sort(atoms.mass * holds)[-FEW:].sum() <= OF_FEW * sums[i]:
                found.append(Candidate({"piece": piece, side: part}, holds.astype(float), affix_counts[there[i], form]))
    return found + _behind(evidence, latent, atoms)


def _behind(evidence: Evidence, latent: int, atoms: Atoms) -> list[Candidate]:
    """What samples say of the word before: behind it any word, or one token."""
    text, counts, samples = evidence.text, evidence.counts, evidence.samples.of(latent)
    used = np.flatnonzero((samples.kind == 1) & ~samples.test & (atoms.of_sample >= 0))
    if not len(used):
        return []
    at = samples.token[used]
    before, token, first = text.before()[text.place[at]], text.tokens[at], text.piece[at] == 0
    weight, atom = samples.weight[used], atoms.of_sample[used]
    size = len(atoms.mass)
    of_atom = np.maximum(1e-9, np.bincount(atom, weight, size))
    seen = np.bincount(atom, minlength=size)
    found: list[Candidate] = []

    def add(said: dict[str, Any], holds: np.ndarray, n: float, within: np.ndarray | None = None) -> None:
        """What holds for some samples: of every atom as for its own, of one of few as for all if it does so often."""
        if holds.sum() >= 2:
            of_all = float(weight[holds].sum() / weight.sum()) if within is not None else 0.0
            share = np.bincount(atom[holds], weight[holds], size) / of_atom
            inside = (share * seen + (of_all if of_all >= OFTEN else 0.0)) / (seen + 1.0)
            found.append(Candidate(said, inside if within is None else inside * within, n))

    front = np.where(first, -1, text.tokens[at - 1])
    for p in np.unique(np.concatenate([front[front >= 0], atoms.behind[atoms.behind >= 0]])).tolist():
        holds, said = front == p, (text.vocabulary.text(p),)
        by_sample = np.bincount(atom[holds], weight[holds], size) / of_atom * seen / (seen + 1.0)
        inside = np.where(atoms.word >= 0, atoms.behind == p, by_sample)
        if (inside > 0).sum() >= 2:
            found.append(Candidate({"behind": said}, inside, float(counts.inside[p])))
        for t in np.unique(token[holds]).tolist():
            add({"tokens": (text.vocabulary.text(t),), "behind": said}, holds & (token == t), counts.pair(p, t))
    position = text.position[at]
    for stop, n in evidence.beginnings:
        add({"positions": (0, stop)}, position < stop, n, np.ones(size))
    of_kind = evidence.kinds[np.maximum(before, 0)] * (first & (before >= 0))[:, None]
    for k in np.argsort(-(weight @ of_kind), kind="stable")[:KINDS_BEFORE].tolist():
        n = float(evidence.after_kinds[k])
        add({"after_kinds": (kinds.names()[k],), "piece": "first"}, of_kind[:, k] > 0, n, ~atoms.later)
    for u in np.unique(before[before >= 0]).tolist():
        said = text.words.texts[u]
        add({"after": (said,), "piece": "first"}, (before == u) & first, float(counts.after[u]), ~atoms.later)
        for t in np.unique(token[before == u]).tolist():
            n = float(counts.behind(np.array([u]), np.array([t]))[0])
            add({"tokens": (text.vocabulary.text(t),), "after": (said,)}, (before == u) & (token == t), n)
        share = float(weight[before == u].sum() / weight.sum())
        there = np.flatnonzero((np.bincount(atom[before == u], minlength=size) > 0) & (atoms.word >= 0))
        if share >= OFTEN and len(there) >= 2:
            best = there[np.argsort(-atoms.mass[there], kind="stable")[:MOST]]
            words = {
                "words": tuple(dict.fromkeys(text.words.texts[w] for w in atoms.word[best].tolist())),
                "after": (said,),
            }
            n = int((text.where_clause(Clause(**words)) < evidence.counted).sum())
            add(words, before == u, float(n), np.isin(np.arange(size), best))
    return found


def _chosen(
    evidence: Evidence, atoms: Atoms, candidates: list[Candidate], half: float, total: float
) -> tuple[list[Clause], list[float], list[float], float]:
    """The clauses that gain most where a token costs `half` of a firing; how strong and precise they are, and for how
    many tokens they hold.
    """
    inside = np.array([candidate.inside for candidate in candidates]).reshape(len(candidates), len(atoms.mass))
    size = np.array([candidate.n for candidate in candidates], float)
    left, clauses, strong, precise, n = np.ones(len(atoms.mass)), [], [], [], 0.0
    all_strong = max(1e-12, float(atoms.strong.sum()))
    guessed = inside * atoms.guessed
    alike = guessed.sum(1, keepdims=True)
    covered, inside = inside, np.where(atoms.guessed, guessed * (alike >= 2) * alike / (alike + TRUST), inside)
    counted = (1 - BLEND) * atoms.mass + BLEND * atoms.strong * total / all_strong
    alone = np.where(atoms.listed, np.maximum(0, counted - half * (atoms.n + DOUBT)), 0)
    for _ in range(GROUPS):
        if not len(candidates):
            break
        hits = inside @ (left * counted)
        cost = np.maximum(inside @ (left * atoms.mass), size - inside @ ((1 - left) * atoms.n))
        by_words = inside @ (left * alone)
        many = (inside[:, atoms.listed] @ (left * (alone > 0))[atoms.listed]) >= 3
        gain = hits - half * cost - by_words * np.where(many, 1 - SIMPLER, 1)
        best = int(np.argmax(gain))
        if gain[best] < LEAST * total:
            break
        share, size[best] = float(inside[best] @ (left * atoms.mass)) / total, np.inf
        clauses.append(Clause(**candidates[best].said, share=min(1.0, share)))
        strong.append(float(inside[best] @ (left * atoms.strong)) / all_strong)
        precise.append(share * total / max(1e-9, float(cost[best])))
        n += float(cost[best])
        left, inside[best] = left * (1 - covered[best]), 0
        _widen(clauses, strong, precise)
    gain = left * alone
    best = np.argsort(-gain)[:WORDS]
    best = best[gain[best] > 0]
    for mine in (best[atoms.whole[best]], best[~atoms.whole[best]]):
        if len(mine):
            share = min(1.0, float((left * atoms.mass)[mine].sum()) / total)
            clauses.append(_of_words(evidence, atoms, mine).model_copy(update={"share": share}))
            strong.append(float((left * atoms.strong)[mine].sum()) / all_strong)
            precise.append(share * total / max(1e-9, float((left * atoms.n)[mine].sum())))
    return clauses, strong, precise, n + float((left * atoms.n)[best].sum())


def _widen(clauses: list[Clause], strong: list[float], precise: list[float]) -> None:
    """Where the last clause holds from the beginning of the text, one that ends sooner is a part of it."""
    last = clauses[-1]
    for i, clause in enumerate(clauses[:-1]):
        if clause.positions and last.positions and clause.positions[0] == last.positions[0] == 0:
            share = min(1.0, clause.share + last.share)
            tokens = sum(part.share / max(1e-9, p) for part, p in ((clause, precise[i]), (last, precise[-1])))
            stop = max(clause.positions[1], last.positions[1])
            clauses[i] = Clause(positions=(0, stop), share=share)
            strong[i], precise[i] = strong[i] + strong[-1], share / max(1e-9, tokens)
            del clauses[-1], strong[-1], precise[-1]
            return


def _of_words(evidence: Evidence, atoms: Atoms, chosen: np.ndarray) -> Clause:
    """Some words, strongest first; where they are not fired on as a whole, their tokens that are."""
    texts, vocabulary = evidence.text.words.texts, evidence.text.vocabulary
    peaks = atoms.mass * (atoms.strong / np.maximum(1e-9, atoms.mass)) ** PEAKED
    ordered = sorted(chosen.tolist(), key=lambda i: (-float(peaks[i]), texts[int(atoms.word[i])]))
    pieces = [vocabulary.text(int(atoms.token[i])) for i in ordered if not atoms.whole[i]]
    words = dict.fromkeys(texts[int(atoms.word[i])] for i in ordered)
    return Clause(words=tuple(words), tokens=tuple(dict.fromkeys(pieces)))
