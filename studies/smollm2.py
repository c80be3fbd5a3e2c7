"""What the studies on SmolLM2-135M-Instruct share: where its recipe has left things, and intervals."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import monosem as ms
from monosem import kernels
from monosem.models import SubjectModel
from monosem.steering import DoseResponse, SteeringVector

ROOT = Path(__file__).parent.parent
DRAWS = 4000


def arguments(about: str | None) -> argparse.ArgumentParser:
    """Of a study: places, the recipe's by default (`make smollm2` makes both)."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, default=ROOT / "runs" / "smollm2", help="with a feature store")
    parser.add_argument("--model", type=Path, default=ROOT / "recipes" / "smollm2" / "work" / "model")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="of the figure and the verdict")
    parser.add_argument("--quick", action="store_true", help="a few of everything, to try whether it runs")
    return parser


def opened(model: Path) -> SubjectModel:
    """The model, in bfloat16 where this processor multiplies that faster."""
    fast = kernels.speed(torch.bfloat16, torch.device("cuda" if torch.cuda.is_available() else "cpu")) > 1
    return ms.load_model(model, dtype=torch.bfloat16 if fast else torch.float32)


class Estimate(NamedTuple):
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def text(self, form: str = "+.2f") -> str:
        """In words."""
        return f"{self.mean:{form}} ({self.low:{form}} to {self.high:{form}})"


def estimate(values: Sequence[float] | np.ndarray, seed: int = 0) -> Estimate:
    """Over values drawn anew with replacement."""
    known = np.asarray(values, float)
    if not len(known):
        return Estimate(float("nan"), float("nan"), float("nan"))
    drawn = known[np.random.default_rng(seed).integers(0, len(known), (DRAWS, len(known)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(known.mean()), float(low), float(high))


def difference(a: np.ndarray, b: np.ndarray, seed: int = 0) -> Estimate:
    """Of the means of two samples."""
    rng = np.random.default_rng(seed)
    drawn = [values[rng.integers(0, len(values), (DRAWS, len(values)))].mean(1) for values in (a, b)]
    low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
    return Estimate(float(a.mean() - b.mean()), float(low), float(high))


def in_logarithms(response: DoseResponse) -> DoseResponse:
    """Effects as logarithms over those without steering, text by text: then no single text decides the mean."""
    plain = np.log(response.doses[0].effects)
    doses = [dose._replace(effects=(np.log(dose.effects) - plain).tolist()) for dose in response.doses]
    return replace(response, doses=doses)


def random_vector(like: SteeringVector, seed: int) -> SteeringVector:
    """A direction drawn at random, as long as another: the floor."""
    drawn = torch.randn(like.vector.shape, generator=torch.Generator().manual_seed(seed))
    return SteeringVector(like.hook, drawn / drawn.norm() * like.norm, "a random direction")
