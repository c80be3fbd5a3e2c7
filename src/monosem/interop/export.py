"""export_sae: an SAE in the files of another library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from monosem.arguments import checked
from monosem.files import named_folder, replacing, write_json, write_safetensors, write_text
from monosem.interop.writers import circuit_tracer, dictionary_learning, gemma_scope, saelens, sparsify
from monosem.sae import SAE

Format = Literal["monosem", "saelens", "dictionary_learning", "sparsify", "gemma_scope", "circuit_tracer"]
WRITERS: dict[str, Callable[[SAE, bool], dict[str, Any]]] = {
    "saelens": saelens.files,
    "dictionary_learning": dictionary_learning.files,
    "sparsify": sparsify.files,
    "gemma_scope": gemma_scope.files,
    "circuit_tracer": circuit_tracer.files,
}
LOADS = {
    "monosem": "ms.load_sae({path!r})",
    "saelens": saelens.LOAD,
    "dictionary_learning": dictionary_learning.LOAD,
    "sparsify": sparsify.LOAD,
    "gemma_scope": gemma_scope.LOAD,
    "circuit_tracer": circuit_tracer.LOAD,
}
"""How each is read where it was meant for."""


@checked
def export_sae(sae: SAE, path: str | Path, to: Format = "saelens", *, fold: bool = False) -> Path:
    """Write an SAE as another library reads it, so that it gives the same codes and reconstructions there.

    BatchTopK, Matryoshka and ProLU become JumpReLU where the library has nothing else, with codes equal to the bit.
    What a format cannot hold exactly is refused before anything is written.

    Args:
        sae: left as it is.
        path: the folder, made if need be; files of the same names are replaced.
        to: the library, or "monosem" for our own format.
        fold: where the format has no place for them, move the input transform, and the b_dec that is subtracted from
            what is read, into the weights: codes are then the same up to rounding.

    Returns:
        The folder.

    Raises:
        ConfigError: the format cannot hold it; the message says why and what to do.
        FileError: the disk is full, or the folder cannot be written.
    """
    folder = named_folder(path)
    if to == "monosem":
        sae.save(folder)
        return folder
    for name, content in WRITERS[to](sae, fold).items():
        _write(folder / name, content)
    return folder


def _write(path: Path, content: Mapping[str, Any]) -> None:
    if path.suffix == ".safetensors":
        write_safetensors(path, content, {"format": "pt"})
    elif path.suffix == ".json":
        write_json(path, content, indent=2)
    elif path.suffix == ".yaml":
        import yaml

        write_text(path, yaml.safe_dump(dict(content), sort_keys=False))
    else:
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in content.items()}
        with replacing(path, sum(tensor.nbytes for tensor in whole.values())) as new, new.open("wb") as file:
            if path.suffix == ".npz":
                import numpy as np

                np.savez(file, **{name: _array(tensor) for name, tensor in whole.items()})
            else:
                torch.save(whole, file)


def _array(tensor: torch.Tensor) -> Any:
    """As numpy has it; bfloat16, which it has not, as float32."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
