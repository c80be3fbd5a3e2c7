"""Writing activations to disk: one pass of the model, many hook points, shuffled as they come, resumable."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosem.activations.live import LiveActivations
from monosem.activations.order import shuffled
from monosem.activations.remote import is_address
from monosem.activations.shards import (
    FORMAT,
    INDEX,
    PLACES,
    VERSION,
    WINDOWS,
    Dtype,
    ShardWriter,
    StoreFolder,
    StoreIndex,
    Window,
    folder_of,
    require_disk,
    shard_name,
    window_file,
    write_index,
)
from monosem.activations.stored import PROBE, PROBE_ROWS, StoredActivations
from monosem.arguments import Positive, checked
from monosem.data.documents import Text
from monosem.errors import ConfigError, DataError, Interrupted
from monosem.files import named_folder, write_json, write_safetensors, writing
from monosem.models import ModelSet, SubjectModel
from monosem.ranks import any_of_all, everyone, first_alone_in
from monosem.work import Stage, Stopped, StopRequest, doing, job, may_stop_here

FLOAT16_MOST = 65_504.0


@checked
def store_activations(
    model: SubjectModel | ModelSet,
    hooks: str | Sequence[str],
    text: Text = "bundled",
    path: str | Path = "activations",
    *,
    images: Any = None,
    tokens: Positive = 1_000_000,
    dtype: Dtype = "bfloat16",
    shard_rows: Positive = 65_536,
    window_shards: Positive = 16,
    progress: bool = True,
    **options: Any,
) -> StoredActivations:
    """Write what a model's hook points see into a folder, in one pass; `activations(path)` reads it again and again.

    Rows are dealt at random to the shards of a window as they come, so that whatever shards are read together hold rows
    from all over it. A store that was killed goes on with the window that it was in, to the same bits. Called again, it
    looks through what is there, rewrites shards that are damaged, and writes on if more tokens are wanted.

    Args:
        model: the subject model, or several side by side.
        hooks: name of a hook point, or of several.
        text: what `read_documents` takes; read again in another order where it ends.
        path: the folder.
        images: what `Images` takes, in place of text.
        tokens: rows to store.
        dtype: of the numbers: "bfloat16" takes half the room, and keeps 8 bits of precision; "float32"; "float16" keeps
            11 bits of what is below 65,504.
        shard_rows: rows in a shard.
        window_shards: shards among which rows are dealt; what is killed loses a window at most.
        progress: show where it is.
        **options: those of `LiveActivations` (context_length, exclude_special, seed, ...).

    Raises:
        ConfigError: the folder holds other activations, or an option is wrong.
        FileError: the disk is full (the windows that are written stay), or another process writes into the folder.
        DataError: the text is empty, an activation is not finite, or too large for float16.
        Interrupted: Ctrl-C; whole windows are kept.
    """
    if is_address(path):
        raise ConfigError(
            f"{path}: a store is written into a folder of this machine: name one, then copy it there (with `aws s3 cp "
            "--recursive`, `gcloud storage cp -r`, `hf upload`, ...); what reads a store takes the address"
        )
    folder = named_folder(path)
    source = LiveActivations(model, hooks, text, images=images, **options)
    identity = {name: value for name, value in source.identity().items() if name != "buffer_tokens"}
    index = StoreIndex(
        format=FORMAT,
        format_version=VERSION,
        monosem_version=version("monosem"),
        identity=identity,
        metadata=source.metadata,
        hooks=source.widths,
        n_models=source.n_models,
        dtype=dtype,
        tokens=tokens,
        shard_rows=shard_rows,
        window_shards=window_shards,
    )
    every = everyone()
    with job(progress and every.first), first_alone_in(folder), StopRequest():
        kept, stopped = _begun_together(folder, index), False
        missing = [number for number in range(-(-tokens // index.window_rows)) if kept.get(number) is None]
        left = sum(_planned(index, number) for number in missing)
        if every.first:
            require_disk(folder, left * index.bytes_a_row)
            write_index(folder, index)
        with doing("storing activations", tokens, done=tokens - left, unit="tokens") as stage:
            for number in missing:
                before = kept[number - 1] if number else None
                try:
                    window = _write_window(source, index, folder, number, before, stage)
                except Stopped:
                    stopped = True
                    break
                if window is None:
                    break
                if every.first:
                    write_json(window_file(folder, number), window.model_dump())
                kept[number] = window
        if stopped:
            done = sum(sum(window.rows) for window in kept.values() if window is not None)
            raise Interrupted(f"stopped after {done:,} of {tokens:,} tokens; the same command goes on from there")
        if not kept:
            raise DataError(f"{folder}: there is nothing to store in what is read")
        with doing("writing the index"):
            if every.first:
                _write_probe(folder, source)
                write_index(folder, index.model_copy(update={"complete": True, "metadata": source.metadata}))
            every.wait()
    return StoredActivations(folder)


def _begun_together(folder: Path, index: StoreIndex) -> dict[int, Window | None]:
    """As `_begun`, of which the first process tells the others."""
    every = everyone()
    found = _begun(folder, index) if every.first else {}
    if every.size == 1:
        return found
    told = every.tell([[number, None if window is None else window.model_dump()] for number, window in found.items()])
    return {number: None if window is None else Window.model_validate(window) for number, window in told}


def _begun(folder: Path, index: StoreIndex) -> dict[int, Window | None]:
    """The windows that are there and whole; None for those that are not.

    Raises:
        ConfigError: they are of other activations.
    """
    if not (folder / INDEX).is_file():
        return {}
    store = StoreFolder(folder)
    asked, there = index.model_dump(), store.index.model_dump()
    names = ("identity", "hooks", "n_models", "dtype", "shard_rows", "window_shards")
    differing = [
        f"{label} ({_named(old)} there, {_named(new)} now)"
        for name in names
        for label, old, new in _compared(name, there[name], asked[name])
        if old != new
    ]
    if differing:
        raise ConfigError(
            f"{folder} holds activations of another {', '.join(differing)}: choose another folder, or delete that one"
        )
    found, damaged = dict[int, Window | None](), list[Path]()
    shards, first = {name: store.shards(name) for name in store.index.folders()}, 0
    with doing("looking through what is there", store.rows, unit="tokens") as stage:
        for number, window in enumerate(store.windows):
            after = first + len(window.rows)
            if sum(window.rows) == _planned(index, number):
                parts = [
                    (shards[name][i], folder / name / shard_name(i)) for name in shards for i in range(first, after)
                ]
                bad = [path for shard, path in parts if not shard.whole(path)]
                found[number] = None if bad else window
                damaged += bad
            first = after
            stage.advance(sum(window.rows))
    if damaged:
        more = f" and {len(damaged) - 1:,} more" if len(damaged) > 1 else ""
        warnings.warn(f"damaged or not there: {damaged[0]}{more}: written anew, with what was beside", stacklevel=2)
    return found


def _named(value: Any) -> str:
    return "nothing" if value is None else f"{value!s:.60}"


def _compared(name: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """One setting, or each of several."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [(name, old, new)]
    return [(key, old.get(key), new.get(key)) for key in dict.fromkeys([*old, *new])]


