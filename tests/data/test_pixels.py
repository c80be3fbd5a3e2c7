"""What stands for black and for white is known of every kind of picture, or it is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from monosem.data import Images
from monosem.data.pixels import in_colours
from monosem.errors import DataError
from monosem.sae.metadata import PixelFormat

GREY = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
WANTED = PixelFormat(channels=1, height=8, width=8, mean=[0.0], std=[1.0])


def pixels(source: Any) -> np.ndarray:
    """(images, 8, 8), from 0 to 255."""
    return (Images(source, WANTED).read(0, 9).pixels[:, 0].numpy() * 255).round()


@pytest.mark.parametrize(
    "array",
    [
        GREY[None],
        GREY[None].astype(np.float32),
        GREY[None].astype(np.float64) / 255,
        GREY[None].astype(np.float16) / 255,
        GREY[None].astype(np.uint16) * 257,
        GREY[None].astype(np.uint16),
        GREY[None].astype(np.int64),
        GREY[None, :, :, None].astype(np.float32),
        torch.from_numpy(GREY[None]) / 255,
        (torch.from_numpy(GREY[None]) / 255).requires_grad_(),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_of_every_range_give_the_same_pixels(array: Any) -> None:
    assert np.abs(pixels(array)[0] - GREY).max() <= 1


def test_one_scale_serves_all_images() -> None:
    dark = np.stack([GREY.astype(np.float32), np.ones((8, 8), np.float32)])
    assert pixels(dark)[1].max() == 1, "a dark image beside bright ones stays dark"
    listed = [GREY.astype(np.float32), np.ones((8, 8), np.float32)]
    assert np.array_equal(pixels(listed), pixels(dark))


@pytest.mark.parametrize(
    "array", [GREY - 300.0, GREY * 1000.0, GREY * np.nan, GREY.astype(int) * 1000, GREY * 1j, GREY.astype("S3")]
)
def test_what_runs_over_no_range_of_images_is_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError, match="from 0 to 255"):
        pixels(array[None])


def test_channels_may_stand_first_and_numbers_be_of_bfloat16_in_a_list_too() -> None:
    white, wanted = torch.ones(3, 8, 8), WANTED.model_copy(update={"channels": 3, "mean": [0.0] * 3, "std": [1.0] * 3})
    for images in ([white, white.bfloat16()], torch.stack([white, white]).bfloat16()):
        assert Images(images, wanted).read(0, 2).pixels.eq(1).all()


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (5, "images come from a folder, a file, an array or a list, not from int"),
        (np.zeros((3, 0, 8), np.uint8), r"an image of shape \(0, 8\) has no pixels"),
        ([np.zeros(8)], r"its shape is \(8,\)"),
        ([np.zeros((1, 3, 8, 8))], r"its shape is \(1, 3, 8, 8\)"),
        ([np.zeros((0, 8))], r"its shape is \(0, 8\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:images that cannot be read")
def test_what_is_no_image_is_refused_in_words(images: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Images(images, PixelFormat(height=8, width=8)).read(0, 1)


@pytest.mark.parametrize("mode", ["16 bits", "L", "1", "P", "LA", "RGBA", "CMYK", "F", "I"])
def test_files_of_every_mode_give_the_same_pixels(mode: str, tmp_path: Path) -> None:
    image, expected = Image.fromarray(GREY), GREY
    if mode == "16 bits":
        image = Image.fromarray(GREY.astype(np.uint16) * 257)
    elif mode == "1":
        image = image.point(lambda v: 255 * (v > 127)).convert("1", dither=Image.Dither.NONE)
        expected = 255 * (GREY > 127)
    elif mode in ("F", "I"):
        image = Image.fromarray(GREY.astype(np.float32 if mode == "F" else np.int32))
    else:
        image = image.convert("RGB").convert(mode) if mode == "CMYK" else image.convert(mode)
    image.save(tmp_path / "x.tif")
    assert np.abs(pixels(tmp_path / "x.tif")[0] - expected).max() <= 1
    if mode == "16 bits":
        image.save(tmp_path / "x.png")
        assert np.abs(pixels(tmp_path / "x.png")[0] - expected).max() <= 1


def test_what_is_transparent_lies_on_white() -> None:
    clear = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear.putpixel((0, 0), (10, 20, 30, 255))
    shown = in_colours(clear, "RGB")
    assert [shown.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.putpixel((0, 0), 1)
    palette.info["transparency"] = 0
    shown = in_colours(palette, "RGB")
    assert [shown.getpixel((x, 0)) for x in (0, 1)] == [(9, 9, 9), (255, 255, 255)]


def test_a_picture_is_turned_as_its_camera_says_and_of_a_moving_one_the_first_is_taken(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "x.png")[0], np.rot90(GREY, -1))
    frames = [Image.fromarray(GREY), Image.new("L", (8, 8), 0)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert np.abs(pixels(tmp_path / "x.gif")[0] - GREY).max() <= 1


def test_a_long_strip_takes_little_memory() -> None:
    strip = Image.new("L", (1, 60_000), 7)
    assert pixels([strip])[0].max() == 7


def test_a_torn_picture_is_skipped_by_name(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(file, "png")
    (tmp_path / "a.png").write_bytes(file.getvalue()[:1000])
    Image.fromarray(GREY).save(tmp_path / "b.png")
    with pytest.warns(UserWarning, match=r"a\.png cannot be read"):
        assert Images(tmp_path, WANTED).read(0, 2).unreadable.tolist() == [True, False]
