"""Inputs at the ends of what there is: trained, used and measured in finite numbers, or refused in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import monosem as ms
from monosem.errors import DataError, MonosemError
from monosem.sae import SAE, BatchTopKSAE, JumpReLUSAE, ReLUSAE, TopKSAE
from monosem.sae.transform import InputTransform
from monosem.training import TrainingConfig, fit

ROWS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
INPUTS: dict[str, Callable[[], Tensor]] = {
    "one dimension": lambda: ROWS[:, :1],
    "one row": lambda: ROWS[:1],
    "the same row": lambda: ROWS[:1].repeat(40, 1),
    "zeros": lambda: 0 * ROWS,
    "zeros between": lambda: torch.cat([ROWS, 0 * ROWS]),
    "a constant dimension": lambda: torch.cat([ROWS, torch.ones(40, 1)], 1),
    "1e-30": lambda: 1e-30 * ROWS,
    "1e30": lambda: 1e30 * ROWS,
    "1e37": lambda: 1e37 * ROWS,
    "1e38": lambda: 1e38 * ROWS,
    "1e-41": lambda: 1e-41 * ROWS,
    "far away": lambda: ROWS + 1e6,
    "float64": lambda: ROWS.double(),
}
CASES = [
    (TopKSAE, 1, {"k": 1}),
    (TopKSAE, 5, {"k": 5}),
    (BatchTopKSAE, 5, {"k": 2}),
    (ReLUSAE, 5, {}),
    (JumpReLUSAE, 1, {}),
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # what is wrong with such rows, in words
@pytest.mark.parametrize("transform", ["centre_scale", "none", "layer_norm"])
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(("cls", "n", "options"), CASES)
def test_every_number_is_one_or_the_input_is_refused(
    cls: type[SAE], n: int, options: dict[str, Any], name: str, transform: Any
) -> None:
    x = INPUTS[name]()
    sae = cls(x.shape[1], n, transform=transform, **options)
    try:
        fit(sae, x, tokens=20, config=TrainingConfig(batch_size=4, log_every=1), progress=False)
    except MonosemError:
        refused = name in ("one row", "the same row", "zeros", "1e-41", "1e38")
        assert refused or (transform != "centre_scale" and "1e" in name)
        return
    out, report = sae(x), ms.evaluate(sae, x)
    assert out.reconstruction.isfinite().all()
    assert out.codes.values.isfinite().all()
    assert not sae.not_finite()
    assert not any(math.isinf(interval.value) for interval in report.metrics.values())
    assert sae(x[:0]).reconstruction.shape == (0, x.shape[1])


@pytest.mark.parametrize("factor", [1e-41, 1e-39])
def test_rows_that_cannot_be_scaled_in_float32_are_refused(factor: float) -> None:
    with pytest.raises(DataError, match=r"beyond what torch\.float32 can scale"):
        InputTransform(3).fit(factor * ROWS)


@pytest.mark.parametrize("factor", [1e3, 1e25, 1e37])
def test_layer_norm_of_huge_rows_is_that_of_small_ones(factor: float) -> None:
    transform, x = InputTransform(3, "layer_norm"), factor * ROWS
    torch.testing.assert_close(transform(x), transform(ROWS), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(transform.inverse(transform(x), x), x, rtol=1e-3, atol=0)
