"""Interventions: what to put in the place of activations while a model runs."""

from monosem.interventions.other_models import spliced
from monosem.interventions.replace import Replace, Splice

__all__ = ["Replace", "Splice", "spliced"]
