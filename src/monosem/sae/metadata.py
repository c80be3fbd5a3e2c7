"""What an SAE remembers of where it comes from, so that it is used rightly."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class InputFingerprint(BaseModel):
    """What the SAE's inputs looked like, measured on a small probe batch stored with it."""

    model_config = ConfigDict(extra="forbid")

    mean_norm: float
    """Mean L2 norm of the raw activations of the probe batch."""
    fvu: float
    """Fraction of variance unexplained on the probe batch."""
    l0: float
    """Mean number of latents on, per row of the probe batch."""


class SAEMetadata(BaseModel):
    """Where the activations came from, and by which rules. Empty for an SAE of plain vectors."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    """Name, hub id or path that `load_model` takes."""
    model_fingerprint: str | None = None
    tokenizer_fingerprint: str | None = None
    hook: str | None = None
    """Canonical name of the hook point."""
    text: str | None = None
    context_length: int | None = None
    """Tokens in a context, the beginning-of-sequence token included."""
    prepend_bos: bool | None = None
    exclude_special: bool | None = None
    """Whether positions of special tokens were left out of training."""
    tokens_trained: int = 0
    fingerprint: InputFingerprint | None = None
    monosem_version: str | None = None
