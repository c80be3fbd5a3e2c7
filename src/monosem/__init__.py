"""monosem finds, measures, shows and uses the features inside neural networks with sparse autoencoders.

import monosem as ms

model = ms.load_model("bundled")
acts = ms.activations(model, "resid_post.2", text="bundled")
sae = ms.TopKSAE(d_in=model.d_model, n_latents=4096, k=24)
result = ms.train(sae, acts, tokens=1_000_000)
print(ms.evaluate(sae, model))
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monosem.activations import activations, check, store_activations
    from monosem.analysis import MetaSAE, Stitching, logit_lens, meta_sae, positional, stitch, token_sets
    from monosem.analysis.scaling import ScalingLaw
    from monosem.circuits import (
        Graph,
        change_features,
        connections,
        direct_attribution,
        feature_circuit,
        find_supernodes,
        heads,
        plan_trace,
        read_graph,
        trace,
    )
    from monosem.codes import SparseCodes
    from monosem.errors import MonosemError
    from monosem.evaluation import (
        board_scores,
        evaluate,
        paired_difference,
        probe_ceiling,
        random_truth,
        recovery,
        score_truth,
        seed_stability,
    )
    from monosem.evaluation.probing import absorption, compare_texts, probe
    from monosem.explain import Judge, LocalJudge, Similarity, Surprisal, explain, score
    from monosem.features import FeatureStore, harvest
    from monosem.interop import catalogue, export_sae
    from monosem.interop.load import load_sae
    from monosem.interventions import (
        Ablate,
        Add,
        AddVector,
        CapProjection,
        Clamp,
        Generation,
        Project,
        Redirect,
        Replace,
        Scale,
        Set,
        Splice,
        Standing,
        Swap,
        Where,
        attribute,
        edit_from_json,
        effects,
        generate,
        spliced,
        stream,
    )
    from monosem.models import ModelSet, SubjectModel, load_model
    from monosem.planning import plan
    from monosem.runs import Run, RunConfig, scaling
    from monosem.sae import (
        SAE,
        BatchTopKSAE,
        Crosscoder,
        CrossLayerTranscoder,
        GatedSAE,
        InputTransform,
        JumpReLUSAE,
        JumpReLUSkipTranscoder,
        MatchingPursuitSAE,
        MatryoshkaSAE,
        ProLUSAE,
        ReLUSAE,
        SkipTranscoder,
        SwitchSAE,
        TopKSAE,
        Transcoder,
        convert,
        dense,
        fix_suppression,
        fold,
        prune,
        prune_activations,
        pursue,
        unfold,
    )
    from monosem.steering import (
        avoid,
        clean_task_vector,
        decompose,
        diagnose,
        dose_response,
        steering_vector,
        task_vector,
    )
    from monosem.synthetic import Clusters, Compositions, PlantedDictionary, SynthSAEBench, ToyModel, othello_games
    from monosem.training import (
        NormSchedule,
        SklearnSAE,
        Trainer,
        TrainingConfig,
        fit,
        remove_layer_norm,
        train,
        train_together,
    )

_HOME = {
    "activations": "activations",
    "MetaSAE": "analysis",
    "logit_lens": "analysis",
    "meta_sae": "analysis",
    "Stitching": "analysis",
    "stitch": "analysis",
    "positional": "analysis",
    "token_sets": "analysis",
    "connections": "circuits",
    "direct_attribution": "circuits",
    "feature_circuit": "circuits",
    "heads": "circuits",
    "SparseCodes": "codes",
    "MonosemError": "errors",
    "Graph": "circuits",
    "change_features": "circuits",
    "find_supernodes": "circuits",
    "read_graph": "circuits",
    "plan_trace": "circuits",
    "trace": "circuits",
    "check": "activations",
    "store_activations": "activations",
    "absorption": "evaluation.probing",
    "compare_texts": "evaluation.probing",
    "evaluate": "evaluation",
    "paired_difference": "evaluation",
    "seed_stability": "evaluation",
    "board_scores": "evaluation",
    "probe": "evaluation.probing",
    "recovery": "evaluation",
    "probe_ceiling": "evaluation",
    "random_truth": "evaluation",
    "score_truth": "evaluation",
    "Judge": "explain",
    "LocalJudge": "explain",
    "Similarity": "explain",
    "Surprisal": "explain",
    "explain": "explain",
    "score": "explain",
    "FeatureStore": "features",
    "harvest": "features",
    "catalogue": "interop",
    "export_sae": "interop",
    "Ablate": "interventions",
    "Add": "interventions",
    "AddVector": "interventions",
    "CapProjection": "interventions",
    "Clamp": "interventions",
    "Generation": "interventions",
    "Project": "interventions",
    "Redirect": "interventions",
    "Replace": "interventions",
    "Scale": "interventions",
    "Set": "interventions",
    "Swap": "interventions",
    "Where": "interventions",
    "attribute": "interventions",
    "edit_from_json": "interventions",
    "effects": "interventions",
    "generate": "interventions",
    "stream": "interventions",
    "Splice": "interventions",
    "spliced": "interventions",
    "ModelSet": "models",
    "SubjectModel": "models",
    "load_model": "models",
    "plan": "planning",
    "Run": "runs",
    "RunConfig": "runs",
    "ScalingLaw": "analysis.scaling",
    "scaling": "runs",
    "BatchTopKSAE": "sae",
    "CrossLayerTranscoder": "sae",
    "Crosscoder": "sae",
    "GatedSAE": "sae",
    "InputTransform": "sae",
    "JumpReLUSAE": "sae",
    "JumpReLUSkipTranscoder": "sae",
    "MatchingPursuitSAE": "sae",
    "MatryoshkaSAE": "sae",
    "ProLUSAE": "sae",
    "ReLUSAE": "sae",
    "SAE": "sae",
    "SkipTranscoder": "sae",
    "SwitchSAE": "sae",
    "TopKSAE": "sae",
    "Transcoder": "sae",
    "convert": "sae",
    "dense": "sae",
    "fix_suppression": "sae",
    "fold": "sae",
    "load_sae": "interop.load",
    "prune": "sae",
    "prune_activations": "sae",
    "pursue": "sae",
    "unfold": "sae",
    "Standing": "interventions",
    "avoid": "steering",
    "clean_task_vector": "steering",
    "decompose": "steering",
    "diagnose": "steering",
    "dose_response": "steering",
    "steering_vector": "steering",
    "task_vector": "steering",
    "PlantedDictionary": "synthetic",
    "othello_games": "synthetic",
    "SynthSAEBench": "synthetic",
    "Clusters": "synthetic",
    "Compositions": "synthetic",
    "ToyModel": "synthetic",
    "SklearnSAE": "training",
    "NormSchedule": "training",
    "remove_layer_norm": "training",
    "Trainer": "training",
    "TrainingConfig": "training",
    "fit": "training",
    "train": "training",
    "train_together": "training",
}
"""Where each public name lives; its module is imported when the name is first used."""

__all__ = [
    "SAE",
    "Ablate",
    "Add",
    "AddVector",
    "BatchTopKSAE",
    "CapProjection",
    "Clamp",
    "Clusters",
    "Compositions",
    "CrossLayerTranscoder",
    "Crosscoder",
    "FeatureStore",
    "GatedSAE",
    "Generation",
    "Graph",
    "InputTransform",
    "Judge",
    "JumpReLUSAE",
    "JumpReLUSkipTranscoder",
    "LocalJudge",
    "MatchingPursuitSAE",
    "MatryoshkaSAE",
    "MetaSAE",
    "ModelSet",
    "MonosemError",
    "NormSchedule",
    "PlantedDictionary",
    "ProLUSAE",
    "Project",
    "ReLUSAE",
    "Redirect",
    "Replace",
    "Run",
    "RunConfig",
    "Scale",
    "ScalingLaw",
    "Set",
    "Similarity",
    "SkipTranscoder",
    "SklearnSAE",
    "SparseCodes",
    "Splice",
    "Standing",
    "Stitching",
    "SubjectModel",
    "Surprisal",
    "Swap",
    "SwitchSAE",
    "SynthSAEBench",
    "TopKSAE",
    "ToyModel",
    "Trainer",
    "TrainingConfig",
    "Transcoder",
    "Where",
    "absorption",
    "activations",
    "attribute",
    "avoid",
    "board_scores",
    "catalogue",
    "change_features",
    "check",
    "clean_task_vector",
    "compare_texts",
    "connections",
    "convert",
    "decompose",
    "dense",
    "diagnose",
    "direct_attribution",
    "dose_response",
    "edit_from_json",
    "effects",
    "evaluate",
    "explain",
    "export_sae",
    "feature_circuit",
    "find_supernodes",
    "fit",
    "fix_suppression",
    "fold",
    "generate",
    "harvest",
    "heads",
    "load_model",
    "load_sae",
    "logit_lens",
    "meta_sae",
    "othello_games",
    "paired_difference",
    "plan",
    "plan_trace",
    "positional",
    "probe",
    "probe_ceiling",
    "prune",
    "prune_activations",
    "pursue",
    "random_truth",
    "read_graph",
    "recovery",
    "remove_layer_norm",
    "scaling",
    "score",
    "score_truth",
    "seed_stability",
    "spliced",
    "steering_vector",
    "stitch",
    "store_activations",
    "stream",
    "task_vector",
    "token_sets",
    "trace",
    "train",
    "train_together",
    "unfold",
]

__version__ = importlib.metadata.version("monosem")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'monosem' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"monosem.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


class _Face(ModuleType):
    """`ms.activations` is the function, although a subpackage has the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
