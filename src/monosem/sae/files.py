"""The native format: a folder with `cfg.json` and `sae.safetensors`. Nothing in it is ever executed.

Above 16 GiB there are several files of tensors, and `sae.safetensors.index.json` says which has what.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, cast, get_type_hints

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from monosem.errors import ConfigError, FileError
from monosem.files import fits, named_folder, read_json, sharded_tensors, write_json, write_sharded
from monosem.sae.base import SAE
from monosem.sae.blank import blank, fill
from monosem.sae.metadata import SAEMetadata
from monosem.spelling import meant, path_meant

FORMAT_VERSION = 1
PROBE = "probe."

Shapes = dict[str, tuple[int, ...]]


class _Transform(BaseModel):
    model_config = ConfigDict(strict=True)

    kind: str
    fitted: bool


class _Config(BaseModel):
    """What cfg.json says."""

    model_config = ConfigDict(strict=True)

    architecture: str
    d_in: int = Field(ge=1)
    n_latents: int = Field(ge=1)
    d_out: int | None = Field(default=None, ge=1)
    subtract_b_dec: bool | None = None
    dtype: Literal["float16", "bfloat16", "float32", "float64"]
    settings: dict[str, Any]
    transform: _Transform
    metadata: SAEMetadata


def save_sae(sae: SAE, path: str | Path) -> None:
    """Write an SAE into a folder, made if need be. Each file appears whole or not at all.

    Raises:
        FileError: the disk is full, or the folder cannot be written.
    """
    folder = named_folder(path)
    config = {
        "format": "monosem",
        "format_version": FORMAT_VERSION,
        "architecture": sae.architecture,
        "d_in": sae.d_in,
        "n_latents": sae.n_latents,
        "d_out": None if sae.autoencodes else sae.d_out,
        "subtract_b_dec": sae.subtract_b_dec,
        "dtype": str(sae.W_enc.dtype).removeprefix("torch."),
        "settings": sae.settings,
        "transform": {"kind": sae.transform.kind, "fitted": sae.transform.fitted},
        "metadata": sae.metadata.model_dump(exclude_none=True),
    }
    tensors: dict[str, Tensor] = dict(sae.state_dict())
    if sae.one_matrix:
        tensors["W_enc"] = tensors["W_dec"].clone()  # the file format has no tensors that share memory
    tensors |= {PROBE + name: tensor for name, tensor in sae.probe.items()}
    write_sharded(folder / "sae.safetensors", tensors)
    write_json(folder / "cfg.json", config, indent=2)


def load_sae(path: str | Path, device: torch.device | str | None = None) -> SAE:
    """Read an SAE from its folder, or from a run folder that has one.

    Raises:
        FileError: the folder or a file is missing, damaged, or of another format, or its numbers are not finite.
    """
    folder = find_sae(path)
    config = _read_config(folder / "cfg.json")
    tensors = sharded_tensors(folder / "sae.safetensors")
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    rows, width = [*shapes.get("W_enc", ()), 0, 0][:2]
    if rows != config.n_latents or not width or width % config.d_in:  # sources stand side by side
        raise _misfit(folder, "W_enc", (config.n_latents, config.d_in), shapes)
    sae = _built(folder / "cfg.json", config, shapes, device)
    expected = {name: tuple(tensor.shape) for name, tensor in sae.state_dict().items()}
    parameters = {name: shape for name, shape in shapes.items() if not name.startswith(PROBE)}
    for name in sorted(expected.keys() | parameters.keys()):
        if expected.get(name) != parameters.get(name):
            raise _misfit(folder, name, expected.get(name), shapes)
    sae.probe = {name.removeprefix(PROBE): t.read(device=device) for name, t in tensors.items() if PROBE in name}
    fill(sae, {name: tensors[name] for name in parameters})
    bad = sae.not_finite()
    if bad:
        raise FileError(f"{folder / 'sae.safetensors'} is of no use, {bad}: restore it, or train the SAE anew")
    return sae


def _built(path: Path, config: _Config, shapes: Shapes, device: torch.device | str | None) -> SAE:
    """The SAE that a cfg.json describes, if it takes no more memory than the tensors beside it."""
    if config.architecture not in SAE.registry:
        known = ", ".join(sorted(SAE.registry))
        near = meant(config.architecture, SAE.registry)
        raise FileError(f"{path}: unknown architecture {config.architecture!r} (known: {known}): upgrade monosem{near}")
    kind = SAE.registry[config.architecture]
    for name, value in config.settings.items():
        if name not in kind.parameters_of():
            raise FileError(f"{path}: {config.architecture} has no setting {name!r}: upgrade monosem")
        fits(value, setting_type(kind, name), f"{path}: settings.{name}")
    try:
        sae = blank(
            kind,
            config.d_in,
            config.n_latents,
            path=path,
            numbers=sum(map(math.prod, shapes.values())),
            device=device,
            **config.settings,
            d_out=config.d_out,
            subtract_b_dec=config.subtract_b_dec,
            transform=cast(Any, config.transform.kind),
            dtype=getattr(torch, config.dtype),
        )
    except (ConfigError, TypeError, ValueError, RuntimeError) as error:
        raise FileError(f"{path} does not describe an SAE of this version: {error}") from error
    sae.transform.fitted = sae.target_transform.fitted = config.transform.fitted
    sae.metadata = config.metadata
    return sae


def setting_type(kind: type[SAE], name: str) -> Any:
    """The type that a constructor declares for one of its parameters; None where it has none of this name."""
    hints = [get_type_hints(base.__init__) for base in kind.__mro__ if issubclass(base, SAE)]
    return next((found[name] for found in hints if name in found), None)


def _misfit(folder: Path, name: str, expected: tuple[int, ...] | None, found: Shapes) -> FileError:
    want, have = expected or "nothing", found.get(name, "nothing")
    return FileError(
        f"{folder / 'sae.safetensors'} does not fit its cfg.json: {name} should be {want}, the file has {have}"
    )


def find_sae(path: str | Path) -> Path:
    """The folder that holds the SAE: the one given, or its subfolder `sae/`."""
    folder = Path(path)
    if folder.name in ("cfg.json", "sae.safetensors"):
        folder = folder.parent
    for candidate in (folder, folder / "sae"):
        if (candidate / "cfg.json").is_file():
            return candidate
    what = "holds no SAE (no cfg.json, no sae/cfg.json)" if folder.exists() else "does not exist"
    raise FileError(f"{folder} {what}: give the folder that `sae.save` or a run has written{path_meant(folder)}")


def _read_config(path: Path) -> _Config:
    config = read_json(path, dict[str, Any])
    if config.get("format") != "monosem":
        raise FileError(f'{path} is not a monosem SAE (no "format": "monosem")')
    version = config.get("format_version")
    if not isinstance(version, int):
        raise FileError(f"{path} has no format_version: restore or write it anew")
    if version > FORMAT_VERSION:
        raise FileError(f"{path} was written by a newer monosem (format {version}): upgrade monosem")
    return fits(config, _Config, path)


SAE.writer, SAE.reader = save_sae, load_sae
