"""Images: from folders, IDX and .npz files, arrays or a Hugging Face data set, as the pixels that a model wants."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from monosem.data.batch import PlaceBatch
from monosem.data.documents import Skipped
from monosem.data.image_files import images_of, source_hash
from monosem.data.pixels import as_image, in_colours, scale_of
from monosem.errors import DataError, FileError
from monosem.files import DAMAGE, one_line, regular_file, require_room
from monosem.sae.metadata import PixelFormat

MOST_PACKED = 200  # times the size of its file is a picture in memory, if it is no bomb
LONGEST = 8  # times its width is an image high, or the other way round, before its ends are cut off


@dataclass(frozen=True)
class ImageBatch(PlaceBatch):
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
    def tokens(self) -> Int[Tensor, "images pos"]:
        """What stands at a position of an image is the place itself: 0, 1, ..., class token and registers first."""
        return torch.arange(self.n_positions).expand(len(self), -1)

    @property
    def document(self) -> Int[Tensor, "images pos"]:
        return torch.from_numpy(self.number)[:, None].expand(-1, self.n_positions)

    @property
    def content(self) -> Int[Tensor, "images pos"]:
        hashes = torch.tensor([crc32(image.contiguous().numpy()) for image in self.pixels.cpu()])  # pyright: ignore
        return hashes[:, None].expand(-1, self.n_positions)

    @property
    def special(self) -> Bool[Tensor, "images pos"]:
        return (torch.arange(self.n_positions) < self.n_special).expand(len(self), -1)

    @property
    def padding(self) -> Bool[Tensor, "images pos"]:
        return self.unreadable[:, None].expand(-1, self.n_positions)


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
                from 0 to 255 or 0 to 65535, or of floats from 0 to 1 or 0 to 255, or a list of such or of PIL images.
            wanted: size, channels and normalisation. Images are turned as their camera says, laid on white where they
                are transparent, scaled to cover the size and cut at the centre; of moving ones the first is taken.
            labels: one integer an image, where the source has none.
            processor: a transformers image processor, to prepare images in its own way.
            seed: of the order.

        Raises:
            FileError: the source is missing or cannot be read.
            DataError: there are no images, or not as many labels as images.
        """
        self.wanted, self.processor, self.seed = wanted, processor, seed
        self.skipped = Skipped("images")
        self.n_positions, self.n_special = 1, 0
        self.grid: tuple[int, int] = (1, 1)
        """Rows and columns of patches of the model that reads them."""
        self._orders: dict[int, np.ndarray] = {}
        self.name = str(source) if isinstance(source, str | Path) else "the images given"
        self.images, own_labels, self.classes = images_of(source)
        self._source = source
        labels = own_labels if labels is None else labels
        if not len(self.images):
            raise DataError(f"{self.name} is empty: it holds no images")
        self._scale = scale_of(self.images, self.name)
        self.labels = None if labels is None else _labels(labels, self.name)
        if self.labels is not None and len(self.labels) != len(self.images):
            raise DataError(f"{self.name}: {len(self.labels)} labels for {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def context_length(self) -> int:
        """Positions of an image in the model."""
        return self.n_positions

    @functools.cached_property
    def source_hash(self) -> str:
        """16 hex digits that change where the source does."""
        return source_hash(self._source, self.images)

    def thumbnails(self, numbers: Sequence[int], size: int = 96) -> list[bytes]:
        """Images as the model sees them, as PNG; their smaller side has at most `size` pixels."""
        return [self._thumbnail(int(number), size) for number in numbers]

    def _thumbnail(self, number: int, size: int) -> bytes:
        pixels = self._prepared(number)
        pixels = self.blank()[0] if pixels is None else pixels
        mean, std = _moments(self.wanted)
        array = ((pixels * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        picture = as_image(array)
        scale = min(1.0, size / min(picture.size))
        shape = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        if shape != picture.size:
            picture = picture.resize(shape, Image.Resampling.BICUBIC)
        file = io.BytesIO()
        picture.save(file, "png", optimize=True)
        return file.getvalue()

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

    def state(self) -> dict[str, Any]:
        return self.skipped.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.skipped.load_state(state)

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
                with Image.open(regular_file(item)) as file:
                    require_room(item, file.width * file.height * len(file.getbands()), MOST_PACKED)
                    image = in_colours(file, mode)
            else:
                image = in_colours(as_image(item, self._scale), mode)
        except (*DAMAGE, FileError, Image.DecompressionBombError) as error:
            what = str(self.images[number]) if isinstance(self.images[number], Path) else f"image {number}"
            self.skipped.add(f"{what} cannot be read as an image: {one_line(error)}")
            if len(self.skipped) == len(self):
                raise DataError(f"{self.name} holds no image that can be read: {self.skipped.first}") from error
            return None
        if self.processor is not None:
            return self.processor(image, return_tensors="pt")["pixel_values"][0]
        return _normalised(_fitted(image, self.wanted), self.wanted)


def _fitted(image: Image.Image, wanted: PixelFormat) -> Image.Image:
    """Scaled until it covers the wanted size, and cut around its centre."""
    image = _without_ends(image, wanted)
    scale = max(wanted.width / image.width, wanted.height / image.height)
    size = (max(wanted.width, round(image.width * scale)), max(wanted.height, round(image.height * scale)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - wanted.width) // 2, (size[1] - wanted.height) // 2
    return image.crop((left, top, left + wanted.width, top + wanted.height))


def _labels(labels: Any, name: str) -> np.ndarray:
    """(images,) integers."""
    try:
        found = np.asarray(labels)
        whole = found.astype(np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{name}: labels are one integer an image: {one_line(error)}") from error
    if whole.ndim != 1 or found.dtype.kind not in "biuf" or not np.array_equal(whole, found):
        raise DataError(f"{name}: labels are one integer an image, not {found.dtype} of shape {found.shape}")
    return whole


def _without_ends(image: Image.Image, wanted: PixelFormat) -> Image.Image:
    """A long strip without most of what is cut off anyway, which would take much memory when scaled."""
    width = min(image.width, max(1, LONGEST * image.height * wanted.width // wanted.height))
    height = min(image.height, max(1, LONGEST * image.width * wanted.height // wanted.width))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image if (width, height) == image.size else image.crop((left, top, left + width, top + height))


def _normalised(image: Image.Image, wanted: PixelFormat) -> Float[Tensor, "channels height width"]:
    pixels = torch.from_numpy(np.array(image)).float() / 255
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    mean, std = _moments(wanted)
    return (pixels - mean) / std


def _moments(wanted: PixelFormat) -> tuple[Float[Tensor, "channels 1 1"], Float[Tensor, "channels 1 1"]]:
    mean, std = (torch.tensor(values[: wanted.channels])[:, None, None] for values in (wanted.mean, wanted.std))
    return mean, std
