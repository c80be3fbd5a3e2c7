"""Replay: a pass of a model, and passes with edits that do not compute anew what comes before the edits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from monosem.models.hooks import HookPoint
from monosem.models.subject import SubjectModel


class Replay:
    """Spares a model what does not depend on edits at some hook points (or after them), to the same bits.

    A module that has finished before the first of the hook points is reached, and is called once in a pass, gives in an
    edited pass what it gave in the one without edits. A pass of other inputs is run whole, and so is a module that may
    hand on more than its output (keys and values that later layers share).
    """

    def __init__(self, model: SubjectModel, hooks: Sequence[str], example: Any) -> None:
        """Find what comes before.

        Args:
            model: the model.
            hooks: the hook points that will be edited; none before the first of them may be.
            example: inputs of the kind that will be given, as few as may be.

        Raises:
            HookError: the model has no such hook point.
        """
        self.model = model
        self.before = _finished_before(model, [model.hook_point(hook) for hook in hooks], example)
        """Paths of the modules that are spared, none within another."""

    @contextmanager
    def of(self, inputs: Any) -> Iterator[Any]:
        """Run the model and give its output; until the end of this block, passes of these inputs are spared."""
        modules = {path: self.model.module.get_submodule(path) for path in self.before}
        given: dict[str, Any] = {}
        asked = _Asked()
        own = {path: {k: v for k, v in module.__dict__.items() if k == "forward"} for path, module in modules.items()}
        with ExitStack() as replaying:
            root = self.model.module
            replaying.callback(root.register_forward_pre_hook(asked.look, prepend=True, with_kwargs=True).remove)
            with ExitStack() as recording:
                for path, module in modules.items():
                    recording.callback(module.register_forward_hook(_keep(given, path)).remove)
                output = self.model(inputs)
            try:
                for path in given:
                    modules[path].forward = _giving(given[path], modules[path].forward, asked)
                yield output
            finally:
                for path in given:
                    del modules[path].forward
                    modules[path].__dict__.update(own[path])


class _Asked:
    """What the model was first given, and whether it is given the same now."""

    def __init__(self) -> None:
        self.first: tuple[Any, Any] | None = None
        self.same = True

    def look(self, _module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.first is None:
            self.first = (args, dict(kwargs))
        self.same = _alike(self.first, (args, kwargs))


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
        return one is other or (same and torch.equal(one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return one is other or (isinstance(one, bool | int | float | str) and one == other)


def _keep(given: dict[str, Any], path: str) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        given[path] = _copied(output)

    return hook


def _giving(output: Any, own: Callable[..., Any], asked: _Asked) -> Callable[..., Any]:
    return lambda *args, **kwargs: _copied(output) if asked.same else own(*args, **kwargs)


def _copied(output: Any) -> Any:
    """What follows may work in place."""
    return tuple(map(_copied, output)) if isinstance(output, tuple) else None if output is None else output.clone()


def _can_be_kept(output: Any) -> bool:
    if type(output) is tuple:
        return all(map(_can_be_kept, output))
    return output is None or isinstance(output, Tensor)


def _finished_before(model: SubjectModel, points: Sequence[HookPoint], example: Any) -> list[str]:
    calls = Counter[str]()
    finished: list[str] = []
    reached: list[bool] = []

    def called(path: str) -> Callable[..., None]:
        return lambda *_: calls.update([path])

    def done(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = (*args, *kwargs.values())
            if not reached and _can_be_kept(output) and not any(isinstance(each, MutableMapping) for each in given):
                finished.append(path)  # in a mapping it may leave something for a later one

        return hook

    def reach(*_: Any) -> None:
        reached.append(True)

    with ExitStack() as watching:
        for path, module in model.module.named_modules():
            watching.callback(module.register_forward_pre_hook(called(path)).remove)
            watching.callback(module.register_forward_hook(done(path), with_kwargs=True).remove)
        for point in points:
            module = model.module.get_submodule(point.path)
            attach = module.register_forward_hook if point.side == "output" else module.register_forward_pre_hook
            watching.callback(attach(reach).remove)
        model(example)
    once = {path for path in finished if path and calls[path] == 1}
    return [path for path in finished if path in once and not any(path.startswith(f"{q}.") for q in once)]
