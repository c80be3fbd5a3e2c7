"""Every sparse coder that sparsify writes, in folders whose names are hook points."""

import json
from functools import partial
from pathlib import Path

import torch
from common import D, F, K, randomise, run, write
from sparsify import SparseCoder, SparseCoderConfig


def one(folder: Path, hook: str, drop: tuple[str, ...] = (), **options: object) -> None:
    """A coder saved and used."""
    coder = SparseCoder(D, SparseCoderConfig(k=K, expansion_factor=F // D, **options))
    randomise(coder)
    coder.save_to_disk(folder / hook)
    path = folder / hook / "cfg.json"
    config = {name: value for name, value in json.loads(path.read_text()).items() if name not in drop}
    path.write_text(json.dumps(config))
    back = SparseCoder.load_from_disk(folder / hook)

    def encode(x: torch.Tensor) -> torch.Tensor:
        values, indices, _ = back.encode(x)
        return torch.zeros(len(x), F).scatter(1, indices.long(), values)

    write(folder, encode, lambda x: back(x).sae_out)


run(
    {
        "topk": partial(one, hook="layers.3"),
        "topk_latents_given": partial(one, hook="layers.0.mlp", num_latents=F),
        "topk_latents_absent": partial(one, hook="h.2", drop=("num_latents", "transcode", "skip_connection")),
        "transcoder": partial(one, hook="layers.1.mlp", transcode=True),
        "skip_transcoder": partial(one, hook="layers.1.mlp", transcode=True, skip_connection=True),
        "skip_sae": partial(one, hook="layers.2", skip_connection=True),
    }
)
