"""A look before training: what is planted is found, with its remedy, and nothing else is."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from monosem.activations import inspect_rows


def well(rows: int = 3000, d: int = 16) -> Tensor:
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(0)) + 0.5


def changed(change: Callable[[Tensor], object]) -> Tensor:
    x = well()
    change(x)
    return x


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x[7:9].fill_(float("nan")), r"2 of 3,000 rows are not finite \(the first: row 7\).*drop"),
        (lambda x: x.add_(50), r"the mean is \d+\.\d times as large.*centre_scale"),
        (lambda x: x[::500].mul_(200), r"6 of 3,000 rows have more than 10 times.*max_norm_ratio=10"),
        (lambda x: x[1000:2000].copy_(x[:1000]), r"1,000 of 3,000 rows occur again \(33%\).*skip_first"),
        (lambda x: x[:, 2:4].fill_(0.1), r"2 of 16 dimensions never change \(as 2, 3\)"),
    ],
    ids=["not finite", "mean", "sinks", "duplicates", "constant"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_planted_is_found_and_nothing_else(
    change: Callable[[Tensor], object], says: str, dtype: torch.dtype
) -> None:
    found = inspect_rows(changed(change).to(dtype))
    assert len(found) == 1
    assert re.search(says, found[0]), found[0]


def test_rows_that_look_well_pass_without_a_word() -> None:
    assert inspect_rows(well()) == []


def test_several_faults_are_all_named() -> None:
    x = well()
    x[:1000] = x[1000:2000]
    x[5] = float("inf")
    x[900] *= 1000
    x += torch.tensor([100.0] + [0] * 15)
    x[:, 1] = 3
    words = ["not finite", "max_norm_ratio", "centre", "occur again", "never change"]
    found = inspect_rows(x)
    assert [w for line in found for w in words if w in line] == words


def test_few_rows_are_no_reason_to_fail() -> None:
    assert inspect_rows(torch.zeros(0, 4)) == ["there are no rows"]
    assert inspect_rows(torch.ones(1, 4)) == []
    assert len(inspect_rows(torch.full((3, 4), float("nan")))) == 1
