"""Codes of other contexts, for edits that put them in the place of a text's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosem.codes import SparseCodes
from monosem.errors import ConfigError, DataError
from monosem.interventions.amounts import Places
from monosem.interventions.elsewhere import Pass, Sites
from monosem.models import SubjectModel
from monosem.sae import SAE

Source = str | Sequence[str] | Tensor | SparseCodes
"""Texts, token ids (contexts, pos), or codes (contexts, pos, latents)."""


class Values:
    """The codes of some latents in other contexts, read once, when the model is known."""

    def __init__(self, sae: SAE, latents: Sequence[int], source: Source | None, sites: Sites) -> None:
        self.sae, self.latents, self.source, self.sites = sae, list(latents), source, sites
        self.codes: Float[Tensor, "contexts pos m"] | None = None
        self._of: str | None = None
        self.read_there: Bool[Tensor, "contexts pos"] | None = None
        if source is None:
            if "tokens" not in sae.probe:
                raise ConfigError("this SAE carries no probe batch of text: give source=, texts or token ids")
        elif isinstance(source, SparseCodes):
            if source.n_latents != sae.n_latents:
                raise ConfigError(f"source has codes of {source.n_latents} latents, the SAE has {sae.n_latents}")
            codes = source.select(self.latents).to_dense().detach()
            self.codes = codes.reshape(-1, *codes.shape[-2:]) if codes.ndim > 1 else codes[None, None]
            self.read_there = torch.ones(self.codes.shape[:2], dtype=torch.bool, device=codes.device)
        elif isinstance(source, Tensor) and (source.ndim != 2 or torch.is_floating_point(source)):
            raise ConfigError(f"source must be token ids (contexts, pos), got {source.dtype} of {tuple(source.shape)}")

    @torch.no_grad()
    def read(self, model: SubjectModel) -> None:
        """Let the model read the source, once, without edits.

        Raises:
            DataError: the SAE reads nothing of it.
        """
        fingerprint = model.fingerprint()
        if isinstance(self.source, SparseCodes) or self._of == fingerprint:
            return
        source = self.sae.probe["tokens"].long() if self.source is None else self.source
        texts = [source] if isinstance(source, str) else source
        inputs = {"input_ids": texts} if isinstance(texts, Tensor) else model.padded(list(texts))  # type: ignore[arg-type]
        found: list[tuple[Tensor, Tensor]] = []
        sites = self.sites.named(model)
        at_once = model.contexts_at_once(inputs["input_ids"].shape[1])
        for start in range(0, len(inputs["input_ids"]), at_once):
            known = Pass(self.sae, sites)
            with model.unedited(), model.edit(dict.fromkeys(sites.read, known.note)):
                model.capture({name: x[start : start + at_once] for name, x in inputs.items()}, sites.read)
            x, kept = known.rows(), known.kept
            codes = torch.zeros(*kept.shape, len(self.latents), dtype=self.sae.W_enc.dtype, device=x.device)
            if kept.any():
                codes[kept] = self.sae.encode(x[kept]).select(self.latents).to_dense()
            found.append((codes, kept))
        self.codes = torch.cat([codes for codes, _ in found])
        self.read_there = torch.cat([kept for _, kept in found])
        if not bool(self.read_there.any()):
            raise DataError("the SAE reads nothing of the source")
        self._of = fingerprint

    def _known(self) -> tuple[Float[Tensor, "contexts pos m"], Bool[Tensor, "contexts pos"]]:
        if self.codes is None or self.read_there is None:
            raise ConfigError("the source has not been read: put the edit into a model by model.edit([...])")
        return self.codes, self.read_there

    def mean(self) -> Float[Tensor, " m"]:
        """Of each latent, over all positions that the SAE reads."""
        codes, kept = self._known()
        return codes[kept].mean(0)

    def drawn(self, places: Places, seed: int) -> Float[Tensor, "chosen m"]:
        """Of one position of the source for each place: chance, but the same for the same position and token."""
        codes, kept = self._known()
        rows = codes[kept]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).to(rows.device)
        tokens = places.context.tokens
        key = places.positions * 1_000_003
        if tokens is not None:
            key = key + tokens[places.chosen] * 7_919
        return rows[order[key % len(rows)]]

    def aligned(
        self, places: Places, codes: Float[Tensor, "chosen m"], position: int | None
    ) -> Float[Tensor, "chosen m"]:
        """Those of the same position, or of one; the given ones where the source has none.

        Raises:
            DataError: it has another number of contexts than the batch has rows, or no such position.
        """
        source, kept = self._known()
        n, length = source.shape[:2]
        if n > 1 and places.rows.numel() and int(places.rows.max()) >= n:
            raise DataError(f"the source has {n} contexts, the batch has more rows")
        rows = places.rows if n > 1 else torch.zeros_like(places.rows)
        if position is None:
            at = places.positions
        else:
            ends = (
                kept.shape[1] - kept.flip(1).long().argmax(1) if position < 0 else torch.zeros_like(kept[:, 0].long())
            )
            at = (ends + position)[rows]
            if bool(((at < 0) | (at >= length)).any()):
                raise DataError(f"position {position} is outside the source, which has {length} tokens")
        there = (at < length) & kept[rows, at.clamp(max=length - 1)]
        return torch.where(there[:, None], source[rows, at.clamp(max=length - 1)].to(codes), codes)
