"""A short hash of what an SAE is."""

from __future__ import annotations

import hashlib

import torch

from monosem.sae.base import SAE


def dictionary_hash(sae: SAE) -> str:
    """16 hex digits of an SAE's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(sae.state_dict().items()):
        digest.update(name.encode() + tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
