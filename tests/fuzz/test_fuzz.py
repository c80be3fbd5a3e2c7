"""Damaged files of every kind that is read: each is read, or refused by a `MonosemError`, soon and in little memory.

`make fuzz` runs 15,400 cases; FUZZ_CASES=n pytest tests/fuzz runs n of each kind. A case that fails is named by its
number, which makes it again.
"""

from __future__ import annotations

import faulthandler
import gzip
import importlib.util
import json
import os
import random
import resource
import shutil
import sqlite3
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from gguf_files import written
from mutate import damage
from PIL import Image
from safetensors.torch import save_file
from shared_fixtures import random_gpt2

from monosem.activations import activations
from monosem.activations.vectors import read_vectors
from monosem.data import Images, PackedText, read_documents
from monosem.errors import MonosemError
from monosem.evaluation import EvaluationReport
from monosem.explorer.dictionary import open_dictionaries
from monosem.explorer.notes import Notes
from monosem.explorer.shapes import NoteChange
from monosem.features import FeatureStore, Harvest, HarvestSettings, harvest
from monosem.intervals import Interval
from monosem.models import SubjectModel, load_model
from monosem.runs import Run, RunConfig
from monosem.runs.config import EvaluationConfig
from monosem.runs.results import Results
from monosem.sae import (
    Crosscoder,
    CrossLayerTranscoder,
    MatryoshkaSAE,
    SAEMetadata,
    SwitchSAE,
    TopKSAE,
    load_sae,
    read_decoder_rows,
)
from monosem.sae.metadata import PixelFormat
from monosem.training import TrainingConfig, fit

CASES = int(os.environ.get("FUZZ_CASES", "12"))
FIRST = int(os.environ.get("FUZZ_FIRST", "0"))
SECONDS, MEMORY = 10, 2 * 2**30
STUCK, TRIES = 600, 2
"""Seconds after which a case that does not end ends the whole, and how often a slow one is tried again: others may use
the processor, or have stopped this process, so that a case is too slow if it is each time, or by its own work."""

pytestmark = pytest.mark.filterwarnings("ignore")

Make, Read = Callable[[Path, Any], None], Callable[[Path], object]
KINDS: dict[str, tuple[Make, Read]] = {}


def kind(make: Make) -> Callable[[Read], Read]:
    """A kind of files: how to make valid ones in a folder, and how they are read."""

    def register(read: Read) -> Read:
        KINDS[read.__name__] = (make, read)
        return read

    return register


def make_saes(folder: Path, _: Any) -> None:
    TopKSAE(6, 24, k=3).save(folder / "topk")
    SwitchSAE(6, 24, k=2, n_experts=4, transform="whiten").save(folder / "switch")
    MatryoshkaSAE(6, 24, k=3).save(folder / "matryoshka")
    Crosscoder(6, 24, k=3, n_sources=2).save(folder / "crosscoder")
    CrossLayerTranscoder(6, 24, k=3, n_layers=2).save(folder / "crosslayer")


@kind(make_saes)
def saes(folder: Path) -> None:
    read_decoder_rows(folder / "crosslayer", 0, [1])
    for path in sorted(folder.iterdir()):
        sae = load_sae(path)
        sae.encode(torch.ones(2, *sae.in_shape))


def make_run(folder: Path, _: Any) -> None:
    RunConfig.read(None, ["grid={sae.k: [2, 3]}"]).write(folder / "run.yaml")
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "tokens": 5, "fvu": 0.5}\n{"step": 2, "tokens": 9, "fvu": 0.4}\n'
    )
    values = {name: Interval(0.5, 0.4, 0.6) for name in ("l0", "fvu", "dead_share", "loss_recovered_mean")}
    facts: dict[str, Any] = {"rows": 50, "data": "x", "model": "m", "hook": "h", "architecture": "topk", "n_latents": 4}
    report = EvaluationReport({"SAE": values}, facts, {"SAE": np.ones(4) / 2}, {"SAE": np.array([3, 4])})
    report.save(folder / "evaluation.json")
    results = Results(folder, EvaluationConfig().model_dump())
    results.draw = lambda path: None
    results.add("one", "resid_post.1", report)


@kind(make_run)
def run(folder: Path) -> None:
    first = error_of(lambda: Run(folder).history())
    errors = [first, error_of(lambda: str(EvaluationReport.load(folder / "evaluation.json")))]
    errors.append(error_of(lambda: Results.begin(folder, EvaluationConfig()).table()))
    config = RunConfig.read(folder / "run.yaml")
    config.sae.build(8)
    for error in errors:
        if error:
            raise error


def error_of(read: Callable[[], object]) -> MonosemError | None:
    """What is refused, so that what stands beside it is read too."""
    try:
        read()
    except MonosemError as error:
        return error
    return None


