"""Checkpoints: whole or absent, and without pickle. The newest is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from monosem.activations import ActivationSource, Place
from monosem.errors import FileError
from monosem.sae import SAE, load_sae, save_sae
from monosem.sae.files import read_safetensors
from monosem.training.trainer import Trainer


def write_checkpoint(folder: Path, trainer: Trainer, place: Place, source: dict[str, Any]) -> Path:
    """Write `checkpoints/step_N` into a run folder, beside what is there; `source` is the state of what it reads."""
    checkpoints = folder / "checkpoints"
    new, final = checkpoints / ".new", checkpoints / _name(trainer.steps)
    if final.exists():  # the run went on from it, and has made no step since
        return final
    shutil.rmtree(new, ignore_errors=True)
    save_sae(trainer.sae, new)
    tensors, numbers = trainer.state()
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, new / "trainer.safetensors")
    (new / "trainer.json").write_text(json.dumps({**numbers, "place": place, "source": source}))
    new.replace(final)
    return final


def drop_others(folder: Path, checkpoint: Path) -> None:
    """Delete all checkpoints of a run but one."""
    for other in (folder / "checkpoints").glob("step_*"):
        if other != checkpoint:
            shutil.rmtree(other, ignore_errors=True)


def common_checkpoint(folders: Sequence[Path]) -> int | None:
    """The newest step of which every one of some runs has a checkpoint; None where there is none."""
    steps = [{int(path.name[5:]) for path in (folder / "checkpoints").glob("step_*")} for folder in folders]
    return max(set.intersection(*steps), default=None) if steps else None


def checkpoint_of(folder: Path | None, step: int | None) -> Path | None:
    """Where a run's checkpoint of a step is."""
    return folder / "checkpoints" / _name(step) if folder is not None and step is not None else None


def _name(step: int) -> str:
    return f"step_{step:08d}"


def read_checkpoint(checkpoint: Path, sae: SAE, trainer: Trainer, source: ActivationSource) -> Place:
    """Put SAE, trainer and source back where they were; returns the place in the source.

    Raises:
        FileError: the checkpoint is damaged or of another SAE.
    """
    saved = load_sae(checkpoint, sae.W_enc.device)
    there, here = _description(saved), _description(sae)
    if there != here:
        raise FileError(f"{checkpoint} is of another SAE, {there}, than this, {here}: choose another run folder")
    sae.load_state_dict(saved.state_dict())
    sae.transform.fitted = saved.transform.fitted
    tensors = read_safetensors(checkpoint / "trainer.safetensors", sae.W_enc.device)
    try:
        numbers = json.loads((checkpoint / "trainer.json").read_text())
        place = Place(*numbers.pop("place"))
        source.load_state(numbers.pop("source", {}))
        trainer.load_state(tensors, numbers)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise FileError(f"{checkpoint} is damaged ({error!r}): delete it to begin the run again") from error
    return place


def _description(sae: SAE) -> str:
    return f"{sae.architecture}({sae.extra_repr()}, transform={sae.transform.kind}, {sae.W_enc.dtype})"
