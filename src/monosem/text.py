"""What holds of all text and tokenizers: strings that can be written down, and the tokens around and between words."""

from __future__ import annotations

from typing import Any


def well_formed(text: str) -> str:
    r"""The same text with U+FFFD in the place of every lone surrogate, as damaged JSON (`"\ud83d"`) gives them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def well_formed_in(value: Any) -> Any:
    """A value of JSON, with every string in it well formed."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, dict):
        return {well_formed_in(key): well_formed_in(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [well_formed_in(part) for part in value]
    return value


def first_token(tokenizer: Any) -> int | None:
    """The token that begins a sequence: the class token of encoders, else beginning-of-sequence, if there is one."""
    return tokenizer.cls_token_id if is_encoder(tokenizer) else tokenizer.bos_token_id


def last_token(tokenizer: Any) -> int | None:
    """The token that ends a sequence: the separator of encoders."""
    return tokenizer.sep_token_id if is_encoder(tokenizer) else None


def is_encoder(tokenizer: Any) -> bool:
    """Whether a tokenizer puts every sequence between a class token and a separator."""
    return None not in (getattr(tokenizer, "cls_token_id", None), getattr(tokenizer, "sep_token_id", None))


def special_tokens(tokenizer: Any) -> frozenset[int]:
    """Ids of all tokens that stand for no piece of a text: those that have a role, and what was added as special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {token for token, how in added.items() if getattr(how, "special", False)}
    roles: list[int | None] = [getattr(tokenizer, role, None) for role in ("bos_token_id", "eos_token_id")]
    roles += getattr(tokenizer, "all_special_ids", ())  # a role may name a token that is not there
    return frozenset(special | {token for token in roles if token is not None})


def printed(*parts: Any, width: int) -> str:
    """Tables and lines as a terminal of so many columns shows them, without its colours."""
    from rich.console import Console

    console = Console(width=width)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return captured.get()
