"""Activations that are there already: tensors, arrays, files, iterables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import TensorDataset

from monosem.activations.content import rows_hash
from monosem.activations.live import LiveActivations
from monosem.activations.planted import Generator, PlantedActivations
from monosem.activations.remote import Remote, place_of
from monosem.activations.shards import INDEX
from monosem.activations.source import ActivationSource
from monosem.activations.stored import StoredActivations
from monosem.arguments import NotNegative, checked
from monosem.data.documents import Text
from monosem.errors import ConfigError, DataError, FileError
from monosem.files import from_bfloat16, one_line, open_parquet, parse_json, read_array, read_safetensors, require_whole
from monosem.models import ModelSet, SubjectModel
from monosem.sae import SAEMetadata
from monosem.synthetic import is_world

POOL_ROWS = 131_072
ITERABLE_ROWS = 4096
CONVERT = "convert them first"
END = object()
"""Of an iterable: whatever it gives is a batch."""


class VectorActivations(ActivationSource):
    """Rows of a tensor or array (also memory-mapped), in another random order every epoch, for ever."""

    def __init__(self, x: Tensor | np.ndarray, seed: NotNegative = 0, name: str | None = None) -> None:
        """Rows to train on.

        Args:
            x: (rows, d_in).
            seed: of the order.
            name: what an SAE remembers of them; their shape if not given.

        Raises:
            DataError: another shape, or no rows.
        """
        x = real_numbers(x, name or f"rows given as {type(x).__name__}")
        self.name = name or f"rows given as {type(x).__name__} of shape {tuple(x.shape)}"
        if x.ndim != 2 or not len(x) or not x.shape[1]:
            raise DataError(
                f"{self.name}: activations must have the shape (rows, d_in), at least one of each, got {tuple(x.shape)}"
            )
        self.x, self.seed, self.d_in = x, seed, x.shape[1]
        self.n_rows = len(x)
        self._pools_an_epoch = -(-len(x) // POOL_ROWS)

    @property
    def metadata(self) -> SAEMetadata:
        return SAEMetadata(vectors=self.name)

    def identity(self) -> dict[str, Any]:
        return {"data": rows_hash(self.x), "seed": self.seed}

    def make_pool(self, number: int) -> Float[Tensor, "rows d_in"]:
        require_whole(self.x)
        epoch, part = divmod(number, self._pools_an_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.x))
        chosen = order[part * POOL_ROWS : (part + 1) * POOL_ROWS]
        if isinstance(self.x, Tensor):
            rows = self.x[torch.from_numpy(chosen).to(self.x.device)]
        else:
            rows = as_tensor(self.x[chosen])
        rows = rows.to(torch.float32 if rows.dtype != torch.float64 else torch.float64)
        return check_finite(rows, torch.from_numpy(chosen))


class IterableActivations(ActivationSource):
    """Batches from an iterable, in its order, once. Cannot be resumed."""

    def __init__(self, batches: Iterable[Tensor | np.ndarray]) -> None:
        self._iterator: Iterator[Any] = iter(batches)
        listed = isinstance(batches, list | tuple)
        self.n_rows = sum((*_rows_of(batch).shape, 0)[0] for batch in batches) if listed else None
        """How many rows there are; None where that is not known before."""
        self.d_in, self._number = 0, 0
        self._first: Tensor | None = self._read()
        if not len(self._first):
            raise DataError("the iterable of activations is empty")
        self._probe = self._first[:256].clone()

    def _read(self) -> Tensor:
        """The next batches, of ITERABLE_ROWS rows together if there are so many."""
        parts: list[Tensor] = []
        while sum(map(len, parts)) < ITERABLE_ROWS and (batch := next(self._iterator, END)) is not END:
            rows = as_tensor(_rows_of(batch))
            if rows.ndim != 2 or not rows.shape[1]:
                raise DataError(f"each batch must have the shape (rows, d_in), got {tuple(rows.shape)}")
            self.d_in = self.d_in or rows.shape[1]
            if rows.shape[1] != self.d_in:
                raise DataError(f"batches of one width are needed: the first has {self.d_in}, one {rows.shape[1]}")
            parts.append(check_finite(rows.to(torch.float32)))
        return torch.cat(parts) if parts else torch.zeros(0, self.d_in)

    def make_pool(self, number: int) -> Float[Tensor, "rows d_in"]:
        if number != self._number:
            raise ConfigError("activations from an iterable cannot be resumed: give an array or a file instead")
        self._number += 1
        rows, self._first = (self._first if self._first is not None else self._read()), None
        return rows

    def identity(self) -> dict[str, Any]:
        return {"first rows of an iterable": rows_hash(self._probe)}

    def probe(self) -> dict[str, Tensor]:
        return {"activations": self._probe}


def real_numbers(x: Tensor | np.ndarray, name: str) -> Tensor | np.ndarray:
    """The same, once it is known to hold real numbers; bfloat16, which numpy does not have, as float32.

    Raises:
        DataError: what else it holds.
    """
    if isinstance(x, Tensor):
        if x.dtype.is_complex or x.is_quantized or x.is_nested or x.is_meta or x.layout != torch.strided:
            kind = "nested" if x.is_nested else "meta" if x.is_meta else x.layout
            raise DataError(f"{name}: activations are dense real numbers, not {x.dtype} ({kind}): {CONVERT}")
        return x.detach()
    if isinstance(x, np.ma.MaskedArray):
        if np.ma.is_masked(x):
            raise DataError(f"{name}: {np.ma.count_masked(x):,} of the numbers are masked: drop or fill their rows")
        x = x.data
    if x.dtype.itemsize == 2 and x.dtype.kind == "V" and not x.dtype.names:
        return from_bfloat16(x)
    if x.dtype.kind not in "biuf":
        raise DataError(f"{name}: activations are real numbers, not {x.dtype}: {CONVERT}")
    return x


def as_tensor(x: Tensor | np.ndarray) -> Tensor:
    """Rows of an array, of a type that torch has."""
    if isinstance(x, Tensor):
        return x
    wide = x.dtype.kind == "f" and x.dtype.itemsize >= 8
    return torch.from_numpy(np.require(x, np.float64 if wide else np.float32, ["C", "W"]))


def _rows_of(batch: Any) -> Tensor | np.ndarray:
    return real_numbers(_one_array(batch), "a batch of activations")


def _one_array(batch: Any) -> Tensor | np.ndarray:
    """The activations of a batch, be they wrapped as a `DataLoader` does."""
    if isinstance(batch, Tensor | np.ndarray):
        return batch
    if hasattr(batch, "to_numpy"):
        return batch.to_numpy()
    parts = list(batch.values()) if isinstance(batch, Mapping) else batch
    if isinstance(parts, list | tuple) and parts and all(isinstance(part, Tensor | np.ndarray) for part in parts):
        if len(parts) != 1:
            raise DataError(f"a batch holds {len(parts)} arrays: give the activations alone")
        return parts[0]
    try:
        return np.asarray(batch)
    except ValueError as error:  # rows of several lengths
        raise DataError(f"a batch of activations must have the shape (rows, d_in): {one_line(error)}") from error


@checked
def activations(
    source: SubjectModel | ModelSet | ActivationSource | Generator | Tensor | np.ndarray | str | Path | Iterable[Any],
    hook: str | Sequence[str] | None = None,
    text: Text = "bundled",
    *,
    images: Any = None,
    **options: Any,
) -> ActivationSource:
    """A source of activations to train on.

    Args:
        source: a subject model, a `ModelSet` (several side by side, for a crosscoder), a tensor or array (rows, d_in),
            a `.npy`, `.safetensors` or `.parquet` file of one, the folder or address of a store
            (`store_activations`), or an iterable of batches, as a `DataLoader`; or a generator with known truth
            (`ms.SynthSAEBench`), or its name, "synthetic:small".
        hook: with a model or a store: name of a hook point, or of several that one pass serves (`select`, `pair` and
            `stack` of the source then give parts of it).
        text: with a language model: what it reads; "bundled", a file, a folder, "hub:owner/name", a list of strings or
            of conversations.
        images: with an image model: what it reads; a folder, an IDX or .npz file, an array.
        **options: with a model, those of `LiveActivations`; with a store, of `StoredActivations`; `seed` else.

    Raises:
        ConfigError: a model without a hook.
        FileError: the file is missing or cannot be read.
        DataError: there is nothing in it, or it has the wrong shape.
    """
    if isinstance(source, ActivationSource):
        return source
    if isinstance(source, SubjectModel | ModelSet):
        if hook is None:
            some = ", ".join(source.hook_points[:8])
            raise ConfigError(
                f"name the hook point to read: activations(model, 'resid_post.2'). There are: {some}, ..."
            )
        return LiveActivations(source, hook, text, images=images, **options)
    if images is not None:
        raise ConfigError("images are read by a model: activations(model, hook, images=...)")
    if isinstance(source, Generator) or (isinstance(source, str) and is_world(source)):
        return PlantedActivations(source, **options)
    if isinstance(source, str | Path) and is_store(source):
        return StoredActivations(source, hook, **options)
    if isinstance(source, str | Path):
        options.setdefault("name", str(source))
        source = read_vectors(Path(source))
    if isinstance(source, TensorDataset):
        source = _one_array(source.tensors)
    elif hasattr(source, "to_numpy"):  # a table of pandas
        source = _one_array(source)
    if isinstance(source, Tensor | np.ndarray):
        return VectorActivations(source, **options)
    if not isinstance(source, Iterable):
        raise DataError(f"activations come from a model, an array, a file or batches, not from {type(source).__name__}")
    return IterableActivations(source)


def is_store(path: str | Path) -> bool:
    """Whether a path is the folder of a store, or an address, which can be nothing else."""
    place = place_of(path)
    return isinstance(place, Remote) or (place / INDEX).is_file()


def read_vectors(path: Path) -> Tensor | np.ndarray:
    """The one array in a `.npy` (memory-mapped) or `.safetensors` file, or the vectors of a `.parquet` table.

    A table's vectors are its one column of lists of equal length, or, without one, all its columns of numbers.

    Raises:
        FileError: the file is missing, damaged, of another kind, or holds several arrays.
    """
    if path.suffix == ".parquet":
        return _read_table(path)
    if path.suffix == ".safetensors":
        tensors = read_safetensors(path)
        if len(tensors) != 1:
            raise FileError(f"{path} holds {len(tensors)} tensors ({', '.join(tensors)}): give a file with one")
        return next(iter(tensors.values()))
    if path.suffix != ".npy":
        raise FileError(f"{path} is no .npy, .safetensors or .parquet file: activations are read from those")
    return read_array(path)


def _read_table(path: Path) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    with open_parquet(path) as file:
        table = file.read()
        kinds = {field.name: field.type for field in table.schema if field.name not in _index_columns(table)}
        is_list = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        lists = [name for name, kind in kinds.items() if any(test(kind) for test in is_list)]
        numbers = [name for name, kind in kinds.items() if pa.types.is_floating(kind) or pa.types.is_integer(kind)]
        if len(lists) > 1 or not (lists or numbers):
            what = f"several columns of vectors ({', '.join(lists)})" if lists else "no column of vectors or numbers"
            raise FileError(f"{path} has {what}: give a file with one")
        if not lists:
            return np.stack([table.column(name).to_numpy() for name in numbers], axis=1)
        column = table.column(lists[0])
        lengths = pc.unique(pc.list_value_length(column)).to_pylist()  # pyright: ignore[reportAttributeAccessIssue]
        flat = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks])
        if len(lengths) != 1 or not lengths[0] or flat.dtype.kind not in "iuf":
            raise FileError(f"{path}: column {lists[0]!r} must hold lists of numbers, all of one length")
        return flat.reshape(len(column), -1)


def _index_columns(table: Any) -> set[str]:
    """The columns that number or name the rows: pandas' index, and one that a CSV file has kept of it."""
    about = (table.schema.metadata or {}).get(b"pandas")
    said = parse_json(about, "pandas' words on the table", dict[str, Any]).get("index_columns") if about else None
    index = {name for name in said or [] if isinstance(name, str)}
    counted = np.arange(len(table))
    for name in table.column_names:
        if re.fullmatch(r"|index|Unnamed: \d+|__index_level_\d+__", name):
            values = table.column(name).to_numpy()
            if name.startswith("__") or np.array_equal(values, counted):
                index.add(name)
    return index


def check_finite(rows: Tensor, numbers: Tensor | None = None) -> Tensor:
    """The rows, unless one has a NaN or an infinity. `numbers` are their places in the data, if those are others.

    Raises:
        DataError: naming the first bad row.
    """
    if not torch.isfinite(rows.sum()) and not torch.isfinite(rows).all():  # a sum is fast, and keeps what is not finite
        bad = (~torch.isfinite(rows).all(-1)).nonzero()[:, 0].cpu()
        first = (bad if numbers is None else numbers[bad]).min().item()
        raise DataError(f"{len(bad)} of {len(rows)} rows are not finite (the first: row {first}): drop or mend them")
    return rows
