"""Dictionaries on another model: identical models, rotated models, extreme tokens, fine-tuning, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import monosem as ms
from monosem.activations import VectorActivations
from monosem.errors import ConfigError, MismatchError
from monosem.evaluation import TransferMatrix
from monosem.models import SubjectModel
from monosem.sae import SAE, TopKSAE
from monosem.training import TrainingConfig, train

D, HOOK = 16, "resid_post.0"
RNG = np.random.default_rng(0)
TEXT = ["".join(chr(97 + c) for c in RNG.integers(0, 26, 60)) for _ in range(30)]
SMALL = {"text": TEXT, "tokens": 600, "loss_tokens": 300, "progress": False}


@pytest.fixture(scope="module")
def base(letter_tokenizer: type) -> SubjectModel:
    """A Llama of random weights whose gains are 1: what it does is the same in a rotated residual stream."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": D, "intermediate_size": 24, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=128, num_hidden_layers=2, max_position_embeddings=32, **sizes)
    module = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" not in name:
                parameter.copy_(0.4 * torch.randn(parameter.shape))
    return SubjectModel(module, letter_tokenizer(), "base")


@pytest.fixture(scope="module")
def turn() -> torch.Tensor:
    return torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(1)).double())[0].float()


def turned(model: SubjectModel, turn: torch.Tensor) -> SubjectModel:
    """The same model in a residual stream that is rotated: x becomes x R."""
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if any(part in name for part in ("o_proj", "down_proj")):
                parameter.copy_(turn.T @ parameter)
            elif parameter.ndim == 2:
                parameter.copy_(parameter @ turn)
    return SubjectModel(module, model.tokenizer, "turned")


@pytest.fixture(scope="module")
def sae(base: SubjectModel) -> SAE:
    made = TopKSAE(D, 48, k=4)
    source = ms.activations(base, HOOK, text=TEXT, buffer_tokens=1024)
    train(made, source, tokens=6_000, config=TrainingConfig(batch_size=128), progress=False)
    return made


def rotated(sae: SAE, turn: torch.Tensor) -> SAE:
    found = copy.deepcopy(sae)
    with torch.no_grad():
        for parameter in (found.W_enc, found.W_dec, found.b_dec):
            parameter.copy_(parameter @ turn)
        found.transform.mean.copy_(found.transform.mean @ turn)
    return found


def test_identical_models_give_an_identical_matrix(base: SubjectModel, sae: SAE) -> None:
    other = SubjectModel(copy.deepcopy(base.module), base.tokenizer, "copy")
    found = ms.transfer_matrix({"A": sae, "B": copy.deepcopy(sae)}, {"A": base, "B": other}, **SMALL)
    for kind in ("all", "filtered"):
        assert len({str(found[d, m, kind]) for d in "AB" for m in "AB"}) == 1
    assert found["A", "B"]["fvu"].low < found["A", "B"]["fvu"].value < 0.9


def test_a_rotated_model_fails_unless_the_dictionary_is_rotated_too(
    base: SubjectModel, sae: SAE, turn: torch.Tensor
) -> None:
    other = turned(base, turn)
    found = ms.transfer_matrix({"A": sae, "back": rotated(sae, turn)}, {"A": base, "turned": other}, **SMALL)
    assert found.clean["A"].value == pytest.approx(found.clean["turned"].value, rel=1e-4)  # it is the same model
    home = found["A", "A"]
    assert found["A", "turned"]["fvu"].value > 2.5 * home["fvu"].value
    assert found["A", "turned"]["kl"].value > 2 * home["kl"].value  # at random weights loss means little
    for metric in ("fvu", "l0", "ce", "kl", "loss_recovered_mean"):
        assert found["back", "turned"][metric].value == pytest.approx(home[metric].value, rel=2e-3, abs=2e-3)


def test_a_cell_is_what_evaluate_says(base: SubjectModel, sae: SAE) -> None:
    found = ms.transfer_matrix({"A": sae}, {"A": base}, **SMALL)
    report = ms.evaluate(sae, base, text=TEXT, tokens=found.rows["all"], loss_tokens=0, controls=False, progress=False)
    assert found["A", "A", "all"]["l0"].value == pytest.approx(report["l0"].value)
    assert found["A", "A", "all"]["fvu"].value == pytest.approx(report["fvu"].value, rel=1e-6)


