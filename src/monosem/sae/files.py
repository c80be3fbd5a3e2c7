"""The native format: a folder with `cfg.json` and `sae.safetensors`. Nothing in it is ever executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import (
    load_file,  # pyright: ignore[reportUnknownVariableType]
    save_file,  # pyright: ignore[reportUnknownVariableType]
)
from torch import Tensor

from monosem.errors import ConfigError, FileError
from monosem.sae.base import SAE
from monosem.sae.metadata import SAEMetadata

FORMAT_VERSION = 1
PROBE = "probe."


def save_sae(sae: SAE, path: str | Path) -> None:
    """Write an SAE into a folder, made if need be. Each file appears whole or not at all."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format": "monosem",
        "format_version": FORMAT_VERSION,
        "architecture": sae.architecture,
        "d_in": sae.d_in,
        "n_latents": sae.n_latents,
        "d_out": None if sae.subtract_b_dec else sae.d_out,
        "dtype": str(sae.W_enc.dtype).removeprefix("torch."),
        "settings": sae.settings,
        "transform": {"kind": sae.transform.kind, "fitted": sae.transform.fitted},
        "metadata": sae.metadata.model_dump(exclude_none=True),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}
    if sae.one_matrix:
        tensors["W_enc"] = tensors["W_dec"].clone()  # the file format has no tensors that share memory
    tensors |= {PROBE + name: tensor.cpu().contiguous() for name, tensor in sae.probe.items()}
    new_weights, new_config = folder / ".sae.safetensors.new", folder / ".cfg.json.new"
    save_file(tensors, new_weights)
    new_config.write_text(json.dumps(config, indent=2) + "\n")
    new_weights.replace(folder / "sae.safetensors")
    new_config.replace(folder / "cfg.json")


def load_sae(path: str | Path, device: torch.device | str | None = None) -> SAE:
    """Read an SAE from its folder, or from a run folder that has one.

    Raises:
        FileError: the folder or a file is missing, damaged, or of another format.
    """
    folder = find_sae(path)
    config = _read_config(folder / "cfg.json")
    tensors = read_safetensors(folder / "sae.safetensors", device)
    try:
        architecture = SAE.registry[config["architecture"]]
        sae = architecture(
            config["d_in"],
            config["n_latents"],
            **config["settings"],
            d_out=config.get("d_out"),
            transform=config["transform"]["kind"],
            dtype=getattr(torch, config["dtype"]),
            device=device,
        )
        sae.transform.fitted = sae.target_transform.fitted = config["transform"]["fitted"]
        sae.metadata = SAEMetadata(**config["metadata"])
    except KeyError as error:
        known = ", ".join(sorted(SAE.registry))
        raise FileError(f"{folder / 'cfg.json'}: missing or unknown {error} (architectures known: {known})") from error
    except (ConfigError, ValidationError, TypeError, AttributeError, RuntimeError) as error:
        raise FileError(f"{folder / 'cfg.json'} does not describe an SAE of this version: {error}") from error
    sae.probe = {name.removeprefix(PROBE): t for name, t in tensors.items() if name.startswith(PROBE)}
    parameters = {name: t for name, t in tensors.items() if not name.startswith(PROBE)}
    _check_shapes(folder / "sae.safetensors", sae, parameters)
    sae.load_state_dict(parameters)
    return sae


def find_sae(path: str | Path) -> Path:
    """The folder that holds the SAE: the one given, or its subfolder `sae/`."""
    folder = Path(path)
    if folder.name in ("cfg.json", "sae.safetensors"):
        folder = folder.parent
    for candidate in (folder, folder / "sae"):
        if (candidate / "cfg.json").is_file():
            return candidate
    what = "holds no SAE (no cfg.json, no sae/cfg.json)" if folder.exists() else "does not exist"
    raise FileError(f"{folder} {what}: give the folder that `sae.save` or a run has written")


def read_safetensors(path: Path, device: torch.device | str | None = None) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        FileError: the file is missing or damaged.
    """
    if not path.is_file():
        raise FileError(f"{path} is missing")
    try:
        return load_file(path, device=str(device or "cpu"))
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path} is damaged or not a safetensors file ({error}): restore or write it anew") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise FileError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != "monosem":  # pyright: ignore[reportUnknownMemberType]
        raise FileError(f'{path} is not a monosem SAE (no "format": "monosem")')
    version = config.get("format_version")  # pyright: ignore
    if not isinstance(version, int):
        raise FileError(f"{path} has no format_version: restore or write it anew")
    if version > FORMAT_VERSION:
        raise FileError(f"{path} was written by a newer monosem (format {version}): upgrade monosem")
    return config  # pyright: ignore[reportUnknownVariableType]


def _check_shapes(path: Path, sae: SAE, tensors: dict[str, Tensor]) -> None:
    expected = {name: tuple(t.shape) for name, t in sae.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            want, have = expected.get(name, "nothing"), found.get(name, "nothing")
            raise FileError(f"{path} does not fit its cfg.json: {name} should be {want}, the file has {have}")


SAE.writer, SAE.reader = save_sae, load_sae
