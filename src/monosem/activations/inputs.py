"""What a model is to read: text or images, opened as the model wants them, and what an SAE should remember of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monosem.data import Images, PackedText, read_documents
from monosem.data.documents import Text
from monosem.errors import ConfigError, DataError, MismatchError
from monosem.models import ModelSet, SubjectModel
from monosem.sae.metadata import PixelFormat, SAEMetadata
from monosem.text import first_token, is_encoder


def open_text(
    model: SubjectModel | ModelSet,
    text: Text,
    *,
    context_length: int | None = None,
    prepend_bos: bool | None = None,
    packing: bool | None = None,
    seed: int | None = None,
) -> tuple[PackedText, dict[str, Any]]:
    """Text for a language model, and the facts for `SAEMetadata`.

    Raises:
        ConfigError: the context is longer than the model's.
        DataError: the text is empty, no document of it can be read, or the model has no tokenizer.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        if isinstance(model, SubjectModel) and pixel_format(model) is not None:
            raise DataError(f"{model.name} reads images: activations(model, hook, images=...)")
        raise DataError(
            f"{model.name} has no tokenizer to read text with: put its files (tokenizer.json, ...) into the model's "
            "folder, or load_model(module, tokenizer=...)"
        )
    longest = model.context_length
    length = context_length or min(longest or 1024, 1024)
    if longest is not None and length > longest:
        raise ConfigError(f"context_length {length} is longer than the model's own {longest}")
    bos = first_token(tokenizer) is not None if prepend_bos is None else prepend_bos
    packed = not is_encoder(tokenizer) if packing is None else packing
    contexts = PackedText(read_documents(text), tokenizer, length, prepend_bos=bos, packing=packed, seed=seed)
    contexts.require_tokens()
    return contexts, {
        "text": described(text, "texts"),
        "tokenizer_fingerprint": model.tokenizer_fingerprint(),
        "context_length": length,
        "prepend_bos": bos,
        "packing": packed,
    }


def open_images(
    model: SubjectModel | ModelSet,
    images: Any,
    hook: str,
    *,
    labels: Any = None,
    pixels: PixelFormat | None = None,
    seed: int | None = None,
) -> tuple[Images, dict[str, Any]]:
    """Images for an image model, and the facts for `SAEMetadata`.

    Raises:
        DataError: the model reads text, or there are no images.
        ConfigError: nothing says what images the model wants.
    """
    if isinstance(model, ModelSet):
        raise DataError(f"{model.name}: several models side by side read text, not images: give text=...")
    wanted = pixels or pixel_format(model)
    if wanted is None:
        if model.family is None:
            raise ConfigError(f"say what images {model.name} reads: pixels=PixelFormat(height=..., width=...)")
        raise DataError(f"{model.name} reads text, not images: give text=...")
    processor = None if pixels else getattr(model, "processor", None)
    reader = Images(images, wanted, labels=labels, processor=processor, seed=seed)
    example = model.capture(reader.blank(), [hook])[hook]
    if example.ndim != 3:
        raise DataError(f"{hook} gives {tuple(example.shape)}, not (images, positions, width): choose another hook")
    patch = getattr(vision_config(model), "patch_size", None)
    down, across = patch if isinstance(patch, list | tuple) else (patch or 1, patch or 1)
    grid = (wanted.height // down, wanted.width // across) if patch else _grid(example.shape[1])
    reader.grid, reader.n_positions = grid, example.shape[1]
    reader.n_special = max(0, example.shape[1] - grid[0] * grid[1])
    return reader, {"images": described(images, "images"), "pixels": wanted, "context_length": example.shape[1]}


def reopened(
    known: SAEMetadata,
    model: SubjectModel | ModelSet,
    hook: str,
    *,
    text: Text | None = None,
    images: Any = None,
    labels: Any = None,
) -> tuple[PackedText | Images, str]:
    """Text or images, once through in order, cut and prepared as an SAE knows them; and how to call them.

    What this has opened may be given again as `images`.

    Raises:
        MismatchError: the SAE's contexts are longer than the model's.
        DataError: there is nothing to read, or the model does not read such data.
        ConfigError: nothing says what images the model wants.
    """
    if isinstance(images, Images):
        return images, images.name
    if images is not None:
        own = known.pixels if isinstance(model, ModelSet) or known.pixels != pixel_format(model) else None
        reader, facts = open_images(model, images, hook, labels=labels, pixels=own)
        return reader, facts["images"]
    length, longest = known.context_length, model.context_length
    if length is not None and longest is not None and length > longest and model.tokenizer is not None:
        raise MismatchError(f"the SAE reads contexts of {length} tokens, {model.name} has a context of {longest}")
    options = {"context_length": length, "prepend_bos": known.prepend_bos, "packing": known.packing}
    reader, facts = open_text(model, text or [], **options)
    return reader, facts["text"]


def _grid(n_positions: int) -> tuple[int, int]:
    """A square where nothing says how positions lie on the image and there can be one."""
    side = math.isqrt(n_positions)
    return (side, side) if side * side == n_positions else (1, n_positions)


def vision_config(model: SubjectModel) -> Any:
    config = getattr(model.module, "config", None)
    return getattr(config, "vision_config", config)


def pixel_format(model: SubjectModel) -> PixelFormat | None:
    """What images a model wants, by its config and image processor; None for a model that reads none."""
    config, processor = vision_config(model), getattr(model, "processor", None)
    size = getattr(config, "image_size", None)
    if size is None:
        return None
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = getattr(config, "num_channels", 3)
    mean, std = (getattr(processor, name, None) or [0.5] * channels for name in ("image_mean", "image_std"))
    return PixelFormat(channels=channels, height=height, width=width, mean=list(mean), std=list(std))


def described(data: Any, things: str) -> str:
    """Data in a few words."""
    if isinstance(data, str | Path):
        return str(data)
    kind = "a list" if isinstance(data, Sequence) else f"{type(data).__name__} of shape {tuple(data.shape)}"
    return f"{len(data)} {things} given as {kind}"
