"""SubjectModel: any torch model under study. Nothing of it is ever changed: neither weights nor modes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from monosem.arguments import NotNegative, checked
from monosem.errors import ConfigError, DataError, HookError
from monosem.files import writing
from monosem.models.alone import as_studied
from monosem.models.attention import INNER, watch
from monosem.models.edits import Continued, Edit, EditContext, EditFunction, EditReport, Joining
from monosem.models.families import FLAT, hook_table, main_config
from monosem.models.hooks import HookPoint, resolve
from monosem.models.inputs import Inputs
from monosem.models.writing import Sampling, require_writing, write
from monosem.text import first_token, last_token, special_tokens, well_formed

NAMES = ("input_ids", "attention_mask")
CPU_POSITIONS, GPU_POSITIONS = 2_048, 16_384
"""At a time: on a CPU measured (benchmarks/forward.py), as its caches hold no more; on a GPU not yet."""


class _Captured(Exception):
    """Raised inside a forward pass once the last wanted hook point has been seen."""


@lru_cache(1024)
def _spread(n: int, device: torch.device) -> Tensor:
    """The places of at most 64 of n numbers, from the first to the last."""
    return torch.arange(min(n, 64), device=device) * (n - 1) // max(min(n, 64) - 1, 1)


class SubjectModel:
    """A model, its tokenizer or image processor if it has one, and its hook points."""

    @checked
    def __init__(
        self, module: nn.Module, tokenizer: Any = None, name: str | None = None, processor: Any = None
    ) -> None:
        module = getattr(module, "_orig_mod", module)
        self.module = module
        self.tokenizer, self.processor = tokenizer, processor
        self.name = name or type(module).__name__
        config = main_config(module)
        self.family: str | None = getattr(config, "model_type", None)
        self.n_layers: int = getattr(config, "num_hidden_layers", 0) or 0
        self.inputs = Inputs.of(module, config, self.name)
        self._places = hook_table(module, self.family, self.n_layers)
        self._d_model: int | None = getattr(config, "hidden_size", None)
        self.continued: Continued | None = None
        self._level = 0
        self._vocabulary: tuple[Any, int, str] | None = None
        """The tokenizer whose vocabulary was hashed, how many tokens it had, and the hash."""
        self._special = torch.tensor(
            sorted(special_tokens(tokenizer)) if tokenizer is not None else [], dtype=torch.int64
        )

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        if self._d_model is None:
            raise ConfigError(
                f"{self.name} has no config.hidden_size: use model.width(hook, inputs) instead of d_model"
            )
        return self._d_model

    @property
    def context_length(self) -> int | None:
        """Tokens in the longest text, or class token and patches of an image; None where nothing says it."""
        return self.inputs.context_length

    @property
    def device(self) -> torch.device:
        """Where inputs go and captured activations come back to."""
        weights = (p.device for p in self.module.parameters() if not p.is_meta)
        return next(weights, torch.device("cpu"))

    @property
    def hook_points(self) -> list[str]:
        """Canonical hook points, in the order of the forward pass (module paths where the family is not known).

        What lies there is (batch, pos, d). The attention patterns `attn_pattern.L`, (batch, heads, query, key), are
        captured and edited likewise, and not in this list.
        """
        return [name for name in self._places if not name.startswith("attn_pattern.")] or [
            path for path, _ in self.module.named_modules() if path
        ]

    @checked
    def hook_point(self, name: str) -> HookPoint:
        """Find a hook point by canonical name, TransformerLens name or module path.

        Raises:
            HookError: the model has no such place.
        """
        return resolve(name, self.module, self._places)

    @checked
    def width(self, hook: str, inputs: Any = None) -> int:
        """Width of the activations at a hook point, found by running one token or image (or the given inputs)."""
        return self.capture(self.inputs.least() if inputs is None else inputs, [hook])[hook].shape[-1]

    def contexts_at_once(self, length: int) -> int:
        """How many contexts of that many positions go through the model at a time in long work."""
        return max(1, (CPU_POSITIONS if self.device.type == "cpu" else GPU_POSITIONS) // length)

    @property
    def logit_scale(self) -> float:
        """What its logits are multiplied by, after the output embeddings: of Cohere's models alone not 1."""
        return getattr(main_config(self.module), "logit_scale", None) or 1.0

    @property
    def writes_text(self) -> bool:
        """Whether it predicts the next token; of a module of no known family it is taken to."""
        return getattr(self.module, "can_generate", lambda: self.family is None)()

    def fingerprint(self) -> str:
        """A short hash of every parameter's name, shape and 64 of its values: equal for equal weights in any precision.

        The values are spread evenly over the tensor. Weights that are held on disk alone are left out.
        """
        digest = hashlib.sha256()
        for name, parameter in self.module.named_parameters():
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            if not parameter.is_meta and parameter.numel():
                places = _spread(parameter.numel(), parameter.device)
                values = parameter.detach().reshape(-1)[places].to("cpu", torch.float32).to(torch.bfloat16)
                digest.update(values.view(torch.int16).numpy().tobytes())
        return digest.hexdigest()[:16]

    def tokenizer_fingerprint(self) -> str | None:
        """A short hash of the vocabulary; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        vocabulary = self.tokenizer.get_vocab()
        if self._vocabulary is None or self._vocabulary[:2] != (self.tokenizer, len(vocabulary)):
            words = sorted(vocabulary.items(), key=lambda item: item[1])
            found = hashlib.sha256(repr(words).encode()).hexdigest()[:16]
            self._vocabulary = self.tokenizer, len(vocabulary), found
        return self._vocabulary[2]

    @checked
    def tokens(self, text: str | Sequence[str], prepend_bos: bool = True) -> Int[Tensor, "batch pos"]:
        """Text to token ids. Several texts must come out equally long (else: `padded`).

        Args:
            text: one text or several.
            prepend_bos: begin with the beginning-of-sequence token, if the text does not do so itself; where the
                tokenizer has others, with its own special tokens around the text (`[CLS] ... [SEP]` of an encoder).
                Lone surrogates are read as U+FFFD.

        Raises:
            DataError: no tokenizer, or texts of unequal length.
        """
        ids = self._ids(text, prepend_bos)
        if len({len(row) for row in ids}) > 1:
            raise DataError("texts of unequal length: give model.padded(texts), or one by one")
        return torch.tensor(ids, device=self.device)

    @checked
    def padded(self, texts: Sequence[str], prepend_bos: bool = True) -> dict[str, Int[Tensor, "batch pos"]]:
        """Texts of any lengths as keyword arguments of one batch: `input_ids`, and `attention_mask` 0 at padding.

        Padding stands behind, so that captures before it equal those of each text alone. Give the result to `capture`,
        and keep only positions where the mask is 1.
        """
        ids = self._ids(texts, prepend_bos)
        length, pad = max(map(len, ids)), getattr(self.tokenizer, "pad_token_id", None) or 0
        tokens = [row + [pad] * (length - len(row)) for row in ids]
        mask = [[1] * len(row) + [0] * (length - len(row)) for row in ids]
        return {name: torch.tensor(x, device=self.device) for name, x in zip(NAMES, (tokens, mask), strict=True)}

    def _ids(self, text: str | Sequence[str], prepend_bos: bool) -> list[list[int]]:
        if self.inputs.image_shape is not None:
            raise DataError(f"{self.name} reads images, not text: give pixels, as from model.pixels(images)")
        if self.tokenizer is None:
            raise DataError(f"{self.name} has no tokenizer: give token ids, or load_model(module, tokenizer=...)")
        texts = [text] if isinstance(text, str) or not isinstance(text, Iterable) else list(text)
        if not all(isinstance(t, str) for t in texts):
            raise DataError(f"{self.name} reads text: give a string or several, not {type(text).__name__}")
        first, last = (t(self.tokenizer) if prepend_bos else None for t in (first_token, last_token))
        own = prepend_bos and first is None
        ids = [self.tokenizer(well_formed(t), add_special_tokens=own, verbose=False)["input_ids"] for t in texts]
        ids = [row if first is None or row[:1] == [first] else [first, *row] for row in ids]
        ids = [row if last is None or row[-1:] == [last] else [*row, last] for row in ids]
        if not ids or not all(ids):
            raise DataError("the text is empty")
        return ids

    def pixels(self, images: Any) -> Float[Tensor, "batch channels height width"]:
        """One image or several (PIL, arrays) to pixels, resized and normalised as the model's own processor does it.

        Raises:
            DataError: the model reads no images, or came without a processor.
        """
        if self.inputs.image_shape is None:
            raise DataError(f"{self.name} reads no images: give text or token ids")
        if self.processor is None:
            raise DataError(f"{self.name} has no image processor: give floats (batch, channels, height, width)")
        return self.processor(images, return_tensors="pt")["pixel_values"].to(self.device)

    def _arguments(self, inputs: Any) -> dict[str, Any] | Tensor:
        several = isinstance(inputs, list | tuple) and all(isinstance(text, str) for text in inputs)
        if isinstance(inputs, str) or several:
            inputs = self.tokens(inputs)
        return self.inputs.arguments(inputs, self.device)

    @torch.no_grad()
    def forward(self, inputs: Any) -> Any:
        """Logits, (batch, pos, vocabulary) of a language model; whatever the module returns where it has none.

        Args:
            inputs: token ids, text, pixels, or a mapping of keyword arguments.

        Raises:
            DataError: the model does not read such inputs.
        """
        out = self._call(inputs)
        return getattr(out, "logits", out)

    __call__ = forward

    def _call(self, inputs: Any) -> Any:
        arguments = self._arguments(inputs)
        with as_studied(self.module, self.device):
            return self.module(**arguments) if isinstance(arguments, dict) else self.module(arguments)

    @checked
    @torch.no_grad()
    def capture(self, inputs: Any, hooks: str | Sequence[str]) -> dict[str, Float[Tensor, "batch pos d"]]:
        """Activations at the given hook points. The forward pass stops after the last of them.

        Args:
            inputs: token ids (batch, pos), text, pixels (batch, channels, height, width), or a mapping of keyword
                arguments (with `attention_mask` for a padded batch).
            hooks: names of hook points.

        Raises:
            HookError: a hook point does not exist, or the forward pass never reached it.
            DataError: the model does not read such inputs.
        """
        return self.reach(inputs, hooks)

    def reach(self, inputs: Any, hooks: Sequence[str]) -> dict[str, Float[Tensor, "batch pos d"]]:
        """As `capture`, with gradients to inputs and weights that want them.

        Raises:
            HookError: a hook point does not exist, or the forward pass never reached it.
            DataError: the model does not read such inputs.
        """
        hooks = [hooks] if isinstance(hooks, str) else hooks
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

        handles = [self.attach(point, keep(name)) for name, point in points.items()]
        try:
            self._call(inputs)
        except _Captured:
            pass
        finally:
            for handle in handles:
                handle.close()
        missing = [name for name in hooks if name not in captured]
        if missing:
            raise HookError(f"the forward pass of {self.name} never reached {', '.join(missing)}")
        return {name: captured[name].to(self.device) for name in hooks}

    @checked
    def edit(self, edits: Mapping[str, EditFunction] | Sequence[Edit]) -> InForce:
        """Within this block, activations are replaced by what the edits return.

        with model.edit([ms.Ablate(sae, [12])]) as reports:
            logits = model(tokens)
        print(reports[0])  # what it changed, or why nothing

        Args:
            edits: `{hook: fn}` with `fn(x, context) -> x`, or objects with `hooks` and `apply(x, context)`. Several at
                one hook point apply in the order given.

        Raises:
            HookError: the model has no such place.
            MismatchError: an edit is not for this model.
        """
        return InForce(self, edits)

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """Within this block no edits are in force but those of blocks inside it: for looks at the model itself."""
        self._level += 1
        try:
            yield
        finally:
            self._level -= 1

    def _context(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> EditContext:
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or torch.is_floating_point(tokens):
            return EditContext("", tokenizer=self.tokenizer)
        n = tokens.shape[1]
        cache = kwargs.get("past_key_values")
        seen = cache.get_seq_length() if cache is not None else 0
        columns = torch.arange(seen, seen + n, device=tokens.device)
        attention = kwargs.get("attention_mask")
        if isinstance(attention, Tensor) and attention.ndim == 2 and attention.shape[1] == seen + n:
            padding_in_front = (attention.long().cumsum(1) == 0).sum(1, keepdim=True)
            positions = (columns - padding_in_front).clamp(min=0)
            mask, lengths = attention[:, -n:].bool(), attention.long().sum(1)
        else:
            positions, mask = columns.expand_as(tokens), torch.ones_like(tokens, dtype=torch.bool)
            lengths = torch.full_like(tokens[:, 0], seen + n)
        special = torch.isin(tokens, self._special.to(tokens.device))
        step = torch.zeros_like(tokens)
        if self.continued is not None:
            step = (columns - self.continued.width + 1).clamp(min=0).expand_as(tokens)
            lengths = self.continued.lengths
        known = (tokens, positions, mask, special, step > 0, step, lengths, self.continued is not None)
        return EditContext("", *known, tokenizer=self.tokenizer)

    def attach(
        self,
        point: HookPoint,
        function: EditFunction,
        context: list[EditContext] | None = None,
        report: EditReport | None = None,
    ) -> ExitStack:
        """Put a function at a hook point; returns what takes it away again.

        What a module reads is its own alone. Where the stream runs on beside it, as at `resid_mid`, which the norm of
        the MLP reads, a change is added to what comes out of the block.
        """
        module, level = self.module.get_submodule(point.path), self._level
        put = ExitStack()
        beside = _Beside() if point.name.startswith("resid_mid.") and point.side == "input" else None
        if beside is not None:
            block = self.module.get_submodule(self.hook_point(point.name.replace("mid", "post")).path)
            put.callback(block.register_forward_hook(beside.arrive, prepend=True).remove)
        kind, _, layer = point.name.partition(".")
        folded = _Folded() if kind in FLAT.get(self.family or "", ()) and layer else None
        if folded is not None:
            block = self.module.get_submodule(self.hook_point(f"resid_post.{layer}").path)
            put.callback(block.register_forward_pre_hook(folded.note).remove)

        def replaced(x: Any) -> Any:
            if beside is not None:
                beside.change = None
            if context is not None and level != self._level:
                return None
            first = x[0] if isinstance(x, tuple) else x
            if not isinstance(first, Tensor):
                raise HookError(f"{point.name} gives a {type(first).__name__}, not a tensor: choose a module inside it")
            first = first if folded is None else first.unflatten(0, folded.shape)
            now = replace(context[0], hook=point.name, report=report) if context else EditContext(point.name)
            new = function(first, now).to(first)  # an edit may compute in float32 in a bfloat16 model
            if report is not None:
                report.note_change(first, new, now.mask, now.rows)
            if new is first:
                return None
            if beside is not None:
                beside.change = new - first
            new = new if folded is None else new.flatten(0, 1)
            return (new, *x[1:]) if isinstance(x, tuple) else new

        if point.side in INNER:
            put.callback(watch(module, point.side, replaced, point.name).remove)
            return put
        if point.side == "output":
            put.callback(module.register_forward_hook(lambda _module, _args, output: replaced(output)).remove)
            return put

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                new = replaced(args)
                return None if new is None else (new, kwargs)
            name = next(iter(kwargs))
            new = replaced(kwargs[name])
            return None if new is None else (args, {**kwargs, name: new})

        put.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        return put

    @checked
    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 50,
        temperature: float = 0.9,
        top_k: int = 40,
        seed: NotNegative = 0,
    ) -> str:
        """Continue a text. Temperature 0 is greedy. Returns prompt and continuation.

        Edits in force apply; their context says which positions are generated. `ms.generate` does more.

        Raises:
            ConfigError: the model writes no text.
            DataError: no tokenizer, or prompt and continuation do not fit the model's context.
        """
        require_writing(self)
        tokens = self.tokens(prompt)
        sampling = Sampling(max_new_tokens, temperature, top_k)
        written = [step.tokens for step in write(self, {"input_ids": tokens}, sampling, [seed])]
        return self.tokenizer.decode(torch.cat([tokens[0], *written]), skip_special_tokens=True)

    @checked
    def save(self, folder: str | Path) -> None:
        """Write config, weights (safetensors) and tokenizer as a folder that `load_model` and transformers read.

        Raises:
            ConfigError: it is no model of transformers.
            FileError: the folder cannot be written.
        """
        if not hasattr(self.module, "save_pretrained"):
            raise ConfigError(f"{self.name} is no model of transformers: save its weights as you have made it")
        folder = Path(folder)
        new, parts = folder.with_name(f".{folder.name}.new"), list[Any]((self.module, self.tokenizer, self.processor))
        with writing(folder, sum(p.nbytes for p in self.module.parameters())):
            for part in parts:
                if part is not None:
                    part.save_pretrained(new)
            shutil.rmtree(folder, ignore_errors=True)
            new.replace(folder)

    def __repr__(self) -> str:
        n_parameters = sum(p.numel() for p in self.module.parameters())
        return (
            f"SubjectModel({self.name!r}, {self.family}, {self.n_layers} layers, {n_parameters / 1e6:.1f} M parameters)"
        )


class _Beside:
    """What an edit changed in a stream that a module reads and that runs on beside it."""

    change: Tensor | None = None

    def arrive(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Add it to what the block gives, before anything else looks there."""
        change, self.change = self.change, None
        if change is None:
            return None
        if isinstance(output, tuple):
            return (output[0] + change, *output[1:])
        return output + change


