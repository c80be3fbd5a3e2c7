"""YAML: plain values alone, and not many, whatever aliases would make of them."""

from __future__ import annotations

import copy
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

from monosem.errors import FileError
from monosem.files.checked import DAMAGE, RESTORE, fits, one_line
from monosem.files.plain import read_text

Value = TypeVar("Value")

MOST = 128 * 2**10  # bytes: the reader is slow
DEEPEST, MOST_VALUES = 50, 20_000


def read_yaml(path: str | Path, kind: type[Value] = object, remedy: str = RESTORE) -> Value:
    """The value in a file of YAML, of a type as in `fits`.

    Raises:
        FileError: the file is missing, damaged, too large or too deep, or its value is of another type.
    """
    return parse_yaml(read_text(path, MOST, remedy), path, kind, remedy)


def parse_yaml(text: str, name: str | Path, kind: type[Value] = object, remedy: str = RESTORE) -> Value:
    """The value in a piece of YAML; `name` says in errors where it stands.

    Raises:
        FileError: as `read_yaml`.
    """
    import yaml

    try:
        value = copy.deepcopy(_value_of(text))
    except (*DAMAGE, yaml.YAMLError) as error:
        raise FileError(f"{name} cannot be read as YAML ({one_line(error)}): {remedy}") from error
    return value if kind is object else fits(value, kind, name, remedy)


@lru_cache(maxsize=16)
def _value_of(text: str) -> Any:
    """What the text says. A command reads one description several times, and the reader is slow."""
    loader = _loader()(text)
    try:
        node = loader.get_single_node()
        _check_size(node)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


@cache
def _loader() -> Any:
    """PyYAML's safe one, with YAML 1.2's numbers: `1e-3` is one, which YAML 1.1 takes for text."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )
    return Loader


def _check_size(root: Any) -> None:
    """Count the values as if each alias were written out. A value that contains itself has no end."""
    counts: dict[int, int] = {}

    def count(node: Any, depth: int) -> int:
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")
        if id(node) not in counts:
            counts[id(node)] = MOST_VALUES + 1  # until it is known: met again within itself
            inside = node.value if isinstance(node.value, list) else []
            parts = [part for item in inside for part in (item if isinstance(item, tuple) else (item,))]
            counts[id(node)] = 1 + sum(count(part, depth + 1) for part in parts)
        if counts[id(node)] > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES:,} values, its aliases written out")
        return counts[id(node)]

    if root is not None:
        count(root, 0)
