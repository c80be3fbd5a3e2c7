"""What an SAE remembers of where it comes from, so that it is used rightly."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class InputFingerprint(BaseModel):
    """What the SAE's inputs looked like, measured on a small probe batch stored with it."""

    model_config = ConfigDict(extra="forbid")

    mean_norm: float
    """Mean L2 norm of the raw activations of the probe batch."""
    fvu: float | None = None
    """Fraction of variance unexplained on the probe batch; None if its rows are all the same."""
    l0: float
    """Mean number of latents on, per row of the probe batch."""


class PixelFormat(BaseModel):
    """The images that a model reads."""

    model_config = ConfigDict(extra="forbid")

    channels: int = Field(default=3, ge=1, le=16)
    height: int = Field(ge=1, le=2**14)
    width: int = Field(ge=1, le=2**14)
    mean: list[float] = [0.5, 0.5, 0.5]
    """Of each channel, on the scale from 0 to 1; subtracted."""
    std: list[float] = [0.5, 0.5, 0.5]
    """Of each channel; divided by."""


class SAEMetadata(BaseModel):
    """Where the activations came from, and by which rules. Empty for an SAE of plain vectors."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    """Name, hub id or path that `load_model` takes."""
    models: list[str] | None = None
    """The models that a crosscoder reads side by side, in this order."""
    model_fingerprint: str | None = None
    tokenizer_fingerprint: str | None = None
    hook: str | None = None
    """Canonical name of the hook point."""
    target_hook: str | None = None
    """Where a transcoder's target comes from."""
    hooks: list[str] | None = None
    """What a crosscoder or cross-layer transcoder reads side by side, in this order."""
    target_hooks: list[str] | None = None
    """What a cross-layer transcoder predicts."""
    text: str | None = None
    images: str | None = None
    pixels: PixelFormat | None = None
    """How images were prepared."""
    vectors: str | None = None
    """The file, or the shape, of ready activations."""
    documents_skipped: int | None = None
    """Documents or images that could not be read, if any."""
    context_length: int | None = Field(default=None, ge=1, le=2**27)
    """Tokens in a context, the beginning-of-sequence token included."""
    prepend_bos: bool | None = None
    exclude_special: bool | None = None
    """Whether positions of special tokens were left out of training."""
    packing: bool | None = None
    """Whether documents stood end to end, or each began a context of its own."""
    skip_first: int | None = None
    """Positions left out at the beginning of every context."""
    last_only: bool | None = None
    """Whether the last token of every document alone was kept."""
    max_norm_ratio: float | None = None
    """Rows of more than so many times the median norm were left out."""
    max_norm: dict[str, float] | None = None
    """What that came to, at each hook point."""
    loss: str | None = None
    """What was minimised, if that was not the squared error."""
    tokens_trained: int = Field(default=0, ge=0)
    """Rows that it has been trained on, in all runs together."""
    fingerprint: InputFingerprint | None = None
    layout: str | None = None
    """The library in whose files it was found, where those are not ours."""
    original_hook: str | None = None
    """The hook point in that library's words."""
    source: str | None = None
    """Where it was read from: hf://owner/name/path, or a folder."""
    revision: str | None = None
    """The commit on the hub that it is of."""
    monosem_version: str | None = None
