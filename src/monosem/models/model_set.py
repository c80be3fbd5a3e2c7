"""ModelSet: several models that read the same tokens, side by side (for crosscoders: a base and its chat model)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.arguments import checked
from monosem.errors import ConfigError, MismatchError
from monosem.models.hooks import HookPoint
from monosem.models.subject import SubjectModel


class ModelSet:
    """Models with equal tokenizers. What is captured has one entry a model: `(batch, pos, source, d)`."""

    @checked
    def __init__(self, models: Sequence[SubjectModel]) -> None:
        """Put models side by side.

        Raises:
            ConfigError: no models.
            MismatchError: their tokenizers differ, so that position i is not the same token in all of them.
        """
        self.models = list(models)
        if not self.models:
            raise ConfigError("a ModelSet needs at least one model")
        first, *others = self.models
        for other in others:
            if other.tokenizer_fingerprint() != first.tokenizer_fingerprint():
                raise MismatchError(
                    f"the tokenizers of {_described(first)} and {_described(other)} differ: position by position they "
                    "read other tokens. If token ids mean the same in both: other.tokenizer = first.tokenizer"
                )
        self.name = " + ".join(model.name for model in self.models)
        self.tokenizer = first.tokenizer
        self.n_sources = len(self.models)
        lengths = [model.context_length for model in self.models if model.context_length is not None]
        self.context_length: int | None = min(lengths, default=None)

    def hook_point(self, name: str) -> HookPoint:
        """As `SubjectModel.hook_point`: canonical names are the same in every family.

        Raises:
            HookError: a model has no such place.
            MismatchError: it has another name in one of the models.
        """
        points = [model.hook_point(name) for model in self.models]
        if len({point.name for point in points}) > 1:
            named = ", ".join(f"{m.name}: {p.name}" for m, p in zip(self.models, points, strict=True))
            raise MismatchError(f"{name} is not the same place in all models ({named}): give its canonical name")
        return points[0]

    @property
    def hook_points(self) -> list[str]:
        """Those that all models have, in the order of the first one's forward pass."""
        others = [set(model.hook_points) for model in self.models[1:]]
        return [name for name in self.models[0].hook_points if all(name in other for other in others)]

    def tokenizer_fingerprint(self) -> str | None:
        """As `SubjectModel.tokenizer_fingerprint`; one for all."""
        return self.models[0].tokenizer_fingerprint()

    def contexts_at_once(self, length: int) -> int:
        """As `SubjectModel.contexts_at_once`."""
        return self.models[0].contexts_at_once(length)

    def tokens(self, text: str | Sequence[str], prepend_bos: bool = True) -> Int[Tensor, "batch pos"]:
        """Text to token ids, as `SubjectModel.tokens`."""
        return self.models[0].tokens(text, prepend_bos)

    def capture(self, inputs: Any, hooks: Sequence[str]) -> dict[str, Float[Tensor, "batch pos source d"]]:
        """Activations of all models at the given hook points, on the first one's device.

        Args:
            inputs: what `SubjectModel.capture` takes; every model reads the same.
            hooks: names of hook points that all models have, of equal width in all.

        Raises:
            MismatchError: a hook point has another width in one of the models.
        """
        inputs = self.tokens(inputs) if isinstance(inputs, str | list | tuple) else inputs
        captured = [model.capture(inputs, hooks) for model in self.models]
        return {hook: self._beside(hook, [c[hook] for c in captured]) for hook in hooks}

    def _beside(self, hook: str, sources: list[Tensor]) -> Tensor:
        if len({x.shape for x in sources}) > 1:
            shapes = ", ".join(f"{m.name}: {tuple(x.shape)}" for m, x in zip(self.models, sources, strict=True))
            raise MismatchError(f"{hook} has not the same shape in all models ({shapes}): choose models of equal width")
        dtype = sources[0].dtype if len({x.dtype for x in sources}) == 1 else torch.float32
        return torch.stack([x.to(sources[0].device, dtype) for x in sources], dim=-2)

    def width(self, hook: str) -> int:
        """Width of the activations at a hook point, of one model."""
        return self.capture(self.models[0].inputs.least(), [hook])[hook].shape[-1]

    def __repr__(self) -> str:
        return f"ModelSet({self.name!r}, {self.n_sources} sources)"


def _described(model: SubjectModel) -> str:
    return f"{model.name} ({'none' if model.tokenizer is None else f'{len(model.tokenizer.get_vocab())} tokens'})"
