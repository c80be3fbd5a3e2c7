"""Answers of the API: plain JSON, numbers of seven digits."""

from __future__ import annotations

import json
import math
from typing import Any

import orjson
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from monosem.errors import ConfigError, DataError, HookError, MismatchError, MonosemError
from monosem.explorer.dictionary import Unavailable
from monosem.explorer.lanes import Busy
from monosem.sql import Stopped


class Rounded(list[float]):
    """Numbers that are as short already as they shall be."""


class Ready(dict[str, Any]):
    """What stands in it is as short already as it shall be, and finite."""


LONGEST_LINE = 600
"""Characters of an error's words."""
AS_IT_IS = {str, int, bool, type(None), Rounded, Ready}


def digits(value: float, n: int = 7) -> float:
    """The value, which is finite, with so many digits."""
    return float(f"{value:.{n}g}") + 0.0  # which makes a zero of minus zero


def to_json(value: Any) -> bytes:
    """JSON, UTF-8; what is not finite is null."""
    short = _short(value)
    try:
        return orjson.dumps(short)
    except TypeError:  # half a character, which somebody has written into a note
        return json.dumps(short, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def _short(value: Any) -> Any:
    kind = type(value)
    if kind is float:
        return digits(value) if math.isfinite(value) else None
    if kind is dict:
        return {key: inner if type(inner) in AS_IT_IS else _short(inner) for key, inner in value.items()}
    if kind is list or kind is tuple:
        if value and type(value[0]) is str:  # the texts of tokens, most of all there is
            return value
        return [_short(inner) for inner in value]
    return value


def answer(value: Any, status: int = 200) -> Response:
    """A JSON response."""
    return answer_json(to_json(value), status)


def answer_json(body: bytes | None, status: int = 200) -> Response:
    """A response of ready JSON."""
    return Response(body, status, {"cache-control": "no-store"}, "application/json")


def problem(status: int, words: str) -> Response:
    """An error."""
    return answer({"error": words}, status)


async def of_error(request: Request, error: Exception) -> Response:
    """What an exception says, with the status that docs/explorer_api.md gives it."""
    status, words = explained(error)
    if request.url.path.startswith("/v1/"):
        status = 400 if status in (409, 422) else status
        return answer(protocol_error(status, words), status)
    return problem(status, words)


def explained(error: Exception) -> tuple[int, str]:
    """The status of an exception, and its words in a line of reasonable length: what was asked may stand in it."""
    status, words = _explained(error)
    words, half = " ".join(words.split()), LONGEST_LINE // 2
    return status, words if len(words) <= LONGEST_LINE else f"{words[:half]} ... {words[-half:]}"


def _explained(error: Exception) -> tuple[int, str]:
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return 422, f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}"
        place = ".".join(str(part) for part in first["loc"] if part not in ("query", "body", "path"))
        words = "is no field of this request" if first["type"] == "extra_forbidden" else first["msg"]
        return 422, f"{place or 'the request'}: {words.removeprefix('Value error, ')}"
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail)
    kinds: list[tuple[tuple[type[Exception], ...], int]] = [
        ((IndexError,), 404),
        ((Unavailable,), 409),
        ((Busy, Stopped), 503),
        ((ConfigError, DataError, HookError, MismatchError), 400),
        ((MonosemError,), 500),
    ]
    for among, status in kinds:
        if isinstance(error, among):
            return status, str(error)
    return 500, "the server has failed; its terminal says why"


def protocol_error(status: int, words: str) -> dict[str, Any]:
    """An error as the OpenAI protocol tells it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = {404: "model_not_found", 503: "overloaded"}.get(status)
    return {"error": {"message": words, "type": kind, "param": None, "code": code}}
