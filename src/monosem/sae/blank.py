"""SAEs whose weights are not drawn but stand in a file: made without memory for them, and filled one by one."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from monosem.errors import FileError
from monosem.files import Stored
from monosem.sae.base import SAE

META = torch.device("meta")
MAKERS = (torch.empty, torch.full, torch.ones, torch.rand, torch.randn, torch.zeros)
OUTLINED = 2**24
"""Numbers of the largest tensor that an SAE of shapes alone has in memory: 64 MiB."""
LIKE = (torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like)


def blank(
    kind: type[SAE], d_in: int, n_latents: int, *, path: str | Path, numbers: int, device: Any = None, **settings: Any
) -> SAE:
    """An SAE of which what would be drawn at random is not there yet: `fill` it.

    Args:
        kind: its class.
        d_in: width of the activations.
        n_latents: size of the dictionary.
        path: the file that describes it, for errors.
        numbers: how many stand in the file of its tensors: much larger, it is refused.
        device: where to put it.
        **settings: those of its constructor.

    Raises:
        FileError: it would be much larger.
    """
    with _Blank(Path(path), 16 * numbers + 2**20, device):
        return kind(d_in, n_latents, device=device, **settings)


class _Blank(TorchFunctionMode):
    """Random weights, and what is made of them, have shapes alone; of other tensors, so many numbers and no more."""

    def __init__(self, path: Path, left: int, device: Any, largest: int = sys.maxsize) -> None:
        super().__init__()
        self.largest = largest
        self.path, self.left, self.device = path, left, torch.device(device or "cpu")

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given, kwargs, numbers = list[Any](args), dict(kwargs or {}), 0
        if func in MAKERS or func is torch.eye:
            numbers = math.prod(args if args and isinstance(args[0], int) else args[0] if args else ())
            self.left -= numbers**2 if func is torch.eye else numbers
            if self.left < 0:
                raise FileError(
                    f"{self.path} describes an SAE much larger than the tensors beside it: restore it or write it anew"
                )
        if func is torch.randn:  # not drawn: for that torch would load its compiler first
            func, kwargs["device"] = torch.empty, META
            kwargs.pop("generator", None)
        elif func in MAKERS and numbers > self.largest:
            kwargs["device"] = META
        elif func is Tensor.to and given[0].is_meta:
            given = [given[0], *(arg for arg in given[1:] if not isinstance(arg, str | torch.device))]
            kwargs.pop("device", None)
        elif kwargs.get("device") == META or (func in LIKE and given[0].is_meta):
            kwargs["device"] = self.device
        return func(*given, **kwargs)


@torch.no_grad()
def fill(sae: SAE, tensors: Mapping[str, Stored | Tensor], lazy: Collection[str] = ()) -> None:
    """Give a blank SAE its parameters and buffers, each read from its file straight into its place.

    What is not given stays as the constructor has made it. Those named in `lazy` stay in their files, where these have
    them in the SAE's own precision, and are read where they are touched.

    Raises:
        FileError: one is of another shape than the SAE's, is missing, damaged, or not finite.
    """
    owners = {name: cast(nn.Module, owner) for name, owner in sae.named_modules()}  # pyright: ignore
    known: dict[str, Tensor] = dict(sae.named_parameters(remove_duplicate=False)) | dict(sae.named_buffers())
    device = next((tensor.device for tensor in known.values() if not tensor.is_meta), None)
    tied = sae.one_matrix
    for name, stored in tensors.items():
        if tied and name == "W_enc":
            continue
        own = known[name]
        if tuple(stored.shape) != tuple(own.shape):
            raise FileError(
                f"{_name(stored, name)} should be of shape {tuple(own.shape)} and is {tuple(stored.shape)}: "
                "restore it or write it anew"
            )
        if name in lazy and isinstance(stored, Stored) and stored.mapped and stored.dtype == own.dtype:
            value = stored.mapped()
        else:
            value = _value(stored, own.dtype, device)
        owner, _, leaf = name.rpartition(".")
        setattr(owners[owner], leaf, nn.Parameter(value) if isinstance(own, nn.Parameter) else value)
    if tied:
        sae.W_enc = sae.W_dec
    for name, tensor in [*sae.named_parameters(), *sae.named_buffers()]:
        if tensor.is_meta:
            raise FileError(f"there is no {name}: the file is not whole, restore it")


def _value(stored: Stored | Tensor, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    if isinstance(stored, Stored):
        return stored.read(dtype, device)
    return stored.detach().to(device=device, dtype=dtype, copy=True)


def _name(stored: Stored | Tensor, name: str) -> str:
    return stored.name if isinstance(stored, Stored) else name


def outlined(make: Callable[[], SAE]) -> SAE:
    """The SAE that `make` makes, of which what would be drawn at random, and so the weights, have shapes alone."""
    with _Blank(Path(), 2**90, None, largest=OUTLINED):
        return make()
