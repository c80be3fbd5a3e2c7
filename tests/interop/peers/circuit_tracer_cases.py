"""Sets of transcoders as circuit-tracer keeps them: one a layer, and one across layers."""

from functools import partial
from pathlib import Path

import torch
import yaml
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt
from circuit_tracer.transcoder.single_layer_transcoder import (
    SingleLayerTranscoder,
    TranscoderSet,
    load_relu_transcoder,
)
from common import D, F, randomise, rows, run
from safetensors.torch import save_file
from torch.nn import functional

SITES = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
CPU = torch.device("cpu")
LAYERS = 3


def config(folder: Path, kind: str) -> None:
    """The file that says what the set is of."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"model_kind": kind, "model_name": "google/gemma-2-2b", "scan": "x", **SITES}
    (folder / "config.yaml").write_text(yaml.safe_dump(about))


@torch.no_grad()
def layers(folder: Path, jump: bool = False, skip: bool = False) -> None:
    """A transcoder a layer; the middle one is used."""
    made = {}
    for layer in range(LAYERS):
        act = JumpReLU(torch.zeros(F), 0.1) if jump else functional.relu
        made[layer] = SingleLayerTranscoder(D, F, act, layer, skip_connection=skip, device=CPU, dtype=torch.float32)
        randomise(made[layer], seed=layer)
    TranscoderSet(made, **SITES).to_safetensors(str(folder / "set"))
    config(folder / "set", "transcoder_set")
    back = load_relu_transcoder(str(folder / "set" / "layer_1.safetensors"), 1, CPU)
    x = rows()
    expected = {"x": x, "codes": back.encode(x), "reconstruction": back(x)}
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, folder / "expected.safetensors")


@torch.no_grad()
def across(folder: Path, jump: bool = False) -> None:
    """One across all layers."""
    act = "jump_relu" if jump else "relu"
    clt = CrossLayerTranscoder(LAYERS, F, D, act, lazy_decoder=False, device=CPU, dtype=torch.float32, **SITES)
    randomise(clt)
    clt.to_safetensors(str(folder / "set"))
    config(folder / "set", "cross_layer_transcoder")
    back = load_clt(str(folder / "set"), device=CPU, dtype=torch.float32, lazy_decoder=False)
    x = torch.stack([rows(), rows().flip(0), 0.3 * rows()])
    codes = back.encode(x)
    out = back.decode(codes.to_sparse())
    expected = {
        "x": x.transpose(0, 1),
        "codes": codes.permute(1, 0, 2).flatten(1),
        "reconstruction": out.transpose(0, 1),
    }
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, folder / "expected.safetensors")


run(
    {
        "layers_relu": layers,
        "layers_jumprelu": partial(layers, jump=True),
        "layers_skip": partial(layers, jump=True, skip=True),
        "across_relu": across,
        "across_jumprelu": partial(across, jump=True),
    }
)