def _planned(index: StoreIndex, number: int) -> int:
    """Rows that a window is to have."""
    return min(index.window_rows, index.tokens - number * index.window_rows)


def _write_window(
    source: LiveActivations, index: StoreIndex, folder: Path, number: int, before: Window | None, stage: Stage
) -> Window | None:
    """Write the shards of a window; None if there is nothing more to read.

    Raises:
        FileError: the disk is full; what is written of it is removed.
        Stopped: it is asked for; likewise.
    """
    context, skipped = (before.context, before.row) if before is not None else (0, 0)
    planned, first = _planned(index, number), number * index.window_shards
    n_shards = -(-planned // index.shard_rows)
    every = everyone()
    writers = {  # of the first process alone
        name: [ShardWriter(folder / name / shard_name(first + i), columns, dtype) for i in range(n_shards)]
        for name, (columns, dtype) in (index.folders().items() if every.first else ())
    }
    seed, done, whole = source.seed, 0, False
    try:
        with writing(folder / WINDOWS, planned * index.bytes_a_row if every.first else 0):
            for part in source.read_from(context):
                take = min(len(part.rows) - skipped, planned - done)
                shard = shuffled(done, done + take, planned, seed, number) // index.shard_rows
                order = np.argsort(shard, kind="stable")
                ends = np.cumsum(np.bincount(shard, minlength=n_shards))[:-1]
                rows = part.rows[skipped : skipped + take][torch.from_numpy(order).to(part.rows.device)]
                places = _places(part)[skipped : skipped + take][order]
                for name, columns in (_encoded(index, rows, places) if every.first else {}).items():
                    for writer, piece in zip(writers[name], np.split(columns, ends), strict=True):
                        writer.append(piece)
                done, end = done + take, skipped + take
                context, skipped = (part.start, end) if end < len(part.rows) else (part.start + len(part.batch), 0)
                stage.advance(take)
                if done == planned:
                    break
                may_stop_here(any_of_all)
            whole = done > 0
            for each in writers.values():
                for writer in each:
                    writer.close(whole)
    finally:
        if not whole:
            for each in writers.values():
                for writer in each:
                    with suppress(OSError):
                        writer.close(whole=False)
                        writer.path.unlink(missing_ok=True)
    if not whole:
        return None
    sums = {name: [writer.sum for writer in each] for name, each in writers.items()}
    rows = [writer.rows for writer in writers[PLACES]] if every.first else [done]
    return Window(rows=rows, sums=sums, context=context, row=skipped)


def _places(part: Any) -> np.ndarray:
    """(rows, 3) document, position and token of every row."""
    batch, kept = part.batch, part.kept
    columns = [column[kept] for column in (batch.document, batch.position, batch.tokens)]
    return torch.stack(columns, 1).to(torch.int32).numpy()


def _encoded(index: StoreIndex, rows: Tensor, places: np.ndarray) -> dict[str, np.ndarray]:
    """What goes into every folder, as bits of its type.

    Raises:
        DataError: a number is too large for float16.
    """
    found: dict[str, np.ndarray] = {PLACES: places}
    for (hook, _), part in zip(index.hooks.items(), rows.split(list(index.hooks.values()), 1), strict=True):
        if index.dtype == "float16" and part.numel() and (most := part.abs().max().item()) > FLOAT16_MOST:
            raise DataError(
                f"activations at {hook} reach {most:,.0f}, float16 holds {FLOAT16_MOST:,.0f}: dtype='bfloat16'"
            )
        stored = part.to(getattr(torch, index.dtype)).cpu().contiguous()
        found[folder_of(hook)] = stored.view(torch.int16 if stored.itemsize == 2 else torch.int32).numpy()
    return found


def _write_probe(folder: Path, source: LiveActivations) -> None:
    """A few contexts and what the hook points see there, which an SAE keeps to know its inputs again."""
    probe = source.probe()
    if "tokens" in probe:
        probe = {**probe, PROBE_ROWS: source.probe_activations(probe)}
    write_safetensors(folder / PROBE, probe)
