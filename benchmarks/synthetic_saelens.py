"""SAEs of SAELens, trained on rows that come through standard input; `synthetic.py` calls it where SAELens is.

For each: a line, the task as JSON; then `samples` rows of float32 to train on, and `test_rows` to encode with the SAE
as SAELens saves it for inference. Decoder rows, codes and the processor's seconds of training are written to the task's
`result`; then a line is said.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE  # pyright: ignore
from step import saelens_trainer

NAMES = {
    "topk": ("TopK", "k"),
    "batchtopk": ("BatchTopK", "k"),
    "matryoshka": ("MatryoshkaBatchTopK", "k"),
    "relu": ("Standard", "l1_coefficient"),
    "gated": ("Gated", "l1_coefficient"),
    "jumprelu": ("JumpReLU", "l0_coefficient"),
}
"""Its name there, and what sets its sparsity."""
NORM_BATCHES = 16
"""From which a norm is estimated, and which are trained on then."""


def settings_of(architecture: str, recipe: str, latents: int, steps: int) -> dict[str, Any]:
    """Of "defaults" SAELens's; of "recommended" those of its documentation and of its benchmark's experiments."""
    nested = [latents // 4, latents // 2, latents]
    if recipe == "defaults":
        return {"matryoshka_widths": nested} if architecture == "matryoshka" else {}
    anthropic = {
        "normalize_activations": "expected_average_only_in",
        "jumprelu_sparsity_loss_mode": "tanh",
        "jumprelu_bandwidth": 2.0,
        "jumprelu_init_threshold": 0.5,
        "pre_act_loss_coefficient": 3e-6,
        "decoder_init_norm": 0.5,
    }
    nested = [latents // 32, latents // 8, latents // 2, latents]
    return {
        "matryoshka": {"matryoshka_widths": nested, "use_matryoshka_aux_loss": True},
        "relu": {"l1_warm_up_steps": steps // 3},
        "gated": {"l1_warm_up_steps": steps // 20, "normalize_activations": "expected_average_only_in"},
        "jumprelu": anthropic,
    }.get(architecture, {})


def rows(count: int, d: int, batch: int) -> Iterator[torch.Tensor]:
    for start in range(0, count, batch):
        size = min(batch, count - start)
        yield torch.frombuffer(bytearray(sys.stdin.buffer.read(4 * d * size)), dtype=torch.float32).view(size, d)


def train(task: dict[str, Any]) -> None:
    torch.manual_seed(task["seed"])
    name, sparsity = NAMES[task["architecture"]]
    n, d, samples, batch = task["latents"], task["d"], task["samples"], task["batch"]
    recommended = task["recipe"] == "recommended"
    settings = settings_of(task["architecture"], task["recipe"], n, samples // batch) | {sparsity: task["sparsity"]}
    sae, trainer = saelens_trainer(d, n, samples, name, lr=task["lr"], batch=batch, decay=recommended, **settings)
    given = rows(samples, d, batch)
    first = list(islice(given, NORM_BATCHES))
    trainer.cfg.n_batches_for_norm_estimate = len(first)
    normed = settings.get("normalize_activations", "none") != "none"
    trainer.data_provider = chain(first if normed else [], first, given)
    start = time.process_time()
    trainer.fit()
    seconds = time.process_time() - start
    for _ in given:
        pass
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
        seconds=seconds,
    )


def main() -> None:
    said, sys.stdout = sys.stdout, sys.stderr
    while line := sys.stdin.buffer.readline():
        train(json.loads(line))
        print("done", file=said, flush=True)


if __name__ == "__main__":
    main()
