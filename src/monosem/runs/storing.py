"""The activations that a run stores beforehand, and reads in place of its model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monosem.activations import StoredActivations, StoreFolder, models_of
from monosem.errors import ConfigError, MismatchError
from monosem.models import ModelSet, SubjectModel
from monosem.models.outline import Shapes, outline
from monosem.runs.config import ActivationsConfig, RunConfig

OWN = ("buffer_tokens", "seed")
"""Settings that are of reading a store, not of writing it."""
COMPARED = 2**31
"""Bytes of weights, in float32, up to which a model is loaded to be compared with the store that a run reads."""


def known_by_name(config: RunConfig) -> SubjectModel | ModelSet | None:
    """The shapes of a model that has the name of the store's, and is too large to be loaded for nothing but comparing.

    None where there is no store, or the model is to be loaded. An evaluation loads it, and compares it then.
    """
    if config.store is None:
        return None
    known = StoreFolder(config.store).index.metadata
    names = [config.model] if isinstance(config.model, str) else config.model or []
    if names != (known.models or [known.model]):
        return None
    outlines = [outline(name) for name in names]
    if sum(each.weight_bytes for each in outlines) <= COMPARED:
        return None
    return outlines[0].model if len(outlines) == 1 else ModelSet([each.model for each in outlines])


def open_store(config: RunConfig, model: SubjectModel | ModelSet, hooks: Sequence[str]) -> StoredActivations:
    """The store that a run reads.

    Raises:
        FileError: there is none, or it is not complete.
        ConfigError: it lacks a hook point, or its text or positions are not those that the run describes.
        MismatchError: it is of another model or tokenizer.
    """
    settings = config.activations
    store = StoredActivations(config.store or "", hooks, buffer_tokens=settings.buffer_tokens, seed=settings.seed)
    identity, known = store.store.index.identity, store.store.index.metadata
    loaded = not any(isinstance(each, Shapes) for each in models_of(model))
    if loaded and identity["model"] != " + ".join(each.fingerprint() for each in models_of(model)):
        theirs = known.model or " + ".join(known.models or [])
        raise MismatchError(f"{config.store} is of {theirs}, not of {model.name}: store its activations anew")
    if loaded and known.tokenizer_fingerprint not in (None, model.tokenizer_fingerprint()):
        raise MismatchError(f"{config.store} was written with another tokenizer than {model.name}'s: store it anew")
    wanted: dict[str, Any] = {
        name: getattr(settings, name)
        for name, field in ActivationsConfig.model_fields.items()
        if name not in OWN and getattr(settings, name) != field.default
    }
    if "text" in config.model_fields_set and config.text is not None:
        wanted["text"] = config.text
    for name, value in wanted.items():
        if getattr(known, name) != value:
            raise ConfigError(
                f"{config.store} was stored with {name} {getattr(known, name)}, the run says {value}: leave it out, or "
                "store anew"
            )
    return store
