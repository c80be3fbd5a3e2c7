"""Interventions: what to put in the place of activations while a model runs."""

from monosem.interventions.base import Intervention
from monosem.interventions.data import edit_from_json
from monosem.interventions.features import Ablate, Add, Clamp, FeatureEdit, Scale, Set, Swap
from monosem.interventions.generate import Generation, Piece, Writing, generate, stream
from monosem.interventions.other_models import spliced
from monosem.interventions.plain import sae_hash
from monosem.interventions.replace import Replace, Splice
from monosem.interventions.vectors import AddVector, CapProjection, Project
from monosem.interventions.where import Where

__all__ = [
    "Ablate",
    "Add",
    "AddVector",
    "CapProjection",
    "Clamp",
    "FeatureEdit",
    "Generation",
    "Intervention",
    "Piece",
    "Project",
    "Replace",
    "Scale",
    "Set",
    "Splice",
    "Swap",
    "Where",
    "Writing",
    "edit_from_json",
    "generate",
    "sae_hash",
    "spliced",
    "stream",
]
