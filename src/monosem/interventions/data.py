"""Interventions read from JSON. Nothing in it is ever executed, nothing is trusted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.interventions.base import Intervention
from monosem.interventions.features import Ablate, Add, Clamp, Scale, Set, Swap
from monosem.interventions.plain import WHERE, sae_hash
from monosem.interventions.redirect import Redirect
from monosem.interventions.replace import Splice
from monosem.interventions.standing import Standing
from monosem.interventions.vectors import AddVector, CapProjection, Project
from monosem.interventions.where import Where
from monosem.sae import SAE
from monosem.spelling import listed

KINDS: dict[str, type[Intervention]] = {
    kind.__name__: kind
    for kind in (Ablate, Set, Scale, Add, Clamp, Swap, Redirect, Standing, AddVector, Project, CapProjection, Splice)
}

SAEs = SAE | Iterable[SAE] | Mapping[str, SAE]


@checked
def edit_from_json(data: Any, saes: SAEs = ()) -> Intervention:
    """What `edit.to_json()` has written.

    Args:
        data: a mapping, as from JSON.
        saes: one or several SAEs, found by the hashes of their weights, or by the names of a mapping. Where data names
            none, and one is given, it is that.

    Raises:
        ConfigError: something in it is unknown, missing or out of range; it says what.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("edit"), str):
        raise ConfigError('an edit is an object with its kind, as {"edit": "Ablate", "latents": [12]}')
    kind = KINDS.get(data["edit"])
    if kind is None:
        raise ConfigError(f"there is no edit {data['edit']!r}: there are {listed(data['edit'], KINDS)}")
    given = {name: value for name, value in data.items() if name != "edit"}
    known = _named(saes)
    _require_known(given, kind.fields, data["edit"])
    if "sae" in kind.fields:
        given["sae"] = _sae(given.get("sae"), known)
    missing = [name for name in kind.required if given.get(name) is None]
    if missing:
        raise ConfigError(f"{data['edit']} needs {', '.join(missing)}")
    for name, wanted in (("hook", str), ("keep_error", bool), ("seed", int), ("position", int)):
        value = given.get(name)
        if value is not None and (not isinstance(value, wanted) or (wanted is int and isinstance(value, bool))):
            raise ConfigError(f"{name} of {data['edit']} must be of type {wanted.__name__}, got {value!r}")
    if given.get("where") is not None:
        given["where"] = _where(given["where"], known)
    if "source" in given:
        given["source"] = _source(given["source"])
    for name in ("vector", "direction", "directions"):
        if name in given:
            wide = _numbers(given[name], name)
            narrow = wide.to(torch.float32)
            given[name] = narrow if torch.equal(narrow.double(), wide) else wide
    return kind(**given)


def _named(saes: SAEs) -> dict[str, SAE]:
    if isinstance(saes, Mapping):
        names: dict[str, SAE] = {str(name): sae for name, sae in saes.items()}
        return {sae_hash(sae): sae for sae in names.values()} | names
    several = [saes] if isinstance(saes, SAE) else saes
    return {sae_hash(sae): sae for sae in several}


def _sae(name: Any, known: Mapping[str, SAE]) -> SAE:
    different = {id(sae): sae for sae in known.values()}
    if name is None and len(different) == 1:
        return next(iter(different.values()))
    if isinstance(name, str) and name in known:
        return known[name]
    there = ", ".join(known) or "none"
    raise ConfigError(f"there is no SAE {name!r} here: there are {there}" if name else f"say which SAE: {there}")


def _require_known(given: Mapping[str, Any], fields: Sequence[str], of: str) -> None:
    unknown = [name for name in given if name not in fields]
    if unknown:
        raise ConfigError(f"{of} has no {unknown[0]!r}: it takes {', '.join(fields)}")


def _where(value: Any, known: Mapping[str, SAE]) -> Where | Tensor:
    if isinstance(value, list):
        try:
            return torch.tensor(value, dtype=torch.bool)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError("where is conditions, or true and false for each row and position") from error
    if not isinstance(value, Mapping):
        raise ConfigError(f'where is conditions, as {{"phase": "generated"}}, got {value!r}')
    _require_known(value, WHERE, "where")
    parts = dict(value)
    if isinstance(parts.get("positions"), Mapping):
        ends = parts["positions"]
        _require_known(ends, ("start", "stop", "step"), "positions")
        parts["positions"] = slice(ends.get("start"), ends.get("stop"), ends.get("step"))
    if "sae" in parts:
        parts["sae"] = _sae(parts["sae"], known)
    return Where(**parts)


def _source(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        return value
    ids = _numbers(value, "source")
    if ids.ndim != 2 or not torch.equal(ids, ids.round()) or bool((ids < 0).any()):
        raise ConfigError("source is a text, texts, or token ids of each text")
    return ids.long()


def _numbers(value: Any, name: str) -> Tensor:
    try:
        return torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{name} must be numbers") from error
