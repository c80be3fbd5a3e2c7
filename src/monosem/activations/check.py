"""check: do an SAE and a model belong together? In words. join: the same question, asked wherever the two meet."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from monosem.activations.guess import Trial, guess, in_words, looks_like
from monosem.activations.limits import limit_norms
from monosem.activations.live import models_of, probe_rows
from monosem.arguments import checked
from monosem.errors import DataError, HookError, MismatchError
from monosem.models import ModelSet, SubjectModel
from monosem.sae import SAE
from monosem.text import first_token

_TRIED: WeakKeyDictionary[SAE, dict[tuple[object, ...], list[Trial]]] = WeakKeyDictionary()
"""So that splicing an SAE into a model again and again asks once."""

NORM_TOLERANCE = 0.02
FVU_TOLERANCE = 0.05


@dataclass(frozen=True)
class CheckResult:
    """What fits and what does not; true if nothing speaks against using the two together."""

    problems: list[str]
    notes: list[str]
    fatal: list[str] = field(default_factory=list[str])
    """The problems with which the two cannot be used together at all: place, width, tokenizer."""
    misfits: list[str] = field(default_factory=list[str])
    """Those by which the SAE reads something else than in training: hook, scale, beginnings of contexts."""

    def __bool__(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        lines = [f"problem: {problem}" for problem in self.problems] + [f"note: {note}" for note in self.notes]
        return "\n".join(lines) or "SAE and model fit"

    def raise_if_bad(self) -> None:
        """Raise MismatchError with all problems."""
        if self.problems:
            raise MismatchError("; ".join(self.problems))


@checked
@torch.no_grad()
def check(sae: SAE, model: SubjectModel | ModelSet, hook: str | Sequence[str] | None = None) -> CheckResult:
    """Compare what an SAE remembers of its model with a model: weights, tokenizer, hook, width, scale, quality.

    The model is run on the probe batch that the SAE carries; mean norm, FVU and L0 must be what they were. An SAE that
    is not where the model is goes there: from here on the two are used together.

    Args:
        sae: the SAE.
        model: the model, or those that it reads side by side.
        hook: the hook point at which it is to be used, or several that it reads side by side; its own if not given.
    """
    known, problems, notes, fatal, misfits = sae.metadata, list[str](), list[str](), list[str](), list[str]()
    result = CheckResult(problems, notes, fatal, misfits)
    hooks, targets = _sides(sae, [hook] if isinstance(hook, str) else list(hook or ()), len(models_of(model)))
    if not hooks:
        lacking = "which activations it reads side by side" if len(sae.in_shape) > 1 else "its hook point: name one"
        notes.append(f"the SAE does not know {lacking}")
        return result
    sae.to(models_of(model)[0].device)
    try:
        places = [model.hook_point(name).name for name in hooks]
    except HookError as error:
        return CheckResult([str(error)], notes, [str(error)])
    place, own = " + ".join(places), known.hooks or ([known.hook] if known.hook else places)
    pairs, tokens = zip(places, own, strict=False), sae.probe.get("tokens")
    if len(own) != len(places) or not all(same_place(model, *pair, tokens) for pair in pairs):
        misfits.append(f"the SAE was trained at {' + '.join(own)}, not at {place}")
        problems += misfits
    if known.model_fingerprint not in (None, " + ".join(one.fingerprint() for one in models_of(model))):
        trained_on = known.model or " + ".join(known.models or ["another"])
        problems.append(f"the weights of {model.name} are not those of {trained_on}, on which the SAE was trained")
    if known.tokenizer_fingerprint not in (None, model.tokenizer_fingerprint()):
        fatal.append("the tokenizer has another vocabulary than the one in training")
        problems += fatal
    begins = _begins_otherwise(sae, model)
    if begins:
        misfits.append(begins)
        problems.append(begins)
    wrong = [(name, model.width(name)) for name in places if model.width(name) != sae.d_in]
    if wrong:
        name, width = wrong[0]
        words = f"the SAE reads width {sae.d_in}, {name} of {model.name} has width {width}: choose another hook"
        fatal.append(words)
        problems.append(words)
        return result
    if known.fingerprint is None or "tokens" not in sae.probe:
        trials = _trials(sae, model, places, targets) if known.layout is not None else []
        if not trials:
            notes.append("the SAE carries no probe batch of text: scale and quality were not checked")
            return result
        notes.append(f"the SAE carries no probe batch; on a short text FVU is {trials[0].fvu:.3f}")
        words = in_words(trials, sae)
        if words is not None:
            misfits.append(words)
            problems.append(words)
        return result
    unreadable = [why for one in models_of(model) if (why := _unreadable(one, sae.probe["tokens"]))]
    if unreadable:
        problems.append(unreadable[0])
        return result
    x = probe_rows(model, places, sae.probe).reshape(-1, *sae.in_shape)
    norm = x.flatten(1).norm(dim=-1).mean().item()
    if known.fingerprint.mean_norm > 0 and abs(norm / known.fingerprint.mean_norm - 1) > NORM_TOLERANCE:
        misfits.append(
            f"activations at {place} have mean norm {norm:.4g}, in training it was {known.fingerprint.mean_norm:.4g} "
            f"(factor {norm / known.fingerprint.mean_norm:.3g}): {_whence(sae, model, places, targets)}"
        )
        problems.append(misfits[-1])
    target = probe_rows(model, targets, sae.probe).reshape(-1, *sae.out_shape) if targets else x
    error = (target - sae(x).reconstruction).pow(2).sum()
    fvu = (error / (target - target.mean(0)).pow(2).sum()).item()
    if known.fingerprint.fvu is not None and fvu > known.fingerprint.fvu + FVU_TOLERANCE:
        problems.append(f"FVU on the SAE's own probe batch is {fvu:.3f}, it was {known.fingerprint.fvu:.3f}")
    return result


def _trials(sae: SAE, model: SubjectModel | ModelSet, places: list[str], targets: list[str]) -> list[Trial]:
    """How well a dictionary of one place reconstructs there and otherwise."""
    if not isinstance(model, SubjectModel) or len(sae.in_shape) > 1:
        return []
    asked = id(model), places[0], *targets, sae.W_enc._version
    known = _TRIED.setdefault(sae, {})
    if asked not in known:
        known[asked] = guess(sae, model, places[0], targets[0] if targets else None)
    return known[asked]


def _whence(sae: SAE, model: SubjectModel | ModelSet, places: list[str], targets: list[str]) -> str:
    """Where activations of another norm than in training may come from."""
    found = looks_like(_trials(sae, model, places, targets))
    if found is None:
        return "another hook, another scale or folded norms"
    return f"looks like {found}, you gave {places[0]}"


def _sides(sae: SAE, given: list[str], n_models: int) -> tuple[list[str], list[str]]:
    """The hook points that an SAE reads (none: not known), and those that it predicts (none: the same)."""
    known = sae.metadata
    hooks = given or known.hooks or ([known.hook] if known.hook else [])
    if len(sae.in_shape) > 1:
        return hooks if len(hooks) * n_models == sae.in_shape[0] else [], known.target_hooks or []
    return hooks[:1], [known.target_hook] if known.target_hook else []


def join(sae: SAE, model: SubjectModel | ModelSet, hook: str | Sequence[str] | None = None) -> None:
    """Ask whether an SAE and a model fit where they are to be used together; warn in words of hook, scale and BOS.

    Raises:
        MismatchError: they cannot be used together: the hook point is missing, width or tokenizer are others.
    """
    hooks, _ = _sides(sae, [hook] if isinstance(hook, str) else list(hook or ()), len(models_of(model)))
    with ExitStack() as looking:
        for one in models_of(model):
            looking.enter_context(one.unedited())
        result = check(sae, model, hook)
        if not result.fatal:
            limit_norms(sae, model, [model.hook_point(name).name for name in hooks])
    if result.fatal:
        raise MismatchError("; ".join(result.fatal))
    if result.misfits:
        warnings.warn("; ".join(result.misfits), stacklevel=3)


def same_place(model: SubjectModel | ModelSet, one: str, other: str, tokens: Tensor | None = None) -> bool:
    """Whether two hook points are one place, as `resid_pre.2` and `resid_post.1`: by name, or by what stands there.

    Args:
        model: the model, or several: it must be one place in all.
        one: a hook point.
        other: another; None of the model's is no place.
        tokens: what to read (contexts, pos); the least that the model reads if not given.
    """
    if isinstance(model, ModelSet):
        return all(same_place(each, one, other, tokens) for each in model.models)
    try:
        names = [model.hook_point(name).name for name in (one, other)]
        if names[0] == names[1]:
            return True
        readable = tokens is not None and _unreadable(model, tokens) is None
        inputs = tokens[:1].long() if readable and tokens is not None else model.inputs.least()
        captured = model.capture(inputs, names)
    except (HookError, DataError):
        return False
    return torch.equal(captured[names[0]], captured[names[1]])


def _begins_otherwise(sae: SAE, model: SubjectModel | ModelSet) -> str | None:
    """In what the beginnings of contexts differ from those in training, if so."""
    if not sae.metadata.prepend_bos or model.tokenizer is None:
        return None
    begins = first_token(model.tokenizer)
    if begins is None:
        return f"the SAE's contexts begin with a beginning-of-sequence token, the tokenizer of {model.name} has none"
    trained = sae.probe["tokens"][:, 0].unique().tolist() if "tokens" in sae.probe else [begins]
    if trained == [begins]:
        return None
    return f"the SAE's contexts begin with token {trained[0]}, the tokenizer of {model.name} begins them with {begins}"


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
