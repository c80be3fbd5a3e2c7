"""Checkpoints: whole or absent, and without pickle. While a run goes on, the newest two are kept."""

from __future__ import annotations

import re
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from monosem.activations import ActivationSource, Place
from monosem.errors import FileError, MismatchError
from monosem.files import read_json, read_safetensors, reading, regular_file, write_json, write_safetensors, writing
from monosem.sae import SAE, load_sae, save_sae
from monosem.training.divided import whole
from monosem.training.trainer import Trainer

NAME = re.compile(r"step_\d{8,}")
SUMS = "sums.json"
REMEDY = "delete the checkpoint to begin the run again"


class _Progress(BaseModel):
    """What trainer.json says; the trainer may add to it."""

    model_config = ConfigDict(strict=True, extra="allow")

    steps: int = Field(ge=0)
    tokens: int = Field(ge=0)
    place: list[Annotated[int, Field(ge=0)]] = Field(min_length=2, max_length=2)
    source: dict[str, Any] = {}


def write_checkpoint(folder: Path, trainer: Trainer, place: Place, source: dict[str, Any]) -> Path:
    """Write `checkpoints/step_N` into a run folder, beside what is there; `source` is the state of what it reads.

    Of several processes the first writes what all of them have: one dictionary, as of one process.

    Raises:
        DivergenceError: the SAE is not worth keeping.
    """
    trainer.require_sound()
    checkpoints = folder / "checkpoints"
    new, final = checkpoints / ".new", checkpoints / _name(trainer.steps)
    every = trainer.division.every
    if every.tell(final.exists()):  # the run went on from it, and has made no step since
        return final
    tensors, numbers = trainer.state()
    with whole(trainer.sae, trainer.division):
        if every.first:
            shutil.rmtree(new, ignore_errors=True)
            save_sae(trainer.sae, new)
            write_safetensors(new / "trainer.safetensors", tensors)
            write_json(new / "trainer.json", {**numbers, "place": place, "source": source})
            write_json(new / SUMS, {path.name: _sum(path) for path in sorted(new.iterdir())})
            with writing(final):
                new.replace(final)
    return final


def drop_others(folder: Path, keep: Sequence[Path]) -> None:
    """Delete all checkpoints of a run but some."""
    for other in checkpoints_of(folder):
        if other not in keep:
            shutil.rmtree(other, ignore_errors=True)


def checkpoints_of(folder: Path | None) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    found = [] if folder is None else (folder / "checkpoints").glob("step_*")
    return sorted((path for path in found if NAME.fullmatch(path.name) and path.is_dir()), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """After how many steps it was written."""
    return int(checkpoint.name.removeprefix("step_"))


def _name(step: int) -> str:
    return f"step_{step:08d}"


def read_checkpoint(checkpoint: Path, sae: SAE, trainer: Trainer, source: ActivationSource) -> Place:
    """Put SAE, trainer and source back where they were; returns the place in the source.

    Raises:
        FileError: the checkpoint is damaged.
        MismatchError: it is of another SAE.
    """
    _require_whole(checkpoint)
    saved = load_sae(checkpoint, sae.W_enc.device)
    there, here = _description(saved), _description(sae)
    if there != here:
        raise MismatchError(f"{checkpoint} is of another SAE, {there}, than this, {here}: choose another run folder")
    sae.load_state_dict(saved.state_dict())
    sae.transform.fitted = sae.target_transform.fitted = saved.transform.fitted
    sae.metadata = saved.metadata
    tensors = read_safetensors(checkpoint / "trainer.safetensors", sae.W_enc.device, REMEDY)
    progress = read_json(checkpoint / "trainer.json", _Progress, remedy=REMEDY)
    with reading(checkpoint / "trainer.json", REMEDY):
        source.load_state(progress.source)
        trainer.load_state(tensors, progress.model_dump(exclude={"place", "source"}))
    return Place(*progress.place)


def _require_whole(checkpoint: Path) -> None:
    """See that every file is what was written; checkpoints of earlier versions do not say it.

    Raises:
        FileError: one is not.
    """
    if not (checkpoint / SUMS).is_file():
        return
    for name, total in read_json(checkpoint / SUMS, dict[str, int], remedy=REMEDY).items():
        path = regular_file(checkpoint / Path(name).name, remedy=REMEDY)
        with reading(path, REMEDY):
            found = _sum(path)
        if found != total:
            raise FileError(f"{path} is damaged: it is not what was written: {REMEDY}")


def _sum(path: Path) -> int:
    """CRC-32 of a file."""
    total = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(2**22):
            total = zlib.crc32(block, total)
    return total


def _description(sae: SAE) -> str:
    return f"{sae.architecture}({sae.extra_repr()}, transform={sae.transform.kind}, {sae.W_enc.dtype})"
