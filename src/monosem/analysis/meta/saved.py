"""A meta-SAE in a folder: `sae/`, `weights.safetensors` and, written last, `meta.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monosem.codes import SparseCodes
from monosem.errors import FileError
from monosem.files import named_folder, read_json, read_safetensors, write_json, write_safetensors
from monosem.sae import SAE, load_sae

FILE, WEIGHTS, FOLDER = "meta.json", "weights.safetensors", "meta_sae"
REMEDY = "make it anew with ms.meta_sae(sae, path=...)"


class Kept(NamedTuple):
    """What is kept."""

    sae: SAE
    codes: SparseCodes
    similarity: Tensor
    controls: dict[str, Tensor]
    about: dict[str, Any]


def write(path: str | Path, kept: Kept) -> None:
    """Write it into a folder."""
    folder = named_folder(path)
    (folder / FILE).unlink(missing_ok=True)
    kept.sae.save(folder / "sae")
    tensors = {
        "values": kept.codes.values.detach(),
        "indices": kept.codes.indices,
        "offsets": kept.codes.offsets,
        "similarity": kept.similarity,
        **{f"control {name}": rows for name, rows in kept.controls.items()},
    }
    write_safetensors(folder / WEIGHTS, {name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    write_json(folder / FILE, kept.about, indent=1)


def read(path: str | Path) -> Kept:
    """Read it.

    Raises:
        FileError: a part is missing or damaged.
    """
    folder = Path(path)
    about = read_json(folder / FILE, dict[str, Any], remedy=REMEDY)
    sae, tensors = load_sae(folder / "sae"), read_safetensors(folder / WEIGHTS, remedy=REMEDY)
    kinds = {"values": torch.float32, "indices": torch.int32, "offsets": torch.int64, "similarity": torch.float32}
    sound = all(name in tensors and tensors[name].dtype == kind for name, kind in kinds.items())
    sound = sound and all(tensors[name].ndim == 1 for name in kinds) and _explains(about)
    if not sound or not _whole(tensors, sae.n_latents):
        raise FileError(f"{folder} is damaged: {REMEDY}")
    codes = SparseCodes(tensors["values"], tensors["indices"], tensors["offsets"], sae.n_latents)
    controls = {name.removeprefix("control "): rows for name, rows in tensors.items() if name.startswith("control ")}
    return Kept(sae, codes, tensors["similarity"], controls, about)


def _whole(tensors: dict[str, Tensor], n_latents: int) -> bool:
    """Whether these are sparse rows."""
    values, indices, offsets = (tensors[name] for name in ("values", "indices", "offsets"))
    return (
        len(values) == len(indices)
        and bool(values.isfinite().all())
        and len(offsets) == len(tensors["similarity"]) + 1
        and int(offsets[0]) == 0
        and int(offsets[-1]) == len(values)
        and bool((offsets.diff() >= 0).all())
        and (not len(indices) or 0 <= int(indices.min()) <= int(indices.max()) < n_latents)
    )


def _explains(about: dict[str, Any]) -> bool:
    explained, number = about.get("explained"), (int, float, type(None))
    return (
        isinstance(about.get("dictionary"), str)
        and isinstance(about.get("hook"), str | None)
        and isinstance(explained, dict)
        and all(
            isinstance(pair, list)
            and len(pair) == 2
            and all(isinstance(one, list) and len(one) == 3 and all(isinstance(n, number) for n in one) for one in pair)
            for pair in explained.values()
        )
    )