def test_extreme_tokens_are_left_out_of_both_models_alike(base: SubjectModel, sae: SAE) -> None:
    other = SubjectModel(copy.deepcopy(base.module), base.tokenizer, "sinks")
    with torch.no_grad():
        other.module.get_input_embeddings().weight[ord("a")] *= 400  # pyright: ignore
    found = ms.transfer_matrix({"A": sae}, {"A": base, "sinks": other}, **SMALL)
    n_a = sum(text.count("a") for text in TEXT) / sum(map(len, TEXT))
    assert found.extreme["A"] == 0
    assert 0.3 * n_a < found.extreme["sinks"] < 3 * n_a
    assert found.rows["filtered"] == found.rows["all"] - round(found.extreme["sinks"] * found.rows["all"])
    with_them, without = found["A", "sinks", "all"]["fvu"].value, found["A", "sinks"]["fvu"].value
    assert abs(without - found["A", "A"]["fvu"].value) < abs(with_them - found["A", "A", "all"]["fvu"].value)
    assert found["A", "A"]["fvu"].value != found["A", "A", "all"]["fvu"].value  # the same tokens are gone there


def test_the_table_has_a_row_a_cell(base: SubjectModel, sae: SAE) -> None:
    found = ms.transfer_matrix({"A": sae}, {"A": base, "B": base}, **SMALL)
    assert isinstance(found, TransferMatrix)
    assert found.table().row_count == 4
    with pytest.raises(ConfigError, match="no cell"):
        found["C", "A"]


def test_a_dictionary_trained_on_comes_to_the_other_model(base: SubjectModel, sae: SAE, turn: torch.Tensor) -> None:
    x = ms.activations(base, HOOK, text=TEXT, buffer_tokens=2048).pool(0)
    shifted = x @ (torch.eye(D) + 0.4 * turn)
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    curve = ms.fine_tuning_curve(
        sae,
        VectorActivations(shifted),
        budgets=[256, 768],
        held_out=shifted,
        native=sae,
        config=TrainingConfig(batch_size=64),
        progress=False,
    )
    assert all(torch.equal(sae.state_dict()[name], tensor) for name, tensor in before.items())
    assert curve.tuned[768].value < curve.tuned[256].value < curve.before.value
    assert curve.tuned[256].value < curve.fresh[256].value  # it begins nearer
    assert curve.native == curve.before
    assert curve.recovered == 256
    assert curve.table().row_count == 3


def test_what_cannot_be_compared_is_refused_in_a_line(base: SubjectModel, sae: SAE, letter_tokenizer: type) -> None:
    elsewhere, wide = copy.deepcopy(sae), TopKSAE(D + 1, 48, k=4)
    elsewhere.metadata = elsewhere.metadata.model_copy(update={"hook": "resid_post.1"})
    models = {"A": base}
    with pytest.raises(MismatchError, match=r"different hooks .A: resid_post.0, B: resid_post.1"):
        ms.transfer_matrix({"A": sae, "B": elsewhere}, models, **SMALL)
    with pytest.raises(MismatchError, match=r"reads width 17, resid_post.0 of A has width 16"):
        ms.transfer_matrix({"A": wide}, models, HOOK, **SMALL)
    with pytest.raises(ConfigError, match="does not know its hook point"):
        ms.transfer_matrix({"A": wide}, models, **SMALL)
    with pytest.raises(ConfigError, match="needs dictionaries and models"):
        ms.transfer_matrix({}, models, **SMALL)

    class Other(letter_tokenizer):
        def get_vocab(self) -> dict[str, int]:
            return {chr(i): i for i in range(64)}

    with pytest.raises(MismatchError, match="tokenizers of A and B differ"):
        ms.transfer_matrix({"A": sae}, {"A": base, "B": SubjectModel(base.module, Other(), "b")}, **SMALL)
    with pytest.raises(ConfigError, match="longest schedule has 99 tokens, and the data 50"):
        ms.fine_tuning_curve(sae, VectorActivations(torch.randn(50, D)), budgets=[99], held_out=torch.randn(50, D))
    with pytest.raises(MismatchError, match="activations have width"):
        ms.fine_tuning_curve(sae, VectorActivations(torch.randn(50, 7)), budgets=[9], held_out=torch.randn(50, 7))
