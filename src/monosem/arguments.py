"""Arguments of public functions are what their annotations say, or are refused by name before any work starts.

`@checked` reads the annotations, with bounds in them (`steps: Positive`) and shapes (`Float[Tensor, "rows d"]`: a name
is the same size in all arguments of a call): they are what is documented, what editors show, and what holds. Values are
passed on as they came, but that 1e6 becomes a whole number where one is wanted, and an array of numpy a tensor.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeVar, Union, get_args, get_origin

import numpy as np
import torch
from jaxtyping import jaxtyped
from torch import Tensor
from typing_extensions import TypeIs, get_protocol_members, is_protocol

from monosem.errors import ConfigError, MismatchError, MonosemError
from monosem.spelling import meant


class Bound(NamedTuple):
    """What holds of a value beyond its type."""

    said: str
    """Behind its type: "a whole number", "of at least 1"."""
    holds: Callable[[Any], bool]


def _usable(device: Any) -> bool:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        return False
    return True


Positive = Annotated[int, Bound("of at least 1", lambda value: value >= 1)]
NotNegative = Annotated[int, Bound("of at least 0", lambda value: value >= 0)]
AboveZero = Annotated[float, Bound("above 0", lambda value: value > 0)]
ZeroOrMore = Annotated[float, Bound("of at least 0", lambda value: value >= 0)]
Share = Annotated[float, Bound("between 0 and 1", lambda value: 0 <= value <= 1)]
Device = Annotated[torch.device | str, Bound("that names one that is there, as 'cpu' or 'cuda'", _usable)]
Floating = Annotated[torch.dtype, Bound("of floats, as torch.float32", lambda dtype: dtype.is_floating_point)]

REMEDIES = {
    "SAE": "ms.load_sae(path) opens one",
    "SubjectModel": "ms.load_model(name) loads one",
    "ActivationSource": "ms.activations(model, hook) makes one",
    "FeatureStore": "ms.FeatureStore(path) opens one",
    "GraphCore": "ms.read_graph(path) opens one",
    "SparseCodes": "sae.encode(x) gives them, ms.SparseCodes.from_dense(codes) makes them of a tensor",
}
"""How to come to such a thing."""
MOST = 1_000
"""Members of a list that are looked at."""
LONGEST = 60
"""Letters of a value that are shown."""

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


@typing.overload
def checked(function: C) -> C: ...
@typing.overload
def checked(function: Callable[P, R]) -> Callable[P, R]: ...
def checked(function: Any) -> Any:
    """A function, or a class with its `__init__`, whose arguments are compared with their annotations at every call.

    Raises:
        ConfigError: from the call; names the function, the argument, what it must be, and what it was.
        MismatchError: from the call; arrays are not of each other's sizes.
    """
    if isinstance(function, type):
        function.__init__ = checked(function.__init__)
        return function
    signature, hints = inspect.signature(function), dict[str, Any]()
    name = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not hints:
            hints.update(hints_of(function))
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError:
            _require_known(name, kwargs, signature)
            return function(*args, **kwargs)  # Python says what is missing
        with jaxtyped("context"):
            for each, value in given.arguments.items():
                hint = hints.get(each, Any)
                value = given.arguments[each] = _taken(value, hint)
                for one in _every(signature.parameters[each].kind, value):
                    if not _fits(one, hint):
                        raise _error(f"{name}: {each}", one, hint, given.arguments, hints)
        return function(*given.args, **given.kwargs)

    return call


def _require_known(name: str, given: Iterable[str], signature: inspect.Signature) -> None:
    for each in given:
        if each not in signature.parameters:
            known = [known for known in signature.parameters if known != "self"]
            raise ConfigError(f"{name} has no argument {each!r}{meant(each, known) or '; it has ' + ', '.join(known)}")


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's arguments; names that its module knows for type checkers alone are public ones."""
    known, parameters = _Names(inspect.unwrap(function).__globals__), inspect.signature(function).parameters
    return {
        name: eval(each.annotation, {}, known) if isinstance(each.annotation, str) else each.annotation
        for name, each in parameters.items()
        if each.annotation is not inspect.Parameter.empty
    }


