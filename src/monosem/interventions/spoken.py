"""Edits of features as one types them: `12=+3`."""

from __future__ import annotations

import math
import re

from monosem.errors import ConfigError
from monosem.interventions.features import Ablate, Add, FeatureEdit, Scale, Set
from monosem.interventions.where import Where
from monosem.sae import SAE

_SPOKEN = re.compile(r"\s*(?:f/)?(?P<latent>\d+)\s*=\s*(?P<how>off|[-+*]?)(?P<amount>[^\s]*)\s*")
FORMS = "12=+3 adds, 12=-3 takes away, 12=3 sets, 12=*3 multiplies, 12=off ablates"


def spoken_edit(words: str, sae: SAE, where: Where | None = None, hook: str | None = None) -> FeatureEdit:
    """An edit of one feature.

    Args:
        words: `12=+3` adds 3 to the activation of latent 12 and `12=-3` takes 3 away; `12=3` sets it; `12=*3`
            multiplies it; `12=off` ablates it.
        sae: the SAE.
        where: at which positions.
        hook: its hook point, if it does not know it.

    Raises:
        ConfigError: they are none of these forms, or there is no such latent.
    """
    found = _SPOKEN.fullmatch(words)
    amount = _number(found["amount"]) if found is not None else None
    if found is None or (amount is None) != (found["how"] == "off") or (found["how"] == "off" and found["amount"]):
        raise ConfigError(f"feature {words!r} cannot be read: {FORMS}")
    latent, options = int(found["latent"]), {"where": where, "hook": hook}
    if amount is None:
        return Ablate(sae, latent, where=where, hook=hook)
    if found["how"] == "":
        return Set(sae, latent, amount, **options)
    if found["how"] == "*":
        return Scale(sae, latent, amount, **options)
    return Add(sae, latent, -amount if found["how"] == "-" else amount, **options)


def _number(words: str) -> float | None:
    try:
        value = float(words)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
