"""Interventions as a client sends them: data that becomes edits of a dictionary's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monosem.errors import ConfigError
from monosem.models.subject import Edit
from monosem.sae import SAE
from monosem.sae.identity import dictionary_hash


def edits_of(given: Sequence[dict[str, Any]], sae: SAE | None) -> list[Edit]:
    """The edits; one that names no SAE is of this one.

    Raises:
        ConfigError: one cannot be read, or is of another SAE.
    """
    if not given:
        return []
    raise ConfigError("interventions: not yet")
