"""The images of a store: thumbnails, classes, and how positions lie on them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from monosem.data import Images
from monosem.errors import FileError
from monosem.models.vocabulary import Vocabulary
from monosem.sql import readable

PNG = b"\x89PNG\r\n\x1a\n"
SMALLER_SIDE = 96  # pixels of a thumbnail, at most
ROWS_A_GROUP = 256


class Pictures:
    """The images of a store. May be used by several threads."""

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        """Of the store in `folder`, whose index.json says `index`."""
        about = index["images"]
        self._file = folder / index["tables"]["images"]["parts"][0]["file"]
        self.rows: int = about["rows"]
        self.columns: int = about["columns"]
        self.n_special: int = about["n_special"]
        """Class token and registers; they come before the patches."""
        self.classes: list[str] | None = about["classes"]
        self.source: str = about["source"]

    def png(self, number: int) -> bytes:
        """The thumbnail of an image, as the model saw it.

        Raises:
            IndexError: the store has no such image.
            FileError: what it has is none.
        """
        place = self._places.get(number)
        if place is None:
            raise IndexError(f"the store has no image {number}")
        with readable(self._file.parent), pq.ParquetFile(self._file) as file:
            group = file.read_row_group(place // ROWS_A_GROUP, ["png"])
        content: bytes = group.column("png")[place % ROWS_A_GROUP].as_py()
        if not content.startswith(PNG):
            raise FileError(f"image {number} in {self._file} is damaged: harvest the run again")
        return content

    def every(self) -> Iterator[tuple[int, bytes]]:
        """All images that the store has, and their thumbnails."""
        with readable(self._file.parent), pq.ParquetFile(self._file) as file:
            for rows in file.iter_batches(ROWS_A_GROUP, columns=["image", "png"]):
                yield from zip(rows.column("image").to_pylist(), rows.column("png").to_pylist(), strict=True)

    @functools.cached_property
    def _table(self) -> dict[int, int | None]:
        """The labels of the images, which ascend."""
        with readable(self._file.parent):
            table = pq.read_table(self._file, columns=["image", "label"])
        return dict(zip(table.column("image").to_pylist(), table.column("label").to_pylist(), strict=True))

    @functools.cached_property
    def _places(self) -> dict[int, int]:
        return {number: place for place, number in enumerate(self._table)}

    def label(self, number: int) -> str | None:
        """The class of an image; None if it has none."""
        label = self._table.get(number)
        return None if label is None else class_name(label, self.classes)

    def patches(self, activations: np.ndarray) -> np.ndarray:
        """(rows, columns): the activations of an example's patches where they lie."""
        return activations[self.n_special :].reshape(self.rows, self.columns)


def class_name(label: int, classes: Sequence[str] | None) -> str:
    """The name of a class, or else its number."""
    return classes[label] if classes is not None and label < len(classes) else str(label)


def image_facts(images: Images) -> dict[str, Any]:
    """What a store says of its images."""
    return {
        "rows": images.grid[0],
        "columns": images.grid[1],
        "n_special": images.n_special,
        "classes": None if images.classes is None else list(images.classes),
        "source": images.name,
        "source_hash": images.source_hash,
    }


def place_names(about: dict[str, Any]) -> Vocabulary:
    """What stands at each position of an image, in words: row and column count from 1, at the top left."""
    n = about["n_special"]
    names = ["class token", *(f"register {i}" for i in range(1, n))][:n]
    names += [f"row {r + 1}, column {c + 1}" for r in range(about["rows"]) for c in range(about["columns"])]
    return Vocabulary([name.encode() for name in names], range(n))


def images_table(images: Images, numbers: Sequence[int]) -> pa.Table:
    """One row an image that an example shows."""
    labels = None if images.labels is None else [int(images.labels[number]) for number in numbers]
    return pa.table(
        {
            "image": pa.array(numbers, pa.int32()),
            "label": pa.array([None] * len(numbers) if labels is None else labels, pa.int32()),
            "png": pa.array(images.thumbnails(numbers, SMALLER_SIDE), pa.binary()),
        }
    )
