"""The state of a harvest: fixed per latent, and such that two of them add up."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from torch import Tensor

from monosem.codes import SparseCodes
from monosem.data import Batch
from monosem.errors import ConfigError, FileError
from monosem.features import streaming
from monosem.features.log import FiringLog, Logged
from monosem.features.sample import Columns, KeySample
from monosem.features.streaming import EMPTY, N_BINS, Firings, Layout, Slots, Tokens, Totals
from monosem.files import Settings, as_json, fits, parse_json, reading, safetensors_shapes, write_safetensors

BEGIN = "delete it to begin again"
STATE_FORMAT, STATE_VERSION = "monosem harvest", 3
HELD = 2
"""Strongest places that are held for every one that is wanted: of passages that are alike one is kept in the end."""
CONTEXT_SALT, LOG_SALT, WINDOW_SALT = 1, 2, 3

Near = Callable[[Int[Tensor, " rows"]], tuple[Float[Tensor, "rows m"], Int[Tensor, "rows m"]]]
"""Values and latents of the near misses of some rows of the codes."""


class HarvestSettings(Settings):
    """How much of what a harvest keeps per latent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    top: int = Field(default=12, ge=1)
    """Strongest places, one per text: of equal documents, and of passages that are alike, the strongest."""
    sample: int = Field(default=3, ge=1)
    """Random firings in each of the ten bins of activation."""
    near: int = Field(default=5, ge=0)
    """Near misses."""
    silent: int = Field(default=4, ge=0)
    """Windows without a firing."""
    near_ranks: int = Field(default=8, ge=1)
    """How many of the latents that are off count as near misses of a token."""
    near_every: int = Field(default=16, ge=1)
    """Near misses are looked for in one of so many contexts."""
    silent_windows: int = Field(default=256, ge=1)
    """Random windows from which all latents' silent ones are taken."""
    log_firings: int = Field(default=2**24, ge=1)
    """Tokens and firings in the log of firings, a firing of 4 bytes (6 from 65,537 latents on): of all contexts while
    they fit, else of random ones. From it the tokens and words on which latents fire are counted."""
    cofiring_rows: int | None = Field(default=None, ge=1)
    """Random tokens of the log on which co-firing is measured; 8 per latent if not given."""
    listed: int = Field(default=8, ge=1)
    """Tokens, neighbours and co-firing latents in a list."""
    before: int = Field(default=20, ge=0)
    """Tokens of a window before its peak."""
    after: int = Field(default=11, ge=0)
    """Tokens of a window after its peak."""
    worth: int = Field(default=4, ge=0)
    """Contexts in which every latent is raised, to see what it is worth in steering; 0: that is left out."""
    seed: int = Field(default=0, ge=0)


class Span(NamedTuple):
    """Contexts of a text (or images) that have been read."""

    text: str
    first: int
    stop: int


class _Saved(BaseModel):
    """What is said in a saved state."""

    n_latents: int = Field(ge=1, strict=True)
    vocabulary_size: int = Field(ge=1, strict=True)
    context_length: int = Field(ge=1, le=2**16, strict=True)
    n_tokens: int = Field(ge=0, strict=True)
    spans: list[tuple[str, int, int]] = Field(min_length=1)
    log_limit: int = Field(ge=0, lt=2**64, strict=True)
    settings: HarvestSettings
    facts: dict[str, Any]


