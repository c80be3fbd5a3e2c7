# pyright: basic, reportAttributeAccessIssue=false
"""Compiled loops that run on as many threads as torch does."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numba
import torch
from numba import njit
from numba.core import config

config.THREADING_LAYER = "omp"  # torch's

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def parallel(**options: Any) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Compile a function of `prange` loops, as `numba.njit(parallel=True, cache=True, **options)` does.

    Numba alone would run it on every core whatever torch was told, and its first call would set torch's number too: on
    a busy machine threads that wait for each other make a step ten times slower.
    """

    def compiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        loop = njit(cache=True, parallel=True, **options)(function)

        @wraps(function)
        def call(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
            _match_threads()
            return loop(*arguments, **named)

        return call

    return compiled


def _match_threads() -> None:
    """Let numba use as many threads as torch does, and leave torch its number."""
    wanted = torch.get_num_threads()
    numba.set_num_threads(min(wanted, config.NUMBA_NUM_THREADS))
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)
