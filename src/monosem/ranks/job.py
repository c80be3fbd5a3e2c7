"""Beginning and ending a job of several processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist

from monosem.errors import ConfigError, RankError
from monosem.ranks.group import ALONE, Group

PATIENCE = timedelta(minutes=60)
"""How long the others wait for one: the first evaluates, or fetches a model. One that ends is noticed at once."""

_store: dist.Store | None = None
_everyone: Group | None = None


def everyone() -> Group:
    """All processes of the job: those that `torchrun` has started, once `working_together` has begun; else this one."""
    global _everyone
    if not (dist.is_available() and dist.is_initialized()):
        _everyone = None
        return ALONE
    if _everyone is None and dist.get_world_size() > 1:
        _everyone = Group(dist.group.WORLD)
    return _everyone or ALONE


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
        if own >= torch.cuda.device_count():
            raise ConfigError(
                f"there are {torch.cuda.device_count()} GPUs, and this is process {own} of this machine (counted from "
                f"0): start torchrun with --nproc-per-node {torch.cuda.device_count()}, or with "
                "CUDA_VISIBLE_DEVICES='' to train on CPUs"
            )
        torch.cuda.set_device(own)
        backend = "cpu:gloo,cuda:nccl"
    try:
        _store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(minutes=2)))
        dist.init_process_group(backend, store=_store, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError, dist.DistError) as error:
        raise RankError(
            f"the processes that torchrun started do not find each other ({error}): see that all machines reach "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        ) from error
    try:
        yield everyone()
    finally:
        _everyone = None
        dist.destroy_process_group()


def first_to_fail() -> bool:
    """Whether no other process has asked this before: the one whose error is told. By itself, always."""
    if _store is None:
        return True
    try:
        return _store.add("failed", 1) == 1
    except RuntimeError:  # whoever kept count has gone too
        return False