class Harvest:
    """Everything that is kept of what one dictionary's latents do, while batches of contexts stream by.

    Memory is fixed per latent (`memory_per_latent`), and for the log of firings, whatever their number. What is kept of
    two streams merges into what would have been kept of both: sums add up, the strongest of both are the strongest, and
    random members are those with the smallest hash of (seed, latent, place).
    """

    def __init__(
        self,
        n_latents: int,
        vocabulary_size: int,
        context_length: int,
        *,
        text: str = "",
        first_context: int = 0,
        settings: HarvestSettings | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        """Begin.

        Args:
            n_latents: size of the dictionary.
            vocabulary_size: token ids are smaller than this.
            context_length: tokens in a context, at most 65,536.
            text: name of the text that comes.
            first_context: number of its first context.
            settings: what to keep.
            facts: what the harvest is of; two that differ do not merge.
        """
        if not 1 <= context_length <= 2**16:
            raise ConfigError(f"context_length must be between 1 and 65,536, got {context_length}")
        self.n_latents, self.vocabulary_size, self.context_length = n_latents, vocabulary_size, context_length
        self.settings, self.facts = settings or HarvestSettings(), facts or {}
        self.spans = [Span(text, first_context, first_context)]
        self.n_tokens = 0
        self.token_counts = np.zeros(vocabulary_size, np.int64)
        s, token_type = self.settings, np.uint16 if vocabulary_size <= 2**16 else np.uint32
        self.layout = Layout(HELD * s.top, s.sample, s.near, s.before, s.after, s.seed)
        shape = (n_latents, self.layout.slots)
        window = (*shape, min(context_length, s.before + s.after + 1))
        self.slots = Slots(
            place=np.full(shape, EMPTY, np.int64),
            document=np.zeros(shape, np.int32),
            position=np.zeros(shape, np.int32),
            content=np.zeros((n_latents, self.layout.n_top), np.uint32),
            activation=np.zeros(shape, np.float32),
            scale=np.zeros(shape, np.float32),
            start=np.zeros(shape, np.uint16),
            length=np.zeros(shape, np.min_scalar_type(window[-1])),
            tokens=np.zeros(window, token_type),
            shades=np.zeros(window, np.uint8),
        )
        self.totals = Totals(
            np.zeros(n_latents, np.int64),
            np.zeros(n_latents, np.float64),
            np.zeros(n_latents, np.float64),
            np.zeros(n_latents, np.float32),
            np.zeros((n_latents, N_BINS), np.uint32),
        )
        latent_type = np.uint16 if n_latents <= 2**16 else np.uint32
        self.log = FiringLog(s.log_firings, np.dtype(token_type), np.dtype(latent_type))
        self.windows = KeySample(
            s.silent_windows,
            {
                "place": np.zeros(0, np.int64),
                "document": np.zeros(0, np.int32),
                "position": np.zeros(0, np.int32),
                "start": np.zeros(0, np.int32),
                "length": np.zeros(0, np.int32),
                "tokens": np.zeros((0, window[2]), token_type),
                "on": np.zeros((0, -(-n_latents // 8)), np.uint8),
            },
        )

    @property
    def next_context(self) -> int:
        """Number of the context that comes next."""
        return self.spans[-1].stop

    @property
    def memory_per_latent(self) -> float:
        """Bytes, without the log, which takes no more than its settings say."""
        keys, columns = self.windows.kept()
        arrays = [*self.totals, *self.slots, keys, *columns.values()]
        return sum(array.nbytes for array in arrays) / self.n_latents

    def add(
        self, batch: Batch, kept: Bool[Tensor, "contexts pos"], codes: SparseCodes, near: Near | None = None
    ) -> None:
        """Take in the next contexts.

        Args:
            batch: the contexts, which follow those of the call before.
            kept: the positions that the SAE reads.
            codes: of these positions, in order.
            near: gives the near misses of some rows of the codes; without it there will be none.
        """
        cells = np.flatnonzero(kept.reshape(-1).cpu().numpy())
        number = text_number(self.spans[-1].text)
        first_place, width = number << 48 | self.next_context << 16, batch.tokens.shape[1]
        content = batch.document + (number << 32) if batch.content is None else batch.content
        tokens = Tokens(
            tokens=_flat(batch.tokens),
            document=_flat(batch.document),
            position=_flat(batch.position),
            content=_folded(_flat(content)),
            padding=batch.padding.reshape(-1).cpu().numpy(),
            width=width,
            first_place=first_place,
        )
        offsets = codes.offsets.cpu().numpy()
        indices, values = codes.indices.cpu().numpy(), codes.values.detach().float().cpu().numpy()
        rows = np.repeat(np.arange(len(cells)), np.diff(offsets))
        firings = Firings(*streaming.sort_firings(rows, indices, values, cells, self.n_latents))
        streaming.take_in(firings, tokens, self.totals, self.slots, self.layout)
        if near is not None and self.settings.near:
            places = first_place + ((cells // width) << 16) + cells % width
            self._add_near_misses(cells, places, near, firings, tokens)
        contexts = first_place + (np.arange(len(batch)) << 16)
        self.log.add(self._keys(contexts, LOG_SALT), contexts, tokens.tokens, cells, codes)
        self._add_windows(cells, offsets, indices, values, tokens)
        self.n_tokens += len(cells)
        self.token_counts += np.bincount(tokens.tokens[cells], minlength=self.vocabulary_size)
        text, first, stop = self.spans[-1]
        self.spans[-1] = Span(text, first, stop + len(batch))

    def go_to(self, context: int) -> None:
        """The next contexts are those from this one on: of those between another harvest knows."""
        if context != self.next_context:
            text = self.spans[-1].text
            self.spans = [*(span for span in self.spans if span.stop > span.first), Span(text, context, context)]

    def _add_near_misses(
        self, cells: np.ndarray, places: np.ndarray, near: Near, firings: Firings, tokens: Tokens
    ) -> None:
        import torch

        contexts = self._keys(places >> 16, CONTEXT_SALT)
        rows = np.flatnonzero(contexts < np.uint64(2**64 - 1) // np.uint64(self.settings.near_every))
        if len(rows):
            values, latents = near(torch.from_numpy(rows))
            found = (latents.cpu().numpy(), values.float().cpu().numpy())
            streaming.take_in_near_misses(cells[rows], *found, firings, tokens, self.slots, self.layout)

    def _add_windows(
        self,
        cells: np.ndarray,
        offsets: np.ndarray,
        indices: np.ndarray,
        values: np.ndarray,
        tokens: Tokens,
    ) -> None:
        """Into the windows for silence: those whose peak stands at `before`, at `before` + one width, and so on."""
        length, width = tokens.width, self.slots.tokens.shape[2]
        at_peak = cells[(cells % length - self.settings.before) % width == 0]
        places = tokens.first_place + ((at_peak // length) << 16) + at_peak % length
        keys = self._keys(places, WINDOW_SALT)
        wanted = self.windows.wanted(keys)
        peaks = at_peak[wanted]
        window = np.zeros((len(peaks), width), self.slots.tokens.dtype)
        on = np.zeros((len(peaks), self.n_latents), bool)
        bounds = np.zeros((len(peaks), 2), np.int64)
        for i, peak in enumerate(peaks):
            first, stop = bounds[i] = streaming.window_of(tokens, peak, self.settings.before, self.settings.after)
            window[i, : stop - first] = tokens.tokens[first:stop]
            low, high = offsets[np.searchsorted(cells, [first, stop])]
            on[i, indices[low:high][values[low:high] > 0]] = True
        columns: Columns = {"place": places[wanted], "tokens": window, "on": np.packbits(on, axis=1)}
        columns |= {
            "document": tokens.document[peaks].astype(np.int32),
            "position": tokens.position[peaks].astype(np.int32),
            "start": (bounds[:, 0] % length).astype(np.int32),
            "length": (bounds[:, 1] - bounds[:, 0]).astype(np.int32),
        }
        self.windows.add(keys[wanted], columns)

    def _keys(self, places: np.ndarray, salt: int) -> np.ndarray:
        return streaming.hashes(self.settings.seed, np.full(len(places), -salt), places)

    def merge(self, other: Harvest) -> Harvest:
        """Take in another partial harvest; returns this one.

        Raises:
            ConfigError: they are of different dictionaries or settings, or have read the same contexts.
        """
        for name in ("n_latents", "vocabulary_size", "context_length", "settings", "facts"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ConfigError(f"harvests of different {name} do not add up: {mine} and {theirs}")
        self._check_spans(other.spans)
        streaming.merge_into(self.totals, self.slots, other.totals, other.slots, self.layout)
        self.windows.add(*other.windows.kept())
        self.log.merge(other.log)
        self.n_tokens += other.n_tokens
        self.token_counts += other.token_counts
        self.spans = _joined([*self.spans, *other.spans])
        return self

    def _check_spans(self, others: list[Span]) -> None:
        for a in self.spans:
            for b in others:
                if a.text == b.text and a.first < b.stop and b.first < a.stop:
                    raise ConfigError(f"both harvests have read contexts {b.first} to {b.stop} of {a.text}")
                if a.text != b.text and text_number(a.text) == text_number(b.text):
                    raise ConfigError(f"{a.text} and {b.text} cannot be told apart: rename one of them")

    def save(self, path: str | Path) -> None:
        """Write the state into one safetensors file, which appears whole or not at all."""
        path = Path(path)
        tensors = {f"totals.{name}": array for name, array in self.totals._asdict().items()}
        tensors |= {f"slots.{name}": array for name, array in self.slots._asdict().items()}
        tensors["token_counts"] = self.token_counts
        keys, columns = self.windows.kept()
        tensors |= {"windows.key": keys} | {f"windows.{name}": array for name, array in columns.items()}
        tensors |= {f"log.{name}": array for name, array in self.log.kept()._asdict().items()}
        about = {
            "format": STATE_FORMAT,
            "format_version": STATE_VERSION,
            "n_latents": self.n_latents,
            "vocabulary_size": self.vocabulary_size,
            "context_length": self.context_length,
            "n_tokens": self.n_tokens,
            "spans": self.spans,
            "log_limit": int(self.log.limit),
            "settings": self.settings.model_dump(),
            "facts": self.facts,
        }
        write_safetensors(path, tensors, {"harvest": as_json(about)})

    @staticmethod
    def load(path: str | Path) -> Harvest:
        """Read what `save` has written.

        Raises:
            FileError: the file is missing, damaged or of another version.
        """
        shapes = safetensors_shapes(path, BEGIN)
        with reading(path, BEGIN), safe_open(path, "numpy") as file:
            words = (file.metadata() or {}).get("harvest", "{}")
            head = parse_json(words, path, dict[str, Any], BEGIN)
            if (head.get("format"), head.get("format_version")) != (STATE_FORMAT, STATE_VERSION):
                raise FileError(f"{path} is no harvest of this version: {BEGIN}")
            about = fits(head, _Saved, path, BEGIN)
            settings = about.settings
            slots = Layout(HELD * settings.top, settings.sample, settings.near, 0, 0, 0).slots
            expected = {
                "token_counts": (about.vocabulary_size,),
                "slots.content": (about.n_latents, HELD * settings.top),
                "slots.tokens": (
                    about.n_latents,
                    slots,
                    min(about.context_length, settings.before + settings.after + 1),
                ),
            }
            for name, shape in expected.items():
                if shapes.get(name) != shape:
                    raise FileError(f"{path}: {name} should be {shape}, the file has {shapes.get(name)}: {BEGIN}")
            sizes = (about.n_latents, about.vocabulary_size, about.context_length)
            harvest = Harvest(*sizes, settings=settings, facts=about.facts)
            for part in ("totals", "slots"):
                for name, array in getattr(harvest, part)._asdict().items():
                    array[...] = file.get_tensor(f"{part}.{name}")
            harvest.token_counts[...] = file.get_tensor("token_counts")
            columns = {name: file.get_tensor(f"windows.{name}") for name in harvest.windows.names}
            harvest.windows.add(file.get_tensor("windows.key"), columns)
            harvest.windows.kept()
            logged = Logged(*(file.get_tensor(f"log.{name}") for name in Logged._fields))
            harvest.log.load(logged, about.log_limit, about.n_latents, about.vocabulary_size)
            harvest.n_tokens = about.n_tokens
            harvest.spans = [Span(*span) for span in about.spans]
        return harvest


def _flat(tensor: Tensor) -> np.ndarray:
    return tensor.reshape(-1).cpu().numpy().astype(np.int64)


def _folded(content: np.ndarray) -> np.ndarray:
    """Hashes in 32 bits: within a list of some dozen, two texts are not taken for one."""
    return (streaming.hashes(0, np.zeros(len(content), np.int64), content) >> np.uint64(32)).astype(np.int64)


def text_number(text: str) -> int:
    """15 bits by which places of different texts are told apart."""
    return zlib.crc32(text.encode()) & 0x7FFF


def _joined(spans: list[Span]) -> list[Span]:
    """Spans in order; those that follow one another are one."""
    joined: list[Span] = []
    for span in sorted(span for span in spans if span.stop > span.first):
        if joined and joined[-1].text == span.text and joined[-1].stop == span.first:
            joined[-1] = joined[-1]._replace(stop=span.stop)
        else:
            joined.append(span)
    return joined or spans[:1]
