"""Images: from folders, IDX and .npz files, arrays or a Hugging Face data set, as the pixels that a model wants."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from monosem.data.documents import Skipped
from monosem.errors import DataError, FileError
from monosem.sae.metadata import PixelFormat

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


@dataclass(frozen=True)
class ImageBatch:
    """Images, prepared for a model."""

    pixels: Float[Tensor, "images channels height width"]
    number: np.ndarray
    """(images,) the place of each in the data."""
    labels: np.ndarray | None
    """(images,) where there are."""
    unreadable: Bool[Tensor, " images"]
    """True where an image could not be read; its pixels are 0."""
    n_positions: int = 1
    """Of the model that reads them: class token, registers and patches."""
    n_special: int = 0
    """So many of them, at the beginning, are no patches."""

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, part: slice) -> ImageBatch:
        labels = None if self.labels is None else self.labels[part]
        shape = (self.n_positions, self.n_special)
        return ImageBatch(self.pixels[part], self.number[part], labels, self.unreadable[part], *shape)

    @property
    def inputs(self) -> Tensor:
        return self.pixels

    @property
    def special(self) -> Bool[Tensor, "images pos"]:
        return (torch.arange(self.n_positions) < self.n_special).expand(len(self), -1)

    @property
    def padding(self) -> Bool[Tensor, "images pos"]:
        return self.unreadable[:, None].expand(-1, self.n_positions)

    @property
    def ends(self) -> None:
        return None


class Images:
    """Images in an order that is fixed once and for all: as they are, or, with a seed, shuffled every epoch, for ever.

    for batch in Images("photos", PixelFormat(height=224, width=224)).in_batches(32):
        batch.pixels, batch.labels
    """

    def __init__(
        self, source: Any, wanted: PixelFormat, *, labels: Any = None, processor: Any = None, seed: int | None = None
    ) -> None:
        """Open images.

        Args:
            source: a folder (its images, or those of its subfolders, whose names are then the labels), an IDX file as
                in MNIST (also .gz; labels are found beside it), an .npz file (its one array of images and one of
                labels), "hub:owner/name[:split][:column]", an array (images, height, width[, channels]) of integers
                from 0 to 255 or floats from 0 to 1, or a list of PIL images.
            wanted: size, channels and normalisation. Images are scaled to cover the size and cut at the centre.
            labels: one integer an image, where the source has none.
            processor: a transformers image processor, to prepare images in its own way.
            seed: of the order.

        Raises:
            FileError: the source is missing or cannot be read.
            DataError: there are no images, or not as many labels as images.
        """
        self.wanted, self.processor, self.seed = wanted, processor, seed
        self.skipped = Skipped()
        self.n_positions, self.n_special = 1, 0
        self._orders: dict[int, np.ndarray] = {}
        self.name = str(source) if isinstance(source, str | Path) else "the images given"
        self.images, own_labels, self.classes = _opened(source)
        labels = own_labels if labels is None else labels
        self.labels = None if labels is None else np.asarray(labels)
        if not len(self.images):
            raise DataError(f"{self.name} is empty: it holds no images")
        if self.labels is not None and len(self.labels) != len(self.images):
            raise DataError(f"{self.name}: {len(self.labels)} labels for {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.images)

    def blank(self) -> Float[Tensor, "1 channels height width"]:
        """One image without content, of the size that the model wants."""
        return torch.zeros(1, self.wanted.channels, self.wanted.height, self.wanted.width)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            order = np.arange(len(self) if self.seed is not None or epoch == 0 else 0)
            if self.seed is not None:
                order = np.random.default_rng((self.seed, epoch)).permutation(len(self))
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1} | {epoch: order}
        return self._orders[epoch]

    def read(self, start: int, stop: int) -> ImageBatch:
        """Images start to stop of the order; fewer at its end."""
        n, epochs = len(self), range(start // len(self), max(start, stop - 1) // len(self) + 1)
        parts = [self._order(epoch)[max(0, start - epoch * n) : stop - epoch * n] for epoch in epochs]
        chosen = np.concatenate(parts)
        pixels = [self._prepared(int(number)) for number in chosen]
        unreadable = torch.tensor([p is None for p in pixels], dtype=torch.bool)
        stacked = torch.cat([self.blank()[:0], *(self.blank() if p is None else p[None] for p in pixels)])
        labels = None if self.labels is None else self.labels[chosen]
        return ImageBatch(stacked, chosen, labels, unreadable, self.n_positions, self.n_special)

    def in_batches(self, n_images: int) -> Iterator[ImageBatch]:
        """All images from the first on, a few at a time."""
        start = 0
        while len(batch := self.read(start, start + n_images)):
            yield batch
            start += n_images

    def _prepared(self, number: int) -> Float[Tensor, "channels height width"] | None:
        try:
            item = self.images[number]
            mode = "L" if self.wanted.channels == 1 else "RGB"
            if isinstance(item, Path):
                with Image.open(item) as file:
                    image = file.convert(mode)
            else:
                image = _as_image(item).convert(mode)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            what = str(self.images[number]) if isinstance(self.images[number], Path) else f"image {number}"
            self.skipped.add(f"{what} cannot be read as an image: {' '.join(str(error).split())}")
            if len(self.skipped) == len(self):
                raise DataError(f"{self.name} holds no image that can be read: {self.skipped.first}") from error
            return None
        if self.processor is not None:
            return self.processor(image, return_tensors="pt")["pixel_values"][0]
        return _normalised(_fitted(image, self.wanted), self.wanted)


def _as_image(item: Any) -> Image.Image:
    """A PIL image from one, or from an array (height, width[, channels])."""
    if isinstance(item, Image.Image):
        return item
    array = np.asarray(item)
    if array.dtype.kind == "f":
        array = (np.clip(array, 0, 1) * 255).round()
    array = array.astype(np.uint8)
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _fitted(image: Image.Image, wanted: PixelFormat) -> Image.Image:
    """Scaled until it covers the wanted size, and cut around its centre."""
    scale = max(wanted.width / image.width, wanted.height / image.height)
    size = (max(wanted.width, round(image.width * scale)), max(wanted.height, round(image.height * scale)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - wanted.width) // 2, (size[1] - wanted.height) // 2
    return image.crop((left, top, left + wanted.width, top + wanted.height))


def _normalised(image: Image.Image, wanted: PixelFormat) -> Float[Tensor, "channels height width"]:
    pixels = torch.from_numpy(np.array(image)).float() / 255
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    mean, std = (torch.tensor(values[: wanted.channels])[:, None, None] for values in (wanted.mean, wanted.std))
    return (pixels - mean) / std


Opened = tuple[Sequence[Any] | np.ndarray, Any, list[str] | None]
"""Images, labels, names of the labels."""


def _opened(source: Any) -> Opened:
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
        return _checked(source.numpy() if isinstance(source, Tensor) else source, "the array of images"), None, None
    return list(source), None, None


def _checked(array: np.ndarray, name: str) -> np.ndarray:
    """Images (images, height, width[, channels])."""
    if array.ndim not in (3, 4):
        what = "it holds labels, not images" if array.ndim == 1 else f"its shape is {array.shape}"
        raise DataError(f"{name}: images have the shape (images, height, width[, channels]); {what}")
    if array.ndim == 4 and array.shape[3] not in (1, 3, 4):
        if array.shape[1] not in (1, 3, 4):
            raise DataError(f"{name}: no dimension of {array.shape} can be channels (1, 3 or 4)")
        array = array.transpose(0, 2, 3, 1)
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
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if archive[name].dtype.kind in "uif"}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FileError(f"{path} cannot be read as an archive of arrays: {error}") from error
    images = [name for name, array in arrays.items() if array.ndim in (3, 4)]
    labels = [name for name, array in arrays.items() if array.ndim == 1]
    if len(images) != 1:
        found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        if labels and not images:
            raise DataError(f"{path} holds labels without images ({found})")
        raise DataError(f"{path} must hold one array of images, (images, height, width[, channels]); it has {found}")
    array = _checked(arrays[images[0]], str(path))
    fitting = [name for name in labels if len(arrays[name]) == len(array)]
    return array, arrays[fitting[0]] if fitting else None, None


def _read_idx(path: Path) -> np.ndarray:
    """An array in the format of MNIST: two zeros, a type, the number of dimensions, the dimensions, the numbers."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if content[:2] != b"\0\0" or content[2] not in IDX_TYPES:
            raise ValueError("it does not begin as an IDX file")
        n_dims = content[3]
        shape = np.frombuffer(content, ">u4", n_dims, 4)
        return np.frombuffer(content, IDX_TYPES[content[2]], int(np.prod(shape)), 4 + 4 * n_dims).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise FileError(f"{path} cannot be read as an IDX file: {error}") from error


def _from_idx(path: Path) -> Opened:
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    labels = _read_idx(beside) if beside != path and beside.exists() else None
    return _checked(_read_idx(path), str(path)), labels, None


def _from_hub(spec: str) -> Opened:
    from monosem.data.hub import load_hub

    data, column = load_hub(spec, streaming=False)
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
