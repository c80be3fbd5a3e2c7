"""Interventions: what to put in the place of activations while a model runs."""

from monosem.interventions.attribute import Attribution, attribute
from monosem.interventions.base import Intervention
from monosem.interventions.data import edit_from_json
from monosem.interventions.effects import Effects, effects
from monosem.interventions.features import Ablate, Add, Clamp, FeatureEdit, Scale, Set, Swap
from monosem.interventions.generate import Generation, Piece, Writing, generate, stream
from monosem.interventions.other_models import spliced
from monosem.interventions.plain import sae_hash
from monosem.interventions.redirect import Redirect
from monosem.interventions.replace import Replace, Splice
from monosem.interventions.standing import Standing
from monosem.interventions.vectors import AddVector, CapProjection, Project
from monosem.interventions.where import Where

__all__ = [
    "Ablate",
    "Add",
    "AddVector",
    "Attribution",
    "CapProjection",
    "Clamp",
    "Effects",
    "FeatureEdit",
    "Generation",
    "Intervention",
    "Piece",
    "Project",
    "Redirect",
    "Replace",
    "Scale",
    "Set",
    "Splice",
    "Standing",
    "Swap",
    "Where",
    "Writing",
    "attribute",
    "edit_from_json",
    "effects",
    "generate",
    "sae_hash",
    "spliced",
    "stream",
]
