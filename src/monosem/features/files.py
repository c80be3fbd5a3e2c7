"""The folder of a feature store: written so that a reader sees the old store or the new one, never half of one."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from monosem.activations import VectorRows
from monosem.data import Images
from monosem.errors import FileError
from monosem.features.labels import rows_table
from monosem.features.parts import parts_table
from monosem.features.pictures import ROWS_A_GROUP, image_facts, images_table, place_names
from monosem.features.state import Harvest
from monosem.features.streaming import BINS_AN_OCTAVE, LOWEST_EXPONENT, N_BINS
from monosem.features.tables import (
    Sources,
    details_table,
    examples_tables,
    features_table,
    text_names,
    vocabulary_table,
)
from monosem.features.text_tables import contexts_table, word_features_table, words_table
from monosem.files import as_json, fits, read_json, reading, replacing, write_json
from monosem.models import ModelSet, SubjectModel
from monosem.models.vocabulary import Vocabulary
from monosem.sae import SAE
from monosem.spelling import path_meant
from monosem.work import each

FORMAT, FORMAT_VERSION = "monosem features", 4
READABLE = (2, 3, 4)
"""Version 2 had neither `sources` nor `rows`; 3 had no words, and firing tokens from 64 firings a latent."""
LIGHT_PART, PART = 65_536, 4_096
"""Latents in one file of `features`, and of the other tables."""
ROW_GROUPS = {
    "features": 4_096,
    "details": 128,
    "examples": 2_048,
    "passages": 512,
    "vocabulary": 65_536,
    "images": ROWS_A_GROUP,
    "rows": 65_536,
    "sources": 2_048,
    "contexts": 4_096,
    "words": 65_536,
    "word_features": 65_536,
}
STATE = "harvest.safetensors"
NEEDED = {"features", "details", "examples", "passages", "vocabulary"}
AGAIN = "harvest the run again"


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)

    file: str
    first_latent: int
    rows: int = Field(ge=0)
    bytes: int


class _Table(BaseModel):
    model_config = ConfigDict(strict=True)

    latents_per_part: int = Field(ge=1)
    parts: list[_Part]


class _Text(BaseModel):
    model_config = ConfigDict(strict=True)

    text: str
    first_context: int
    stop_context: int


class _Images(BaseModel):
    model_config = ConfigDict(strict=True)

    rows: int = Field(ge=1)
    columns: int = Field(ge=1)
    n_special: int = Field(ge=0)
    classes: list[str] | None
    source: str


class _Sources(BaseModel):
    model_config = ConfigDict(strict=True)

    predicts: list[str]
    reads: list[str]


class _Vectors(BaseModel):
    model_config = ConfigDict(strict=True)

    source: str


class _Log(BaseModel):
    model_config = ConfigDict(strict=True)

    tokens: int = Field(ge=0)
    whole: bool


class _Settings(BaseModel):
    model_config = ConfigDict(strict=True)

    top: int = Field(ge=1)


class _Index(BaseModel):
    """What index.json says, of what is read of it."""

    model_config = ConfigDict(strict=True)

    architecture: str
    n_latents: int = Field(ge=1)
    d_in: int = Field(ge=1)
    d_out: int = Field(ge=1)
    texts: list[_Text]
    text_names: list[str]
    tokens: int = Field(ge=0)
    context_length: int = Field(ge=1)
    settings: _Settings
    histogram: dict[str, int]
    tables: dict[Annotated[str, Field(pattern="^[a-z_]+$")], _Table]
    model: str | None = None
    hook: str | None = None
    dictionary: str | None = None
    images: _Images | None = None
    sources: _Sources | None = None
    vectors: _Vectors | None = None
    log: _Log | None = None


def write_store(
    harvest: Harvest,
    path: str | Path,
    sae: SAE,
    model: SubjectModel | ModelSet | None,
    shown: Images | VectorRows | None = None,
) -> Path:
    """Write a harvest as a feature store; one that is there is replaced once the new one is whole.

    Of a harvest of images, or of ready vectors, give these too: those that examples show are kept, as thumbnails and as
    labels.
    """
    folder = Path(path)
    sources = Sources.of(harvest, sae, model, _positions(model, shown), shown)
    about = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "monosem_version": version("monosem"),
        **harvest.facts,
        "architecture": sae.architecture,
        "n_latents": sae.n_latents,
        "d_in": sae.d_in,
        "d_out": sae.d_out,
        "texts": [{"text": s.text, "first_context": s.first, "stop_context": s.stop} for s in harvest.spans],
        "text_names": text_names(harvest),
        "tokens": harvest.n_tokens,
        "log": {"tokens": int(sources.logged.read.sum()), "whole": harvest.log.whole},
        "context_length": harvest.context_length,
        "settings": harvest.settings.model_dump(),
        "histogram": {
            "bins_per_octave": BINS_AN_OCTAVE,
            "lowest_exponent": LOWEST_EXPONENT,
            "n_bins": N_BINS,
        },
    }
    generation = hashlib.sha256(as_json(about).encode()).hexdigest()[:8]
    writer = StoreWriter(folder, generation)
    n, passages, documents = sae.n_latents, 0, set[int]()
    for first in each("writing features", range(0, n, LIGHT_PART), min(n, LIGHT_PART), "latents"):
        writer.write("features", features_table(sources, first, min(n, first + LIGHT_PART)), first)
    for first in each("writing passages", range(0, n, PART), min(n, PART), "latents"):
        stop = min(n, first + PART)
        writer.write("details", details_table(sources, first, stop), first)
        examples, found = examples_tables(sources, first, stop, passages)
        passages += len(found)
        writer.write("examples", examples, first)
        writer.write("passages", found, first)
        if sources.parts is not None:
            writer.write("sources", parts_table(sources.parts, first, stop), first)
        documents.update(examples.column("document").to_pylist() if shown is not None else ())
    writer.write("vocabulary", vocabulary_table(harvest, sources.vocabulary), 0)
    if sources.words is not None:
        writer.write("contexts", contexts_table(sources), 0)
        writer.write("words", words_table(sources.words), 0)
        writer.write("word_features", word_features_table(sources), 0)
    if isinstance(shown, Images):
        writer.write("images", images_table(shown, sorted(documents)), 0)
    elif shown is not None and shown.labels is not None:
        writer.write("rows", rows_table(shown, sorted(documents)), 0)
    about |= {"generation": generation, "tables": writer.tables}
    write_json(folder / "index.json", about, indent=1)
    writer.drop_others()
    return folder


def _positions(model: SubjectModel | ModelSet | None, shown: Images | VectorRows | None) -> Vocabulary:
    """What stands at positions: tokens of the model, places of images, the one place of rows."""
    if isinstance(shown, Images):
        return place_names(image_facts(shown))
    if isinstance(shown, VectorRows) or model is None:
        return Vocabulary([b"row"])
    return Vocabulary.of(model.tokenizer)


class StoreWriter:
    """Writes the parts of a store's tables; `tables` is then what its index says of them."""

    def __init__(self, folder: Path, generation: str) -> None:
        self.folder, self.generation = folder, generation
        self.tables: dict[str, Any] = {}

    def write(self, name: str, table: pa.Table, first: int) -> None:
        """Write a part of a table; it begins with latent `first`."""
        size = LIGHT_PART if name == "features" else PART
        parts = self.tables.setdefault(name, {"latents_per_part": size, "parts": []})["parts"]
        file = f"{name}/{len(parts):05d}-{self.generation}.parquet"
        path = self.folder / file
        strings = [field.name for field in table.schema if pa.types.is_string(field.type) or field.name == "kind"]
        with replacing(path) as new:
            pq.write_table(
                table,
                new,
                compression="zstd",
                compression_level=1,
                row_group_size=ROW_GROUPS[name],
                use_dictionary=strings,  # pyright: ignore[reportArgumentType]
            )
        parts.append({"file": file, "first_latent": first, "rows": len(table), "bytes": path.stat().st_size})

    def drop_others(self) -> None:
        """Delete what older stores have left."""
        current = {part["file"] for table in self.tables.values() for part in table["parts"]}
        for name in self.tables:
            for path in (self.folder / name).iterdir():
                if path.is_file() and f"{name}/{path.name}" not in current:
                    path.unlink()


