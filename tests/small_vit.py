"""A ViT as small as one can be, images, and an SAE of it: fixtures of every test of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import monosem as ms
from monosem.models import SubjectModel
from monosem.sae import SAE

HOOK = "resid_post.0"
CLASSES = ["bright", "dark", "red"]


@pytest.fixture(scope="session")
def vit() -> SubjectModel:
    """Random, of 2 layers and 3 classes: 4 x 4 patches of 2 x 2 pixels, and a class token."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(image_size=8, patch_size=2, num_labels=3, initializer_range=0.4, **sizes)
    return SubjectModel(ViTForImageClassification(config).eval(), name="vit")


@pytest.fixture(scope="session")
def photos() -> np.ndarray:
    """(20, 8, 8, 3): noise, brighter, darker and redder by class."""
    noise = np.random.default_rng(0).integers(0, 120, (20, 8, 8, 3))
    kind = np.arange(20) % 3
    noise[kind == 0] += 120
    noise[kind == 2, ..., 0] += 120
    return noise.astype(np.uint8)


@pytest.fixture(scope="session")
def labels() -> np.ndarray:
    return np.arange(20) % 3


@pytest.fixture(scope="session")
def vit_sae(vit: SubjectModel, photos: np.ndarray) -> SAE:
    """Of 24 latents, 4 on at a patch, at the end of the first layer."""
    sae = ms.TopKSAE(16, 24, k=4, seed=0)
    source = ms.activations(vit, HOOK, images=photos, buffer_tokens=320)
    ms.train(sae, source, tokens=640, config=ms.TrainingConfig(batch_size=64), progress=False)
    return sae
