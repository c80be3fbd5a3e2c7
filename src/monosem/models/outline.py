"""A model's shapes without its weights: what a forward pass costs, counted before anything is loaded."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from monosem.models.gguf import check_gguf, gguf_file
from monosem.models.load import described, reaching, readable_errors, source_of
from monosem.models.subject import SubjectModel

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


class TensorCount(TorchDispatchMode):
    """Counts the bytes of tensors made within this block: how many there are, and the most at any time.

    What is a view of another counts once; what stood before the block is not counted (`known`, where tensors made
    before it come out of operations within).
    """

    def __init__(self, known: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        before = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key in before or key in self._seen:
                    continue
                self._seen.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, size)
        return out

    def _gone(self, key: int, size: int) -> None:
        self.now -= size
        self._seen.discard(key)


@dataclass(frozen=True)
class Rehearsal:
    """What one forward pass takes, up to the last of some hook points."""

    widths: dict[str, int]
    """At each hook point."""
    flops: int
    """Multiplications and additions of its matrix products and attention."""
    tensor_bytes: int
    """The most that all tensors made on the way have at any time, without the weights."""
    positions: int

    @property
    def flops_a_position(self) -> float:
        return self.flops / self.positions


class Shapes(SubjectModel):
    """A model that knows its hook points; its weights hold no numbers."""


@dataclass
class Outline:
    """A model of which only shapes are there."""

    model: Shapes
    n_parameters: int
    config: Any = field(repr=False)
    cls: Any = field(repr=False)
    _mode: FakeTensorMode = field(repr=False)
    _known: dict[tuple[Any, ...], Rehearsal] = field(default_factory=dict[tuple[Any, ...], Rehearsal], repr=False)

    @property
    def weight_bytes(self) -> int:
        """In float32, as a run loads it."""
        return 4 * self.n_parameters

    def rehearse(self, hooks: Sequence[str] | None, contexts: int, length: int) -> Rehearsal:
        """Go through a forward pass without numbers.

        Args:
            hooks: stop after the last of these; None for all of it, to the output.
            contexts: that go through at a time.
            length: tokens in each (of a model of images, as many as it has).

        Raises:
            HookError: the model has no such hook point.
        """
        asked = (None if hooks is None else tuple(hooks), contexts, length)
        if asked not in self._known:
            self._known[asked] = self._rehearse(hooks, contexts, length)
        return self._known[asked]

    def read_on(self, hook: str, contexts: int, length: int) -> Rehearsal:
        """Go through a forward pass, and once more from a hook point on, with the gradient by what is put in there.

        Raises:
            HookError: the model has no such hook point.
        """
        asked = (("on from", hook), contexts, length)
        if asked not in self._known:
            self._known[asked] = self._read_on(hook, contexts, length)
        return self._known[asked]

    def _read_on(self, hook: str, contexts: int, length: int) -> Rehearsal:
        model = self.model
        model.module.requires_grad_(False)
        counted = TensorCount([*model.module.parameters(), *model.module.buffers()])
        flops = _counted_flops()

        def put_in(x: torch.Tensor, _: Any) -> torch.Tensor:
            return x.detach().requires_grad_()

        with self._mode, torch.enable_grad():
            inputs = torch.zeros(contexts, length, dtype=torch.int64)
            with counted, flops, model.attach(model.hook_point(hook), put_in):
                out = model._call(inputs)
                logits = getattr(out, "logits", out)
                logits.backward(torch.zeros_like(logits))
        before, whole = self.rehearse([hook], contexts, length).flops, self.rehearse(None, contexts, length).flops
        return Rehearsal({}, flops.get_total_flops() - before + whole, counted.peak, contexts * length)

    def _rehearse(self, hooks: Sequence[str] | None, contexts: int, length: int) -> Rehearsal:
        model, shape = self.model, self.model.inputs.image_shape
        counted = TensorCount([*model.module.parameters(), *model.module.buffers()])
        flops = _counted_flops()
        with self._mode, torch.no_grad():
            inputs = torch.zeros(contexts, *shape) if shape else torch.zeros(contexts, length, dtype=torch.int64)
            with counted, flops:
                found = model(inputs) if hooks is None else model.capture(inputs, hooks)
            widths = {} if hooks is None else {hook: x.shape[-1] for hook, x in found.items()}
        positions = contexts * (model.inputs.context_length or length if shape else length)
        return Rehearsal(widths, flops.get_total_flops(), counted.peak, positions)


def _counted_flops() -> FlopCounterMode:
    from torch.utils.flop_counter import FlopCounterMode  # it imports triton, 66 MiB that only counting needs

    return FlopCounterMode(display=False, custom_mapping=_ATTENTION)


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Of every query with every key, and of these weights with every value."""
    batch, heads, n_queries, d_key = query
    return 2 * batch * heads * n_queries * key[-2] * (d_key + value[-1])


_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
}
"""Operations that torch's own counter does not know."""


def outline(model: str | Path) -> Outline:
    """The shapes of a model that `load_model` would load, from its config alone.

    Args:
        model: "bundled", a folder with config.json (weights need not be there), a GGUF file, or a Hugging Face id.

    Raises:
        FileError: there is no such model, or its config cannot be read.
    """
    file = gguf_file(model)
    source = source_of(model) if file is None else str(file.parent)
    where = reaching(source)
    if file is not None:
        check_gguf(file)
        where["gguf_file"] = file.name
    with readable_errors(str(model)):
        cls, config = described(source, where)
        return outline_of(cls, config, str(model))


def outline_of(cls: Any, config: Any, name: str) -> Outline:
    """The shapes of a model of a class of transformers and a config."""
    with torch.device("meta"):
        module = made(cls, config)
    n_parameters = sum(parameter.numel() for parameter in module.parameters())
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        module.to_empty(device="cpu")
    return Outline(Shapes(module, None, name), n_parameters, config, cls, mode)


def made(cls: Any, config: Any) -> nn.Module:
    """A model with weights as they are before training, in float32."""
    make = getattr(cls, "_from_config", None) or cls.from_config
    return make(config, dtype=torch.float32).eval().requires_grad_(False)
