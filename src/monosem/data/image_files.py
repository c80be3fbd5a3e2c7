"""Where images come from: folders, IDX and .npz files, arrays, Hugging Face data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from torch import Tensor

from monosem.data.pixels import CHANNELS, numbers_of
from monosem.errors import DataError, FileError
from monosem.files import read_arrays, read_idx

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
IMAGES = "give a folder of images, or a whole IDX or .npz file"

Opened = tuple[Sequence[Any] | np.ndarray, Any, list[str] | None]
"""Images, labels, names of the labels."""


def images_of(source: Any) -> Opened:
    """The images of a source, as `Images` describes them."""
    if isinstance(source, str) and source.startswith("hub:"):
        return _from_hub(source)
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if not path.exists():
            raise FileError(f"images {str(source)!r}: there is no such file or folder")
        if path.is_dir():
            return _from_folder(path)
        if path.suffix == ".npz":
            return _from_npz(path)
        if "idx" in path.name or "ubyte" in path.name:
            return _from_idx(path)
        if path.suffix.lower() in SUFFIXES:
            return [path], None, None
        raise FileError(f"{path} is of no kind that can be read as images (a folder, an IDX or .npz file)")
    if isinstance(source, Tensor | np.ndarray):
        return _checked(numbers_of(source), "the array of images"), None, None
    if not isinstance(source, Iterable):
        raise DataError(f"images come from a folder, a file, an array or a list, not from {type(source).__name__}")
    return list(source), None, None


def _checked(array: np.ndarray, name: str) -> np.ndarray:
    """Images (images, height, width[, channels]) of real numbers.

    Raises:
        DataError: another shape or type.
    """
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name}: images are numbers from 0 to 255, or floats from 0 to 1, not {array.dtype}")
    if array.ndim not in (3, 4):
        what = "it holds labels, not images" if array.ndim == 1 else f"its shape is {array.shape}"
        raise DataError(f"{name}: images have the shape (images, height, width[, channels]); {what}")
    if array.ndim == 4 and array.shape[3] not in CHANNELS:
        if array.shape[1] not in CHANNELS:
            raise DataError(f"{name}: no dimension of {array.shape} can be channels (1, 3 or 4)")
        array = array.transpose(0, 2, 3, 1)
    if len(array) and not array[0].size:
        raise DataError(f"{name}: an image of shape {array.shape[1:]} has no pixels")
    return array


def _from_folder(folder: Path) -> Opened:
    def inside(path: Path) -> list[Path]:
        return sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)

    classes = sorted(f.name for f in folder.iterdir() if f.is_dir() and inside(f))
    if not classes:
        return inside(folder), None, None
    files = [(file, label) for label, name in enumerate(classes) for file in inside(folder / name)]
    return [file for file, _ in files], [label for _, label in files], classes


def _from_npz(path: Path) -> Opened:
    every = read_arrays(path, IMAGES)
    arrays = {name: array for name, array in every.items() if array.dtype.kind in "buif"}
    words = [array.tolist() for array in every.values() if array.dtype.kind == "U" and array.ndim == 1]
    images = [name for name, array in arrays.items() if array.ndim in (3, 4)]
    labels = [name for name, array in arrays.items() if array.ndim == 1]
    if len(images) != 1:
        found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        if labels and not images:
            raise DataError(f"{path} holds labels without images ({found})")
        raise DataError(f"{path} must hold one array of images, (images, height, width[, channels]); it has {found}")
    array = _checked(arrays[images[0]], str(path))
    fitting = [name for name in labels if len(arrays[name]) == len(array)]
    return array, arrays[fitting[0]] if fitting else None, words[0] if fitting and len(words) == 1 else None


def _from_idx(path: Path) -> Opened:
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    labels = read_idx(beside, IMAGES) if beside != path and beside.exists() else None
    return _checked(read_idx(path, IMAGES), str(path)), labels, None


def _from_hub(spec: str) -> Opened:
    from monosem.data.hub import load_hub

    data, column = load_hub(spec, streaming=False)
    if not len(data):
        raise FileError(f"{spec!r} is empty")
    first = data[0]
    column = column or next((name for name, value in first.items() if isinstance(value, Image.Image)), None)
    if column is None or not isinstance(first[column], Image.Image):
        raise FileError(f"{spec!r} has no column of images: it has {', '.join(data.column_names)}")
    label = next((name for name in ("label", "labels") if name in data.column_names), None)
    classes = getattr(data.features[label], "names", None) if label else None
    return _HubImages(data, column), data[label] if label else None, cast("list[str] | None", classes)


class _HubImages(Sequence[Any]):
    """One column of a data set, decoded as it is read."""

    def __init__(self, data: Any, column: str) -> None:
        self.data, self.column = data, column

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: Any) -> Any:
        return self.data[number][self.column]


def source_hash(source: Any, images: Sequence[Any] | np.ndarray) -> str:
    """16 hex digits: of the bytes of a file or array, of the names and sizes of the files of a folder.

    What cannot be read twice at little cost (a list, a data set of Hugging Face) counts by its name and length.
    """
    digest = hashlib.sha256()
    if isinstance(source, str | Path) and Path(source).expanduser().is_file():
        with Path(source).expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    if isinstance(images, np.ndarray):
        digest.update(f"{images.shape}{images.dtype}".encode())
        digest.update(np.ascontiguousarray(images).data)
    else:
        named = source if isinstance(source, str | Path) else type(source).__name__
        digest.update(f"{named} {len(images)}".encode() if not _are_files(images) else b"files")
        for file in images if _are_files(images) else ():
            digest.update(f"{file.parent.name}/{file.name} {file.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]


def _are_files(images: Sequence[Any] | np.ndarray) -> bool:
    return isinstance(images, list) and bool(images) and isinstance(images[0], Path)
