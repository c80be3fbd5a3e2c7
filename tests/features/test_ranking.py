"""The first few of many are those of a whole sort."""

from __future__ import annotations

import numpy as np
import pytest

from monosem.features.ranking import largest_first


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_first_few_are_those_of_a_sort_by_score_and_then_by_tie(kind: type) -> None:
    drawn = np.random.default_rng(0)
    for n, m in ((0, 3), (1, 0), (1, 1), (5, 9), (9, 5), (12, 4), (40, 7)):
        for _ in range(50):
            scores, ties = drawn.integers(-2, 3, n).astype(kind), drawn.permutation(n)
            expected = np.lexsort((ties, -scores))[:m]
            np.testing.assert_array_equal(largest_first(scores, ties, m), expected)
