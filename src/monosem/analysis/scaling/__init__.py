"""Scaling laws of dictionaries: loss by width and tokens, fitted with intervals, and the best of both for a budget."""

from monosem.analysis.scaling.best import Recommendation
from monosem.analysis.scaling.law import ScalingLaw, require_budget

__all__ = ["Recommendation", "ScalingLaw", "require_budget"]
