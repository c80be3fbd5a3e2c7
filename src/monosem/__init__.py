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
    from monosem.activations import activations
    from monosem.analysis import logit_lens
    from monosem.codes import SparseCodes
    from monosem.errors import MonosemError
    from monosem.evaluation import check, evaluate
    from monosem.features import FeatureStore, harvest
    from monosem.interventions import Splice
    from monosem.models import SubjectModel, load_model
    from monosem.runs import Run, RunConfig
    from monosem.sae import SAE, BatchTopKSAE, InputTransform, MatryoshkaSAE, ReLUSAE, TopKSAE, load_sae
    from monosem.training import Trainer, TrainingConfig, fit, train

_HOME = {
    "activations": "activations",
    "logit_lens": "analysis",
    "SparseCodes": "codes",
    "MonosemError": "errors",
    "check": "evaluation",
    "evaluate": "evaluation",
    "FeatureStore": "features",
    "harvest": "features",
    "Splice": "interventions",
    "SubjectModel": "models",
    "load_model": "models",
    "Run": "runs",
    "RunConfig": "runs",
    "SAE": "sae",
    "BatchTopKSAE": "sae",
    "MatryoshkaSAE": "sae",
    "InputTransform": "sae",
    "ReLUSAE": "sae",
    "TopKSAE": "sae",
    "load_sae": "sae",
    "Trainer": "training",
    "TrainingConfig": "training",
    "fit": "training",
    "train": "training",
}
"""Where each public name lives; its module is imported when the name is first used."""

__all__ = [
    "SAE",
    "BatchTopKSAE",
    "FeatureStore",
    "InputTransform",
    "MatryoshkaSAE",
    "MonosemError",
    "ReLUSAE",
    "Run",
    "RunConfig",
    "SparseCodes",
    "Splice",
    "SubjectModel",
    "TopKSAE",
    "Trainer",
    "TrainingConfig",
    "activations",
    "check",
    "evaluate",
    "fit",
    "harvest",
    "load_model",
    "load_sae",
    "logit_lens",
    "train",
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
