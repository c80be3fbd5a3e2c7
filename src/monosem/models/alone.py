"""How a model under study runs, whatever its owner is doing with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


@contextmanager
def as_studied(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Within this block a module runs in evaluation mode, in its own precision, and eagerly; then all is as it was.

    Without dropout and gradient checkpointing, and without changes of running statistics, though its owner has put it
    into training mode; without autocast, though it is called within one; and without what torch.compile has made of it,
    which knows nothing of hooks.
    """
    training = [part for part in module.modules() if part.training]
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        try:
            for part in training:
                part.training = False
            yield
        finally:
            for part in training:
                part.training = True
