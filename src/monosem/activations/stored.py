# pyright: basic, reportAttributeAccessIssue=false
"""Reading stored activations, here or at an address: any pool of them, in any epoch's order, in a pool's memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit
from torch import Tensor

from monosem.activations.order import shuffled
from monosem.activations.remote import Remote
from monosem.activations.shards import (
    AGAIN,
    CHUNK_BYTES,
    INDEX,
    PLACES,
    SIZES,
    Shards,
    StoreFolder,
    folder_of,
    shard_name,
)
from monosem.activations.views import HookSource
from monosem.errors import ConfigError, FileError
from monosem.files import as_json, read_safetensors
from monosem.hook_names import from_transformer_lens
from monosem.sae import SAEMetadata
from monosem.work import doing

ROWS_AT_ONCE = 4096
PROBE, PROBE_ROWS = "probe.safetensors", "rows"


class StoredActivations(HookSource):
    """What `store_activations` has written, shuffled anew in every epoch, for ever.

    A pool is a few whole shards, drawn at random, whose rows are mixed. Both orders are computed from seed, epoch and
    pool, so that memory holds one pool whatever the size of the store, and any pool can be made again. The sum of every
    shard is compared when it is first read. Shards at an address (s3://bucket/acts) are fetched into a folder of
    bounded size, those of the next pool while this one is worked on.
    """

    def __init__(
        self,
        path: str | Path,
        hooks: str | Sequence[str] | None = None,
        *,
        buffer_tokens: int = 131_072,
        seed: int = 0,
    ) -> None:
        """Open a store.

        Args:
            path: its folder, or its address: whatever fsspec takes, or "hub:owner/name/folder".
            hooks: which of its hook points to read; all if not given.
            buffer_tokens: rows in a pool, about; one shard at least.
            seed: of the order.

        Raises:
            FileError: there is none, it is not complete, a shard is missing or cut short, or it cannot be reached.
            ConfigError: it has no such hook point.
        """
        self.store, self.seed = StoreFolder(path), seed
        index = self.store.index
        if not index.complete or not self.store.rows:
            raise FileError(
                f"{self.store.path / INDEX}: {self.store.rows:,} of {index.tokens:,} tokens are stored so far: run the "
                "same `monosem store` (or ms.store_activations) again, which goes on from there"
            )
        self.n_models = index.n_models
        wanted = list(index.hooks) if hooks is None else [hooks] if isinstance(hooks, str) else list(hooks)
        self.widths = {name: index.hooks[name] for name in map(self.canonical, wanted)}
        self.hooks = tuple(self.widths)
        self.n_sources = self.n_models if len(self.hooks) == 1 else 1
        self.d_in = sum(self.widths.values()) // self.n_sources
        self._shards = [self.store.shards(folder_of(hook)) for hook in self.hooks]
        self._places = self.store.shards(PLACES)
        self._rows = self._places.rows
        self._a_pool = max(1, round(buffer_tokens / index.shard_rows))
        self._pools_an_epoch = -(-len(self._rows) // self._a_pool)
        self.n_rows = self._n_rows = int(self._rows.sum())
        with doing("looking at the store"):
            for shards in self._shards:
                shards.check()

    def __len__(self) -> int:
        """Rows in all."""
        return self._n_rows

    def canonical(self, hook: str) -> str:
        known = self.store.index.hooks
        for name in (hook, from_transformer_lens(hook)):
            if name in known:
                return name
        raise ConfigError(f"{self.store.path} has no {hook}; it has {', '.join(known)}")

    @property
    def metadata(self) -> SAEMetadata:
        known, several = self.store.index.metadata, len(self.hooks) > 1
        return known.model_copy(
            update={"hook": None if several else self.hooks[0], "hooks": list(self.hooks) if several else None}
        )

    @property
    def words(self) -> str:
        return str(self.store.path)

    def identity(self) -> dict[str, Any]:
        sums = [[window.rows, window.sums] for window in self.store.windows]
        digest = hashlib.sha256(as_json([self.store.index.identity, self.store.index.dtype, sums]).encode())
        return {
            "store": digest.hexdigest()[:16],
            "hooks": list(self.hooks),
            "targets": [],
            "stacked": self.n_models > 1,
            "buffer_tokens": self._a_pool * self.store.index.shard_rows,
            "seed": self.seed,
        }

    def split(self, rows: Float[Tensor, "batch columns"]) -> tuple[Tensor, None]:
        return (rows.unflatten(1, (self.n_sources, self.d_in)) if self.n_sources > 1 else rows), None

    def make_pool(self, number: int) -> Float[Tensor, "rows columns"]:
        """The rows of one pool.

        Raises:
            FileError: a shard is damaged, missing or cut short.
        """
        numbers, first, key = self._laid_out(number)
        if isinstance(self.store.path, Remote):
            self._fetch(self.store.path, numbers, self._drawn(number + 1))
        rows = np.empty((int(first[-1]), sum(self.widths.values())), np.float32)  # numpy asks for large pages
        column, tasks = 0, list[tuple[Shards, int, int, int]]()
        for shards, width in zip(self._shards, self.widths.values(), strict=True):
            tasks += [(shards, i, start, column) for i, start in zip(numbers.tolist(), first.tolist(), strict=False)]
            column += width

        def fill(task: tuple[Shards, int, int, int]) -> None:
            shards, i, start, column = task
            for part in shards.chunks(i, CHUNK_BYTES):
                _put(part, shards.dtype, shuffled(start, start + len(part), len(rows), *key), column, rows)
                start += len(part)

        with ThreadPoolExecutor(max(1, min(len(tasks), torch.get_num_threads()))) as threads:
            list(threads.map(fill, tasks))
        return torch.from_numpy(rows)

    def documents(self, number: int) -> Int[Tensor, " rows"]:
        numbers, first, key = self._laid_out(number)
        found = np.empty(int(first[-1]), np.int64)
        for i, start in zip(numbers.tolist(), first.tolist(), strict=False):
            documents = self.places_of(i)[:, 0]
            found[shuffled(start, start + len(documents), len(found), *key)] = documents
        return torch.from_numpy(found)

    def _laid_out(self, number: int) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
        """The numbers of the shards of a pool, from which row on each would stand unmixed, and the key of the order."""
        numbers = self._drawn(number)
        first = np.concatenate([[0], np.cumsum(self._rows[numbers])])
        return numbers, first, (self.seed, *divmod(number, self._pools_an_epoch), 1)

    def _drawn(self, number: int) -> np.ndarray:
        """The numbers of the shards of a pool."""
        epoch, pool = divmod(number, self._pools_an_epoch)
        last = min((pool + 1) * self._a_pool, len(self._rows))
        return shuffled(pool * self._a_pool, last, len(self._rows), self.seed, epoch)

    def _fetch(self, store: Remote, now: np.ndarray, following: np.ndarray) -> None:
        """Have the shards of a pool here, and those of the next one on their way."""
        wanted = [
            [(f"{folder_of(hook)}/{shard_name(i)}", shards[i].whole) for i in numbers.tolist()]
            for numbers in (now, following)
            for hook, shards in zip(self.hooks, self._shards, strict=True)
        ]
        half = len(self.hooks)
        store.files.fetch_all(*(list(chain.from_iterable(part)) for part in (wanted[:half], wanted[half:])))

    def in_order(self) -> Iterator[Float[Tensor, "rows columns"]]:
        """All rows once, as they are stored, a few at a time."""
        for number in range(len(self._rows)):
            yield from self.shard(number)

    def shard(self, number: int) -> Iterator[Float[Tensor, "rows columns"]]:
        """The rows of the shards of one number, a few at a time."""
        if isinstance(self.store.path, Remote):
            self._fetch(self.store.path, np.array([number]), np.arange(number + 1, min(number + 3, len(self._rows))))
        parts = [_as_float(shards, number) for shards in self._shards]
        yield from (torch.cat(columns, 1) for columns in zip(*parts, strict=True))

    @property
    def shard_sizes(self) -> np.ndarray:
        """Rows of every shard."""
        return self._rows

    def places(self) -> Iterator[np.ndarray]:
        """(rows, 3) of every shard: the document, position and token of each row, as they are stored."""
        yield from map(self.places_of, range(len(self._rows)))

    def places_of(self, number: int) -> np.ndarray:
        """(rows, 3) of one shard."""
        parts = [part.view(np.int32).copy() for part in self._places.chunks(number, CHUNK_BYTES)]
        return np.concatenate(parts)

    def probe(self) -> dict[str, Tensor]:
        kept = self._kept_probe()
        if "tokens" not in kept:
            return super().probe()
        return {name: tensor for name, tensor in kept.items() if name != PROBE_ROWS}

    def probe_activations(self, probe: dict[str, Tensor]) -> Float[Tensor, "rows columns"]:
        if "tokens" not in probe:
            return super().probe_activations(probe)
        return self._kept_probe()[PROBE_ROWS]

    def _kept_probe(self) -> dict[str, Tensor]:
        probe = read_safetensors(self.store.here(PROBE), remedy=AGAIN)
        if PROBE_ROWS in probe:
            names, widths = list(self.store.index.hooks), list(self.store.index.hooks.values())
            parts = dict(zip(names, probe[PROBE_ROWS].split(widths, 1), strict=True))
            probe[PROBE_ROWS] = torch.cat([parts[hook] for hook in self.hooks], 1)
        return probe


def _as_float(shards: Shards, number: int) -> Iterator[Tensor]:
    """The rows of a shard as float32; parts of equal numbers of rows for every shard of one number."""
    for part in shards.chunks(number, ROWS_AT_ONCE * shards.columns * SIZES[shards.dtype]):
        rows = np.empty((len(part), shards.columns), np.float32)
        _put(part, shards.dtype, np.arange(len(part)), 0, rows)
        yield torch.from_numpy(rows)


def _put(stored: np.ndarray, dtype: str, to: np.ndarray, column: int, out: np.ndarray) -> None:
    """Bytes of rows as float32, into the rows `to` of `out`, from a column on."""
    if dtype == "bfloat16":
        _put_bfloat16(stored.view(np.uint16), to, column, out.view(np.uint32))
    else:
        _put_float32(stored.view(dtype).astype(np.float32, copy=False), to, column, out)


@njit(cache=True, nogil=True)
def _put_bfloat16(bits, to, column, out):
    """A bfloat16 is the upper half of a float32."""
    for i in range(len(bits)):
        row = to[i]
        for j in range(bits.shape[1]):
            out[row, column + j] = np.uint32(bits[i, j]) << np.uint32(16)


@njit(cache=True, nogil=True)
def _put_float32(values, to, column, out):
    for i in range(len(values)):
        row = to[i]
        for j in range(values.shape[1]):
            out[row, column + j] = values[i, j]
