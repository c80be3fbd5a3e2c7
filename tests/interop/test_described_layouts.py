"""Layouts that no installable library writes: built from their description, and read as plain loops compute them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

import monosem as ms
from monosem.errors import ConfigError, FileError

D, F, K = 6, 15, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64).float()


def rows() -> Tensor:
    x = draw(9, D) + 0.4
    x[3] *= 500
    x[4] = 0
    return x


def dense(values: Tensor) -> list[list[float]]:
    return [[float(v) for v in row] for row in values]


def plain(
    x: list[float],
    W_enc: list[list[float]],
    b_enc: list[float],
    W_dec: list[list[float]],
    b_dec: list[float],
    *,
    subtract: bool,
    k: int | None = None,
) -> tuple[list[float], list[float]]:
    """Codes and reconstruction of one row, in loops: encoder and decoder rows are latents."""
    centred = [a - b for a, b in zip(x, b_dec, strict=True)] if subtract else x
    pre = [sum(w * a for w, a in zip(row, centred, strict=True)) + b for row, b in zip(W_enc, b_enc, strict=True)]
    kept = range(len(pre)) if k is None else sorted(range(len(pre)), key=lambda i: -pre[i])[:k]
    codes = [max(pre[i], 0.0) if i in kept else 0.0 for i in range(len(pre))]
    out = [b_dec[j] + sum(codes[i] * W_dec[i][j] for i in range(len(pre))) for j in range(len(b_dec))]
    return codes, out


def standardised(x: list[float]) -> tuple[list[float], float, float]:
    """OpenAI's LayerNorm: the deviation of a sample, 1e-5 added to what divides, and not where it is undone."""
    mean = sum(x) / len(x)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in x) / (len(x) - 1))
    return [(a - mean) / (deviation + 1e-5) for a in x], mean, deviation


def compare(sae: ms.SAE, oracle: Callable[[list[float]], tuple[list[float], list[float]]]) -> None:
    x = rows()
    codes, out = sae.encode(x).to_dense(), sae(x).reconstruction
    assert codes.count_nonzero() > 9
    for row, found_codes, found in zip(dense(x), codes, out, strict=True):
        expected_codes, expected = (torch.tensor(values) for values in oracle(row))
        for one, other in ((found_codes, expected_codes), (found, expected)):
            assert (one - other).abs().max() <= 1e-5 * max(1.0, other.abs().max().item())


@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
def test_openai_files_are_read_with_their_layer_norm_where_latents_compete(tmp_path: Path, activation: str) -> None:
    W_enc, W_dec, b_enc, b_dec = draw(F, D), draw(D, F, seed=1), draw(F, seed=2), draw(D, seed=3)
    content = {"pre_bias": b_dec, "encoder.weight": W_enc, "latent_bias": b_enc, "decoder.weight": W_dec}
    content |= {"stats_last_nonzero": torch.zeros(F, dtype=torch.long), "latents_mean_square": torch.zeros(F)}
    content |= {"activation": activation}
    if activation == "TopK":
        content |= {"activation_state_dict": {"k": K, "postact_fn": "ReLU"}}
    home = tmp_path / "gpt2-small" / "resid_post_mlp_v5_32k" / "resid_post_mlp" / "autoencoders"
    home.mkdir(parents=True)
    torch.save(content, home / "8.pt")
    sae = ms.load_sae(home / "8.pt")
    assert (sae.metadata.layout, sae.metadata.hook) == ("OpenAI", "resid_post.8")

    def oracle(x: list[float]) -> tuple[list[float], list[float]]:
        parts = dense(W_enc), b_enc.tolist(), dense(W_dec.T), b_dec.tolist()
        if activation == "ReLU":
            return plain(x, *parts, subtract=True)
        z, mean, deviation = standardised(x)
        codes, out = plain(z, *parts, subtract=True, k=K)
        return codes, [a * deviation + mean for a in out]

    compare(sae, oracle)


def test_openai_codes_that_may_be_negative_are_refused_with_the_reason(tmp_path: Path) -> None:
    content = {"pre_bias": draw(D), "encoder.weight": draw(F, D), "latent_bias": draw(F), "activation": "TopK"}
    content |= {"activation_state_dict": {"k": K, "postact_fn": "Identity"}}
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="may be negative"):
        ms.load_sae(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["Llama-3.3-70B-Instruct-SAE-l50.pt", "Llama-3.1-8B-Instruct-SAE-l19.pth"])
