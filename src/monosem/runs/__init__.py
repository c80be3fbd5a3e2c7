"""Runs: one YAML file describes a run, one folder holds it."""

from monosem.runs.adopted import open_run
from monosem.runs.config import RunConfig
from monosem.runs.folder import Run, feature_folders
from monosem.runs.pipeline import (
    demo_config,
    explain_run,
    require_held_out,
    run_evaluation,
    run_evaluations,
    run_harvest,
    run_store,
    run_training,
)
from monosem.runs.results import Results
from monosem.runs.scaling import Sweep, run_scaling, scaling
from monosem.runs.several import describe_each

__all__ = [
    "Results",
    "Run",
    "RunConfig",
    "Sweep",
    "demo_config",
    "describe_each",
    "explain_run",
    "feature_folders",
    "open_run",
    "require_held_out",
    "run_evaluation",
    "run_evaluations",
    "run_harvest",
    "run_scaling",
    "run_store",
    "run_training",
    "scaling",
]
