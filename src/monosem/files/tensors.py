"""Tensors that stand in files, of which each is read when it is wanted: as it is, or turned, and never all at once."""

from __future__ import annotations

import json
import math
import mmap
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monosem.errors import FileError
from monosem.files.archives import too_much
from monosem.files.arrays import npz_member, npz_places, npz_shapes, safetensors_shapes
from monosem.files.checked import MIB, RESTORE, reading, regular_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BLOCK = 4 * MIB  # bytes that are read or turned at a time
READERS = min(4, os.cpu_count() or 1)  # threads that read one tensor
ALIGNED = 64  # bytes, as PyTorch's own
MOST_PICKLE = 4 * MIB  # of what describes the tensors of a .pt file
SAFETENSORS_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, or the transpose of one; nothing of it is in memory."""

    name: str
    """Its name and its file's, for errors."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: Callable[[int, int], Tensor]
    """Some of its rows as they stand in the file (of a single number, that one); what is returned may be a view."""
    straight: Callable[[Tensor], None] | None = None
    """Reads all of it, as it stands, into a tensor of its shape and type without gaps."""
    turned: bool = False
    mapped: Callable[[], Tensor] | None = None
    """All of it as it stands, in memory only where it is touched; its file must stay whole while it is in use."""
    anywhere: bool = False
    """Whether its rows may be asked for in any order and by several threads."""

    @property
    def T(self) -> Stored:  # noqa: N802
        """The transpose of a matrix."""
        return replace(self, shape=self.shape[::-1], turned=not self.turned)

    def copy_to(self, out: Tensor) -> None:
        """Copy all of it into a tensor of its shape, a block of rows at a time.

        Raises:
            FileError: the file is damaged.
        """
        if not self.shape:
            out.copy_(self.rows(0, 1).reshape(()))
            return
        same = out.dtype == self.dtype and out.device.type == "cpu" and out.is_contiguous() and not self.turned
        if same and self.straight is not None:
            self.straight(out)
            return
        place = out.T if self.turned else out
        row_bytes = max(1, math.prod(place.shape[1:])) * self.dtype.itemsize
        step = max(1, BLOCK // row_bytes)

        def copy(first: int) -> None:
            last = min(place.shape[0], first + step)
            place[first:last].copy_(self.rows(first, last))

        _by_threads(copy, range(0, place.shape[0], step), READERS if self.anywhere else 1)

    def read(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
        """A copy of all of it.

        Raises:
            FileError: the file is damaged.
        """
        import torch

        kind = dtype or self.dtype
        at_home = torch.device(device or torch.get_default_device()).type == "cpu"
        out = _room(self.shape, kind) if at_home else torch.empty(self.shape, dtype=kind, device=device)
        self.copy_to(out)
        return out

    def number(self) -> float:
        """The one number that it is.

        Raises:
            FileError: there are several, or the file is damaged.
        """
        if math.prod(self.shape) != 1:
            raise FileError(f"{self.name} should be one number and is of shape {self.shape}: {RESTORE}")
        return self.read().reshape(()).item()


@dataclass(frozen=True)
class Stacked(Stored):
    """Tensors of one width, the rows of each below those of the one before."""

    parts: tuple[Stored, ...] = ()

    @staticmethod
    def of(parts: Sequence[Stored]) -> Stacked:
        """All of them as one."""
        first, rows = parts[0], sum(part.shape[0] for part in parts)
        return Stacked(first.name, (rows, *first.shape[1:]), first.dtype, first.rows, parts=tuple(parts))

    def copy_to(self, out: Tensor) -> None:
        place = 0
        for part in self.parts:
            wanted = out[place : place + part.shape[0]]
            if tuple(wanted.shape) != part.shape:
                raise FileError(f"{part.name} is of shape {part.shape}, unlike the layers before it: {RESTORE}")
            part.copy_to(wanted)
            place += part.shape[0]


def _room(shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
    """An empty tensor in memory of large pages, which NumPy asks for and PyTorch does not: half the time to fill it."""
    import numpy as np
    import torch

    size = math.prod(shape) * kind.itemsize
    content = np.empty(size + ALIGNED, np.uint8)
    start = -content.ctypes.data % ALIGNED
    return torch.from_numpy(content[start : start + size]).view(kind).view(shape)


def _by_threads(work: Callable[[int], None], places: Sequence[int], threads: int) -> None:
    if min(threads, len(places)) <= 1:
        for place in places:
            work(place)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, places):
            pass


def stored_tensors(path: str | Path, remedy: str = RESTORE) -> dict[str, Stored]:
    """The tensors of a .safetensors, .npz or PyTorch file, by name; what they declare is compared with the file first.

    Of a PyTorch file the tensors in dicts are found, under names with dots; nothing in it is executed. What else such a
    file says is told by `plain_values`.

    Raises:
        FileError: the file is missing or damaged, holds something that would have to be executed, or unpacks to more
            than a file of its size should.
    """
    path = regular_file(path, remedy=remedy)
    if path.suffix == ".safetensors":
        return _safetensors(path, remedy)
    if path.suffix == ".npz":
        return _npz(path, remedy)
    content = _torch_file(path, remedy)
    return {name: _loaded(path, name, value) for name, value in _leaves(content) if _is_tensor(value)}


def plain_values(path: str | Path, remedy: str = RESTORE) -> dict[str, Any]:
    """What a PyTorch file says beside its tensors: numbers and words, under names with dots.

    Raises:
        FileError: as `stored_tensors`.
    """
    content = _torch_file(regular_file(path, remedy=remedy), remedy)
    return {name: value for name, value in _leaves(content) if isinstance(value, bool | int | float | str)}


def _safetensors(path: Path, remedy: str) -> dict[str, Stored]:
    shapes = safetensors_shapes(path, remedy)  # which checks the header and what it says of the file
    with reading(path, remedy), path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    found = dict[str, Stored]()
    with reading(path, remedy):
        for name, shape in shapes.items():
            kind = _dtype(SAFETENSORS_TYPES[header[name]["dtype"]])
            place = _Place(path, 8 + size + header[name]["data_offsets"][0], shape, kind, remedy)
            found[name] = Stored(
                f"{name} in {path}", shape, kind, place.rows, place.straight, mapped=place.mapped, anywhere=True
            )
    return found


@dataclass(frozen=True)
class _Place:
    """Where a tensor stands in a file, row after row."""

    path: Path
    start: int
    shape: tuple[int, ...]
    kind: torch.dtype
    remedy: str

    def rows(self, first: int, last: int) -> Tensor:
        import torch

        out = torch.empty((last - first, *self.shape[1:]), dtype=self.kind)
        self._read(out, first * math.prod(self.shape[1:]))
        return out

    def straight(self, out: Tensor) -> None:
        self._read(out, 0)

    def mapped(self) -> Tensor:
        import numpy as np
        import torch

        size = math.prod(self.shape) * self.kind.itemsize
        with reading(self.path, self.remedy):
            content = np.memmap(self.path, np.uint8, "c", self.start, (size,))
            content._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]
        return torch.from_numpy(content).view(self.kind).view(self.shape)

    def _read(self, out: Tensor, skipped: int) -> None:
        import torch

        content = memoryview(out.detach().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        start = self.start + skipped * self.kind.itemsize

        def part(first: int) -> None:
            wanted = content[first : first + BLOCK]
            with reading(self.path, self.remedy), self.path.open("rb", buffering=0) as file:
                file.seek(start + first)
                while len(wanted):
                    n = file.readinto(wanted)
                    if not n:
                        raise ValueError("it has been cut while it was in use")
                    wanted = wanted[n:]

        _by_threads(part, range(0, len(content), BLOCK), READERS)


def _npz(path: Path, remedy: str) -> dict[str, Stored]:
    import torch

    def stored(name: str, shape: tuple[int, ...], kind: torch.dtype) -> Stored:
        kept: list[Tensor] = []  # while its blocks are read one after another

        def rows(first: int, last: int) -> Tensor:
            if not kept:
                kept.append(torch.from_numpy(npz_member(path, name, remedy).copy()))
            part = kept[0][first:last] if shape else kept[0]
            if not shape or last == shape[0]:
                kept.clear()
            return part

        return Stored(f"{name} in {path}", shape, kind, rows)

    known, places = npz_shapes(path, remedy), npz_places(path, remedy)
    numbers = {name: about for name, about in known.items() if about[1] in _numpy_types()}
    found = {name: stored(name, shape, _dtype(_numpy_types()[kind])) for name, (shape, kind) in numbers.items()}
    for name in places.keys() & found.keys():
        if numbers[name][1] != "|V2":  # bfloat16, which is not read as it stands
            place = _Place(path, places[name], found[name].shape, found[name].dtype, remedy)
            found[name] = replace(found[name], rows=place.rows, straight=place.straight, anywhere=True)
    return found


def _numpy_types() -> dict[str, str]:
    return {"<f8": "float64", "<f4": "float32", "<f2": "float16", "|V2": "float32", "<i8": "int64", "<i4": "int32"}


def _dtype(name: str) -> torch.dtype:
    import torch

    return getattr(torch, name)


def _torch_file(path: Path, remedy: str) -> Any:
    """What a file of `torch.save` holds, its tensors mapped into memory; classes and calls in it are refused."""
    import torch

    with reading(path, remedy, pickle.UnpicklingError, *_torch_errors()):
        packed = zipfile.is_zipfile(path)
        if packed:
            _check_archive(path)
        with _plainly_refused(path), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PyTorch has to say of how the file was written
            return torch.load(path, map_location="cpu", weights_only=True, mmap=packed)


def _torch_errors() -> tuple[type[Exception], ...]:
    return (AssertionError, ImportError)


def _check_archive(path: Path) -> None:
    """PyTorch packs nothing: what is packed is another's, and may be a bomb."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise too_much(path)
            if member.filename.endswith(".pkl") and member.file_size > MOST_PICKLE:
                raise ValueError(f"{member.filename} has {member.file_size / MIB:,.0f} MiB, too much for names")


@contextmanager
def _plainly_refused(path: Path) -> Iterator[None]:
    """PyTorch's page of advice on how to execute what a file holds, in one line."""
    try:
        yield
    except pickle.UnpicklingError as error:
        words = str(error)
        found = re.search(r"GLOBAL (\S+)", words)
        if found is None and "Unsupported" not in words and "REDUCE" not in words:
            raise
        what = found[1] if found else "more than tensors, numbers and words"
        raise FileError(
            f"{path} holds {what}, which would have to be executed: nothing of it was. If you trust "
            "where it comes from: torch.save(torch.load(path, weights_only=False)['...'].state_dict(), 'plain.pt')"
        ) from error


def _leaves(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The values in nested dicts, under names with dots."""
    if depth > 8:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key), depth + 1)
    elif name:
        yield name, value


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and not value.is_sparse and value.layout is torch.strided


def _loaded(path: Path, name: str, tensor: Tensor) -> Stored:
    if tensor.numel() * tensor.element_size() > max(path.stat().st_size, 0):
        raise FileError(
            f"{path} cannot be read ({name} of shape {tuple(tensor.shape)} takes more than the file has): {RESTORE}"
        )
    tensor = tensor.detach()
    rows: Callable[[int, int], Tensor] = lambda a, b: tensor[a:b] if tensor.ndim else tensor  # noqa: E731
    return Stored(f"{name} in {path}", tuple(tensor.shape), tensor.dtype, rows, anywhere=True)