def train_on(folder: Path, tokens: int) -> None:
    config = TrainingConfig(batch_size=16, log_every=1, checkpoint_minutes=0)
    fit(TopKSAE(6, 24, k=3), torch.randn(64, 6), tokens=tokens, config=config, path=folder, progress=False)


def make_checkpoint(folder: Path, _: Any) -> None:
    torch.manual_seed(0)
    train_on(folder, 64)
    for path in folder.glob("sae/*"):
        path.unlink()
    (folder / "sae").rmdir()
    for path in sorted((folder / "checkpoints").iterdir())[:-1]:
        shutil.rmtree(path)
    (folder / "checkpoints" / "step_00000002.bak").mkdir()


@kind(make_checkpoint)
def checkpoint(folder: Path) -> None:
    torch.manual_seed(0)
    train_on(folder, 64)


def make_store(folder: Path, tokenizer: Any) -> None:
    model = SubjectModel(random_gpt2(), tokenizer, "tiny")
    sae = TopKSAE(32, 20, k=3)
    sae.metadata = SAEMetadata(hook="resid_post.1", context_length=24)
    text = ["The river ran past the old mill, and the mill stood by the river. " * 20] * 3
    settings = HarvestSettings(near_every=2, silent_windows=16)
    harvest(sae, folder / "features", model, text=text, tokens=600, settings=settings, keep_state=True, progress=False)
    notes = Notes.beside(folder / "features", "", 20)
    notes.change(3, NoteChange(label="water", starred=True, lists=["a"]))


@kind(make_store)
def store(folder: Path) -> None:
    opened = FeatureStore(folder / "features")
    for feature in opened.features(range(opened.n_latents)):
        feature.to_dict()
        str(feature)
    opened.table("count > 1", sort="-rate").to_pylist()
    opened.search(words="river")
    opened.search(token="the")
    for firing in opened.words.find("the") if opened.words is not None else ():
        opened.words.shown(firing)
    opened.notable(5)
    opened.sql("select count(*) from passages, examples")
    for dictionary in open_dictionaries([folder / "features"]).values():
        dictionary.summary()
        dictionary.texts()


@kind(make_store)
def harvest_state(folder: Path) -> None:
    Harvest.load(folder / "features" / "harvest.safetensors")


def make_notes(folder: Path, _: Any) -> None:
    for latent in range(5):
        Notes(folder / "x.sqlite", "d", 9).change(latent, NoteChange(label="water", lists=["a", "b"]))


@kind(make_notes)
def notes(folder: Path) -> None:
    path, rng = folder / "x.sqlite", random.Random(path_size(folder))
    if rng.random() < 0.5:  # sound, with strange values in it
        shutil.copy(folder.parent / "whole" / "x.sqlite", path)
        column = rng.choice(["label", "comment", "starred", "lists", "changed"])
        value = rng.choice(["x", b"\xff", 5, 1.5, "[1]", "{}", "[" * 100_000, '["a", null]'])
        with sqlite3.connect(path) as connection:
            connection.execute(f"update notes set {column} = ? where latent = 2", (value,))
        connection.close()
    opened = Notes(path, "d", 9)
    opened.all()
    opened.lists()
    opened.change(1, NoteChange(comment="x"))


def path_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def make_text(folder: Path, _: Any) -> None:
    rows = [{"text": f"The {i}th river.", "title": "t"} for i in range(8)]
    talk = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes."}]}
    lines = "".join(f"{line}\n" for line in map(json.dumps, [*rows, talk]))
    (folder / "a.jsonl").write_text(lines)
    (folder / "a.txt").write_text("The river ran. " * 50)

    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "b.txt.gz").write_bytes(gzip.compress(b"The river ran. " * 50))
    with pa.CompressedOutputStream(str(folder / "c.jsonl.zst"), "zstd") as file:
        file.write(lines.encode())
    pq.write_table(pa.Table.from_pylist(rows), folder / "d.parquet")


