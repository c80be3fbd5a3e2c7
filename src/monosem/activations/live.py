"""Activations straight from a model that reads text or images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosem.activations.by_context import ContextActivations, ContextReader, Part
from monosem.activations.content import reader_hash
from monosem.activations.inputs import open_images, open_text
from monosem.activations.reading import READ_TOKENS, Wanted, contexts_at_once, read_rows, rows_a_context
from monosem.arguments import AboveZero, NotNegative, Positive, checked
from monosem.data import Batch, BatchReader, ContextBatch, PackedText, ReadAhead
from monosem.data.batch import Span
from monosem.data.documents import Text
from monosem.errors import ConfigError, DataError
from monosem.models import ModelSet, SubjectModel
from monosem.ranks import any_of_all, everyone
from monosem.sae import SAEMetadata
from monosem.sae.metadata import PixelFormat
from monosem.work import Stage, doing, may_stop_here

FILLING = "filling the shuffle buffer"
PROBE_ROWS = 8  # at least
PROBE_CONTEXTS = 32  # at most; as many say what norms are usual


class LiveActivations(ContextReader):
    """The activations at one or several hook points, shuffled, while the model reads.

    The data are read in blocks of about `buffer_tokens` positions. A hash of seed and position sends every position to
    the pool of its own block or to the next one's; a pool is then shuffled. So a pool depends on two blocks alone, and
    any of them can be rebuilt from its number. A thread tokenises (or decodes images) ahead of the model.

    With several hook points, one forward pass serves all, and a row has what each of them saw at one position, side by
    side in the order given: `select`, `pair` and `stack` give sources of parts of it.

    With a `ModelSet`, all models read the same tokens: at one hook point, a batch is (rows, model, d), as a crosscoder
    reads it.
    """

    @checked
    def __init__(
        self,
        model: SubjectModel | ModelSet,
        hook: str | Sequence[str],
        text: Text = "bundled",
        *,
        images: Any = None,
        pixels: PixelFormat | None = None,
        context_length: Positive | None = None,
        prepend_bos: bool | None = None,
        packing: bool | None = None,
        exclude_special: bool = True,
        skip_first: NotNegative = 0,
        last_only: bool = False,
        max_norm_ratio: AboveZero | None = None,
        buffer_tokens: Positive = 131_072,
        seed: NotNegative = 0,
    ) -> None:
        """Open a stream.

        Args:
            model: the subject model, or several side by side.
            hook: name of a hook point, or of several.
            text: what `read_documents` takes.
            images: what `Images` takes, in place of text; a row for every patch.
            pixels: what images the model reads, where its config and image processor do not say it.
            context_length: tokens in a context; the model's own if not given, at most 1024.
            prepend_bos: begin every context with the beginning-of-sequence token; if not given, where there is one.
            packing: documents end to end; else each begins a context of its own. If not given, all but encoders pack.
            exclude_special: leave out positions of special tokens, whose activations are often extreme.
            skip_first: leave out so many positions at the beginning of every context.
            last_only: keep the last token of every document alone.
            max_norm_ratio: leave out rows whose norm, at any of the hooks, is above so many times the median norm of
                the first contexts (10 is usual): sink tokens.
            buffer_tokens: size of the shuffle buffer: rows, as many contexts as have about so many.
            seed: of the order of documents and the shuffle.

        Raises:
            HookError: the model has no such hook point.
            ConfigError: the context is longer than the model's, or options contradict each other.
            DataError: the text is empty, the model has no tokenizer, or does not read such data.
        """
        self.model, self.n_models = model, len(models_of(model))
        points = [model.hook_point(name) for name in ([hook] if isinstance(hook, str) else hook)]
        for point in points:
            point.require_rows()
        self.hooks = tuple(point.name for point in points)
        if not self.hooks or len(set(self.hooks)) < len(self.hooks):
            raise ConfigError(f"name one hook point or several different ones, got {hook!r}")
        if images is not None and last_only:
            raise ConfigError("last_only is for text: an image has no last token")
        self.contexts: BatchReader
        if images is None:
            options = {"context_length": context_length, "prepend_bos": prepend_bos, "packing": packing, "seed": seed}
            self.contexts, self._facts = open_text(model, text, **options)
        else:
            self.contexts, self._facts = open_images(model, images, self.hooks[0], pixels=pixels, seed=seed)
        self.context_length: int = self._facts["context_length"]
        self.positions = {"exclude_special": exclude_special, "skip_first": skip_first, "last_only": last_only}
        self.max_norm_ratio, self.seed = max_norm_ratio, seed
        example = self.model.capture(self.contexts.read(0, 1).inputs, self.hooks)
        self.widths = {name: flat(example[name], self.n_models).shape[-1] for name in self.hooks}
        self._nothing = torch.zeros(0, sum(self.widths.values()), device=example[self.hooks[0]].device)
        self.n_sources = self.n_models if len(self.hooks) == 1 else 1
        self.d_in = sum(self.widths.values()) // self.n_sources
        self._block_contexts = max(1, int(buffer_tokens / rows_a_context(self.contexts, self._rules)))
        self._at_once = contexts_at_once(model, self.contexts)
        passes = READ_TOKENS // self.context_length // self._at_once if images is None else 1
        self._read_at_once = max(1, passes) * self._at_once
        self._ahead = ReadAhead(self.contexts.read)
        self._carried: tuple[int, list[Tensor]] | None = None
        self._limits: Tensor | None = None
        self._seconds = 0.0
        self._newest_pool = -1
        self._contexts_read = self._rows_kept = 0
        self._by_context: ContextActivations | None = None

    @property
    def device(self) -> torch.device:
        return models_of(self.model)[0].device

    @property
    def metadata(self) -> SAEMetadata:
        self._ahead.settle()
        skipped, limits = len(getattr(self.contexts, "skipped", ())), self._norm_limits()
        models = models_of(self.model)
        alone = self.model.name if len(models) == 1 else None
        return SAEMetadata(
            model=alone,
            models=None if alone else [model.name for model in models],
            model_fingerprint=" + ".join(model.fingerprint() for model in models),
            hook=self.hooks[0] if len(self.hooks) == 1 else None,
            hooks=list(self.hooks) if len(self.hooks) > 1 else None,
            documents_skipped=skipped or None,
            max_norm_ratio=self.max_norm_ratio,
            max_norm=None if limits is None else dict(zip(self._norm_names(), limits.tolist(), strict=True)),
            **self.positions,
            **self._facts,
        )

    @property
    def idle_share(self) -> float:
        """Share of the time spent on pools so far in which the model waited for something to read."""
        return self._ahead.waited / max(self._seconds, 1e-9)

    def canonical(self, hook: str) -> str:
        return self.model.hook_point(hook).name

    def by_context(self) -> ContextActivations:
        if not isinstance(self.contexts, PackedText):
            raise ConfigError("by context only text can be read, not images")
        self._by_context = self._by_context or ContextActivations(self)
        return self._by_context

    def split(self, rows: Float[Tensor, "batch columns"]) -> tuple[Tensor, None]:
        return (rows.unflatten(1, (self.n_sources, self.d_in)) if self.n_sources > 1 else rows), None

    def make_pool(self, number: int) -> Float[Tensor, "rows columns"]:
        began = perf_counter()
        carried = self._carried is not None and self._carried[0] == number
        blocks = 1 if carried or not number else 2
        self._newest_pool = number
        size = blocks * self._block_contexts * self.context_length
        with doing(FILLING, size, unit="tokens") as reading:
            if self._carried is None or not carried:
                self._carried = (number, self._run_block(number - 1, reading)[1] if number else [])
            stays, goes = self._run_block(number, reading)
        parts, self._carried = [*self._carried[1], *stays], (number + 1, goes)
        del stays
        generator = torch.Generator().manual_seed(hash((self.seed, number)) & (2**63 - 1))
        order = torch.randperm(sum(map(len, parts)), generator=generator)
        rows = parts[0].new_empty(len(order), parts[0].shape[1])
        for places in order.argsort().split([len(part) for part in parts]):
            part = parts.pop(0)  # let go of when it is copied: a pool may be as large as memory allows
            rows[places.to(rows.device)] = part
        self._seconds += perf_counter() - began
        return rows

    def _spans(self, block: int) -> Iterator[tuple[Span, Span]]:
        """What to read at a time for a block, and what comes after it."""
        first, size = block * self._block_contexts, self._block_contexts
        starts = range(first, first + size, self._read_at_once)
        spans = [(start, min(start + self._read_at_once, first + size)) for start in starts]
        after = (first + size, first + size + min(self._read_at_once, size))
        return zip(spans, [*spans[1:], after], strict=True)

    def to_read(self, rows: int) -> float:
        a_context = self._rows_kept / self._contexts_read if self._contexts_read else self.context_length
        block = max(1.0, self._block_contexts * a_context)
        pools = 1 + max(0, math.ceil((rows - block / 2) / block))  # the first has half a block
        return max(0, pools - 1 - self._newest_pool) * self._block_contexts * self.context_length

    def _run_block(self, number: int, reading: Stage) -> tuple[list[Tensor], list[Tensor]]:
        """The rows of a block that stay in its own pool, and those that go to the next."""
        stays: list[Tensor] = []
        goes: list[Tensor] = []
        for start, batch, x, kept in self._read(self._spans(number)):
            to_next = self._goes_to_next(start, kept.shape)[kept].to(x.device)
            goes.append(x[to_next])
            stays.append(x[~to_next])
            reading.advance(len(batch) * self.context_length)
            may_stop_here(any_of_all)
        return stays, goes

    def read_from(self, context: int) -> Iterator[Part]:
        """What is read from a context on, in order, a few contexts at a time; those of one number are always the same.

        Args:
            context: the first one of a part, as it came before; or 0.
        """
        size = self._read_at_once
        starts = itertools.count(context, size)
        return self._read(((start, start + size), (start + size, start + 2 * size)) for start in starts)

    def read_mixed(self, block: int) -> Iterator[Part]:
        """The contexts of a block in random order, a few at a time; the number of a part is that of no context."""
        began, size = perf_counter(), self._block_contexts
        self._newest_pool = block
        first, text = block * size, self._ahead.read(*((i * size, (i + 1) * size) for i in (block, block + 1)))
        assert isinstance(text, ContextBatch)
        generator = torch.Generator().manual_seed(hash((self.seed, block)) & (2**63 - 1))
        mixed = text.of(torch.randperm(len(text), generator=generator), self.context_length)
        starts = range(0, len(mixed), self._at_once)
        with doing(FILLING, len(mixed) * self.context_length, unit="tokens") as reading:
            for part in self._shared((first + i, mixed[i : i + self._at_once]) for i in starts):
                yield part
                reading.advance(len(part.batch) * self.context_length)
                may_stop_here(any_of_all)
        self._seconds += perf_counter() - began

    def _read(self, spans: Iterable[tuple[Span, Span]]) -> Iterator[Part]:
        """Parts in order."""
        return self._shared(self._unread(spans))

    def _shared(self, unread: Iterator[tuple[int, Batch]]) -> Iterator[Part]:
        """What is read of contexts. Of several processes each has the model read its share, and all are given it."""
        every = everyone()
        while some := list(islice(unread, every.size)):
            own = some[every.rank] if every.rank < len(some) else None
            if own is None:
                x, kept = self._nothing, torch.zeros(0, *some[0][1].padding.shape[1:], dtype=torch.bool)
            else:
                x, kept = self._activations(own[1], own[0])
            all_rows, all_kept = every.gather_ragged(x), every.gather_ragged(kept)
            for (start, batch), rows, where in zip(some, all_rows, all_kept, strict=False):
                self._contexts_read += len(batch)
                self._rows_kept += len(rows)
                yield Part(start, batch, rows, where)

    def _unread(self, spans: Iterable[tuple[Span, Span]]) -> Iterator[tuple[int, Batch]]:
        """What goes through the model at a time, with the number of its first context."""
        for span, following in spans:
            contexts = self._ahead.read(span, following)
            if not len(contexts):
                return
            for start in range(0, len(contexts), self._at_once):
                yield span[0] + start, contexts[start : start + self._at_once]

    @property
    def _rules(self) -> SAEMetadata:
        """Which positions are wanted, as far as the data say it."""
        models = models_of(self.model)
        return SAEMetadata(models=[m.name for m in models] if len(models) > 1 else None, **self.positions)

    def _activations(
        self, batch: Batch, start: int
    ) -> tuple[Float[Tensor, "rows columns"], Bool[Tensor, "contexts pos"]]:
        """What the hook points see at the positions that are wanted, side by side, and which these are."""
        limits, rules = self._norm_limits(), self._rules
        if limits is not None:
            rules.max_norm = dict(zip(self._norm_names(), limits.tolist(), strict=True))
        return self._capture(batch, start, rules)

    def _capture(self, batch: Batch, start: int, rules: SAEMetadata) -> tuple[Tensor, Tensor]:
        ((rows, kept),) = read_rows(self.model, batch, [Wanted(rules, self.hooks)])
        parts = [flat(rows[hook], self.n_models) for hook in self.hooks]
        for hook, part in zip(self.hooks, parts, strict=True):
            bad = ~torch.isfinite(part).all(-1)
            if bad.any():
                context, position = kept.nonzero()[int(bad.nonzero()[0, 0])].tolist()
                raise DataError(
                    f"activations at {hook} are not finite in context {start + context}, position {position}: "
                    "load the model in float32 or bfloat16, or look at that text"
                )
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0], kept

    def _norm_limits(self) -> Float[Tensor, " norms"] | None:
        """The largest norm of a row that is kept, at each hook point (of each model)."""
        if self.max_norm_ratio is None:
            return None
        if self._limits is None:
            x, _ = self._capture(self.contexts.read(0, PROBE_CONTEXTS), 0, self._rules)
            self._limits = self.max_norm_ratio * self._norms(x).median(0).values.cpu()
        return self._limits

    def _norms(self, x: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch norms"]:
        """Of every model at every hook point."""
        widths = [width // self.n_models for width in self.widths.values() for _ in range(self.n_models)]
        return torch.stack([part.norm(dim=-1) for part in x.split(widths, -1)], -1)

    def _norm_names(self) -> list[str]:
        if self.n_models == 1:
            return list(self.hooks)
        return [f"{hook} of {model.name}" for hook in self.hooks for model in models_of(self.model)]

    def _goes_to_next(self, start: int, shape: torch.Size) -> Bool[Tensor, "contexts pos"]:
        """One random bit a token, a function of seed and position alone (splitmix64)."""
        position = np.arange(shape[0] * shape[1], dtype=np.uint64) + np.uint64(start * shape[1])
        with np.errstate(over="ignore"):
            z = position + np.uint64((self.seed + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = z ^ (z >> np.uint64(31))
        return torch.from_numpy((z >> np.uint64(63)).astype(np.bool_)).reshape(shape)

    def identity(self) -> dict[str, Any]:
        data = {name: self._facts.get(name) for name in ("prepend_bos", "packing")}
        if self._facts.get("pixels") is not None:
            data = {"pixels": self._facts["pixels"].model_dump()}
        limits: dict[str, Any] = {"max_norm_ratio": self.max_norm_ratio}
        if self.max_norm_ratio is not None:  # a row is left out where its norm at any of them is above
            limits["max_norm at"] = list(self.hooks)
        return {
            "model": " + ".join(model.fingerprint() for model in models_of(self.model)),
            "model dtype": " + ".join(_dtype(model) for model in models_of(self.model)),
            "tokenizer": self._facts.get("tokenizer_fingerprint"),
            "hooks": list(self.hooks),
            "targets": [],
            "stacked": self.n_models > 1,
            "data": reader_hash(self.contexts),
            "context_length": self.context_length,
            **data,
            **self.positions,
            **limits,
            "buffer_tokens": self._block_contexts * self.context_length,
            "seed": self.seed,
        }

    def state(self) -> dict[str, Any]:
        return self.contexts.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.contexts.load_state(state)

    def probe(self) -> dict[str, Tensor]:
        if not isinstance(self.contexts, PackedText):
            return super().probe()
        batch, kept = self.contexts.read(0, 2), torch.zeros(0)
        for n_contexts in (2, PROBE_CONTEXTS):  # the second where almost nothing is kept of a context
            batch = self.contexts.read(0, n_contexts)
            kept = self._activations(batch, 0)[1]
            if kept.sum() >= PROBE_ROWS:
                break
        probe = {"tokens": batch.tokens.to(torch.int32), "kept": kept}
        return probe if self.contexts.packing else {**probe, "padding": batch.padding}

    def probe_activations(self, probe: dict[str, Tensor]) -> Float[Tensor, "rows columns"]:
        if "tokens" not in probe:
            return super().probe_activations(probe)
        return probe_rows(self.model, self.hooks, probe)


def models_of(model: SubjectModel | ModelSet) -> list[SubjectModel]:
    """The models of a set, or the one."""
    return model.models if isinstance(model, ModelSet) else [model]


def _dtype(model: SubjectModel) -> str:
    parameter = next(model.module.parameters(), None)
    return "none" if parameter is None else str(parameter.dtype).removeprefix("torch.")


def flat(x: Tensor, n_models: int) -> Tensor:
    """What is captured of several models, side by side along the last dimension."""
    return x.flatten(-2) if n_models > 1 else x


def probe_rows(
    model: SubjectModel | ModelSet, hooks: str | Sequence[str], probe: dict[str, Tensor]
) -> Float[Tensor, "rows d"]:
    """What a model makes of the tokens of a probe, at the positions kept; several hook points side by side."""
    hooks, tokens = [hooks] if isinstance(hooks, str) else hooks, probe["tokens"].long()
    if "padding" in probe:
        captured = model.capture({"input_ids": tokens, "attention_mask": (~probe["padding"]).long()}, hooks)
    else:
        captured = model.capture(tokens, hooks)
    rows = [flat(captured[hook].to(torch.float32), len(models_of(model))) for hook in hooks]
    return torch.cat(rows, -1)[probe["kept"].to(rows[0].device)]