class _Names(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        public = sys.modules["monosem"]
        if name in public.__dict__["_HOME"]:
            return getattr(public, name)
        raise KeyError(name)


def _taken(value: Any, hint: Any) -> Any:
    """A whole number of any kind, 1e6 too, as Python's, where no other numbers are taken; of lists and mappings, each.

    Arrays of numpy as tensors, where those alone are taken.
    """
    kinds = [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in (hint, *get_args(hint))]
    if isinstance(value, np.ndarray) and value.ndim and value.dtype.kind in "fiub" and np.ndarray not in kinds:
        return torch.as_tensor(value) if Tensor in [getattr(kind, "array_type", kind) for kind in kinds] else value
    if int in kinds and float not in kinds and not isinstance(value, bool):
        number = _plain(value)
        if isinstance(number, Integral) or (isinstance(number, float) and number.is_integer()):
            return int(number)
    members = [get_args(kind)[-1] for kind in kinds if get_origin(kind) in (Sequence, Mapping)]
    if len(members) == 1 and isinstance(value, list | tuple) and any(type(each) is float for each in value):
        return [_taken(each, members[0]) for each in value]
    if len(members) == 1 and isinstance(value, dict):
        return {name: _taken(each, members[0]) for name, each in value.items()}
    return value


def _every(kind: Any, value: Any) -> Iterable[Any]:
    if kind is inspect.Parameter.VAR_POSITIONAL:
        return value
    return value.values() if kind is inspect.Parameter.VAR_KEYWORD else (value,)


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Annotated:
        return _fits(value, parts[0]) and all(bound.holds(value) for bound in parts[1:])
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if hint in (int, float):
        return _number(value, Integral if hint is int else Real)
    if hint is bool:
        return isinstance(_plain(value), bool)
    if hint is None:
        return value is None
    if origin is tuple:
        members = (parts[0],) * len(value) if _several(value) and parts[1:] == (...,) else parts
        return _several(value) and len(value) == len(members) and all(map(_fits, value, members))
    kind = origin or hint
    if not isinstance(kind, type) or kind is object:
        return True  # a type variable, a name
    if is_protocol(kind):
        return all(hasattr(value, member) for member in get_protocol_members(kind))
    if issubclass(kind, Mapping) and parts:
        pairs = islice(value.items(), MOST) if isinstance(value, Mapping) else ()
        return isinstance(value, Mapping) and all(_fits(key, parts[0]) and _fits(one, parts[1]) for key, one in pairs)
    if issubclass(kind, Iterable) and parts:
        if not isinstance(value, Collection):
            return not issubclass(kind, Collection) and (isinstance(value, Iterable) or hasattr(value, "__getitem__"))
        if _several(value) and isinstance(value, Tensor | np.ndarray):
            value = value[:MOST].tolist()  # at once: each by itself would wait for the device
        return _several(value) and all(_member_fits(each, parts[0]) for each in islice(value, MOST))
    return isinstance(value, hint if origin is None else origin)


def _member_fits(value: Any, hint: Any) -> bool:
    """Arrays of a list may differ in what the arguments of a call have alike."""
    with jaxtyped("context"):
        return _fits(value, hint)


def _number(value: Any, kind: type) -> bool:
    """Python's numbers, numpy's, and tensors and arrays of one: not NaN, not True."""
    value = _plain(value)
    return isinstance(value, kind) and not isinstance(value, bool) and not math.isnan(value)  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def _several(value: Any) -> TypeIs[Collection[Any]]:
    """A list, a tuple, a range, a set, an array or tensor of one or more dimensions: no text, no mapping."""
    many = isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)
    return many and getattr(value, "ndim", 1) > 0


WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "True or False"),
    str: ("a string", "strings"),
    Path: ("a path", "paths"),
    Callable: ("a function", "functions"),
}


def _said(hint: Any) -> str:
    """What a value must be, in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        *said, last = dict.fromkeys(map(_said, parts))
        return f"{', '.join(said)} or {last}" if said else last
    if origin is Annotated:
        return f"{_said(parts[0])} {' and '.join(bound.said for bound in parts[1:])}"
    if origin is Literal:
        return ("one of " if len(parts) > 1 else "") + ", ".join(map(repr, parts))
    if hasattr(hint, "dim_str"):
        return f"{_a(hint.array_type.__name__)} of {hint.__name__.partition('[')[0].lower()}s ({hint.dim_str.strip()})"
    if origin is tuple:
        return f"a tuple of {', '.join(map(_said, parts))}".replace(", Ellipsis", "")
    if parts and isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a mapping of {_plural(parts[0])} to {_plural(parts[1])}"
    if parts and isinstance(origin, type) and issubclass(origin, Iterable):
        return f"a list of {_plural(parts[0])}"
    if hint in (None, NoneType):
        return "None"
    return WORDS[origin or hint][0] if (origin or hint) in WORDS else _a(getattr(hint, "__name__", str(hint)))


def _plural(hint: Any) -> str:
    if hint in WORDS:
        return WORDS[hint][1]
    return "anything" if hint is Any else f"{hint.__name__}s" if type(hint) is type else f"what is {_said(hint)}"


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeioAEIO' or word == 'SAE' else 'a'} {word}"


def _shown(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{_a(type(value).__name__)} of {str(value.dtype).removeprefix('torch.')}s {tuple(value.shape)}"
    said = repr(value) if isinstance(value, str | int | float | list | tuple | dict | NoneType) else ""
    if not said or "\n" in said:
        return _a(type(value).__name__)
    return said if len(said) <= LONGEST else said[:LONGEST] + "..."


def _error(name: str, value: Any, hint: Any, given: Mapping[str, Any], hints: Mapping[str, Any]) -> MonosemError:
    """What is wrong, and what to do: how such a thing is opened, which word was meant, where other sizes are."""
    said = f"{name} must be {_said(hint)}, not {_shown(value)}"
    for kind in (hint, *get_args(hint)):
        if getattr(kind, "__name__", "") in REMEDIES:
            return ConfigError(f"{said}: {REMEDIES[kind.__name__]}")
    if isinstance(value, str | Path):
        return ConfigError(said + meant(str(value), [part for part in get_args(hint) if isinstance(part, str)]))
    for other, array in given.items():
        own, others = _sizes(value, hint), _sizes(array, hints.get(other))
        for word in own:
            if others.get(word, own[word]) != own[word]:
                return MismatchError(f"{said}: {word} is {others[word]} in {other}")
    return ConfigError(said)


def _sizes(value: Any, hint: Any) -> dict[str, int]:
    """Names of an array's dimensions, by its annotation, with their sizes."""
    for part in (hint, *get_args(hint)):
        names, shape = getattr(part, "dim_str", "").split(), getattr(value, "shape", ())
        if names and len(names) == len(shape):
            return dict(zip(names, shape, strict=True))
    return {}