@kind(make_text)
def text(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        documents = read_documents(path)
        assert isinstance(documents, list)
        plain = [document for document in documents if not document.messages]
        PackedText(plain, TOKENIZER[0], 16).read(0, 3)


def make_vectors(folder: Path, _: Any) -> None:
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    np.save(folder / "a.npy", x)
    save_file({"x": torch.from_numpy(x)}, folder / "b.safetensors")
    pq.write_table(pa.table({f"x{i}": x[:, i] for i in range(6)}), folder / "c.parquet")
    pq.write_table(pa.table({"v": pa.array(x.tolist(), pa.list_(pa.float32()))}), folder / "d.parquet")


@kind(make_vectors)
def vectors(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        read_vectors(path)
        activations(path).pool(0)


def make_images(folder: Path, _: Any) -> None:

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (6, 8, 8), dtype=np.uint8)
    np.savez_compressed(folder / "a.npz", images=pixels, labels=np.arange(6), names=np.array(["x"] * 6))
    header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in pixels.shape)
    (folder / "b-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
    (folder / "b-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x06" + bytes(range(6))))
    (folder / "c-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    picture = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
    (folder / "photos").mkdir()
    for end, image in {
        "png": picture,
        "jpg": picture,
        "gif": picture.convert("P"),
        "bmp": picture,
        "tif": picture.convert("CMYK"),
        "webp": picture.convert("RGBA"),
        "ppm": picture,
    }.items():
        image.save(folder / "photos" / f"x.{end}")
    Image.fromarray(pixels[0].astype(np.uint16) * 257).save(folder / "photos" / "y.png")
    picture.convert("P").save(folder / "photos" / "z.png", transparency=3)


@kind(make_images)
def images(folder: Path) -> None:
    wanted = PixelFormat(height=8, width=8)
    for path in (*sorted(folder.glob("[abc]*.npz")), *sorted(folder.glob("*images*")), folder / "photos"):
        Images(path, wanted).read(0, 10)


def make_model(folder: Path, tokenizer: Any) -> None:
    module: Any = random_gpt2(width=8, layers=1, heads=2, positions=16)
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@kind(make_model)
def model(folder: Path) -> None:
    loaded = load_model(folder)
    loaded.capture(torch.zeros(1, 4, dtype=torch.int64), ["resid_post.0"])


if importlib.util.find_spec("gguf"):

    def make_gguf(folder: Path, _: Any) -> None:
        written(folder / "tiny.gguf")

    @kind(make_gguf)
    def gguf(folder: Path) -> None:
        loaded = load_model(folder / "tiny.gguf", device="cpu")
        loaded.tokens("the hen")
        loaded.capture(torch.zeros(1, 4, dtype=torch.int64), ["resid_post.0"])


TOKENIZER: list[Any] = []


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Callable[[str], Path]:
    """A folder of valid files of a kind."""
    made: dict[str, Path] = {}
    TOKENIZER[:] = [tokenizer]

    def of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "whole"
            made[name].mkdir()
            KINDS[name][0](made[name], tokenizer)
        return made[name]

    return of


@pytest.mark.parametrize("name", KINDS)
def test_valid_files_are_read(name: str, valid: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(valid(name), tmp_path / "copy", dirs_exist_ok=True)
    shutil.copytree(valid(name), tmp_path / "whole", dirs_exist_ok=True)
    KINDS[name][1](tmp_path / "copy")


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_read_or_refused_in_words(name: str, valid: Callable[[str], Path], tmp_path: Path) -> None:
    whole = shutil.copytree(valid(name), tmp_path / "whole")
    foreign: list[str] = []
    for number in range(FIRST, FIRST + CASES):
        faulthandler.dump_traceback_later(STUCK, exit=True)
        try:
            path, words, took = one_case(name, number, whole)
            for _ in range(TRIES):
                if took.own > SECONDS or took.all <= SECONDS:
                    break
                path, words, took = one_case(name, number, whole)  # it may have waited for others
        finally:
            faulthandler.cancel_dump_traceback_later()
        if max(took) > SECONDS:
            words = f"took {took.all:.0f} s, {took.own:.0f} s of processor; {words}"
        if words:
            foreign.append(f"case {number}, {path.name}: {words}")
    assert not foreign, "\n".join([f"{len(foreign)} of {CASES}:", *foreign[:40]])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert memory < MEMORY or "FUZZ_CASES" not in os.environ, f"{memory / 2**30:.1f} GiB"


class Took(NamedTuple):
    """Seconds, and those of this process's processor time."""

    all: float
    own: float


def one_case(name: str, number: int, whole: Path) -> tuple[Path, str, Took]:
    """The file that is damaged, what is wrong with how it was read (nothing: ""), and how long that took."""
    rng, folder = random.Random(f"{name} {number}"), whole.with_name("case")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    damage(path, rng)
    begun, words = (time.monotonic(), time.process_time()), ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            KINDS[name][1](folder)
    except MonosemError as error:
        said = str(error)
        if "\n" in said.strip() or len(said) > 2_000:
            words = f"{len(said)} characters: {said[:300]!r}"
    except Exception as error:  # noqa: BLE001 - what is looked for
        place = error.__traceback__
        while place and place.tb_next:
            place = place.tb_next
        where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else ""
        words = f"{type(error).__name__} {error!s:.200} ({where})"
    return path, words, Took(time.monotonic() - begun[0], time.process_time() - begun[1])
