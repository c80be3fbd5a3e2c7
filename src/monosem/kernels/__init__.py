"""The sparse engine.

    reference.py   the dense truth, a few lines each: what every fast path must equal, in value and gradient
    cpu.py         numba
    cuda.py        Triton
    plain.py       plain torch: any device, no compiler
    sparse.py      the two differentiable operations that architectures are made of, on any of the above

Selection is not differentiable: `top_k` and `above` say which latents are on. `encode` and `decode` evaluate those,
forward and backward, at O(rows x active) instead of O(rows x n_latents).
"""

from monosem.kernels.sparse import (
    Selection,
    above,
    adam_,
    batch_top_k,
    decode,
    encode,
    fast_bfloat16,
    top_k,
    use_backend,
)

__all__ = ["Selection", "above", "adam_", "batch_top_k", "decode", "encode", "fast_bfloat16", "top_k", "use_backend"]
