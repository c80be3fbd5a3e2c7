"""Interventions as plain data: JSON that can be kept, sent and read again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from monosem.codes import SparseCodes
from monosem.errors import ConfigError
from monosem.interventions.amounts import Amount
from monosem.interventions.where import Where
from monosem.sae import SAE
from monosem.sae.identity import dictionary_hash

WHERE = ("positions", "tokens", "phase", "rows", "above", "sae", "schedule")
_HASHES: WeakKeyDictionary[SAE, tuple[int, str]] = WeakKeyDictionary()


def sae_hash(sae: SAE) -> str:
    """The name of an SAE in data: 16 hex digits of its weights, looked at again where they have changed."""
    version = sum(tensor._version for tensor in [*sae.parameters(), *sae.buffers()])
    known = _HASHES.get(sae)
    if known is None or known[0] != version:
        known = _HASHES[sae] = (version, dictionary_hash(sae))
    return known[1]


def plain(value: Any, name: str) -> Any:
    """A part of an intervention as data.

    Raises:
        ConfigError: it is none: a function, or codes.
    """
    if isinstance(value, SAE):
        return sae_hash(value)
    if isinstance(value, Amount):
        return value.numbers.tolist()
    if isinstance(value, Where):
        found = {part: getattr(value, part) for part in WHERE if getattr(value, part) is not None}
        return {part: plain(inner, part) for part, inner in found.items()}
    if isinstance(value, slice):
        parts = {"start": value.start, "stop": value.stop, "step": value.step}
        return {part: number for part, number in parts.items() if number is not None}
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, SparseCodes) or callable(value):
        raise ConfigError(f"{name} is no data: give conditions of ms.Where, texts or token ids, to keep it as JSON")
    if isinstance(value, Mapping):
        return {str(key): plain(inner, name) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner, name) for inner in value]
    return value
