"""Runs: one YAML file describes a run, one folder holds it."""

from monosem.runs.config import RunConfig
from monosem.runs.folder import Run
from monosem.runs.pipeline import demo_config, require_held_out_text, run_evaluation, run_harvest, run_training

__all__ = ["Run", "RunConfig", "demo_config", "require_held_out_text", "run_evaluation", "run_harvest", "run_training"]