def read_index(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a store and its index, once every file of it has been found whole in size.

    Args:
        path: the folder, or that of a run that has one.

    Raises:
        FileError: there is no store, it is damaged, or of another version.
    """
    folder = Path(path)
    if not (folder / "index.json").is_file() and (folder / "features" / "index.json").is_file():
        folder = folder / "features"
    if not (folder / "index.json").is_file():
        what = "holds no feature store (no index.json)" if folder.exists() else "does not exist"
        run = path if (Path(path) / "run.yaml").is_file() else "RUN"
        raise FileError(f"{folder} {what}: make one with `monosem harvest {run}`{path_meant(folder)}")
    index = read_json(folder / "index.json", dict[str, Any], remedy=AGAIN)
    if index.get("format") != FORMAT:
        raise FileError(f"{folder / 'index.json'} is not the index of a feature store: {AGAIN}")
    found = index.get("format_version")
    if found not in READABLE:
        raise FileError(
            f"{folder} is a feature store of version {found}, not {FORMAT_VERSION} as this monosem reads: {AGAIN}"
        )
    about = fits(index, _Index, folder / "index.json", AGAIN)
    for table in about.tables.values():
        for part in table.parts:
            _check_part(folder, part.file, part.bytes)
    rows = sum(part.rows for part in about.tables["features"].parts) if "features" in about.tables else None
    if not about.tables.keys() >= NEEDED or rows != about.n_latents:
        raise FileError(f"{folder / 'index.json'} does not name the tables of {about.n_latents} latents: {AGAIN}")
    if "sources" in about.tables and about.sources is None:
        raise FileError(f"{folder / 'index.json'} does not name the sources of its table `sources`: {AGAIN}")
    return folder, index


def _check_part(folder: Path, file: str, n_bytes: int) -> None:
    with reading(folder / "index.json", AGAIN):
        path = (folder / file).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise FileError(f"{folder / 'index.json'} names a file outside its folder: {file}: {AGAIN}")
    size = path.stat().st_size if path.is_file() else None
    if size != n_bytes:
        what = "is missing" if size is None else f"is damaged ({size} bytes, not {n_bytes})"
        raise FileError(f"{folder / file} {what}: {AGAIN}")
