"""One SAE of SAELens, trained on rows that come through standard input; `synthetic.py` calls it where SAELens is.

The first line is the task as JSON; then follow `samples` rows of float32 to train on, and `test_rows` to encode with
the SAE as SAELens saves it for inference. Decoder rows and codes are written to the task's `result`.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE  # pyright: ignore
from step import saelens_trainer

SETTINGS: dict[str, tuple[str, str]] = {
    "topk": ("TopK", "k"),
    "batchtopk": ("BatchTopK", "k"),
    "matryoshka": ("MatryoshkaBatchTopK", "k"),
    "relu": ("Standard", "l1_coefficient"),
    "gated": ("Gated", "l1_coefficient"),
    "jumprelu": ("JumpReLU", "l0_coefficient"),
}
"""Its name there, and what sets its sparsity."""


def rows(count: int, d: int, batch: int) -> Iterator[torch.Tensor]:
    for start in range(0, count, batch):
        size = min(batch, count - start)
        yield torch.frombuffer(bytearray(sys.stdin.buffer.read(4 * d * size)), dtype=torch.float32).view(size, d)


def main() -> None:
    task: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    torch.manual_seed(task["seed"])
    name, sparsity = SETTINGS[task["architecture"]]
    n, d = task["latents"], task["d"]
    settings: dict[str, Any] = {sparsity: task["sparsity"]}
    if name == "MatryoshkaBatchTopK":
        settings["matryoshka_widths"] = [n // 8, n // 4, n // 2, n]
    samples, batch = task["samples"], task["batch"]
    sae, trainer = saelens_trainer(d, n, samples, name, lr=task["lr"], batch=batch, **settings)
    trainer.data_provider = rows(samples, d, batch)
    trainer.fit()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        sae.save_inference_model(folder)
        for_use = SAE.load_from_disk(folder, device="cpu")
        codes = [for_use.encode(x) for x in rows(task["test_rows"], d, 2048)]
    on = [part.nonzero(as_tuple=True) for part in codes]
    np.savez(
        Path(task["result"]),
        directions=for_use.W_dec.detach().numpy(),
        values=torch.cat([part[where] for part, where in zip(codes, on, strict=True)]).numpy(),
        indices=torch.cat([where[1] for where in on]).numpy().astype(np.int32),
        counts=torch.cat([(part != 0).sum(1) for part in codes]).numpy(),
    )


if __name__ == "__main__":
    main()
