"""Worlds by name, as a run.yaml names them: `synthetic:small`, or with settings, `synthetic:small,roots=0,seed=3`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from monosem.errors import ConfigError, FileError
from monosem.files import parse_yaml
from monosem.spelling import listed
from monosem.synthetic.bench import SIZES, SynthSAEBench
from monosem.synthetic.planted import PlantedDictionary

PREFIX = "synthetic:"
World = SynthSAEBench | PlantedDictionary
EXAMPLE = f"{PREFIX}small, or {PREFIX}small,roots=0,seed=3"
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", tuple: "a pair, [0.4, 0.001]"}


def is_world(name: str | None) -> bool:
    """Whether data of this name are drawn, and not read."""
    return name is not None and name.startswith(PREFIX)


@lru_cache(maxsize=4)
def world(name: str) -> World:
    """The generator of a name: "synthetic:16k" and "synthetic:small" are `SynthSAEBench`; "synthetic:planted" is
    `PlantedDictionary`, whose n_features and d must be set. Settings are those of its constructor.

    Raises:
        ConfigError: there is none of this name, or it has no such setting.
    """
    kind, settings = _parts(name)
    if kind != "planted":
        return SynthSAEBench(kind, **settings)
    lacking = [one for one in ("n_features", "d") if one not in settings]
    if lacking:
        raise ConfigError(f"{name}: say {lacking[0]} too, such as {PREFIX}planted,n_features=64,d=16,l0=3")
    return PlantedDictionary(**settings)


def world_width(name: str) -> int:
    """How wide its rows are; nothing is planted for it.

    Raises:
        ConfigError: as `world`.
    """
    kind, settings = _parts(name)
    return settings["d"] if "d" in settings else SIZES[kind].d if kind in SIZES else world(name).d


def _parts(name: str) -> tuple[Any, dict[str, Any]]:
    kind, *changes = [part.strip() for part in re.split(r",(?![^\[]*\])", name.removeprefix(PREFIX))]
    kinds = [*SIZES, "planted"]
    if kind not in kinds:
        raise ConfigError(f"no synthetic world {kind!r}: there are {listed(kind, kinds)}; write {EXAMPLE}")
    known = _defaults(SynthSAEBench) | vars(SIZES[kind]) if kind in SIZES else _defaults(PlantedDictionary)
    settings: dict[str, Any] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"{name}: settings are key=value after a comma, got {change!r}; write {EXAMPLE}")
        if key not in known:
            raise ConfigError(f"{name}: unknown setting {key!r}; there are {listed(key, known)}")
        settings[key] = _value(f"{name}: {key}", value, type(known[key]))
    return kind, settings


def _defaults(kind: Callable[..., Any]) -> dict[str, Any]:
    """By setting of a constructor its default, which is of its type; those without one are whole numbers."""
    parameters = inspect.signature(kind).parameters.values()
    single = [one for one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD and one.name != "size"]
    return {one.name: 0 if one.default is inspect.Parameter.empty else one.default for one in single}


def _value(where: str, text: str, wanted: type) -> Any:
    """What was written, of the type that is wanted."""
    try:
        value = parse_yaml(text, where, remedy=f"write {EXAMPLE}")
    except FileError as error:
        raise ConfigError(str(error)) from error
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is tuple and isinstance(value, list) and all(type(part) in (int, float) for part in value):
        return tuple(value)
    if type(value) is not wanted:
        raise ConfigError(f"{where} is {WORDS[wanted]}, got {text!r}")
    return value
