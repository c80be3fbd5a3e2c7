"""Directions in the model's own space: what a code really adds to an activation, and what really moves a code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from monosem.codes import SparseCodes
from monosem.errors import ConfigError
from monosem.sae import (
    SAE,
    Crosscoder,
    CrossLayerTranscoder,
    MatchingPursuitSAE,
    ReLUSAE,
    SkipTranscoder,
    TopKSAE,
)
from monosem.sae.transform import TransformKind

Near = Callable[..., None]
KINDS: tuple[TransformKind, ...] = get_args(TransformKind)
CASES = [
    pytest.param(cls, options, kind, id=f"{cls.architecture} {' '.join(options)} {kind}")
    for cls, options, kinds in [
        (TopKSAE, {"k": 4}, KINDS),
        (ReLUSAE, {"d_out": 5}, KINDS),
        (SkipTranscoder, {"k": 4, "d_out": 5}, ("whiten", "centre_scale")),
        (MatchingPursuitSAE, {"k": 3}, ("whiten", "centre_scale")),
        (Crosscoder, {"n_sources": 3, "k": 4}, ("centre_scale", "none")),
        (CrossLayerTranscoder, {"n_layers": 4, "d_out": 5, "k": 4}, ("centre_scale", "none")),
    ]
    for kind in kinds
]


def rows(shape: tuple[int, ...], seed: int) -> Tensor:
    """Rows whose directions and sources are of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(100, *shape, generator=generator, dtype=torch.float64)
    return x @ torch.diag(2.0 ** torch.arange(shape[-1])).double() * (1 + torch.arange(shape[0]))[:, None].double() + 1


def make(cls: type[SAE], options: dict[str, Any], kind: TransformKind) -> tuple[SAE, Tensor]:
    sae = cls(7, 20, transform=kind, dtype=torch.float64, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x, target = rows((1, *sae.in_shape)[-2:], 2), rows((1, *sae.out_shape)[-2:], 3)
    x, target = x.reshape(100, *sae.in_shape), target.reshape(100, *sae.out_shape)
    sae.fit_transforms(x, None if sae.subtract_b_dec else target)
    return sae, x


OWN_SCALE = ("layer_norm", "standardise", "row_norm")
"""Transforms that divide every row by a number of its own."""


def divisor(row: Tensor, kind: TransformKind) -> Tensor | float:
    """That number; 1 for all others."""
    match kind:
        case "layer_norm":
            return row.std(correction=0)
        case "standardise":
            return row.std(correction=1) + 1e-5
        case "row_norm":
            return row.norm() / row.numel() ** 0.5
        case _:
            return 1.0


@torch.no_grad()
@pytest.mark.parametrize(("cls", "options", "kind"), CASES)
def test_a_decoder_direction_is_what_one_more_unit_of_the_code_adds(
    cls: type[SAE], options: dict[str, Any], kind: TransformKind, assert_near: Near
) -> None:
    sae, x = make(cls, options, kind)
    codes = torch.eye(sae.n_latents, dtype=torch.float64)
    like = x[:1].expand(sae.n_latents, *sae.in_shape)
    added = sae.decode(SparseCodes.from_dense(codes), like) - sae.decode(SparseCodes.from_dense(0 * codes), like)
    if sae.subtract_b_dec:
        small = 1e-5 if kind == "standardise" else 0  # added where it divides alone
        added = added / (divisor(x[0], kind) - small)
    assert_near(sae.decoder_directions(), added, 1e-9)
    assert_near(sae.decoder_directions([3, 1]), sae.decoder_directions()[[3, 1]])


@torch.no_grad()
@pytest.mark.parametrize(("cls", "options", "kind"), CASES)
def test_an_encoder_direction_is_what_moves_a_pre_activation(
    cls: type[SAE], options: dict[str, Any], kind: TransformKind, assert_near: Near
) -> None:
    sae, x = make(cls, options, kind)
    width = sae.in_shape[-1]
    steps = torch.eye(x[0].numel(), dtype=torch.float64).reshape(-1, *sae.in_shape)
    if kind in OWN_SCALE:  # steps that keep mean and deviation, or the norm, of the row
        base = x[0] if kind == "row_norm" else x[0] - x[0].mean()
        steps = steps if kind == "row_norm" else steps - steps.mean(-1, keepdim=True)
        steps = steps - (steps @ base)[..., None] * base / base.pow(2).sum()

    def pre(raw: Tensor) -> Tensor:
        inputs = sae.transform(raw.flatten(1)).reshape(len(raw), *sae.in_shape)
        if isinstance(sae, CrossLayerTranscoder):
            by_layer = inputs.repeat_interleave(sae.latents_per_layer, 1)
            return (by_layer * sae.W_enc).sum(-1)
        return inputs.flatten(1) @ sae.W_enc.T

    step = 1e-5 if kind in OWN_SCALE else 1.0
    moved = divisor(x[0], kind) * (pre(x[:1] + step * steps) - pre(x[:1])).T / step
    expected = sae.encoder_directions().flatten(1) @ steps.flatten(1).T
    assert width == 7
    assert_near(expected, moved, 1e-4 if kind in OWN_SCALE else 1e-8)


def test_latents_that_there_are_not_have_no_directions() -> None:
    sae = TopKSAE(7, 20, k=4)
    with pytest.raises(ConfigError, match="latents 0 to 19"):
        sae.decoder_directions([20])
