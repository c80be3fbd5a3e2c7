"""Written for other libraries: their published formulas, over the files alone, give our codes and reconstructions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner
from written_saes import ROWS, SAES, made

import monosem as ms
from monosem.cli.main import app
from monosem.errors import ConfigError
from monosem.interop.export import Format
from monosem.sae import SAE


def of_rows(pre: Tensor, k: int) -> Tensor:
    """The k largest of each row, and ReLU, by a loop."""
    codes = torch.zeros_like(pre)
    for row in range(len(pre)):
        for latent in pre[row].argsort(descending=True)[:k].tolist():
            codes[row, latent] = max(0.0, pre[row, latent].item())
    return codes


def saelens(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    config, p = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
    mean, deviation = torch.zeros(len(x), 1), torch.ones(len(x), 1)
    if config["normalize_activations"] == "layer_norm":
        mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True) + 1e-5
    read = (x - mean) / deviation
    centred = read - p["b_dec"] if config["apply_b_dec_to_input"] else read
    kind = config["architecture"]
    if kind == "gated":
        gate = centred @ p["W_enc"] + p["b_gate"]
        codes = (gate > 0) * torch.relu(centred @ (p["W_enc"] * p["r_mag"].exp()) + p["b_mag"])
    else:
        pre = centred @ p["W_enc"] + p["b_enc"]
        if kind == "topk":
            codes = of_rows(pre, config["k"])
        else:
            codes = torch.relu(pre) * (pre > p["threshold"]) if "jumprelu" in kind else torch.relu(pre)
    out = codes @ p["W_dec"] + p["b_dec"]
    return codes, (out + x @ p["W_skip"].T if "skip" in kind else out) * deviation + mean


def dictionary_learning(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    kind = json.loads((folder / "config.json").read_text())["trainer"]["dict_class"]
    p = torch.load(folder / "ae.pt", weights_only=True)
    W_enc = p["W_enc"] if "W_enc" in p else p["encoder.weight"].T
    W_dec = p["W_dec"] if "W_dec" in p else p["decoder.weight"].T
    bias = next(p[name] for name in ("bias", "b_dec", "decoder_bias", "decoder.bias") if name in p)
    centred = x if kind in ("JumpReluAutoEncoder", "AutoEncoderNew") else x - bias
    if kind == "GatedAutoEncoder":
        m = centred @ W_enc
        codes = (m + p["gate_bias"] > 0) * torch.relu(p["r_mag"].exp() * m + p["mag_bias"])
    else:
        pre = centred @ W_enc + (p["b_enc"] if "b_enc" in p else p["encoder.bias"])
        codes = of_rows(pre, int(p["k"])) if kind == "AutoEncoderTopK" else torch.relu(pre)
        if kind in ("JumpReluAutoEncoder", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
            codes = codes * (pre > p["threshold"])
    if kind == "MatryoshkaBatchTopKSAE":
        assert int(p["group_sizes"].sum()) == W_enc.shape[1]
    return codes, codes @ W_dec + bias


def sparsify(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    config, p = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae.safetensors")
    read = x if config["transcode"] else x - p["b_dec"]
    codes = of_rows(read @ p["encoder.weight"].T + p["encoder.bias"], config["k"])
    out = codes @ p["W_dec"] + p["b_dec"]
    return codes, out + x @ p["W_skip"].T if config["skip_connection"] else out


def gemma_scope(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    p = {name: torch.from_numpy(array) for name, array in np.load(folder / "params.npz").items()}
    pre = x @ p["W_enc"] + p["b_enc"]
    codes = (pre > p["threshold"]) * torch.relu(pre)
    return codes, codes @ p["W_dec"] + p["b_dec"]


def circuit_tracer(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["feature_input_hook"] == "mlp.hook_in"
    assert config["feature_output_hook"] == "hook_mlp_out"
    if config["model_kind"] == "cross_layer_transcoder":
        return cross_layer(folder, x)
    p = load_file(folder / "layer_0.safetensors")
    pre = x @ p["W_enc"].T + p["b_enc"]
    limit = p.get("activation_function.threshold", torch.zeros(()))
    codes = pre * (pre > limit)
    out = codes @ p["W_dec"] + p["b_dec"]
    return codes, out + x @ p["W_skip"].T if "W_skip" in p else out


def cross_layer(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    layers, out, codes = x.shape[1], list[Tensor](), list[Tensor]()
    for layer in range(layers):
        p = load_file(folder / f"W_enc_{layer}.safetensors")
        pre = x[:, layer] @ p[f"W_enc_{layer}"].T + p[f"b_enc_{layer}"]
        codes.append(pre * (pre > p[f"threshold_{layer}"]))
        out.append(p[f"b_dec_{layer}"].expand(len(x), -1).clone())
        for source in range(layer + 1):
            decoder = load_file(folder / f"W_dec_{source}.safetensors")[f"W_dec_{source}"]
            out[layer] += codes[source] @ decoder[:, layer - source]
    return torch.cat(codes, 1), torch.stack(out, 1)


FORMULAS: dict[Format, Callable[[Path, Tensor], tuple[Tensor, Tensor]]] = {
    "saelens": saelens,
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
    "gemma_scope": gemma_scope,
    "circuit_tracer": circuit_tracer,
}
HELD: dict[Format, set[str]] = {
    "saelens": {
        *("relu", "relu tied", "relu, b_dec not subtracted", "gated", "topk", "topk, standardised"),
        *("jumprelu", "jumprelu, b_dec not subtracted", "batchtopk", "matryoshka", "prolu"),
        *("relu transcoder", "jumprelu transcoder", "jumprelu skip transcoder"),
    },
    "dictionary_learning": {
        *("relu", "relu tied", "relu, b_dec not subtracted", "gated", "topk", "batchtopk", "matryoshka"),
        "jumprelu, b_dec not subtracted",
    },
    "sparsify": {"topk", "topk transcoder", "topk skip transcoder"},
    "gemma_scope": {
        *("relu, b_dec not subtracted", "jumprelu, b_dec not subtracted", "relu transcoder", "jumprelu transcoder"),
    },
    "circuit_tracer": {
        *("relu transcoder", "jumprelu transcoder", "jumprelu skip transcoder"),
        *("cross-layer", "cross-layer batchtopk"),
    },
}
"""What each format holds as it is; all else it refuses."""
WITH_FOLD: dict[Format, set[str]] = {
    "saelens": {"topk, centred and scaled"},
    "dictionary_learning": {"jumprelu", "prolu", "topk, centred and scaled"},
    "sparsify": {"topk, centred and scaled"},
    "gemma_scope": {"relu", "relu tied", "jumprelu", "batchtopk", "matryoshka", "prolu"},
    "circuit_tracer": set(),
}
"""What it holds more with fold=True."""


def agrees(found: tuple[Tensor, Tensor], sae: SAE, x: Tensor) -> None:
    out = sae(x)
    for theirs, ours in zip(found, (out.codes.to_dense(), out.reconstruction), strict=True):
        assert theirs.shape == ours.shape
        assert (theirs - ours).abs().max() <= 1e-5 * ours.abs().max()
    assert 0 < (found[0] > 0).sum() < found[0].numel()


@torch.no_grad()
@pytest.mark.parametrize("to", FORMULAS)
def test_each_format_holds_what_it_can_and_refuses_the_rest(to: Format, tmp_path: Path) -> None:
    for name in SAES:
        sae, x = made(name)
        folder = tmp_path / name
        if name in HELD[to]:
            assert ms.export_sae(sae, folder, to) == folder
            agrees(FORMULAS[to](folder, x), sae, x)
            continue
        with pytest.raises(ConfigError, match=r"cannot hold this .* exactly: .*: ") as refused:
            ms.export_sae(sae, folder, to)
        assert not folder.exists(), "something was written"
        if name in WITH_FOLD[to]:
            assert "fold=True" in str(refused.value)
            ms.export_sae(sae, folder, to, fold=True)
            agrees(FORMULAS[to](folder, x), sae, x)
        else:
            with pytest.raises(ConfigError, match=r"cannot hold this .* exactly: .*: "):
                ms.export_sae(sae, folder, to, fold=True)
            assert not folder.exists()


@torch.no_grad()
def test_what_is_given_stays_as_it_is(tmp_path: Path) -> None:
    sae, x = made("relu tied")
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    ms.export_sae(sae, tmp_path, "gemma_scope", fold=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())
    assert sae.one_matrix
    assert sae.subtract_b_dec
    assert len(x) == ROWS


@torch.no_grad()
def test_relu_of_free_decoder_norms_is_refused_where_they_would_be_rescaled(tmp_path: Path) -> None:
    sae, x = made("relu")
    sae.W_dec.mul_(2)
    with pytest.raises(ConfigError, match="norms=True"):
        ms.export_sae(sae, tmp_path, "dictionary_learning")
    folded = ms.fold(sae, norms=True)
    ms.export_sae(folded, tmp_path, "dictionary_learning")
    agrees(dictionary_learning(tmp_path, x), folded, x)


def test_metadata_goes_along(tmp_path: Path) -> None:
    sae, _ = made("jumprelu")
    sae.metadata.model, sae.metadata.hook, sae.metadata.context_length = "gpt2", "resid_post.2", 64
    sae.metadata.prepend_bos = True
    ms.export_sae(sae, tmp_path)
    about = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    assert about["hook_name"] == "blocks.2.hook_resid_post"
    assert (about["model_name"], about["context_size"], about["prepend_bos"]) == ("gpt2", 64, True)


def test_the_command_writes_and_says_how_to_read(tmp_path: Path) -> None:
    sae, _ = made("topk, centred and scaled")
    sae.save(tmp_path / "ours")
    arguments: list[Any] = ["export", str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to", "sparsify"]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, ConfigError)
    assert "--fold" in str(refused.exception)
    outcome = CliRunner().invoke(app, [*arguments, "--fold"])
    assert outcome.exit_code == 0, outcome.output
    assert "load_from_disk" in outcome.output
    assert (tmp_path / "theirs" / "sae.safetensors").is_file()


def test_a_format_that_is_not_known_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean saelens"):
        ms.export_sae(made("topk")[0], tmp_path, "sae_lens")  # type: ignore[arg-type]
