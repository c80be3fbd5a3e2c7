"""What a layout is: it knows its files when it sees them, and says what of them becomes which part of an SAE."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from monosem.errors import ConfigError, FileError
from monosem.files import Stored
from monosem.interop.place import Place
from monosem.sae import SAE, SAEMetadata
from monosem.sae.blank import blank, fill
from monosem.sae.transform import TransformKind


@dataclass(frozen=True)
class Layout:
    """The files in which one library, or one release, keeps a dictionary."""

    name: str
    """The library or the release."""
    looks_like: str
    """Its files, in a few words, for the list of those that are known."""
    recognises: Callable[[Place], bool]
    """Whether this is one, by what is in the files; reads no numbers."""
    read: Callable[[Place], Parts]


@dataclass
class Parts:
    """All that an SAE is made of, its numbers still in their files."""

    kind: type[SAE]
    d_in: int
    n_latents: int
    tensors: dict[str, Stored | Tensor]
    """Our parameters and buffers by name; matrices are latent-major, `stored.T` turns one."""
    metadata: SAEMetadata = field(default_factory=SAEMetadata)
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    """The constructor's own."""
    d_out: int | None = None
    """None of an autoencoder."""
    subtract_b_dec: bool | None = None
    """Whether the encoder reads x - b_dec; None: as usual, in an autoencoder it does."""
    transform: TransformKind = "none"
    finish: Callable[[SAE], None] | None = None
    """Called at the end: what has to be done to the numbers themselves."""


def refusal(place: Place, why: str, instead: str) -> ConfigError:
    """What is said of a dictionary that cannot be used here exactly as its own library does."""
    return ConfigError(f"{place.source} cannot be read exactly: {why}. Nothing is approximated here: {instead}")


def wanted(tensors: Mapping[str, Stored], place: Place, *names: str) -> list[Stored]:
    """Tensors that a layout must have.

    Raises:
        FileError: one is missing.
    """
    missing = [name for name in names if name not in tensors]
    if missing:
        there = ", ".join(sorted(tensors)[:12]) or "nothing"
        raise FileError(f"{place.source} has no tensor {missing[0]} (it has {there}): download it again")
    return [tensors[name] for name in names]


def matrix(stored: Stored) -> tuple[int, int]:
    """Rows and columns.

    Raises:
        FileError: it is no matrix.
    """
    if len(stored.shape) != 2 or not all(stored.shape):
        raise FileError(f"{stored.name} should be a matrix and is of shape {stored.shape}: download it again")
    return stored.shape[0], stored.shape[1]


@torch.no_grad()
def assemble(
    parts: Parts, place: Place, layout: str, device: torch.device | str | None = None, lazy: bool = False
) -> SAE:
    """The SAE of which these are the parts, in float32 (float64 where the file has it).

    With `lazy`, decoders of a cross-layer transcoder stay in their files.

    Raises:
        FileError: shapes do not fit, numbers are damaged or not finite.
        ConfigError: a setting is out of its range.
    """
    try:
        sae = blank(
            parts.kind,
            parts.d_in,
            parts.n_latents,
            path=place.source,
            numbers=sum(math.prod(stored.shape) for stored in parts.tensors.values()),
            device=device,
            **parts.settings,
            d_out=parts.d_out,
            subtract_b_dec=parts.subtract_b_dec,
            transform=parts.transform,
            dtype=torch.float64 if parts.tensors["W_enc"].dtype == torch.float64 else torch.float32,
        )
    except (ConfigError, TypeError, ValueError, RuntimeError) as error:
        raise FileError(f"{place.source} does not describe a dictionary of use: {error}") from error
    stay = [name for name in parts.tensors if name.startswith("W_dec_")] if lazy else []
    fill(sae, parts.tensors, stay)
    sae.transform.fitted = sae.target_transform.fitted = True
    if parts.finish is not None:
        parts.finish(sae)
    bad = sae.not_finite(stay)
    if bad:
        raise FileError(f"{place.source} is of no use, {bad}: download it again")
    known = {"layout": layout, "source": place.source, "revision": place.revision}
    sae.metadata = parts.metadata.model_copy(update=known)
    return sae
