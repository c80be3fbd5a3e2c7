"""Tensors that are too large for one file: several, and an index of which has what, as Hugging Face writes it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from monosem.errors import FileError
from monosem.files.checked import RESTORE
from monosem.files.plain import read_json
from monosem.files.tensors import Stored, stored_tensors
from monosem.files.written import write_json, write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 16 * 2**30
"""Bytes of tensors that one file holds; a single tensor may be larger."""


class _Index(BaseModel):
    weight_map: dict[str, str]
    """The file of each tensor."""


def write_sharded(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `NAME.safetensors`; or, above the limit, files beside it and `NAME.safetensors.index.json`.

    What was there before stays whole until all of the new is: the files have names of their own, and the index is
    written last.

    Raises:
        FileError: as `write_safetensors`.
    """
    groups, size = list[dict[str, "Tensor"]](), LIMIT + 1
    for name, tensor in tensors.items():
        if size + tensor.nbytes > LIMIT:
            groups, size = [*groups, {}], 0
        groups[-1][name] = tensor
        size += tensor.nbytes
    index, old = _index_of(path), _named_by(path)
    if len(groups) == 1:
        write_safetensors(path, tensors)
        index.unlink(missing_ok=True)
        new = set[Path]()
    else:
        stem = f"{path.stem}-{secrets.token_hex(4)}"
        names = [f"{stem}-{i + 1:05d}-of-{len(groups):05d}{path.suffix}" for i in range(len(groups))]
        for name, group in zip(names, groups, strict=True):
            write_safetensors(path.with_name(name), group)
        which = {key: name for name, group in zip(names, groups, strict=True) for key in group}
        total = sum(tensor.nbytes for tensor in tensors.values())
        write_json(index, {"metadata": {"total_size": total}, "weight_map": which}, indent=1)
        path.unlink(missing_ok=True)
        new = {path.with_name(name) for name in names}
    for file in old - new:
        file.unlink(missing_ok=True)


def sharded_tensors(path: Path, remedy: str = RESTORE) -> dict[str, Stored]:
    """The tensors that `write_sharded` has written, each of which is read when it is wanted.

    Raises:
        FileError: a file is missing or damaged, or the index does not fit the files.
    """
    which = _files(path, remedy)
    if which is None:
        return stored_tensors(path, remedy)
    found = {name: tensor for file in dict.fromkeys(which.values()) for name, tensor in stored_tensors(file).items()}
    if found.keys() != which.keys():
        wrong = sorted(found.keys() ^ which.keys())
        raise FileError(f"{_index_of(path)} and the files that it names do not fit ({', '.join(wrong[:5])}): {remedy}")
    return found


def file_with(path: Path, name: str, remedy: str = RESTORE) -> Path:
    """The file that has a tensor; that of all of them where there is but one."""
    return (_files(path, remedy) or {}).get(name, path)


def _files(path: Path, remedy: str) -> dict[str, Path] | None:
    """The file of each tensor; None where one file has all."""
    index = _index_of(path)
    if not index.is_file():
        return None
    which = read_json(index, _Index, remedy=remedy).weight_map
    strange = next((file for file in which.values() if Path(file).name != file), None)
    if strange is not None or not which:
        raise FileError(f"{index} names {strange or 'nothing'}, and not files beside it: {remedy}")
    return {name: path.with_name(file) for name, file in which.items()}


def _index_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.index.json")


def _named_by(path: Path) -> set[Path]:
    """The files of an earlier index, if it can be read."""
    try:
        return set((_files(path, RESTORE) or {}).values())
    except FileError:
        return set()
