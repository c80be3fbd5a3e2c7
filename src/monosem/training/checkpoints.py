"""Checkpoints: whole or absent, and without pickle. The newest is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file

from monosem.activations import Place
from monosem.errors import FileError
from monosem.sae import SAE, load_sae, save_sae
from monosem.sae.files import read_safetensors
from monosem.training.trainer import Trainer


def write_checkpoint(folder: Path, trainer: Trainer, place: Place) -> Path:
    """Write `checkpoints/step_N` into a run folder and drop the older ones."""
    checkpoints = folder / "checkpoints"
    new, final = checkpoints / ".new", checkpoints / f"step_{trainer.steps:08d}"
    if final.exists():  # the run went on from it, and has made no step since
        return final
    shutil.rmtree(new, ignore_errors=True)
    save_sae(trainer.sae, new)
    tensors, numbers = trainer.state()
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, new / "trainer.safetensors")
    (new / "trainer.json").write_text(json.dumps({**numbers, "place": place}))
    new.replace(final)
    for older in checkpoints.glob("step_*"):
        if older != final:
            shutil.rmtree(older, ignore_errors=True)
    return final


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to go on from, if there is one."""
    found = sorted((folder / "checkpoints").glob("step_*"))
    return found[-1] if found else None


def read_checkpoint(checkpoint: Path, sae: SAE, trainer: Trainer) -> Place:
    """Put SAE and trainer back where they were; returns the place in the source.

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
        trainer.load_state(tensors, numbers)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise FileError(f"{checkpoint} is damaged ({error!r}): delete it to begin the run again") from error
    return place


def _description(sae: SAE) -> str:
    return f"{sae.architecture}({sae.extra_repr()}, transform={sae.transform.kind}, {sae.W_enc.dtype})"
