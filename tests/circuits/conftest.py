"""Families' tiny models, and dictionaries of random weights at any of their hook points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from monosem.models import SubjectModel
from monosem.sae import SAE


def random_dictionary(cls: type[SAE], d_in: int, n_latents: int, *, seed: int = 0, **options: Any) -> SAE:
    """Every weight, bias and transform random, in float64; `metadata` holds `hook`, `target_hook` and the like."""
    metadata = {name: options.pop(name) for name in ("hook", "target_hook", "hooks", "target_hooks") if name in options}
    rules = {name: options.pop(name) for name in ("skip_first",) if name in options}
    sae = cls(d_in, n_latents, dtype=torch.float64, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        for transform in dict.fromkeys([sae.transform, sae.target_transform]):  # of an autoencoder they are one
            if transform.kind == "centre_scale":
                transform.mean.copy_(torch.randn(transform.mean.shape, generator=generator))
                transform.scale.copy_(0.5 + torch.rand(transform.scale.shape, generator=generator))
                transform.fitted = True
    sae.metadata = sae.metadata.model_copy(update={**metadata, **rules})
    return sae


@pytest.fixture(scope="session")
def make_dictionary() -> Callable[..., SAE]:
    return random_dictionary


@pytest.fixture(scope="session")
def family_subject() -> Callable[[str], SubjectModel]:
    from family_models import family_module

    return lambda name: SubjectModel(family_module(name), None, name)
