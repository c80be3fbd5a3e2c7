"""The first few of many, in compiled code: a library's sort of all takes longer to compile than to do without."""

import numpy as np
from numba import njit


@njit(cache=True)
def largest_first(scores, ties, m):
    """Places of the m largest scores, the largest first; of equal ones that with the smaller tie."""
    held, n = np.empty(min(m, len(scores)), np.int64), 0
    for i in range(len(scores)):
        at = n
        while at > 0 and (
            scores[i] > scores[held[at - 1]] or (scores[i] == scores[held[at - 1]] and ties[i] < ties[held[at - 1]])
        ):
            if at < len(held):
                held[at] = held[at - 1]
            at -= 1
        if at < len(held):
            held[at] = i
            n = min(n + 1, len(held))
    return held
