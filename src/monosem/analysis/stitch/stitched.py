"""A dictionary of latents of two: a mixture on the way from a small one to a large one."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosem.analysis.stitch.sums import offset
from monosem.codes import SparseCodes
from monosem.errors import ConfigError
from monosem.sae import SAE, JumpReLUSAE, convert, fold, unfold
from monosem.sae.base import SAEOutput
from monosem.sae.convert import CONVERSIONS


@dataclass(frozen=True)
class Stitched:
    """Some latents of a small dictionary and some of a large one, each with the codes that it has in its own.

        reconstruction = offset of one of the two  +  sum over latents of code * direction

    Of latents that compete (TopK), too: what is on is then what is on in their own dictionary.
    """

    small: SAE
    large: SAE
    keep_small: Bool[Tensor, " n_small"]
    keep_large: Bool[Tensor, " n_large"]
    offset_of_large: bool

    @property
    def n_latents(self) -> int:
        return int(self.keep_small.sum() + self.keep_large.sum())

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> tuple[SparseCodes, SparseCodes]:
        """The codes of the small dictionary's latents and of the large one's; of those that do not take part, none."""
        return _only(self.small.encode(x), self.keep_small), _only(self.large.encode(x), self.keep_large)

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> SAEOutput:
        """The reconstruction, with the codes of the latents that take part: first the small dictionary's."""
        codes = self.encode(x)
        saes = (self.small, self.large) if self.offset_of_large else (self.large, self.small)
        others, own = codes if self.offset_of_large else codes[::-1]
        added = saes[0].decode(others, x) - offset(saes[0]).reshape(saes[0].out_shape)
        some = others.l0()[(..., *(None for _ in saes[0].out_shape))] > 0
        made = saes[1].decode(own, x)
        return SAEOutput(torch.where(some, made + added, made), self._beside(codes))

    def _beside(self, codes: tuple[SparseCodes, SparseCodes]) -> SparseCodes:
        """Both in one, renumbered."""
        masks = (self.keep_small, self.keep_large)
        kept = [one.select(mask.nonzero()[:, 0]) for one, mask in zip(codes, masks, strict=True)]
        rows = torch.cat([one.rows() for one in kept])
        order = torch.argsort(rows, stable=True)
        indices = torch.cat([kept[0].indices, kept[1].indices + kept[0].n_latents])[order]
        values = torch.cat([one.values for one in kept])[order]
        return SparseCodes(values, indices, kept[0].offsets + kept[1].offsets, self.n_latents, kept[0].batch_shape)

    def to_sae(self) -> SAE:
        """As one JumpReLU SAE, which can be spliced, evaluated, harvested and saved. At the end it is the large one's,
        bit for bit.

        Raises:
            ConfigError: latents of one of the two compete, so that they are not on by themselves.
        """
        for sae in (self.small, self.large):
            if sae.architecture != "jumprelu" and (sae.architecture, "jumprelu") not in CONVERSIONS:
                raise ConfigError(
                    f"latents of a {sae.architecture} SAE are not on by themselves, so that a mixture is no SAE: call "
                    "the mixture itself, or stitch dictionaries of batchtopk, relu, jumprelu, ..."
                )
        own = [sae if sae.architecture == "jumprelu" else convert(sae, "jumprelu") for sae in (self.small, self.large)]
        own[0] = unfold(fold(own[0], norms=False), own[1].transform, own[1].target_transform, norms=False)
        return _joined(own, (self.keep_small, self.keep_large), int(self.offset_of_large))


def _only(codes: SparseCodes, keep: Tensor) -> SparseCodes:
    """Codes with those of other latents left out."""
    return codes._keep(keep.to(codes.device)[codes.indices.long()], codes.indices, codes.n_latents)


@torch.no_grad()
def _joined(saes: list[SAE], keep: tuple[Tensor, Tensor], offset_of: int) -> SAE:
    """The latents kept of two JumpReLU SAEs behind one transform, with the b_dec of one of them."""
    like = saes[1]
    parts: dict[str, list[Tensor]] = {"W_enc": [], "W_dec": [], "b_enc": [], "threshold": []}
    b_dec = saes[offset_of].b_dec
    for sae, kept in zip(saes, keep, strict=True):
        W, read = sae.W_enc, b_dec if like.subtract_b_dec else torch.zeros_like(b_dec)
        shift = W @ (read - (sae.b_dec if sae.subtract_b_dec else torch.zeros_like(b_dec))) if _shifts(sae, like) else 0
        named: dict[str, Any] = {
            "W_enc": W,
            "W_dec": sae.W_dec,
            "b_enc": sae.b_enc + shift,
            "threshold": sae.get_parameter("threshold"),
        }
        for name, whole in named.items():
            parts[name].append(whole[kept.to(whole.device)])
    n = int(sum(len(part) for part in parts["b_enc"]))
    new = JumpReLUSAE(like.d_in, n, **like.common)
    for name, pieces in parts.items():
        new.get_parameter(name).copy_(torch.cat(pieces))
    new.b_dec.copy_(b_dec)
    new.transform = copy.deepcopy(like.transform)
    if not like.autoencodes:
        new.own_target_transform = copy.deepcopy(like.own_target_transform)
    new.metadata, new.probe = like.metadata.model_copy(update={"fingerprint": None}), dict(like.probe)
    return new.train(like.training)


def _shifts(sae: SAE, like: SAE) -> bool:
    """Whether anything is subtracted from what the encoders read."""
    return sae.subtract_b_dec or like.subtract_b_dec
