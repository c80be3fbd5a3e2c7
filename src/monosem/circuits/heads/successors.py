"""Rows of words that follow each other, and heads that go from one to the next.

Source: Gould et al., Successor Heads, 2023.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosem.circuits.heads.scores import Watch
from monosem.circuits.heads.weights import output_matrix
from monosem.models import SubjectModel
from monosem.text import first_token

ROWS = {
    "numbers": [str(n) for n in range(1, 21)],
    "number words": ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"],
    "ordinals": ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"],
    "days": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "months": [
        *("January", "February", "March", "April", "May", "June"),
        *("July", "August", "September", "October", "November", "December"),
    ],
    "letters": list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "roman numerals": ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII"],
}
LEAST = 4
"""Members of a row that are tokens by themselves, one after the other; shorter rows say nothing."""


def rows_of(model: SubjectModel) -> dict[str, list[int]]:
    """Of each row its longest stretch of words that are one token each, with a space before if they are so too."""
    found: dict[str, list[int]] = {}
    for name, words in ROWS.items():
        best: list[int] = []
        for space in (" ", ""):
            run: list[int] = []
            for word in words:
                ids = model.tokenizer(space + word, add_special_tokens=False, verbose=False)["input_ids"]
                run = [*run, ids[0]] if len(ids) == 1 else []
                best = run if len(run) > len(best) else best
        if len(best) >= LEAST and len(set(best)) == len(best):
            found[name] = best
    return found


@torch.no_grad()
def successions(model: SubjectModel, watch: Watch) -> dict[str, Bool[Tensor, "pairs layers heads"]]:
    """Of each row and each pair in it, whether a head that attends to the first raises the second most of the row.

    The token stands alone behind the beginning of the sequence, so that its value is of itself.
    """
    rows, first = rows_of(model), first_token(model.tokenizer)
    found: dict[str, Tensor] = {}
    for name, row in rows.items():
        before = [] if first is None else [first]
        inputs = torch.tensor([[*before, token] for token in row[:-1]], device=model.device)
        layers: list[Tensor] = []
        hooks = [f"attn_v.{layer}" for layer in range(model.n_layers)]
        values = model.capture(inputs, hooks)
        for layer in range(model.n_layers):
            W_O = output_matrix(model, layer)
            layers.append(_raised_most(watch, values[f"attn_v.{layer}"][:, -1], W_O, row))
        found[name] = torch.stack(layers, dim=1)
    return found


def _raised_most(watch: Watch, values: Float[Tensor, "pairs width"], W_O: Tensor, row: list[int]) -> Tensor:
    by_head: Any = values.unflatten(-1, (-1, W_O.shape[-1]))
    by_head = by_head.repeat_interleave(len(W_O) // by_head.shape[1], dim=1)
    written = torch.einsum("phd,hed->phe", by_head.to(W_O), W_O)
    logits = watch.logits(written, torch.tensor(row, device=written.device))
    nexts = torch.arange(1, len(row), device=written.device)
    return (logits.argmax(-1) == nexts[:, None]).cpu()
