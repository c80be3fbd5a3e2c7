"""Activations straight from a model that reads text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosem.activations.source import ActivationSource
from monosem.data import ContextBatch, PackedText, read_documents
from monosem.errors import ConfigError, DataError
from monosem.models import SubjectModel
from monosem.sae import SAEMetadata

CONTEXTS_A_FORWARD = 32


class LiveActivations(ActivationSource):
    """The activations at one hook point, shuffled, while the model reads text.

    The text is read in blocks of about `buffer_tokens` tokens. A hash of seed and position sends every token to the
    pool of its own block or to the next one's; a pool is then shuffled. So a pool depends on two blocks alone, and any
    of them can be rebuilt from its number.
    """

    def __init__(
        self,
        model: SubjectModel,
        hook: str,
        text: str | Path | Sequence[str] = "bundled",
        *,
        context_length: int | None = None,
        prepend_bos: bool | None = None,
        exclude_special: bool = True,
        buffer_tokens: int = 131_072,
        seed: int = 0,
    ) -> None:
        """Open a stream.

        Args:
            model: the subject model.
            hook: name of a hook point.
            text: what `read_documents` takes.
            context_length: tokens in a context; the model's own if not given, at most 1024.
            prepend_bos: begin every context with the beginning-of-sequence token; if not given, where there is one.
            exclude_special: leave out positions of special tokens, whose activations are often extreme.
            buffer_tokens: size of the shuffle buffer.
            seed: of the order of documents and the shuffle.

        Raises:
            HookError: the model has no such hook point.
            ConfigError: the context is longer than the model's.
            DataError: the text is empty, or the model has no tokenizer.
        """
        self.model, self.hook = model, model.hook_point(hook).name
        if model.tokenizer is None:
            raise DataError(f"{model.name} has no tokenizer to read text with: load_model(module, tokenizer=...)")
        longest = model.context_length
        self.context_length = context_length or min(longest or 1024, 1024)
        if longest is not None and self.context_length > longest:
            raise ConfigError(f"context_length {self.context_length} is longer than the model's own {longest}")
        self.prepend_bos = model.tokenizer.bos_token_id is not None if prepend_bos is None else prepend_bos
        self.exclude_special, self.seed = exclude_special, seed
        self.text = str(text) if isinstance(text, str | Path) else f"{len(text)} texts given as a list"
        self.contexts = PackedText(
            read_documents(text), model.tokenizer, self.context_length, prepend_bos=self.prepend_bos, seed=seed
        )
        self._block_contexts = max(1, buffer_tokens // self.context_length)
        self._carried: tuple[int, Tensor] | None = None
        self.d_in = model.width(self.hook)

    @property
    def metadata(self) -> SAEMetadata:
        return SAEMetadata(
            model=self.model.name,
            model_fingerprint=self.model.fingerprint(),
            tokenizer_fingerprint=self.model.tokenizer_fingerprint(),
            hook=self.hook,
            text=self.text,
            context_length=self.context_length,
            prepend_bos=self.prepend_bos,
            exclude_special=self.exclude_special,
        )

    def make_pool(self, number: int) -> Float[Tensor, "rows d_in"]:
        if self._carried is None or self._carried[0] != number:
            self._carried = (number, self._run_block(number - 1)[1]) if number else (0, torch.zeros(0, self.d_in))
        stays, goes = self._run_block(number)
        rows = torch.cat([self._carried[1].to(stays.device), stays])
        self._carried = (number + 1, goes)
        generator = torch.Generator().manual_seed(hash((self.seed, number)) & (2**63 - 1))
        return rows[torch.randperm(len(rows), generator=generator).to(rows.device)]

    def _run_block(self, number: int) -> tuple[Tensor, Tensor]:
        """The rows of a block that stay in its own pool, and those that go to the next."""
        first = number * self._block_contexts
        stays: list[Tensor] = []
        goes: list[Tensor] = []
        for start in range(first, first + self._block_contexts, CONTEXTS_A_FORWARD):
            stop = min(start + CONTEXTS_A_FORWARD, first + self._block_contexts)
            batch = self.contexts.read(start, stop)
            x, kept = self._activations(batch, start)
            to_next = self._goes_to_next(start, batch.tokens.shape)
            goes.append(x[(kept & to_next).to(x.device)])
            stays.append(x[(kept & ~to_next).to(x.device)])
        return torch.cat(stays), torch.cat(goes)

    def _activations(self, batch: ContextBatch, start: int) -> tuple[Tensor, Bool[Tensor, "contexts pos"]]:
        x = self.model.capture(batch.tokens, [self.hook])[self.hook].to(torch.float32)
        kept = ~batch.padding & ~batch.special if self.exclude_special else ~batch.padding
        if not torch.isfinite(x).all():
            where = (~torch.isfinite(x).all(-1)).nonzero()[0].tolist()
            raise DataError(
                f"activations at {self.hook} are not finite in context {start + where[0]}, position {where[1]}: "
                "load the model in float32 or bfloat16, or look at that text"
            )
        return x, kept

    def _goes_to_next(self, start: int, shape: torch.Size) -> Bool[Tensor, "contexts pos"]:
        """One random bit a token, a function of seed and position alone (splitmix64)."""
        position = np.arange(shape[0] * shape[1], dtype=np.uint64) + np.uint64(start * shape[1])
        with np.errstate(over="ignore"):
            z = position + np.uint64((self.seed + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = z ^ (z >> np.uint64(31))
        return torch.from_numpy((z >> np.uint64(63)).astype(np.bool_)).reshape(shape)

    def probe(self) -> dict[str, Int[Tensor, "contexts pos"] | Bool[Tensor, "contexts pos"]]:
        batch = self.contexts.read(0, 2)
        kept = ~batch.padding & ~batch.special if self.exclude_special else ~batch.padding
        return {"tokens": batch.tokens.to(torch.int32), "kept": kept}

    def probe_activations(self, probe: dict[str, Tensor]) -> Float[Tensor, "rows d_in"]:
        return probe_rows(self.model, self.hook, probe)


def probe_rows(model: SubjectModel, hook: str, probe: dict[str, Tensor]) -> Float[Tensor, "rows d_in"]:
    """What a model makes of the tokens of a probe, at the positions kept."""
    x = model.capture(probe["tokens"].long(), [hook])[hook].to(torch.float32)
    return x[probe["kept"].to(x.device)]
