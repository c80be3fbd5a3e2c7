"""check: do an SAE and a model belong together? In words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from monosem.activations.live import probe_rows
from monosem.errors import HookError, MismatchError
from monosem.models import SubjectModel
from monosem.sae import SAE

NORM_TOLERANCE = 0.02
FVU_TOLERANCE = 0.05


@dataclass(frozen=True)
class CheckResult:
    """What fits and what does not; true if nothing speaks against using the two together."""

    problems: list[str]
    notes: list[str]

    def __bool__(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        lines = [f"problem: {problem}" for problem in self.problems] + [f"note: {note}" for note in self.notes]
        return "\n".join(lines) or "SAE and model fit"

    def raise_if_bad(self) -> None:
        """Raise MismatchError with all problems."""
        if self.problems:
            raise MismatchError("; ".join(self.problems))


@torch.no_grad()
def check(sae: SAE, model: SubjectModel, hook: str | None = None) -> CheckResult:
    """Compare what an SAE remembers of its model with a model: weights, tokenizer, hook, width, scale, quality.

    The model is run on the probe batch that the SAE carries; mean norm, FVU and L0 must be what they were.

    Args:
        sae: the SAE.
        model: the model.
        hook: the hook point at which it is to be used; its own if not given.
    """
    known, problems, notes = sae.metadata, list[str](), list[str]()
    if known.hook is None and hook is None:
        notes.append("the SAE does not know its hook point: name one")
        return CheckResult(problems, notes)
    place = hook or known.hook or ""
    try:
        place = model.hook_point(place).name
    except HookError as error:
        return CheckResult([str(error)], notes)
    if known.hook is not None and place != known.hook:
        problems.append(f"the SAE was trained at {known.hook}, not at {place}")
    if known.model_fingerprint not in (None, model.fingerprint()):
        problems.append(f"the weights of {model.name} are not those of {known.model}, on which the SAE was trained")
    if known.tokenizer_fingerprint not in (None, model.tokenizer_fingerprint()):
        problems.append("the tokenizer has another vocabulary than the one in training")
    width = model.width(place)
    if width != sae.d_in:
        problems.append(f"the SAE reads width {sae.d_in}, {place} of {model.name} has width {width}")
        return CheckResult(problems, notes)
    if known.fingerprint is None or "tokens" not in sae.probe:
        notes.append("the SAE carries no probe batch of text: scale and quality were not checked")
        return CheckResult(problems, notes)
    unreadable = _unreadable(model, sae.probe["tokens"])
    if unreadable:
        return CheckResult([*problems, unreadable], notes)
    x = probe_rows(model, place, sae.probe)
    norm = x.norm(dim=-1).mean().item()
    if abs(norm / known.fingerprint.mean_norm - 1) > NORM_TOLERANCE:
        problems.append(
            f"activations at {place} have mean norm {norm:.4g}, in training it was {known.fingerprint.mean_norm:.4g} "
            f"(factor {norm / known.fingerprint.mean_norm:.3g}): another hook, another scale or folded norms"
        )
    error = (x - sae(x).reconstruction).pow(2).sum()
    fvu = (error / (x - x.mean(0)).pow(2).sum()).item()
    if fvu > known.fingerprint.fvu + FVU_TOLERANCE:
        problems.append(f"FVU on the SAE's own probe batch is {fvu:.3f}, it was {known.fingerprint.fvu:.3f}")
    return CheckResult(problems, notes)


def _unreadable(model: SubjectModel, tokens: Tensor) -> str | None:
    """Why a model cannot read these tokens (contexts, pos), if so."""
    length, largest = tokens.shape[1], int(tokens.max())
    if model.context_length is not None and length > model.context_length:
        return f"the SAE's contexts have {length} tokens, the context of {model.name} has {model.context_length}"
    find = getattr(model.module, "get_input_embeddings", None)
    embedding = find() if find is not None else None
    if isinstance(embedding, nn.Embedding) and largest >= embedding.num_embeddings:
        last = embedding.num_embeddings - 1
        return f"the SAE's probe batch has token {largest}, the vocabulary of {model.name} ends at {last}"
    return None
