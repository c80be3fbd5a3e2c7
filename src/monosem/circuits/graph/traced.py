"""The pass that a graph was made in, kept beside it for interventions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monosem.circuits.frozen.frozen import Frozen
from monosem.circuits.graph.sources import Sources
from monosem.circuits.graph.targets import Goal
from monosem.models import SubjectModel


@dataclass
class Traced:
    """What interventions need to test a graph."""

    model: SubjectModel
    frozen: Frozen
    sources: Sources
    goals: list[Goal]
    columns: list[np.ndarray]
    """Of each source node the columns of `sources` that it is made of."""
