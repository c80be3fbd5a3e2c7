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
    from monosem import interventions as I

    kinds = {"Add": I.Add, "Set": I.Set, "Scale": I.Scale, "Ablate": I.Ablate}
    made = []
    for each in given:
        each = dict(each)
        kind = kinds[each.pop("edit")]
        where = each.pop("where", None)
        made.append(kind(sae, each.pop("latents"), where=None if where is None else I.Where(**where), **each))
    return made