def test_goodfire_files_are_read_and_the_layer_is_in_the_name(tmp_path: Path, name: str) -> None:
    W_enc, W_dec, b_enc, b_dec = draw(F, D), draw(D, F, seed=1), draw(F, seed=2), draw(D, seed=3)
    linear = {"encoder_linear.weight": W_enc, "encoder_linear.bias": b_enc}
    torch.save({**linear, "decoder_linear.weight": W_dec, "decoder_linear.bias": b_dec}, tmp_path / name)
    sae = ms.load_sae(tmp_path / name)
    layer = "50" if "l50" in name else "19"
    assert sae.metadata.hook == f"resid_post.{layer}"
    assert sae.metadata.model == f"meta-llama/{name.partition('-SAE')[0]}"
    compare(sae, lambda x: plain(x, dense(W_enc), b_enc.tolist(), dense(W_dec.T), b_dec.tolist(), subtract=False))


def test_circuit_tracer_s_topk_takes_k_from_its_config_and_asks_for_it(tmp_path: Path) -> None:
    W_enc, W_dec, b_enc, b_dec = draw(F, D), draw(F, D, seed=1), draw(F, seed=2), draw(D, seed=3)
    for layer in (0, 1):
        tensors = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / f"layer_{layer}.safetensors")
    about = {"model_kind": "transcoder_set", "model_name": "meta-llama/Llama-3.1-8B", "activation": "topk"}
    about |= {"feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "hook_mlp_out"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(about))
    with pytest.raises(FileError, match="write k: NUMBER into it"):
        ms.load_sae(tmp_path / "layer_1.safetensors")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**about, "k": K}))
    sae = ms.load_sae(tmp_path / "layer_1.safetensors")
    known = sae.metadata
    assert (known.hook, known.target_hook, known.model) == ("resid_mid.1", "mlp_out.1", "meta-llama/Llama-3.1-8B")

    def oracle(x: list[float]) -> tuple[list[float], list[float]]:
        norm = math.sqrt(sum(a * a for a in x) / len(x) + 1e-12)  # an RMSNorm's output, before its gain
        parts = dense(W_enc), b_enc.tolist(), dense(W_dec), b_dec.tolist()
        return plain([a / norm for a in x], *parts, subtract=False, k=K)

    compare(sae, oracle)
    with pytest.raises(ConfigError, match=r"a set of 2 transcoders.*layer_0\.safetensors"):
        ms.load_sae(tmp_path)


