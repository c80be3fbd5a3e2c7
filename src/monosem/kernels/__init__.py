"""The sparse engine.

    reference.py   the dense truth, a few lines each: what every fast path must equal, in value and gradient
    cpu.py         numba
    cuda.py        Triton
    launch.py      how its kernels are started
    triton_screens.py  rows in few bits, and which entries can be among the wanted: on CUDA
    plain.py       plain torch: any device, no compiler
    matmul.py      the matmul of selections, and which precisions are fast: asked by trying
    rounding.py    rows in few bits, with the true norms of what rounding took away
    screening.py   which entries can be among the wanted, found in few bits: on CPU
    reaching.py    its loops, compiled by numba
    parallel.py    how they are compiled, on as many threads as torch has
    buffers.py     memory that is used again
    sums.py        sums in one order on every device
    sparse.py      the two differentiable operations that architectures are made of, on any of the above

Selection is not differentiable: `top_k` and `above` say which latents are on. `encode` and `decode` evaluate those,
forward and backward, at O(rows x active) instead of O(rows x n_latents).
"""

from monosem.kernels.buffers import Buffers, done_with
from monosem.kernels.matmul import SLOW, fast_bfloat16, fastest, knows, speed
from monosem.kernels.rounding import Precision
from monosem.kernels.sparse import (
    Selection,
    above,
    adam_,
    batch_top_k,
    by_group,
    decode,
    dense_is_faster,
    encode,
    largest,
    squared_error,
    top_k,
    use_backend,
)
from monosem.kernels.sums import index_add_
from monosem.ranks import (
    a_row,
    latents_in_all,
    mean_over_rows,
    mean_square,
    over_latents,
    over_rows,
    read_by_all,
    rows_in_all,
)

__all__ = [
    "SLOW",
    "Buffers",
    "Precision",
    "Selection",
    "a_row",
    "above",
    "adam_",
    "batch_top_k",
    "by_group",
    "decode",
    "dense_is_faster",
    "done_with",
    "encode",
    "fast_bfloat16",
    "fastest",
    "index_add_",
    "knows",
    "largest",
    "latents_in_all",
    "mean_over_rows",
    "mean_square",
    "over_latents",
    "over_rows",
    "read_by_all",
    "rows_in_all",
    "speed",
    "squared_error",
    "top_k",
    "use_backend",
]
