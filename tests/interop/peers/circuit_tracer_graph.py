"""A graph of circuit-tracer's own, of a GPT-2 and transcoders that are handed to it by object.

    python circuit_tracer_graph.py FOLDER

Reads FOLDER/model (as transformers keeps it), FOLDER/coders (a set as circuit-tracer keeps it) and FOLDER/task.json
(`tokens`, `targets`, `features`, `batch`), writes FOLDER/edges.safetensors, and prints the seconds that the graph took,
by the clock and of processors.
"""

import json
import sys
import time
from pathlib import Path

import torch
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.single_layer_transcoder import TranscoderSet, load_relu_transcoder
from safetensors.torch import save_file
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2LMHeadModel

CPU = torch.device("cpu")


class Tokens:
    """What the library asks of a tokenizer, of token ids alone: the first one of the prompt is a special one."""

    padding_side = "right"

    def __init__(self, first: int, size: int) -> None:
        self.all_special_ids, self.vocab_size = [first], size

    def decode(self, ids: torch.Tensor | list[int] | int) -> str:
        """Their numbers."""
        return str(ids)


def model_of(folder: Path, coders: TranscoderSet) -> TransformerLensReplacementModel:
    """The model as the library wants it, its own `from_config` with weights loaded in between."""
    theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    known = theirs.config
    config = HookedTransformerConfig(
        n_layers=known.n_layer,
        d_model=known.n_embd,
        n_ctx=known.n_positions,
        n_heads=known.n_head,
        d_head=known.n_embd // known.n_head,
        d_vocab=known.vocab_size,
        act_fn="gelu_new",
        normalization_type="LN",
        eps=known.layer_norm_epsilon,
        device="cpu",
        model_name="gpt2",
    )
    model = TransformerLensReplacementModel(config)
    weights = convert_gpt2_weights(theirs, config)
    model.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    model._configure_replacement_model(coders)
    return model


def main(folder: Path) -> None:
    """Trace, write, say how long."""
    task = json.loads((folder / "task.json").read_text())
    paths = sorted((folder / "coders").glob("layer_*.safetensors"), key=lambda path: int(path.stem.split("_")[1]))
    loaded = {
        i: load_relu_transcoder(str(path), i, CPU, lazy_encoder=False, lazy_decoder=False)
        for i, path in enumerate(paths)
    }
    coders = TranscoderSet(loaded, feature_input_hook="mlp.hook_in", feature_output_hook="hook_mlp_out", scan="local")
    model = model_of(folder / "model", coders)
    model.tokenizer = Tokens(task["tokens"][0], model.cfg.d_vocab)
    start, worked = time.perf_counter(), time.process_time()
    graph = attribute(
        torch.tensor(task["tokens"]),
        model,
        attribution_targets=torch.tensor(task["targets"]),
        batch_size=task["batch"],
        max_feature_nodes=task["features"],
    )
    took = {"seconds": time.perf_counter() - start, "worked": time.process_time() - worked}
    found = {
        "edges": graph.adjacency_matrix,
        "features": graph.active_features[graph.selected_features],
        "activations": graph.activation_values[graph.selected_features],
    }
    save_file({name: x.detach().contiguous() for name, x in found.items()}, folder / "edges.safetensors")
    print(json.dumps({**took, "features": len(graph.selected_features)}))


if __name__ == "__main__":
    torch.manual_seed(0)
    main(Path(sys.argv[1]))
