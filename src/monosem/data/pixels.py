"""From numbers of any kind to 8 bits a channel: what stands for black and for white is known, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from monosem.errors import DataError

SLACK = 0.01
"""Share of the range by which scaled images overshoot it."""
CHANNELS = (1, 3, 4)
BLOCK = 256  # images looked through at a time


def scale_of(images: Sequence[Any] | np.ndarray, name: str) -> float:
    """By what numbers are multiplied to run from 0 to 255; one for all images, which may be dark.

    Raises:
        DataError: they run over no range that images have.
    """
    arrays: list[np.ndarray] = []
    if isinstance(images, np.ndarray):
        arrays = [images[i : i + BLOCK] for i in range(0, len(images), BLOCK)] if images.dtype != np.uint8 else []
    elif isinstance(images, list):
        arrays = [array for item in images if isinstance(item, np.ndarray | Tensor) for array in [_array(item)]]
    arrays = [array for array in arrays if array.size and array.dtype != np.uint8]
    if not arrays:
        return 1.0
    low, high = min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays)
    try:
        return _scale(low, high, all(array.dtype.kind == "f" for array in arrays), arrays[0].dtype == bool)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error


def _scale(low: float, high: float, floats: bool, bits: bool = False) -> float:
    if bits:
        return 255.0
    for top in (1, 255) if floats else (255, 65_535):
        if -SLACK * top * floats <= low and high <= top * (1 + SLACK * floats):
            return 255 / top
    wanted = "floats from 0 to 1 or from 0 to 255" if floats else "integers from 0 to 255 or from 0 to 65535"
    raise ValueError(f"images are {wanted}, these run from {low:.4g} to {high:.4g}")


def numbers_of(item: Any) -> Any:
    """A tensor as an array, from wherever it is and of a type that numpy has; the rest as it is."""
    if isinstance(item, Tensor):
        item = item.detach().cpu()
        return (item.float() if item.dtype == torch.bfloat16 else item).numpy()
    return item


def _array(item: Any) -> np.ndarray:
    array = np.asarray(numbers_of(item))
    if array.dtype.kind not in "biuf":
        raise DataError(f"an image is numbers from 0 to 255, or floats from 0 to 1, not {array.dtype}")
    return array


def as_image(item: Any, scale: float = 1.0) -> Image.Image:
    """A PIL image from one, or from an array (height, width[, channels]), whose numbers times `scale` are 8 bits."""
    if isinstance(item, Image.Image):
        return item
    array = _array(item)
    if array.ndim == 3 and array.shape[2] not in CHANNELS and array.shape[0] in CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(f"an image has height and width, and perhaps channels; its shape is {array.shape}")
    if array.dtype != np.uint8:
        array = (array.astype(np.float32) * scale).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def in_colours(image: Image.Image, mode: str) -> Image.Image:
    """An image in mode "L" or "RGB": turned as its camera says, on white where it is transparent.

    Raises:
        ValueError: its numbers run over no range that images have.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits, or floats
        array = np.asarray(image)
        low, high = float(array.min()), float(array.max())
        scale = 255 / 65_535 if image.mode.startswith("I;16") else _scale(low, high, image.mode == "F")
        image = as_image(array, scale)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)
