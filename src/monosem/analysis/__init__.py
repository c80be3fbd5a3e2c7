"""What a dictionary's directions mean to the model, and what dictionaries are made of."""

from monosem.analysis.diffing import CausalCheck, ModelDiff, diff_models
from monosem.analysis.facts import Fact, FactEdit, FactEdits, edit_fact
from monosem.analysis.geometry import Geometry, geometry
from monosem.analysis.kept_images import KeptImages
from monosem.analysis.latent_scaling import LatentScaling, latent_scaling
from monosem.analysis.logit_lens import TokenEffects, direction_logits, logit_lens, logit_weights, moments
from monosem.analysis.meta.made import MetaSAE, Part, meta_sae
from monosem.analysis.meta.overlap import Overlap
from monosem.analysis.optimised_images import OptimisedImages, optimise_image
from monosem.analysis.positions import ErrorByPosition, Positional, positional
from monosem.analysis.shapes import Shape, density, parallelograms, shape_of
from monosem.analysis.sparse_edits import SparseEdit, sparse_edit
from monosem.analysis.stitch.stitching import Stitching, stitch
from monosem.analysis.supervised import SupervisedDictionary, rows_at, supervised_dictionary
from monosem.analysis.surrogates import Importance, LatentProperties, causal_importance, latent_properties, surrogates
from monosem.analysis.token_sets import Enriched, TokenSets, token_sets

__all__ = [
    "CausalCheck",
    "Enriched",
    "ErrorByPosition",
    "Fact",
    "FactEdit",
    "FactEdits",
    "Geometry",
    "Importance",
    "KeptImages",
    "LatentProperties",
    "LatentScaling",
    "MetaSAE",
    "ModelDiff",
    "OptimisedImages",
    "Overlap",
    "Part",
    "Positional",
    "Shape",
    "SparseEdit",
    "Stitching",
    "SupervisedDictionary",
    "TokenEffects",
    "TokenSets",
    "causal_importance",
    "density",
    "diff_models",
    "direction_logits",
    "edit_fact",
    "geometry",
    "latent_properties",
    "latent_scaling",
    "logit_lens",
    "logit_weights",
    "meta_sae",
    "moments",
    "optimise_image",
    "parallelograms",
    "positional",
    "rows_at",
    "shape_of",
    "sparse_edit",
    "stitch",
    "supervised_dictionary",
    "surrogates",
    "token_sets",
]
