"""Images: from every kind of source the same pixels, normalised as the model wants, with their labels."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from monosem.data import Images
from monosem.errors import DataError, FileError, MonosemError
from monosem.sae.metadata import PixelFormat

N, SIZE = 7, 6
WANTED = PixelFormat(height=SIZE, width=SIZE, mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 2.0])


@pytest.fixture(scope="module")
def colour() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8)


def normalised(images: np.ndarray) -> torch.Tensor:
    """By hand: (images, height, width, 3) from 0 to 255."""
    x = torch.from_numpy(images).double().permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (WANTED.mean, WANTED.std))
    return (x - mean) / std


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype("u1").tobytes()


def saved(folder: Path, kind: str, colour: np.ndarray) -> Any:
    """The images as a source of some kind."""
    labels = np.arange(N) % 3
    if kind == "npz":
        np.savez(folder / "a.npz", x=colour, y=labels, classes=np.array(["p", "q", "r"]))
        return folder / "a.npz"
    if kind == "folder":
        for number, image in enumerate(colour):
            Image.fromarray(image).save(folder / f"{number}.png")
        (folder / "notes.txt").write_text("no image")
        return str(folder)
    if kind == "planes":
        return torch.from_numpy(colour.transpose(0, 3, 1, 2).copy())
    if kind == "floats":
        return colour.astype(np.float64) / 255
    return [Image.fromarray(image) for image in colour]


@pytest.mark.parametrize("kind", ["npz", "folder", "planes", "floats", "pil"])
def test_every_source_gives_the_same_pixels(tmp_path: Path, kind: str, colour: np.ndarray) -> None:
    images = Images(saved(tmp_path, kind, colour), WANTED)
    batches = list(images.in_batches(3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    pixels = torch.cat([batch.pixels for batch in batches])
    assert pixels.dtype == torch.float32
    assert torch.allclose(pixels.double(), normalised(colour), rtol=0, atol=1e-5)
    assert not any(batch.unreadable.any() for batch in batches)
    if kind == "npz":
        assert np.concatenate([batch.labels for batch in batches]).tolist() == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_with_the_labels_beside_them_and_grey_becomes_three_channels(
    tmp_path: Path, colour: np.ndarray, packed: bool
) -> None:
    grey, labels, end = colour[..., 0], np.arange(N), ".gz" if packed else ""
    for name, array in (("train-images-idx3-ubyte", grey), ("train-labels-idx1-ubyte", labels)):
        (tmp_path / f"{name}{end}").write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    batch = Images(tmp_path / f"train-images-idx3-ubyte{end}", WANTED).read(0, 99)
    assert torch.allclose(batch.pixels.double(), normalised(np.repeat(grey[..., None], 3, -1)), rtol=0, atol=1e-5)
    assert batch.labels is not None
    assert batch.labels.tolist() == labels.tolist()
    one = PixelFormat(channels=1, height=SIZE, width=SIZE, mean=[0.0], std=[1.0])
    pixels = Images(tmp_path / f"train-images-idx3-ubyte{end}", one).read(0, 99).pixels
    assert torch.allclose(pixels[:, 0].double(), torch.from_numpy(grey).double() / 255, atol=1e-6)
    with pytest.raises(DataError, match="it holds labels, not images"):
        Images(tmp_path / f"train-labels-idx1-ubyte{end}", WANTED)


def test_subfolders_are_classes(tmp_path: Path, colour: np.ndarray) -> None:
    for number, image in enumerate(colour):
        folder = tmp_path / ("dog" if number % 2 else "cat")
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    images = Images(tmp_path, WANTED)
    batch = images.read(0, 99)
    assert images.classes == ["cat", "dog"]
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert torch.allclose(batch.pixels.double(), normalised(colour[[0, 2, 4, 6, 1, 3, 5]]), rtol=0, atol=1e-5)


def test_other_sizes_are_scaled_to_cover_and_cut_at_the_centre() -> None:
    ramp = np.broadcast_to(np.arange(24, dtype=np.uint8)[None, :, None] * 10, (12, 24, 3))  # twice as wide as high
    plain = PixelFormat(height=SIZE, width=SIZE, mean=[0.0] * 3, std=[1.0] * 3)
    pixels = Images(ramp[None], plain).read(0, 1).pixels[0] * 255
    assert pixels.shape == (3, SIZE, SIZE)
    assert torch.allclose(pixels, pixels[:1, :1].expand(3, SIZE, SIZE))
    middles = torch.arange(6.5, 18, 2) * 10  # columns 6 to 17, in pairs
    assert (pixels[0, 0] - middles).abs().max() <= 6


def test_epochs_are_shuffled_and_any_part_can_be_read_again(colour: np.ndarray) -> None:
    def fresh() -> Images:
        return Images(colour, WANTED, labels=np.arange(N) * 10, seed=2)

    whole = fresh().read(0, 4 * N)
    for epoch in range(4):
        assert sorted(whole.number[epoch * N : epoch * N + N]) == list(range(N))
    assert whole.number[:N].tolist() != whole.number[N : 2 * N].tolist() != sorted(whole.number[:N])
    assert whole.labels is not None
    assert whole.labels.tolist() == (whole.number * 10).tolist()
    again = fresh()
    for start, stop in ((20, 28), (5, 9), (0, 1)):
        part = again.read(start, stop)
        assert torch.equal(part.pixels, whole.pixels[start:stop])
        assert part.number.tolist() == whole.number[start:stop].tolist()
        assert torch.equal(whole[start:stop].pixels, part.pixels)


def test_a_processor_prepares_in_its_own_way(colour: np.ndarray) -> None:
    class Processor:
        def __call__(self, image: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
            assert image.mode == "RGB"
            return {"pixel_values": torch.full((1, 3, SIZE, SIZE), float(np.array(image).sum()))}

    pixels = Images(colour[..., 0], WANTED, processor=Processor()).read(0, N).pixels
    assert pixels[:, 0, 0, 0].tolist() == (3 * colour[..., 0].reshape(N, -1).sum(1, dtype=np.int64)).tolist()


def test_an_image_that_cannot_be_read_is_marked_counted_and_named(tmp_path: Path, colour: np.ndarray) -> None:
    source = saved(tmp_path, "folder", colour)
    (tmp_path / "2.png").write_bytes(b"no image")
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:80])
    images = Images(source, WANTED)
    with pytest.warns(UserWarning, match=r"^images .* skipped; the first: .*2\.png cannot be read") as caught:
        batch = images.read(0, N)
    images.read(0, N)
    assert len(caught) == 1
    assert batch.unreadable.tolist() == [i in (2, 5) for i in range(N)]
    assert batch.padding.any(1).tolist() == batch.unreadable.tolist()
    assert len(images.skipped) == 2
    assert torch.allclose(batch.pixels[3].double(), normalised(colour)[3], atol=1e-5)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"x\.png"), pytest.raises(DataError, match="no image that can be read"):
        Images(tmp_path / "bad", WANTED).read(0, 1)


@pytest.mark.parametrize(
    ("name", "content", "kind", "says"),
    [
        ("a.npz", {"y": np.arange(3)}, DataError, "labels without images"),
        ("a.npz", {"a": np.ones((2, 3, 3)), "b": np.ones((2, 3, 3))}, DataError, "one array of images"),
        ("a.npz", {"x": np.ones((2, 5, 5, 5))}, DataError, "channels"),
        ("a.npz", b"not packed", FileError, "not a zip file"),
        ("a-idx3-ubyte", b"no idx", FileError, "IDX"),
        ("a-idx3-ubyte", idx(np.ones((2, 3, 3)))[:-1], FileError, "IDX"),
        ("a-idx3-ubyte.gz", b"no gzip", FileError, "IDX"),
        ("a.pdf", b"words", FileError, "no kind"),
        ("none", None, FileError, "no such"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: Any, kind: type[MonosemError], says: str
) -> None:
    path = tmp_path / name
    if isinstance(content, dict):
        np.savez(path, **content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(kind, match=says) as error:
        Images(path, WANTED)
    assert name in str(error.value)


def test_no_images_and_too_few_labels_are_refused(tmp_path: Path, colour: np.ndarray) -> None:
    with pytest.raises(DataError, match="holds no images"):
        Images(tmp_path, WANTED)
    with pytest.raises(DataError, match="3 labels for 7 images"):
        Images(colour, WANTED, labels=[1, 2, 3])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_images_of_a_data_set_are_read(tmp_path: Path, colour: np.ndarray) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"photo": datasets.Image(), "label": datasets.ClassLabel(names=["p", "q"])})
    rows = {"photo": [Image.fromarray(image) for image in colour], "label": [i % 2 for i in range(N)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    images = Images(f"hub:{tmp_path}", WANTED)
    batch = images.read(0, N)
    assert torch.allclose(batch.pixels.double(), normalised(colour), rtol=0, atol=1e-5)
    assert batch.labels is not None
    assert batch.labels.tolist() == rows["label"]
    assert images.classes == ["p", "q"]
