"""Beginning and ending a job of several processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from monosem.errors import ConfigError, RankError
from monosem.ranks.alive import Watch
from monosem.ranks.group import ALONE, Group
from monosem.work import alone_in

PATIENCE = timedelta(minutes=60)
"""How long the others wait for one: the first evaluates, or fetches a model. One that ends is noticed at once, one that
is stopped by alive.py."""

_store: Any = None
_everyone: Group | None = None
_by_itself: ContextVar[bool] = ContextVar("_by_itself", default=False)


def everyone() -> Group:
    """All processes of the job: those that `torchrun` has started, once `working_together` has begun; else this one."""
    global _everyone
    if _by_itself.get():
        return ALONE
    if not (dist.is_available() and dist.is_initialized()):
        _everyone = None
        return ALONE
    if _everyone is None and dist.get_world_size() > 1:
        _everyone = Group(dist.group.WORLD)
    return _everyone or ALONE


@contextmanager
def by_itself() -> Iterator[None]:
    """Within this block the process works as if it were the only one: what one does while the others wait."""
    token = _by_itself.set(True)
    try:
        yield
    finally:
        _by_itself.reset(token)


@contextmanager
def working_together() -> Iterator[Group]:
    """Within this block the processes that `torchrun` has started are one job; by itself, nothing happens.

    Each has the GPU of its number, if there are so many; what stands on CPUs is exchanged by gloo, what stands on GPUs
    by NCCL.

    Raises:
        RankError: they do not find each other.
    """
    global _store, _everyone
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ or dist.is_initialized():
        yield everyone()
        return
    own = int(os.environ.get("LOCAL_RANK", "0"))
    backend = "gloo"
    if torch.cuda.is_available():
        if own >= (there := torch.cuda.device_count()):
            raise ConfigError(
                f"each process has a GPU of its own, and process {own} of this machine (counted from 0) finds "
                f"{'one' if there == 1 else there}: start torchrun with --nproc-per-node {there}, or with "
                "CUDA_VISIBLE_DEVICES='' to train on CPUs"
            )
        torch.cuda.set_device(own)
        backend = "cpu:gloo,cuda:nccl"
    try:
        _store, rank, size = next(rendezvous("env://", timeout=timedelta(minutes=2)))
        dist.init_process_group(backend, store=_store, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError, dist.DistError) as error:
        raise RankError(
            f"the processes that torchrun started do not find each other ({error}): see that all machines reach "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        ) from error
    watch = Watch(_store, rank, size, first_to_fail)
    try:
        with told_once():
            yield everyone()
    finally:
        watch.end()
    _everyone = None
    dist.destroy_process_group()  # not after an error: it would wait for those that are gone


@contextmanager
def told_once() -> Iterator[None]:
    """Within this block SIGTERM ends the process, wherever it is; after an error it does not: that is told in peace.

    torchrun sends the signal to all once one has failed, and so to those that are saying that one has.
    """
    before = signal.signal(signal.SIGTERM, _told_to_end)
    try:
        yield
    except BaseException:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    signal.signal(signal.SIGTERM, before)


@contextmanager
def first_alone_in(*folders: Path | None) -> Iterator[None]:
    """As `alone_in`, for the first process; the others write nothing."""
    with alone_in(*(folders if everyone().first else ())):
        yield


class JobEnded(KeyboardInterrupt):
    """The job ends, wherever this process is."""


def _told_to_end(number: int, frame: FrameType | None) -> None:
    """Where nothing else heeds the signal: torchrun sends it to all once one has failed."""
    raise JobEnded(
        "the job was told to end, by you or because another of its processes has ended: what it said stands above, if "
        "it said anything. The same command, with any number of processes, goes on from what is saved"
    )


def agreed(*own: bool) -> list[bool]:
    """Of each thing whether it is so for any of the processes; all must ask."""
    every = everyone()
    if every.size == 1:
        return list(own)
    return every.most_(torch.tensor(own, dtype=torch.int8)).bool().tolist()


def any_of_all(own: bool) -> bool:
    """As `agreed`, of one thing."""
    return agreed(own)[0]


def first_to_fail() -> bool:
    """Whether no other process has asked this before: the one whose error is told. By itself, always."""
    if _store is None:
        return True
    try:
        return _store.add("failed", 1) == 1
    except RuntimeError:  # whoever kept count has gone too
        return False
