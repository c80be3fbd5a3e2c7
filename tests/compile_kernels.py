"""Compiles what tests of many processes need, once: on a fresh clone a dozen processes would else compile it at a time.

    python tests/compile_kernels.py

A dictionary of each kind of selection learns, encodes with each screen, is measured and harvested, on little data.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import torch

import monosem as ms
from monosem import kernels

D = 16


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    x = torch.randn(1024, D, generator=torch.Generator().manual_seed(0))
    config = ms.TrainingConfig(batch_size=256, log_every=2)
    for sae in (
        ms.TopKSAE(D, 64, k=4),
        ms.BatchTopKSAE(D, 64, k=4),
        ms.JumpReLUSAE(D, 64),
        ms.ReLUSAE(D, 64),
        ms.TopKSAE(D, 64, k=4, dtype=torch.float64),
    ):
        if sae.W_enc.dtype == torch.float64:
            sae.training_loss(x.double(), x.double(), ms.sae.TrainingContext()).loss.backward()
        else:
            ms.fit(sae, x, tokens=1024, config=config, progress=False)
        sae.encode(x.to(sae.W_enc.dtype))
    few, many = torch.zeros(2048), torch.randn(2048, D, generator=torch.Generator().manual_seed(1))
    for precision in ("int8", "bfloat16"):
        if kernels.knows(precision, x.device):
            kernels.top_k(x, many, few, 4, screen=precision)
            kernels.above(x, many, few, 3.0, screen=precision)
    with tempfile.TemporaryDirectory() as folder:
        model = ms.load_model("bundled")
        sae = ms.TopKSAE(model.d_model, 512, k=8)
        source = ms.activations(model, "resid_post.2", buffer_tokens=4096)
        ms.train(sae, source, tokens=2048, config=config, progress=False)
        ms.harvest(sae, Path(folder) / "features", model, "resid_post.2", tokens=4096, progress=False)
        ms.evaluate(sae, model, "resid_post.2", tokens=4096, loss_tokens=1024, progress=False)


if __name__ == "__main__":
    main()
