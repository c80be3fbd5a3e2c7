"""A feature's name taken as a rule: what an explanation is measured against."""

from __future__ import annotations

from monosem.features import Clause, Feature, Rule


def rule_of_name(feature: Feature) -> Rule:
    """What the name says: its words, tokens, beginnings and endings, what stands before; nothing without a name.

    Of a name with a piece that is set off ("Lut·her", "let 's") only that piece.
    """
    if not feature.count or feature.name is None:
        return Rule(clauses=())
    name, piece = feature.name, feature.name_piece
    if name.startswith("after «") and name.endswith("»"):
        return Rule(clauses=(Clause(after=(_plain(name[7:-1]),), piece="first"),))
    if piece is not None:
        part = name[piece[0] : piece[1]]
        if "·" in name:
            tokens = tuple(prefix + part for prefix in ("", " "))
            return Rule(clauses=(Clause(words=(_plain(name.replace("·", "")),), tokens=tokens),))
        return Rule(clauses=(Clause(words=(_plain(part),), after=(_plain(name[: piece[0]]),)),))
    return Rule(clauses=tuple(_clause(part) for part in name.split(", ")))


def _clause(part: str) -> Clause:
    if part == "numbers":
        return Clause(kinds=("numbers in digits",))
    if part == "CAPITALS":
        return Clause(capitals="all")
    bare = part.strip("…")
    if part.startswith("…") and part.endswith("…") and bare:
        return Clause(tokens=(bare,), piece="later")
    if part.endswith("…") and bare:
        return Clause(begins=bare.lower())
    if part.startswith("…") and bare:
        return Clause(ends=bare.lower())
    return Clause(words=(_plain(part),))


def _plain(word: str) -> str:
    if word[:1] in "'\"" and word[:1] == word[-1:] and not word[1:-1].replace("\\n", "").replace("\\t", "").strip():
        word = word[1:-1].encode().decode("unicode_escape")
    return word.strip().lower() or word
