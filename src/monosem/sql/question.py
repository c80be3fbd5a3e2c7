"""Questions in SQL that people ask: parsed before they are run, and refused unless they only read known tables."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from monosem.errors import ConfigError
from monosem.spelling import listed

READING_NODES = ("SELECT_NODE", "SET_OPERATION_NODE", "CTE_NODE", "RECURSIVE_CTE_NODE")
READING_FUNCTIONS = ("unnest", "range", "generate_series")
"""Functions that may stand in place of a table; all others read files, settings or text that is run as SQL."""

DEEPEST, LONGEST = 100, 100_000
"""Brackets within brackets, and characters: what is longer takes DuckDB's parser seconds, and nothing interrupts it."""

Tree = dict[str, Any]
Parser = Callable[[str], str]
"""DuckDB's `json_serialize_sql`."""


def condition(where: str | None) -> str:
    """A condition as it stands in a query: with a line's end for its comment. True if there is none."""
    return f"({where}\n)" if where and where.strip() else "true"


def check_condition(where: str, parse: Parser) -> None:
    """Refuse what is not one expression by itself: no further clause, statement, alias or list.

    In brackets it then stands in a query without changing the rest of it.

    Raises:
        ConfigError: it is none.
    """
    node, plain = (_parsed(f"select {given}\n", parse)["node"] for given in (where, "true"))
    chosen = node.get("select_list") or []
    if {**node, "select_list": []} != {**plain, "select_list": []} or len(chosen) != 1 or chosen[0].get("alias"):
        raise ConfigError("a condition is one expression, such as: rate between 0.001 and 0.01 and max > 5")


def check_query(query: str, tables: Collection[str], parse: Parser) -> None:
    """Refuse what is not one query that reads these tables and nothing else.

    Raises:
        ConfigError: it is none.
    """
    nodes = list(_nodes(_parsed(query, parse)))
    own = {entry.get("key") for node in nodes for entry in node.get("cte_map", {}).get("map", [])}
    for node in nodes:
        kind = node.get("type")
        if "cte_map" in node and kind not in READING_NODES:
            raise ConfigError("a query here only reads: select ... from " + next(iter(tables)))
        if kind == "BASE_TABLE" and not _known(node, {*tables, *own}):
            name = str(node.get("table_name"))
            raise ConfigError(f"there is no table {name!r} here: there are {listed(name, tables)}")
        if kind == "TABLE_FUNCTION":
            name = node.get("function", {}).get("function_name")
            if name not in READING_FUNCTIONS:
                raise ConfigError(f"{name}(...) cannot be read from here: there are {', '.join(tables)}")


def _known(node: Mapping[str, Any], names: Collection[str | None]) -> bool:
    """Whether a reference names a table of ours, or of the query's own `with`; names are case-blind, as in SQL."""
    place = node.get("catalog_name"), node.get("schema_name")
    known = {name.lower() for name in names if name}
    return place in (("", ""), ("", "main")) and str(node.get("table_name")).lower() in known


def _parsed(query: str, parse: Parser) -> Tree:
    """The tree of the only statement of a query."""
    if len(query) > LONGEST or _depth(query) > DEEPEST:
        raise ConfigError(
            f"the query cannot be run: it is longer than {LONGEST:,} characters, or nests more than {DEEPEST} brackets"
        )
    try:
        found = json.loads(parse(query))
    except RecursionError as error:
        raise ConfigError("the query cannot be run: it is nested too deeply") from error
    if found["error"]:
        raise ConfigError(f"the query cannot be run: {' '.join(found['error_message'].split())[:300]}")
    if len(found["statements"]) != 1:
        raise ConfigError("one query at a time: select ...")
    return found["statements"][0]


def _depth(text: str) -> int:
    """How many brackets are open at most; those in words count too."""
    steps = ((char in "([{") - (char in ")]}") for char in text)
    return max(itertools.accumulate(steps), default=0)


def _nodes(tree: Tree) -> Iterator[Tree]:
    """Every object of a JSON tree."""
    waiting: list[Any] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
