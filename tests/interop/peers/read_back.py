"""Read an SAE by the library that it was written for, and write what it makes of some rows.

Run by that library's own Python: read_back.py LIBRARY FOLDER ROWS.npy OUT.npz [FOLDER ROWS.npy OUT.npz ...]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch


def saelens(folder, x):
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder)
    codes = sae.encode(x)
    return codes.to_dense() if codes.is_sparse else codes, sae(x)


def dictionary_learning(folder, x):
    from dictionary_learning.utils import load_dictionary

    sae, _ = load_dictionary(folder, "cpu")
    codes = sae.encode(x)
    return codes, sae.decode(codes)


def sparsify(folder, x):
    from sparsify import SparseCoder

    sae = SparseCoder.load_from_disk(folder)
    values, indices, _ = sae.encode(x)
    return torch.zeros(len(x), sae.num_latents).scatter_(1, indices, values), sae(x).sae_out


def gemma_scope(folder, x):
    """Its published formula, over the file alone."""
    p = {name: torch.from_numpy(array) for name, array in np.load(folder + "/params.npz").items()}
    pre = x @ p["W_enc"] + p["b_enc"]
    codes = (pre > p["threshold"]) * torch.relu(pre)
    return codes, codes @ p["W_dec"] + p["b_dec"]


def circuit_tracer(folder, x):
    import yaml
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
    from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set

    config = yaml.safe_load((Path(folder) / "config.yaml").read_text())
    cpu = torch.device("cpu")
    if config["model_kind"] == "cross_layer_transcoder":
        clt = load_clt(folder, device=cpu, dtype=torch.float32, lazy_decoder=False)
        layers = x.transpose(0, 1)
        codes = clt.encode(layers)
        written = [clt.b_dec[m].expand(len(x), -1).clone() for m in range(len(layers))]
        for source in range(len(layers)):
            for target in range(source, len(layers)):
                written[target] += codes[source] @ clt.W_dec[source][:, target - source]
        return codes.transpose(0, 1).flatten(1), torch.stack(written, 1)
    paths = dict(enumerate(sorted(map(str, Path(folder).glob("layer_*.safetensors")))))
    hooks = config["feature_input_hook"], config["feature_output_hook"]
    one = load_transcoder_set(paths, "scan", *hooks, dtype=torch.float32, device=cpu)[0]
    codes = one.encode(x)
    return codes, one.decode(codes, x)


def main(library, folder, rows, out):
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    with torch.no_grad():
        codes, reconstruction = globals()[library](folder, torch.from_numpy(np.load(rows)))
    np.savez(out, codes=codes.numpy(), reconstruction=reconstruction.numpy())


if __name__ == "__main__":
    for first in range(2, len(sys.argv), 3):
        main(sys.argv[1], *sys.argv[first : first + 3])
