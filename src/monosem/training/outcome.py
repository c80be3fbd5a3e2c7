"""How a run went, where that is not well: in words, with the remedy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from monosem.training.trainer import Trainer

NEAR_THE_MEAN = 0.95
"""FVU of a dictionary that has learned next to nothing; predicting the mean has 1."""
RISEN = 1.5
"""Times the lowest FVU from which that of the end has risen."""
FAST, DEAD = 20, 0.2
"""Times the usual rate, and the share of dead latents with which it is to blame for them."""
AVERAGED = 5
"""Logged steps whose median is one figure: a single batch says little."""


def too_fast(trainer: Trainer, history: Sequence[Mapping[str, float]]) -> str | None:
    """What a learning rate that is too high has done, short of an explosion.

    That FVU rises speaks against the rate only where no penalty grows, and that it is near 1 only if the rate is higher
    than usual: some activations cannot be explained. Latents die for other reasons too, but seldom at the usual rate.
    Of a loss other than the squared error FVU says nothing.
    """
    known = trainer.sae.metadata.fingerprint
    if known is None or known.fvu is None or trainer.sae.metadata.loss is not None:
        return None
    logged = [entry["fvu"] for entry in history if math.isfinite(entry.get("fvu", math.nan))]
    figures = [statistics.median(logged[i : i + AVERAGED]) for i in range(len(logged) - AVERAGED + 1)]
    best = min(figures, default=0.0)
    penalised = any("penalty" in entry for entry in history)
    if not penalised and figures and min(known.fvu, figures[-1]) > RISEN * best:
        what = f"FVU is {known.fvu:.3g} at the end, and was {best:.3g} before"
    elif known.fvu > NEAR_THE_MEAN and trainer.peak_lr > trainer.usual_lr:
        what = f"FVU is {known.fvu:.3g} at the end, and predicting the mean has 1"
    elif history and trainer.peak_lr > FAST * trainer.usual_lr and history[-1].get("dead", 0) > DEAD:
        what = f"{history[-1]['dead']:.0%} of the latents are dead at the end"
    else:
        return None
    return f"{what}: the rate was too high. {trainer.slower}"
