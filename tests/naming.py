"""What names of features say, read as a person does."""

from __future__ import annotations


def describes(name: str, word: str, token: str, before: str, text: str) -> bool:
    """Whether a name says this: the word and the token at which a latent fires, and the word before."""
    if name.startswith("after «"):
        return name[7:-1] in (before, repr(before))
    if name in ("capitals", "numbers"):
        return word.isdigit() if name == "numbers" else text.strip().isupper()
    for one in name.split(", ") if name != "," else [name]:
        part = one.strip("…")
        if one == part:
            plain = one.replace("·", "")
            if plain in (word, f"{before} {word}", repr(word), token) or one == repr(text).lower():
                return True
        elif part == token or (one[0] != "…" and word.startswith(part)) or (one[-1] != "…" and word.endswith(part)):
            return True
    return False