class _Folded:
    """How many texts and positions stand in one column within a block."""

    shape: tuple[int, int] = (1, 1)

    def note(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        """See what the block reads."""
        self.shape = args[0].shape[:2]


class InForce:
    """Edits of one model, in force within `with`, which gives a report of each. It can be entered again and again."""

    def __init__(self, model: SubjectModel, edits: Mapping[str, EditFunction] | Sequence[Edit]) -> None:
        """Ask all edits whether they are for this model; nothing is in force yet."""
        self.model = model
        if isinstance(edits, Mapping):
            pairs = [(hook, function, EditReport(function)) for hook, function in edits.items()]
            self.reports = [report for _, _, report in pairs]
        else:
            for edit in edits:
                if isinstance(edit, Joining):
                    edit.join(model)
            self.reports = [EditReport(edit) for edit in edits]
            pairs = [(hook, e.apply, r) for e, r in zip(edits, self.reports, strict=True) for hook in e.hooks]
        self.points = [(model.hook_point(hook), function, report) for hook, function, report in pairs]
        self._within: list[ExitStack] = []

    def __enter__(self) -> list[EditReport]:
        current: list[EditContext] = [EditContext("")]

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            current[0] = self.model._context(args, kwargs)

        with ExitStack() as stack:
            stack.enter_context(as_studied(self.model.module, self.model.device))
            stack.callback(self.model.module.register_forward_pre_hook(note, with_kwargs=True).remove)
            for point, function, report in self.points:
                stack.callback(self.model.attach(point, function, current, report).close)
            self._within.append(stack.pop_all())
        return self.reports

    def __exit__(self, *exception: object) -> None:
        self._within.pop().close()
