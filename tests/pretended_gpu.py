"""A GPU that is pretended: its tensors are on a CPU, say that they are not, and meet others as those of a GPU do.

    PYTHONPATH=tests pytest -p pretended_gpu ...      (`make test-gpu`: all tests)

Models go to it as to a real one where there is one. What mixes tensors of two devices, or reads as memory of the host
what is not there, fails with the words of a real one. Nothing of its speed or of its kernels is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("gpu")
GPU = torch.device("gpu", 0)
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default, aten.set_.source_Tensor}
"""What two devices may meet in."""
INDEXES = {
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
"""Where numbers of rows may stand on the host."""
MADE = ("arange", "arange.start", "arange.start_step", "randperm", "randperm.generator", "eye", "eye.m", "linspace")
LIBRARY = torch.library.Library("aten", "IMPL")
BEYOND = {"test_examples_run[docs/models.md]": "transformers saves a model from the memory of its device"}
"""What cannot be pretended."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.name in BEYOND:
            item.add_marker(pytest.mark.skip(reason=BEYOND[item.name]))


class Pretended(Tensor):
    """One that says it is on the GPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Pretended:
        options: dict[str, Any] = {"dtype": held.dtype, "layout": held.layout, "device": GPU}
        options |= {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, held.size(), **options)
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _answered(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(
            "can't convert gpu:0 device type tensor to numpy. Use Tensor.cpu() to copy it to the host first"
        )

    __array__ = numpy  # pyright: ignore

    def __repr__(self) -> str:  # pyright: ignore
        return f"pretended({self.held})"

    def __deepcopy__(self, memo: Any) -> Any:
        if id(self) not in memo:
            new: Any = Pretended(self.detach().held.clone())  # pyright: ignore
            parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(new, self.requires_grad) if parameter else new
        return memo[id(self)]


def _answered(func: Any, args: Any, kwargs: Any) -> Any:
    flat, spec = pytree.tree_flatten((args, kwargs))
    here = [x for x in flat if isinstance(x, Pretended)]
    _require_one_device(func, args, [x for x in flat if isinstance(x, Tensor) and x.ndim], here)
    device = kwargs.get("device")
    goes_here = bool(here) if device is None else torch.device(device).type == GPU.type
    if func is aten.copy_.default:
        goes_here = isinstance(args[0], Pretended)
    own_args, own_kwargs = pytree.tree_unflatten([x.held if isinstance(x, Pretended) else x for x in flat], spec)
    if device is not None:
        own_kwargs = {**own_kwargs, "device": torch.device("cpu")}
    with torch._C._DisableTorchDispatch():
        out = func(*own_args, **own_kwargs)
    known = {id(x.held): x for x in here} | {id(x): x for x in flat if isinstance(x, Tensor)}

    def dressed(x: Any) -> Any:
        if not isinstance(x, Tensor) or isinstance(x, Pretended):
            return x
        if id(x) in known:
            return known[id(x)]
        return Pretended(x) if goes_here else x

    return pytree.tree_map(dressed, out)


def _require_one_device(func: Any, args: Any, tensors: list[Tensor], here: list[Pretended]) -> None:
    """A number alone may come from the host, and the numbers of rows."""
    if func in COPIES or not here or all(isinstance(x, Pretended) for x in tensors):
        return
    if func in INDEXES:
        values = args[2] if len(args) > 2 else args[0]
        if isinstance(args[0], Pretended) and (isinstance(values, Pretended) or not values.ndim):
            return
        raise RuntimeError(f"indices should be either on cpu or on the same device as the indexed tensor: {func}")
    raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices: {func}")


def _empty(size: Any, *, dtype: Any = None, **_: Any) -> Pretended:
    return Pretended(torch.empty(size, dtype=dtype, device="cpu"))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Pretended:
    return Pretended(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _copied(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    source, own = (x.held if isinstance(x, Pretended) else x for x in (source, target))
    own.copy_(source)
    return target


def _made(name: str) -> Any:
    base, _, overload = name.partition(".")
    operator = getattr(getattr(aten, base), overload or "default")
    return lambda *args, **kwargs: Pretended(operator(*args, **{**kwargs, "device": "cpu", "pin_memory": False}))


LIBRARY.impl("empty.memory_format", _empty, "PrivateUse1")
LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")
LIBRARY.impl("_copy_from", _copied, "PrivateUse1")
for each in MADE:
    LIBRARY.impl(each, _made(each), "PrivateUse1")


class Generator(torch.Generator):
    """That of the CPU, whatever device is asked for."""

    def __new__(cls, device: Any = "cpu") -> torch.Generator:
        return _own_generator()


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *more: Any, **options: Any):
    if not isinstance(query, Pretended):
        return _own_attention(query, key, value, attn_mask, *more, **options)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
    return aten._scaled_dot_product_attention_math(query, key, value, attn_mask, *more, **options)[0]


def _apply(module: torch.nn.Module, *given: Any, **options: Any) -> torch.nn.Module:
    """That of torch makes a parameter anew that several modules have, once for each: they have one again."""
    places: dict[int, list[tuple[dict[str, Any], str, Any]]] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            places.setdefault(id(parameter), []).append((part._parameters, name, parameter))
    out = _own_apply(module, *given, **options)
    for (first, name, _), *others in places.values():
        for parameters, own_name, _ in others:
            parameters[own_name] = first[name]
    return out


_own_generator, _own_attention = torch.Generator, functional.scaled_dot_product_attention
_own_apply = torch.nn.Module._apply


@pytest.fixture(autouse=True, scope="session")
def _pretended() -> Iterator[None]:
    from monosem import models
    from monosem.kernels import matmul
    from monosem.models import load
    from monosem.runs import pipeline

    speed = matmul.speed
    with pytest.MonkeyPatch.context() as patch:
        for room in (load, models, pipeline):
            patch.setattr(room, "default_device", lambda: GPU)
        patch.setattr(matmul, "speed", lambda dtype, device: 1.0 if device == GPU else speed(dtype, device))
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(functional, "scaled_dot_product_attention", _attention)
        patch.setattr(torch.nn.Module, "_apply", _apply)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        yield
        torch.__future__.set_overwrite_module_params_on_conversion(False)
