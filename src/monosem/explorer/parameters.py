"""What stands behind the question mark of an address: only parameters that are known, each as often as it may be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from monosem.spelling import meant

API = ("/api/", "/v1/")


def known_parameters(request: Request) -> None:
    """Refuse what would be ignored without a word: a filter that is misspelt, a value that is given twice.

    Raises:
        HTTPException: 422.
    """
    route = request.scope.get("route")
    if not isinstance(route, APIRoute) or not request.url.path.startswith(API) or "{rest:path}" in route.path:
        return
    known = dict(_parameters(route.dependant))
    for name, times in Counter(name for name, _ in request.query_params.multi_items()).items():
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "there are none"
            raise HTTPException(422, f"{name[:100]}: is no parameter here: {there}{meant(name[:100], known)}")
        if times > 1 and not _takes_several(known[name]):
            raise HTTPException(422, f"{name}: is given {times} times")


def _parameters(dependant: Dependant) -> Iterator[tuple[str, Any]]:
    """Names and types of what a route, or what it depends on, takes from the query."""
    for field in dependant.query_params:
        yield field.alias, field.field_info.annotation
    for inner in dependant.dependencies:
        yield from _parameters(inner)


def _takes_several(annotation: Any) -> bool:
    return get_origin(annotation) is list or any(map(_takes_several, get_args(annotation)))
