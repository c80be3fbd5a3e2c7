"""Plans: what a run will take, before anything is loaded."""

from monosem.planning.hardware import Hardware, hardware
from monosem.planning.plan import Plan, plan

__all__ = ["Hardware", "Plan", "hardware", "plan"]
