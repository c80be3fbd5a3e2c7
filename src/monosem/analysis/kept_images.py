"""Images made for features, in a folder: LATENT.png of each and, written last, `images.json` with the numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import Image
from typing_extensions import TypedDict

from monosem.errors import ConfigError, FileError
from monosem.files import named_folder, read_bytes, read_json, write_bytes, write_json

FILE, FOLDER = "images.json", "optimised"
REMEDY = "make the images anew with ms.optimise_image(...).save(...)"
LARGEST = 2**24
"""Bytes of a picture."""
PNG = b"\x89PNG\r\n\x1a\n"


class Facts(TypedDict):
    """Of an image made for a feature: what the feature does on it and on others, peaks over patches."""

    latent: int
    activations: list[float]
    """At every position, as the SAE says it of the stored image."""
    activation: float
    """The largest of these."""
    start: float
    random: float
    natural: float | None
    n_natural: int
    n_random: int


class _Index(TypedDict):
    dictionary: str
    """The hash of the weights that the images were made for."""
    images: list[Facts]


class KeptImages:
    """Images made for features of one dictionary, as a folder has them."""

    def __init__(self, folder: str | Path) -> None:
        """Read the numbers; pictures are read when asked for.

        Raises:
            FileError: the numbers are missing or damaged.
        """
        self.folder = Path(folder)
        index = read_json(self.folder / FILE, _Index, remedy=REMEDY)
        self.dictionary = index["dictionary"]
        self.facts = {facts["latent"]: facts for facts in index["images"]}

    def png(self, latent: int) -> bytes:
        """The image made for a feature.

        Raises:
            IndexError: none was made for it.
            FileError: it is missing, or no PNG.
        """
        if latent not in self.facts:
            raise IndexError(f"no image was made for feature {latent}: ms.optimise_image makes one")
        path = self.folder / f"{latent}.png"
        content = read_bytes(path, LARGEST, REMEDY)
        if not content.startswith(PNG):
            raise FileError(f"{path} is no PNG: {REMEDY}")
        return content

    def every(self) -> Iterator[tuple[int, bytes]]:
        """All features that it has an image for, and the images; raises as `png`."""
        for latent in self.facts:
            yield latent, self.png(latent)


def keep(folder: str | Path, dictionary: str, made: Mapping[int, tuple[Facts, Image.Image]]) -> None:
    """Write images into a folder, beside those of other features that it has.

    Raises:
        ConfigError: what it has is of another dictionary.
        FileError: what it has is damaged, or it cannot be written.
    """
    home = named_folder(folder, "folder")
    facts: dict[int, Facts] = {}
    if (home / FILE).is_file():
        before = KeptImages(home)
        if before.dictionary != dictionary:
            raise ConfigError(f"{home} has images made for another dictionary: choose another folder, or empty it")
        facts = before.facts
    for latent, (_, image) in made.items():
        content = io.BytesIO()
        image.save(content, "png")
        write_bytes(home / f"{latent}.png", content.getvalue())
    facts |= {latent: own for latent, (own, _) in made.items()}
    index = _Index(dictionary=dictionary, images=[facts[latent] for latent in sorted(facts)])
    write_json(home / FILE, index, indent=1)
