"""Temporal SAEs (`latest_ckpt.safetensors`, conf.yaml): known, and refused with the reason."""

from __future__ import annotations

from monosem.interop.layout import Layout, Parts, refusal
from monosem.interop.place import Place


def recognises(place: Place) -> bool:
    """A dictionary with layers of attention over the codes."""
    tensors = set(place.only())
    return {"D", "b"} <= tensors and any(name.startswith("attn_layers.") for name in tensors)


def read(place: Place) -> Parts:
    """Codes depend on those of the tokens before, through attention: no class here computes them.

    Raises:
        ConfigError: always.
    """
    raise refusal(
        place,
        "it predicts codes from those of earlier tokens by attention, which no class here computes",
        "encode with SAELens, and bring the activations here as vectors",
    )


LAYOUT = Layout("temporal", "D, b and attn_layers (refused)", recognises, read)