def test_sae_lens_s_scale_centring_and_whitening_are_in_the_transform(tmp_path: Path) -> None:
    W_enc, W_dec, b_enc, b_dec = draw(D, F), draw(F, D, seed=1), draw(F, seed=2), draw(D, seed=3)
    tensors = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    config = {"architecture": "standard", "d_in": D, "d_sae": F, "apply_b_dec_to_input": True}
    config["metadata"] = {"hook_name": "blocks.1.hook_resid_pre", "model_name": "gpt2-small"}
    parts = dense(W_enc.T), b_enc.tolist(), dense(W_dec), b_dec.tolist()

    def write(**changes: object) -> None:
        (tmp_path / "cfg.json").write_text(json.dumps({**config, **changes}))

    write(normalize_activations="expected_average_only_in")
    with pytest.raises(ConfigError, match="scaled by a factor that its files do not say"):
        ms.load_sae(tmp_path)
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.37}))

    def scaled(x: list[float]) -> tuple[list[float], list[float]]:
        codes, out = plain([0.37 * a for a in x], *parts, subtract=True)
        return codes, [a / 0.37 for a in out]

    compare(ms.load_sae(tmp_path), scaled)
    write(metadata={**config["metadata"], "model_from_pretrained_kwargs": {"center_writing_weights": True}})

    def centred(x: list[float]) -> tuple[list[float], list[float]]:
        mean = sum(x) / len(x)
        codes, out = plain([a - mean for a in x], *parts, subtract=True)
        return codes, [a + mean for a in out]

    compare(ms.load_sae(tmp_path), centred)
    matrix = draw(D, D, seed=7) + 3 * torch.eye(D)
    whitening = {"mean": draw(D, seed=8), "matrix": matrix, "inverse_matrix": matrix.inverse()}
    save_file(
        {name: tensor.contiguous() for name, tensor in whitening.items()}, tmp_path / "activation_whitening.safetensors"
    )
    write(normalize_activations="covariance_whitening")

    def whitened(x: list[float]) -> tuple[list[float], list[float]]:
        mean, there, back = whitening["mean"].tolist(), dense(matrix), dense(matrix.inverse())
        z = [sum((x[i] - mean[i]) * there[i][j] for i in range(D)) for j in range(D)]
        codes, out = plain(z, *parts, subtract=True)
        return codes, [mean[j] + sum(out[i] * back[i][j] for i in range(D)) for j in range(D)]

    x = rows()[[0, 1, 2, 4]]
    sae = ms.load_sae(tmp_path)
    for row, codes, out in zip(dense(x), sae.encode(x).to_dense(), sae(x).reconstruction, strict=True):
        expected_codes, expected = (torch.tensor(values) for values in whitened(row))
        assert (codes - expected_codes).abs().max() <= 2e-5 * max(1.0, expected_codes.abs().max().item())
        assert (out - expected).abs().max() <= 2e-5 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "temporal"}, "temporal encoder is computed by none of ours"),
        ({"architecture": "abstopk", "k": 3}, "abstopk"),
        ({"architecture": "something"}, "'something' is not known"),
        ({"normalize_activations": "other"}, "'other' is not known"),
        ({"activation_fn_str": "tanh-relu"}, "activation function is 'tanh-relu'"),
        ({"architecture": "topk"}, "no k of 1 or more"),
        ({"architecture": "jumprelu"}, "no tensor threshold"),
    ],
)
def test_what_sae_lens_has_and_we_compute_not_is_refused_beside_what_is_read(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    tensors = {"W_enc": draw(D, F), "W_dec": draw(F, D, seed=1), "b_enc": draw(F, seed=2), "b_dec": draw(D, seed=3)}
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    config = {"architecture": "standard", "d_in": D, "d_sae": F}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    ms.load_sae(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises((ConfigError, FileError), match=words):
        ms.load_sae(tmp_path)


@pytest.mark.parametrize("kind", ["json", "list", "jsonl"])
def test_neuronpedia_s_vectors_are_products_with_activations(tmp_path: Path, kind: str) -> None:
    vectors = dense(draw(3, D))
    stored = {"modelId": "gpt2-small", "hookName": "blocks.6.hook_resid_pre", "vectorLabel": "a", "index": "0"}
    things = [{**stored, "vector": vector} for vector in vectors]
    path = tmp_path / ("x.jsonl" if kind == "jsonl" else "x.json")
    if kind == "jsonl":
        path.write_text("".join(json.dumps(thing) + "\n" for thing in things))
    else:
        things = things if kind == "list" else things[:1]
        path.write_text(json.dumps(things if kind == "list" else things[0]))
    sae = ms.load_sae(path)
    known = sae.metadata
    assert (known.hook, known.model, known.layout) == ("resid_pre.6", "openai-community/gpt2", "Neuronpedia")
    rows_of = [thing["vector"] for thing in things]
    x = rows()
    codes = sae.encode(x).to_dense()
    for row, found in zip(dense(x), codes, strict=True):
        expected = [max(0.0, sum(a * b for a, b in zip(vector, row, strict=True))) for vector in rows_of]
        assert (found - torch.tensor(expected)).abs().max() <= 1e-5 * max(1.0, *expected)
    assert torch.allclose(sae.decoder_directions(), torch.tensor(rows_of))


def test_vectors_of_several_places_are_refused_beside_those_of_one(tmp_path: Path) -> None:
    one = {"modelId": "gpt2-small", "layerNumber": 6, "hookType": "resid-pre", "vector": [1.0, 2.0]}
    (tmp_path / "x.json").write_text(json.dumps([one, one]))
    assert ms.load_sae(tmp_path / "x.json").metadata.hook == "resid_pre.6"
    (tmp_path / "x.json").write_text(json.dumps([one, {**one, "layerNumber": 7}]))
    with pytest.raises(ConfigError, match="several models or hook points"):
        ms.load_sae(tmp_path / "x.json")
