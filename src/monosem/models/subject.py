"""SubjectModel: any torch model under study. Its weights are never changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from monosem.errors import ConfigError, DataError, HookError
from monosem.models.hooks import HookPoint, canonical_names, resolve


@dataclass(frozen=True)
class EditContext:
    """What an edit may know of the activations that it is given, each (batch, pos) where known."""

    hook: str
    tokens: Int[Tensor, "batch pos"] | None = None
    positions: Int[Tensor, "batch pos"] | None = None
    mask: Bool[Tensor, "batch pos"] | None = None
    """False where a token is padding."""
    generated: Bool[Tensor, "batch pos"] | None = None
    """True where a token was generated, False where it belongs to the prompt."""


EditFunction = Callable[[Tensor, EditContext], Tensor]


class Edit(Protocol):
    """An object that replaces activations: `apply(x, context) -> x` at each of `hooks`."""

    @property
    def hooks(self) -> Sequence[str]: ...
    def apply(self, x: Tensor, context: EditContext) -> Tensor: ...


class _Captured(Exception):
    """Raised inside a forward pass once the last wanted hook point has been seen."""


class SubjectModel:
    """A model, its tokenizer if it has one, and its hook points."""

    def __init__(self, module: nn.Module, tokenizer: Any = None, name: str | None = None) -> None:
        self.module = module.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name or type(module).__name__
        config = getattr(module, "config", None)
        self.family: str | None = getattr(config, "model_type", None)
        self.n_layers: int = getattr(config, "num_hidden_layers", 0) or 0
        self.context_length: int | None = getattr(config, "max_position_embeddings", None)
        self._d_model: int | None = getattr(config, "hidden_size", None)
        self._prompt_length: int | None = None

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        if self._d_model is None:
            raise ConfigError(
                f"{self.name} has no config.hidden_size: use model.width(hook, inputs) instead of d_model"
            )
        return self._d_model

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def hook_points(self) -> list[str]:
        """Canonical hook points, in the order of the forward pass (module paths where the family is not known)."""
        names = canonical_names(self.family, self.n_layers)
        return names or [path for path, _ in self.module.named_modules() if path]

    def hook_point(self, name: str) -> HookPoint:
        """Find a hook point by canonical name, TransformerLens name or module path.

        Raises:
            HookError: the model has no such place.
        """
        return resolve(name, self.module, self.family, self.n_layers)

    def width(self, hook: str, inputs: Any = None) -> int:
        """Width of the activations at a hook point, found by running one token (or the given inputs)."""
        inputs = torch.zeros(1, 1, dtype=torch.int64, device=self.device) if inputs is None else inputs
        return self.capture(inputs, [hook])[hook].shape[-1]

    def fingerprint(self) -> str:
        """A short hash of every parameter's name, shape and first values: equal for equal weights in any precision."""
        digest = hashlib.sha256()
        for name, parameter in self.module.named_parameters():
            head = parameter.detach().reshape(-1)[:16].to("cpu", torch.float32).to(torch.bfloat16).view(torch.int16)
            digest.update(f"{name}{tuple(parameter.shape)}".encode() + head.numpy().tobytes())
        return digest.hexdigest()[:16]

    def tokenizer_fingerprint(self) -> str | None:
        """A short hash of the vocabulary; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        return hashlib.sha256(repr(vocabulary).encode()).hexdigest()[:16]

    def tokens(self, text: str | Sequence[str], prepend_bos: bool = True) -> Int[Tensor, "batch pos"]:
        """Text to token ids. Several texts must come out equally long.

        Raises:
            DataError: no tokenizer, or texts of unequal length.
        """
        if self.tokenizer is None:
            raise DataError(f"{self.name} has no tokenizer: give token ids, or load_model(module, tokenizer=...)")
        texts = [text] if isinstance(text, str) else list(text)
        ids = [self.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
        bos = self.tokenizer.bos_token_id
        if prepend_bos and bos is not None:
            ids = [[bos, *row] for row in ids]
        if len({len(row) for row in ids}) > 1:
            raise DataError("texts of unequal length: give them one by one, or pad the tokens yourself")
        if not ids or not ids[0]:
            raise DataError("the text is empty")
        return torch.tensor(ids, device=self.device)

    def _arguments(self, inputs: Any) -> dict[str, Any] | Tensor:
        if isinstance(inputs, str | list | tuple):
            inputs = self.tokens(inputs)
        if isinstance(inputs, Mapping):
            return dict(inputs)
        if self.family is not None and not torch.is_floating_point(inputs):
            return {"input_ids": inputs.to(self.device)}
        return inputs.to(self.device)

    @torch.no_grad()
    def forward(self, inputs: Any) -> Any:
        """Logits (batch, pos, vocabulary) of a language model; whatever the module returns otherwise.

        `inputs`: token ids, text, or a mapping of keyword arguments.
        """
        out = self._call(inputs)
        return getattr(out, "logits", out)

    __call__ = forward

    def _call(self, inputs: Any) -> Any:
        arguments = self._arguments(inputs)
        if isinstance(arguments, dict):
            cache = {"use_cache": False} if self.n_layers and "past_key_values" not in arguments else {}
            return self.module(**{**cache, **arguments})
        return self.module(arguments)

    @torch.no_grad()
    def capture(self, inputs: Any, hooks: Sequence[str]) -> dict[str, Float[Tensor, "batch pos d"]]:
        """Activations at the given hook points. The forward pass stops after the last of them.

        Args:
            inputs: token ids (batch, pos), text, or a mapping of keyword arguments.
            hooks: names of hook points.

        Raises:
            HookError: a hook point does not exist, or the forward pass never reached it.
        """
        points = {name: self.hook_point(name) for name in hooks}
        captured: dict[str, Tensor] = {}

        def keep(name: str) -> EditFunction:
            def function(x: Tensor, _: EditContext) -> Tensor:
                if name not in captured:
                    last = len(captured) + 1 == len(points)
                    captured[name] = x if last else x.clone()  # what follows may work in place
                    if last:
                        raise _Captured
                return x

            return function

        handles = [self._attach(point, keep(name), context=None) for name, point in points.items()]
        try:
            self._call(inputs)
        except _Captured:
            pass
        finally:
            for handle in handles:
                handle.remove()
        missing = [name for name in hooks if name not in captured]
        if missing:
            raise HookError(f"the forward pass of {self.name} never reached {', '.join(missing)}")
        return {name: captured[name] for name in hooks}

    @contextmanager
    def edit(self, edits: Mapping[str, EditFunction] | Sequence[Edit]) -> Iterator[None]:
        """Within this block, activations are replaced by what the edits return.

        Args:
            edits: `{hook: fn}` with `fn(x, context) -> x`, or objects with `hooks` and `apply(x, context)`. Several at
                one hook point apply in the order given.
        """
        if isinstance(edits, Mapping):
            pairs = list(edits.items())
        else:
            pairs = [(hook, edit.apply) for edit in edits for hook in edit.hooks]
        points = [(self.hook_point(hook), function) for hook, function in pairs]
        current: list[EditContext] = [EditContext("")]

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            current[0] = self._context(args, kwargs)

        handles = [self.module.register_forward_pre_hook(note, with_kwargs=True)]
        handles += [self._attach(point, function, current) for point, function in points]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _context(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> EditContext:
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or torch.is_floating_point(tokens):
            return EditContext("")
        cache = kwargs.get("past_key_values")
        seen = cache.get_seq_length() if cache is not None else 0
        positions = torch.arange(seen, seen + tokens.shape[1], device=tokens.device).expand_as(tokens)
        attention = kwargs.get("attention_mask")
        mask = torch.ones_like(tokens, dtype=torch.bool)
        if isinstance(attention, Tensor) and attention.ndim == 2:
            mask = attention[:, -tokens.shape[1] :].bool()
        prompt = self._prompt_length
        generated = torch.zeros_like(mask) if prompt is None else positions >= prompt
        return EditContext("", tokens, positions, mask, generated)

    def _attach(self, point: HookPoint, function: EditFunction, context: list[EditContext] | None) -> Any:
        module = self.module.get_submodule(point.path)

        def replaced(x: Any) -> Any:
            first = x[0] if isinstance(x, tuple) else x
            if not isinstance(first, Tensor):
                raise HookError(f"{point.name} gives a {type(first).__name__}, not a tensor: choose a module inside it")
            now = replace(context[0], hook=point.name) if context else EditContext(point.name)
            new = function(first, now)
            if new is first:
                return None
            return (new, *x[1:]) if isinstance(x, tuple) else new

        if point.side == "output":
            return module.register_forward_hook(lambda _module, _args, output: replaced(output))

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                new = replaced(args)
                return None if new is None else (new, kwargs)
            name = next(iter(kwargs))
            new = replaced(kwargs[name])
            return None if new is None else (args, {**kwargs, name: new})

        return module.register_forward_pre_hook(before, with_kwargs=True)

    @torch.no_grad()
    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 50,
        temperature: float = 0.9,
        top_k: int = 40,
        seed: int = 0,
    ) -> str:
        """Continue a text. Temperature 0 is greedy. Returns prompt and continuation.

        Edits in force apply; their context says which positions are generated.

        Raises:
            DataError: no tokenizer, or prompt and continuation do not fit the model's context.
        """
        tokens = self.tokens(prompt)
        length = tokens.shape[1] + max_new_tokens
        if self.context_length is not None and length > self.context_length:
            raise DataError(
                f"{tokens.shape[1]} prompt tokens and {max_new_tokens} new ones do not fit the context of "
                f"{self.context_length}: shorten the prompt or lower max_new_tokens"
            )
        sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k} if temperature > 0 else {}
        self._prompt_length = tokens.shape[1]
        try:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                out = self.module.generate(  # pyright: ignore[reportCallIssue]
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=max_new_tokens,
                    pad_token_id=self.tokenizer.eos_token_id,
                    **({"do_sample": False} | sampling),
                )
        finally:
            self._prompt_length = None
        return self.tokenizer.decode(out[0], skip_special_tokens=True)

    def __repr__(self) -> str:
        n_parameters = sum(p.numel() for p in self.module.parameters())
        return (
            f"SubjectModel({self.name!r}, {self.family}, {self.n_layers} layers, {n_parameters / 1e6:.1f} M parameters)"
        )
