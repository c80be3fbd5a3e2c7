"""What a model reads: token ids, pixels, or whatever an unknown module takes. One clear error for everything else."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from monosem.errors import DataError

RESIZES = ("dinov2", "dinov2_with_registers", "dinov3_vit")  # any size of image; other families take one
PATCHES_ALONE = ("siglip_vision_model",)  # other families have a class token before them


@dataclass(frozen=True)
class Inputs:
    """What one model reads."""

    name: str
    main: str | None
    """Its main keyword argument, `input_ids` or `pixel_values`; None for a module that takes tensors as they are."""
    context_length: int | None = None
    """Tokens in the longest text; class token, registers and patches of an image."""
    image_shape: tuple[int, int, int] | None = None
    """Channels, height and width; None for a model that reads no images."""
    fixed_size: bool = True
    optional: frozenset[str] = frozenset()
    """Names of all arguments of its forward pass."""
    first_position: int = 0
    """The row of the table of positions that a text's first token takes: in RoBERTa, behind that of padding."""
    vocabulary: int | None = None
    """Tokens that there are."""

    @classmethod
    def of(cls, module: nn.Module, config: Any, name: str) -> Inputs:
        """Read off the module and its config (None: no transformers model)."""
        if getattr(config, "model_type", None) is None:
            return cls(name, None)
        optional = frozenset(inspect.signature(module.forward).parameters)
        size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
        if size is None or patch is None:
            first, rows = _first_position(module), getattr(config, "max_position_embeddings", None)
            length = None if rows is None else rows - first
            known = {"first_position": first, "vocabulary": getattr(config, "vocab_size", None)}
            return cls(name, "input_ids", length, optional=optional, **known)
        (height, width), (down, across) = (s if isinstance(s, list | tuple) else (s, s) for s in (size, patch))
        n_special = (config.model_type not in PATCHES_ALONE) + getattr(config, "num_register_tokens", 0)
        n_positions = (height // down) * (width // across) + n_special
        shape = (config.num_channels, height, width)
        return cls(name, "pixel_values", n_positions, shape, config.model_type not in RESIZES, optional)

    def least(self) -> Tensor:
        """The smallest thing that the model reads: one token, or one blank image."""
        if self.main is None:
            raise DataError(f"{self.name} does not say what it reads: give inputs, as in model.width(hook, inputs)")
        if self.image_shape is not None:
            return torch.zeros(1, *self.image_shape)
        return torch.zeros(1, 1, dtype=torch.int64)

    def arguments(self, inputs: Any, device: torch.device) -> dict[str, Any] | Tensor:
        """A tensor or mapping as the forward pass wants it: keyword arguments, or one tensor for an unknown module.

        Raises:
            DataError: this model does not read such inputs.
        """
        if isinstance(inputs, Tensor):
            if self.main is None:
                return inputs.to(device)
            inputs = {self.main: inputs}
        if not isinstance(inputs, Mapping):
            raise DataError(f"{self.name} cannot read a {type(inputs).__name__}: {self._wanted()}")
        if self.main is not None:
            self._check(inputs)
        arguments = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        if "position_ids" in self.optional and "past_key_values" not in arguments:
            arguments |= _positions_behind_padding(arguments, self.first_position)
        if "use_cache" in self.optional and "past_key_values" not in arguments:
            arguments.setdefault("use_cache", False)
        return arguments

    def _check(self, arguments: Mapping[str, Any]) -> None:
        given = arguments.get(self.main or "")
        if given is None:
            if "inputs_embeds" not in arguments:
                raise DataError(f"{self.name} needs {self.main}, got {', '.join(arguments)}: {self._wanted()}")
            return
        if not isinstance(given, Tensor):
            raise DataError(f"{self.name} cannot read a {type(given).__name__} as {self.main}: give a tensor")
        whole = {torch.int64: "integers", torch.int32: "integers"}.get(given.dtype, str(given.dtype))
        kind, shape = "floats" if torch.is_floating_point(given) else whole, tuple(given.shape)
        if self.image_shape is None:
            if kind != "integers" or given.ndim != 2 or not given.numel():
                image = " (an image?)" if given.ndim == 4 else ""
                raise DataError(f"{self.name} reads tokens, got {kind} of shape {shape}{image}: {self._wanted()}")
            self._check_range(given)
            if self.context_length is not None and shape[1] > self.context_length:
                raise DataError(f"{shape[1]} tokens are more than the context of {self.name}, {self.context_length}")
            return
        channels, height, width = self.image_shape
        fits = given.ndim == 4 and shape[1] == channels
        resized = "interpolate_pos_encoding" in arguments or not self.fixed_size
        if kind != "floats" or not fits or not (resized or shape[2:] == (height, width)):
            raise DataError(f"{self.name} reads images, got {kind} of shape {shape}: {self._wanted()}")

    def _check_range(self, tokens: Tensor) -> None:
        """Of real tokens of this machine's memory: elsewhere it would be waited for."""
        if self.vocabulary is None or type(tokens) is not Tensor or tokens.device.type != "cpu":
            return
        least, most = (int(end) for end in tokens.aminmax())
        if least < 0 or most >= self.vocabulary:
            wrong = least if least < 0 else most
            raise DataError(f"{self.name} has no token {wrong}: its tokens are 0 to {self.vocabulary - 1}")

    def _wanted(self) -> str:
        if self.main is None:
            return "give a tensor, or a mapping of keyword arguments"
        if self.image_shape is None:
            return "give text, token ids (batch, pos), or a mapping with input_ids"
        return f"give floats (batch, {', '.join(map(str, self.image_shape))}), as from model.pixels(images)"


def _first_position(module: nn.Module) -> int:
    """Families that number positions from behind that of padding keep a row of their table for it."""
    tables = [part for path, part in module.named_modules() if path.endswith("position_embeddings")]
    kept = [t.padding_idx + 1 for t in tables if isinstance(t, nn.Embedding) and t.padding_idx is not None]
    return max(kept, default=0)


def _positions_behind_padding(arguments: dict[str, Any], first: int) -> dict[str, Tensor]:
    """Positions count real tokens: with padding in front, models that learn positions would be shifted otherwise."""
    mask = arguments.get("attention_mask")
    if "position_ids" in arguments or not isinstance(mask, Tensor) or mask.ndim != 2 or bool(mask[:, 0].all()):
        return {}
    return {"position_ids": (mask.long().cumsum(1) - 1).clamp(min=0) + first}
