"""Vectors as Neuronpedia stores them: a .json or .jsonl of `modelId`, `hookName` and `vector`."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from monosem.errors import FileError
from monosem.files import fits, read_json, read_json_lines
from monosem.interop.hook import hook_of, model_of
from monosem.interop.layout import Layout, Parts, refusal
from monosem.interop.place import REMEDY, Place
from monosem.sae import ReLUSAE, SAEMetadata


class _Vector(BaseModel):
    model_config = ConfigDict(strict=True)

    model: str = Field(alias="modelId")
    hook_name: str | None = Field(default=None, alias="hookName")
    hook_type: str | None = Field(default=None, alias="hookType")
    layer: int | None = Field(default=None, alias="layerNumber")
    vector: list[float] = Field(min_length=1)

    @property
    def hook(self) -> str | None:
        """As stored, or as uploaded: `resid-pre` and a layer."""
        if self.hook_name is not None or self.hook_type is None or self.layer is None:
            return self.hook_name
        return f"blocks.{self.layer}.hook_{self.hook_type.replace('-', '_')}"


def recognises(place: Place) -> bool:
    """A file of JSON of which each thing has a vector."""
    if not place.path.is_file() or place.path.suffix not in (".json", ".jsonl"):
        return False
    rows = _rows(place)
    return bool(rows) and all(isinstance(row, dict) and "vector" in row and "modelId" in row for row in rows)


def _rows(place: Place) -> list[Any]:
    if place.path.suffix == ".jsonl":
        return list(read_json_lines(place.path, remedy=REMEDY))
    content = read_json(place.path, remedy=REMEDY)
    return content if isinstance(content, list) else [content]


def read(place: Place) -> Parts:
    """A latent for each vector: its code is the product with the activation, as Neuronpedia shows it, where positive;
    one unit of it adds the vector, as steering there does.
    """
    vectors = [fits(row, _Vector, place.path, REMEDY) for row in _rows(place)]
    first = vectors[0]
    for vector in vectors:
        if (vector.model, vector.hook) != (first.model, first.hook):
            raise refusal(place, "its vectors are of several models or hook points", "put those of each in a file")
        if len(vector.vector) != len(first.vector):
            raise FileError(
                f"{place.path}: vectors of {len(first.vector)} and of {len(vector.vector)} numbers: {REMEDY}"
            )
    rows = torch.tensor([vector.vector for vector in vectors], dtype=torch.float32)
    n, d = rows.shape
    tensors = {"W_enc": rows, "W_dec": rows, "b_enc": torch.zeros(n), "b_dec": torch.zeros(d)}
    metadata = SAEMetadata(model=model_of(first.model), hook=hook_of(first.hook), original_hook=first.hook)
    return Parts(ReLUSAE, d, n, {**tensors}, metadata, subtract_b_dec=False)


LAYOUT = Layout("Neuronpedia", ".json or .jsonl (modelId, hookName, vector)", recognises, read)
