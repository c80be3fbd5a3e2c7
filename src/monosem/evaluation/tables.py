"""Curves and tables of a report: plain columns with units."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class DataTable:
    """Columns of one length, by name: a curve, a distribution, a list of tokens."""

    title: str
    columns: dict[str, list[Any]]
    """Numbers (None where there is none) or words."""
    units: dict[str, str] = field(default_factory=dict[str, str])
    """Of each column that has one."""
