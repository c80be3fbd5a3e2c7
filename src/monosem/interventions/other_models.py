"""Edits in models of other libraries: TransformerLens and nnsight. Neither is imported: a model of theirs is known by
the module of its class.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from monosem.activations.check import NORM_TOLERANCE
from monosem.arguments import checked
from monosem.errors import ConfigError, HookError, MismatchError
from monosem.hook_names import to_transformer_lens
from monosem.interventions.replace import Splice
from monosem.models import EditContext, SubjectModel
from monosem.models.edits import Edit
from monosem.text import special_tokens


@checked
@contextmanager
def spliced(model: Any, *edits: Edit) -> Iterator[None]:
    """Within this block, edits such as `ms.Splice(sae)` are in a model of TransformerLens, nnsight, or ours.

    with ms.spliced(hooked_transformer, ms.Splice(sae)):
        logits = hooked_transformer(tokens)

    Hook points are named as ours; in TransformerLens they are found under its names. In nnsight, what a trace reads at
    the hook point itself is what stood there before; all that follows is computed from what is spliced in. It warns
    where an SAE reads something else than in training, as where TransformerLens has folded and centred weights.

    Args:
        model: a HookedTransformer or TransformerBridge, an nnsight model, a `SubjectModel`, or a plain module.
        *edits: objects with `hooks` and `apply(x, context)`.

    Raises:
        HookError: the model has no such place.
        ConfigError: the model's weights are not there yet.
    """
    if _is_of(model, "transformer_lens"):
        with _in_transformer_lens(model, edits):
            yield
        return
    subject = model if isinstance(model, SubjectModel) else _subject(model)
    with subject.edit(list(edits)):
        yield


def _is_of(model: Any, package: str) -> bool:
    return any(kind.__module__.split(".")[0] == package for kind in type(model).__mro__)


def _subject(model: Any) -> SubjectModel:
    """A plain module, or the one inside an nnsight model, whose own calls it then changes."""
    module = model
    if _is_of(model, "nnsight"):
        module = getattr(model, "_module", None) or getattr(model, "_model", None)
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"a {type(model).__name__} is no model that edits can be put in: give a model of TransformerLens or "
            "nnsight, one of ms.load_model, or a module of PyTorch"
        )
    if any(parameter.is_meta for parameter in module.parameters()):
        raise ConfigError(
            f"the weights of this {type(model).__name__} are not loaded yet: load it with dispatch=True, or run it once"
        )
    return SubjectModel(module, getattr(model, "tokenizer", None))


# TransformerLens ------------------------------------------------------------------------------------------------------


@contextmanager
def _in_transformer_lens(model: Any, edits: tuple[Edit, ...]) -> Iterator[None]:
    pairs = [(hook, _theirs(model, hook), edit) for edit in edits for hook in edit.hooks]
    for _, theirs, edit in pairs:
        if isinstance(edit, Splice):
            _compare(model, theirs, edit)
    current: list[EditContext] = [EditContext("")]

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        current[0] = _context(model, args, kwargs)

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        hooks = [(theirs, _function(hook, edit, current)) for hook, theirs, edit in pairs]
        with model.hooks(fwd_hooks=hooks):
            yield
    finally:
        handle.remove()


def _theirs(model: Any, hook: str) -> str:
    name = to_transformer_lens(hook) or hook
    if name not in model.hook_dict:
        raise HookError(f"this {type(model).__name__} has no hook point {name!r} (of {hook!r}): see model.hook_dict")
    return name


def _function(hook: str, edit: Edit, current: list[EditContext]) -> Callable[..., Tensor]:
    """TransformerLens keeps heads apart, (batch, pos, head, d_head): they stand one after another here."""

    def replace(x: Tensor, **_: Any) -> Tensor:
        flat = x.flatten(2) if x.ndim == 4 else x
        return edit.apply(flat, dataclasses.replace(current[0], hook=hook)).reshape(x.shape)

    return replace


def _context(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> EditContext:
    given = args[0] if args else kwargs.get("input", kwargs.get("input_ids"))
    if isinstance(given, str | list):
        named = {name: kwargs[name] for name in ("prepend_bos", "padding_side") if kwargs.get(name) is not None}
        given = model.to_tokens(given, **named)
    if not isinstance(given, Tensor) or torch.is_floating_point(given):
        return EditContext("")
    tokens = given[None] if given.ndim == 1 else given
    special = None
    if model.tokenizer is not None:
        ids = torch.tensor(sorted(special_tokens(model.tokenizer)), device=tokens.device)
        special = torch.isin(tokens, ids)
    attention = kwargs.get("attention_mask")
    mask = torch.ones_like(tokens, dtype=torch.bool) if attention is None else attention.bool()
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    return EditContext("", tokens, positions, mask, special)


@torch.no_grad()
def _compare(model: Any, name: str, edit: Splice) -> None:
    """Look at what the SAE reads there on its own probe batch.

    Raises:
        MismatchError: it is of another width.
    """
    sae, known = edit.sae, edit.sae.metadata.fingerprint
    tokens = sae.probe.get("tokens", torch.arange(2, 6)[None])
    found: list[Tensor] = []

    def keep(x: Tensor, **_: Any) -> None:
        found.append(x.flatten(2) if x.ndim == 4 else x)

    model.run_with_hooks(tokens.long(), fwd_hooks=[(name, keep)], return_type=None)
    if found[0].shape[-1] != sae.d_in:
        raise MismatchError(
            f"the SAE reads width {sae.d_in}, {name} has width {found[0].shape[-1]}: choose another hook"
        )
    if known is None or "kept" not in sae.probe or not known.mean_norm:
        return
    norm = found[0][sae.probe["kept"]].norm(dim=-1).mean().item()
    if abs(norm / known.mean_norm - 1) > NORM_TOLERANCE:
        warnings.warn(
            f"activations at {name} have mean norm {norm:.4g}, in training it was {known.mean_norm:.4g}: another hook, "
            "or weights that TransformerLens has folded and centred (load with from_pretrained_no_processing)",
            stacklevel=4,
        )
