"""Where a dictionary belongs, by how well it reconstructs there: for those without a fingerprint of their inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from monosem.errors import DataError, HookError
from monosem.hook_names import layer_of
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.text import first_token
from monosem.work import doing

REACH = 3
"""Layers above and below that are tried."""
SITES = ("resid_pre", "resid_mid", "resid_post", "attn_z", "attn_out", "mlp_in", "mlp_mid", "mlp_out")
BETTER, LEAST_BETTER = 0.8, 0.02
"""Another place is named where FVU there is no more than this share of it here, and lower by this much."""
USELESS = 0.9
"""An FVU at which a dictionary reconstructs next to nothing."""
OUTLIER = 10
"""Rows of more than so many times the median norm are left out: one of them outweighs all others."""
LENGTH = 48
TEXTS = (
    "The harbour was quiet in the early morning. Two fishermen were mending a net beside the old stone wall, and a dog "
    "lay asleep in the sun. Nobody had expected the storm to pass so quickly, but by seven the sea was calm again.",
    "In 1859 Charles Darwin published On the Origin of Species, which argued that populations change over generations "
    "through natural selection. The book was widely read, and the first printing of 1,250 copies sold out at once.",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    return total / len("
    "values)\n\n\nif __name__ == '__main__':\n    print(mean([1.0, 2.0, 3.5]))\n",
    'He asked her what she meant. "I mean what I said," she answered, "and I will not say it twice." Then she closed '
    "the door, walked down the long street past the market, and took the last train to the city without looking back.",
)


class Trial(NamedTuple):
    """One way of using a dictionary, and how well it reconstructs so."""

    hook: str
    bos: bool
    """Whether contexts began with a beginning-of-sequence token."""
    scale: float
    """What activations were multiplied by."""
    fvu: float
    norm: float
    """Mean L2 norm of what it read, unscaled."""


def guess(sae: SAE, model: SubjectModel, hook: str, target: str | None = None) -> list[Trial]:
    """Try a dictionary as it is to be used, first, and then otherwise: other hook points, BOS or not, other scales.

    Args:
        sae: a dictionary of one place.
        model: a language model.
        hook: the canonical name of where it is to be used.
        target: of what it predicts, if that is another place.

    Returns:
        The trials; none if the model has no tokenizer, or cannot read the text.
    """
    with doing("trying the SAE at neighbouring hook points"):
        return _all_trials(sae, model, hook, target)


def _all_trials(sae: SAE, model: SubjectModel, hook: str, target: str | None) -> list[Trial]:
    begin = None if model.tokenizer is None else first_token(model.tokenizer)
    wanted = sae.metadata.prepend_bos if sae.metadata.prepend_bos is not None else begin is not None
    pairs = [(hook, target), *_others(sae, model, hook, target)]
    found: list[Trial] = []
    for bos in (wanted, not wanted) if begin is not None else (False,):
        tokens = _tokens(model, begin if bos else None)
        if tokens is None:
            return []
        try:
            captured = model.capture(tokens, list(dict.fromkeys(place for pair in pairs for place in pair if place)))
        except (DataError, HookError):
            return []
        rows = {place: x[:, 1:].flatten(0, 1).float() for place, x in captured.items()}  # BOS, or what stands for it
        for read, predicted in pairs if bos == wanted else pairs[:1]:
            found.append(_trial(sae, rows, read, predicted, bos, 1.0))
        if bos == wanted and target is None:
            norm = found[0].norm
            found += [_trial(sae, rows, hook, None, bos, size / norm) for size in (math.sqrt(sae.d_in), 1.0)]
    return found


def short_contexts(model: SubjectModel, bos: bool | None) -> Tensor | None:
    """Contexts of a short text, (contexts, pos); None if the model cannot read it.

    Args:
        model: a language model.
        bos: whether each begins with a beginning-of-sequence token; if not said, where there is one.
    """
    begin = None if model.tokenizer is None else first_token(model.tokenizer)
    return _tokens(model, None if bos is False else begin)


def _tokens(model: SubjectModel, begin: int | None) -> Tensor | None:
    """Contexts of a short text, (contexts, pos)."""
    if model.tokenizer is None:
        return None
    contexts = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    length = min(LENGTH, model.context_length or LENGTH, *(len(context) for context in contexts))
    if length < 8:
        return None
    first = [] if begin is None else [begin]
    return torch.tensor([[*first, *context[: length - len(first)]] for context in contexts])


def _others(sae: SAE, model: SubjectModel, hook: str, target: str | None) -> list[tuple[str, str | None]]:
    """Other hook points of the same width: layers near by, and, of an autoencoder, other sites of this layer."""
    site, layer = hook.rpartition(".")[0], layer_of(hook)
    if not site or layer is None:
        return []
    shifted = [(f"{site}.{layer + by}", _moved(target, by)) for by in range(-REACH, REACH + 1) if by]
    sites = [(f"{other}.{layer}", None) for other in SITES if other != site] if target is None else []
    return [
        pair for pair in [*shifted, *sites] if all(_has(model, place, width) for place, width in _widths(sae, pair))
    ]


def _widths(sae: SAE, pair: tuple[str, str | None]) -> list[tuple[str, int]]:
    read, predicted = pair
    return [(read, sae.d_in)] if predicted is None else [(read, sae.d_in), (predicted, sae.d_out)]


def _moved(hook: str | None, by: int) -> str | None:
    if hook is None:
        return None
    layer = layer_of(hook)
    return hook if layer is None else f"{hook.rpartition('.')[0]}.{layer + by}"


def _has(model: SubjectModel, place: str, width: int) -> bool:
    try:
        return model.width(model.hook_point(place).name) == width
    except HookError:
        return False


@torch.no_grad()
def _trial(sae: SAE, rows: dict[str, Tensor], read: str, predicted: str | None, bos: bool, scale: float) -> Trial:
    x = rows[read]
    norms = x.norm(dim=-1)
    kept = norms <= OUTLIER * norms.median()
    x, y = scale * x[kept], scale * rows[predicted or read][kept]
    error = (y - sae(x.to(sae.W_enc)).reconstruction.to(y)).pow(2).sum()
    fvu = (error / (y - y.mean(0)).pow(2).sum()).item()
    return Trial(read, bos, scale, fvu, norms[kept].mean().item())


def looks_like(trials: Sequence[Trial]) -> str | None:
    """The hook point where it reconstructs best, if that is another than the first one and clearly better."""
    if not trials:
        return None
    best = min(trials, key=lambda trial: trial.fvu)
    return best.hook if best.hook != trials[0].hook and _clearly(best, trials[0]) else None


def _clearly(better: Trial, given: Trial) -> bool:
    return better.fvu <= min(USELESS, BETTER * given.fvu) and given.fvu - better.fvu > LEAST_BETTER


def in_words(trials: Sequence[Trial], sae: SAE) -> str | None:
    """What speaks against the first way of using it, if anything does."""
    given, *others = trials
    best = min(others, key=lambda trial: trial.fvu, default=given)
    here = f"FVU on a short text is {given.fvu:.2f}"
    if _clearly(best, given):
        if best.hook != given.hook:
            return (
                f"{here} at {given.hook}, where inputs have norm {given.norm:.3g}, and {best.fvu:.2f} at {best.hook}, "
                f"where they have norm {best.norm:.3g}: looks like {best.hook}, you gave {given.hook}"
            )
        if best.bos != given.bos:
            so, otherwise = ("with", "without") if given.bos else ("without", "with")
            return (
                f"{here} {so} a beginning-of-sequence token, and {best.fvu:.2f} {otherwise}: it was trained "
                f"{otherwise} one, say so (prepend_bos)"
            )
        wanted = given.norm * best.scale
        return (
            f"{here} as the activations are, of norm {given.norm:.3g}, and {best.fvu:.2f} when scaled to norm "
            f"{wanted:.3g}: it was trained at that scale, divide its encoder and multiply its decoder"
        )
    if given.fvu > USELESS:
        of = f" of {sae.metadata.model}" if sae.metadata.model else ""
        return (
            f"{here} at {given.hook}: it reconstructs nothing there, and nothing at neighbouring hook points, with or "
            f"without a beginning-of-sequence token, or at other scales: is this the model{of} that it was trained on, "
            "in its precision?"
        )
    return None
