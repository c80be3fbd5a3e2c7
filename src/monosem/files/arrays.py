"""Arrays: .npy, .npz, IDX and safetensors. What they declare is compared with the file before memory is taken."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monosem.files.archives import opened, room, too_much
from monosem.files.checked import RESTORE, reading, regular_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
BFLOAT16 = np.dtype("V2")
"""How numpy writes the type bfloat16, which it does not have."""


def read_array(path: str | Path, remedy: str = RESTORE) -> np.ndarray:
    """The array in a .npy file, memory-mapped. Numbers of bfloat16 are read into memory as float32.

    Raises:
        FileError: the file is missing or damaged, or holds something else than numbers.
    """
    path = regular_file(path, remedy=remedy)
    with reading(path, remedy), path.open("rb") as file:
        shape, fortran, kind = _header(file)
        if math.prod(shape) * kind.itemsize != path.stat().st_size - file.tell():
            raise ValueError(
                f"its shape {shape} takes {math.prod(shape) * kind.itemsize:,} bytes, there are "
                f"{path.stat().st_size - file.tell():,}"
            )
        if not math.prod(shape):
            return np.zeros(shape, kind)
        array = np.memmap(path, kind, "r", file.tell(), shape, "F" if fortran else "C")
        return from_bfloat16(array) if kind == BFLOAT16 else array


def require_whole(array: object) -> None:
    """See, before a memory-mapped array is read, that its file has not become shorter: that would end the process.

    Raises:
        FileError: it has, or is gone.
    """
    if not isinstance(array, np.memmap) or array.filename is None:
        return
    path, wanted = Path(array.filename), array.offset + array.nbytes
    with reading(path):
        size = path.stat().st_size
        if size < wanted:
            raise ValueError(f"it has been cut to {size:,} of {wanted:,} bytes while it was in use")


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of a .npy file; its place is then that of the first number."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it is of version {version} of the format: write it with plain names")
    shape, fortran, kind = read(file)
    if any(not isinstance(size, int) or isinstance(size, bool) or size < 0 for size in shape):
        raise ValueError(f"{shape} is no shape")
    if kind.names:
        raise ValueError(f"it has fields ({', '.join(kind.names)}), not plain numbers: save one field alone")
    if kind.kind not in "biufcUS" and kind != BFLOAT16:
        raise ValueError(f"it holds {kind}, not numbers: nothing but numbers is read, and nothing executed")
    return shape, fortran, kind


def from_bfloat16(array: np.ndarray) -> np.ndarray:
    """Two bytes each as float32: the upper half of its bits."""
    return (np.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def read_arrays(path: str | Path, remedy: str = RESTORE) -> dict[str, np.ndarray]:
    """The arrays in a .npz file, by name.

    Raises:
        FileError: the file is missing or damaged, unpacks to more than a file of its size should, or holds something
            else than arrays of numbers or words.
    """
    return {name: npz_member(path, name, remedy) for name in npz_shapes(path, remedy)}


def npz_shapes(path: str | Path, remedy: str = RESTORE) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shapes of the arrays in a .npz file and numpy's names of their types; nothing else of it is read.

    Raises:
        FileError: as `read_arrays`.
    """
    path = regular_file(path, remedy=remedy)
    with reading(path, remedy), zipfile.ZipFile(path) as archive:
        left, found = room(path), dict[str, tuple[tuple[int, ...], str]]()
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            with archive.open(member) as file:
                shape, _, kind = _header(file)
            left -= math.prod(shape) * kind.itemsize
            if left < 0:
                raise too_much(path)
            found[member.filename.removesuffix(".npy")] = shape, kind.str
        return found


def npz_places(path: str | Path, remedy: str = RESTORE) -> dict[str, int]:
    """Where in a .npz file the numbers of its arrays begin: of those that are not packed, row after row.

    Raises:
        FileError: as `read_arrays`.
    """
    path = regular_file(path, remedy=remedy)
    found, size = dict[str, int](), path.stat().st_size
    with reading(path, remedy), zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or not member.filename.endswith(".npy"):
                continue
            file.seek(member.header_offset)
            head = file.read(30)  # whose last two numbers are the lengths of a name and of what follows it
            begin = member.header_offset + 30 + sum(int.from_bytes(head[at : at + 2], "little") for at in (26, 28))
            file.seek(begin)
            shape, fortran, kind = _header(file)
            whole = math.prod(shape) * kind.itemsize == member.file_size - (file.tell() - begin)
            if head[:4] == b"PK\x03\x04" and not fortran and whole and begin + member.file_size <= size:
                found[member.filename.removesuffix(".npy")] = file.tell()
    return found


def npz_member(path: str | Path, name: str, remedy: str = RESTORE) -> np.ndarray:
    """One array of a .npz file.

    Raises:
        FileError: as `read_arrays`, or there is none of this name.
    """
    path = regular_file(path, remedy=remedy)
    with reading(path, remedy), zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        shape, fortran, kind = _header(file)
        size = math.prod(shape) * kind.itemsize
        if size > room(path):
            raise too_much(path)
        content = file.read(size)
        if len(content) != size:
            raise ValueError(f"{name}.npy ends after {len(content):,} of {size:,} bytes")
        file.read(1)  # which checks the sum
        array = np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")
        return from_bfloat16(array) if kind == BFLOAT16 else array


def read_idx(path: str | Path, remedy: str = RESTORE) -> np.ndarray:
    """An array in the format of MNIST, also .gz: two zeros, a type, the number of dimensions, these, the numbers.

    Raises:
        FileError: the file is missing or damaged, or unpacks to more than a file of its size should.
    """
    with opened(path, remedy) as file:
        start = file.read(4)
        if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in IDX_TYPES:
            raise ValueError("it does not begin as an IDX file")
        kind, shape = np.dtype(IDX_TYPES[start[2]]), np.frombuffer(file.read(4 * start[3]), ">u4").tolist()
        size = math.prod(shape) * kind.itemsize
        if len(shape) != start[3] or size > (room(path) if Path(path).suffix == ".gz" else Path(path).stat().st_size):
            raise ValueError(f"its shape {tuple(shape)} takes more than there is")
        content = file.read(size)
        if len(content) != size or file.read(1):
            raise ValueError(f"its shape {tuple(shape)} takes {size:,} bytes, and there are not so many")
        return np.frombuffer(content, kind).reshape(shape)


def read_safetensors(
    path: str | Path, device: torch.device | str | None = None, remedy: str = RESTORE
) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        FileError: the file is missing or damaged.
    """
    from safetensors.torch import load_file

    path = regular_file(path, remedy=remedy)
    with reading(path, remedy):
        return load_file(path, device=str(device or "cpu"))


def safetensors_shapes(path: str | Path, remedy: str = RESTORE) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a file; nothing else of it is read.

    Raises:
        FileError: the file is missing or damaged.
    """
    from safetensors import safe_open

    path = regular_file(path, remedy=remedy)
    with reading(path, remedy), safe_open(path, "numpy") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
