"""Heads: scores are those of plain loops over documents alone, planted patterns are found, weights do what they say."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import FAMILY_MODELS, FamilyModel, family_module
from torch import Tensor

import monosem as ms
from monosem.circuits import MEANING, Heads, composition
from monosem.circuits.heads.heads import heads
from monosem.circuits.heads.scores import Sums, Watch, _reading
from monosem.circuits.heads.successors import rows_of, successions
from monosem.circuits.heads.weights import head_weights, output_matrix
from monosem.data import read_documents
from monosem.data.documents import Document, DocumentStream
from monosem.errors import ConfigError, DataError, FileError
from monosem.models import SubjectModel
from monosem.models.blocks import block_of

CAUSAL = [name for name, spec in FAMILY_MODELS.items() if spec.causal and spec.family not in ("gemma2", "gemma3_text")]


def bundled_text() -> Iterator[Document]:
    documents = read_documents("bundled:held_out")
    assert not isinstance(documents, DocumentStream)
    return iter(documents)


@pytest.fixture(scope="module")
def found(bundled: SubjectModel) -> Heads:
    return heads(bundled, "bundled:held_out", documents=10, context_length=96, progress=False)


def test_the_bundled_models_known_heads_are_found(found: Heads) -> None:
    """Head 2.3 attends to the token before, and three heads behind it attend by repetition."""
    assert found.top("previous", 1) == [(2, 3)]
    assert found["previous"].value[2, 3] > 0.9
    assert set(found.top("induction", 3)) == {(3, 1), (3, 2), (3, 3)}
    assert found["induction"].low[3, 3] > 30 * (found["induction"].chance or 1)
    assert found["copying"].value[3, 3] > 3  # what induction needs: the token attended to is said
    assert set(found.scores) == set(MEANING)


def test_induction_heads_read_the_previous_token_head_by_their_keys(bundled: SubjectModel) -> None:
    between = composition(bundled)
    readers = between.key[:, between.heads.index((2, 3))]
    assert {between.heads[i] for i in readers.topk(3).indices.tolist()} == {(3, 1), (3, 2), (3, 3)}
    assert between.strongest("key", 1)[0][:2] == ((3, 3), (2, 3))


def test_every_score_is_that_of_plain_loops_over_documents_alone(bundled: SubjectModel) -> None:
    """Batched and padded beside others, or each by itself: the same means."""
    texts = [document.text for document in itertools.islice(bundled_text(), 3)]
    found = heads(bundled, texts, documents=3, context_length=40, seed=1, progress=False)
    sums = Sums(4, 4, 3)
    watch = Watch(bundled, sums, seed=1)
    expected: dict[str, list[Tensor]] = {name: [] for name in ("previous", "beginning", "entropy", "norm")}
    for text in texts:
        tokens = bundled.tokens(text)[:, :40]
        hooks = [f"{kind}.{layer}" for layer in range(4) for kind in ("attn_pattern", "resid_pre", "attn_z")]
        x = {hook: at.cpu() for hook, at in bundled.capture(tokens, hooks).items()}
        n = tokens.shape[1]
        rows: dict[str, Tensor] = {name: torch.zeros(4, 4) for name in expected}
        for layer in range(4):
            W_O = output_matrix(bundled, layer).cpu()
            for head in range(4):
                pattern = x[f"attn_pattern.{layer}"][0, head]
                z = x[f"attn_z.{layer}"][0].unflatten(-1, (4, -1))[:, head]
                for q in range(1, n):
                    if q > 1:
                        rows["previous"][layer, head] += pattern[q, q - 1] / (n - 2)
                    rows["beginning"][layer, head] += pattern[q, 0] / (n - 1)
                    rows["entropy"][layer, head] += -sum(p * math.log(p) for p in pattern[q].tolist() if p) / (n - 1)
                    share = (W_O[head] @ z[q]).norm() / x[f"resid_pre.{layer}"][0, q].norm()
                    rows["norm"][layer, head] += share / (n - 1)
        for name, row in rows.items():
            expected[name].append(row)
    for name, each in expected.items():
        torch.testing.assert_close(
            torch.tensor(found[name].value), torch.stack(each).mean(0).double(), rtol=1e-3, atol=1e-4
        )
    # copying: the z-score of a token's own logit, over the whole vocabulary
    direction = torch.randn(1, bundled.d_model, generator=torch.Generator().manual_seed(0)).to(bundled.device)
    from monosem.analysis.logit_lens import direction_logits

    logits = direction_logits(direction, bundled)[0]
    z_score = (logits[17] - logits.mean()) / logits.std(correction=0)
    torch.testing.assert_close(watch.raised(direction, torch.tensor([17]))[0], z_score, rtol=1e-4, atol=1e-5)


def planted(kind: str, probe: int, begins: int) -> Callable[[Tensor, Any], Tensor]:
    """A pattern of that kind, of which the rest goes to the first position."""

    def put(x: Tensor, _: object) -> Tensor:
        new = torch.zeros_like(x)
        for q in range(x.shape[-1]):
            back = {"previous": 1, "duplicate": probe, "induction": probe - 1}[kind]
            new[:, 1, q, max(q - back, 0) if kind == "previous" or q >= probe + begins else 0] = 1
            new[:, [0, 2, 3], q, q] = 1
        return new

    return put


@pytest.mark.parametrize("kind", ["previous", "duplicate", "induction"])
def test_a_planted_pattern_is_found_and_nothing_else(bundled: SubjectModel, kind: str) -> None:
    words = "one two three four five six seven eight nine ten"
    tokens = bundled.tokens(words)[0].tolist()
    probe = len(set(tokens[1:]))
    with bundled.edit({"attn_pattern.1": planted(kind, probe, 1)}):
        found = heads(bundled, [words], documents=1, progress=False)
    for name in ("previous", "duplicate", "induction"):
        assert found[name].value[1, 1] == pytest.approx(float(name == kind), abs=1e-6)
        assert found[name].value[1, [0, 2, 3]] == pytest.approx(0, abs=1e-6)
    assert found["entropy"].value[1] == pytest.approx(0, abs=1e-6)


def test_probes_repeat_each_token_once_and_are_as_long_as_fits() -> None:
    import numpy as np

    texts = [[0, 5, 5, 6, 7, 8], [0, *range(10, 90)]]
    reading = _reading(texts, 1, 0, 20, np.random.default_rng(0))
    assert reading.probe_lengths == [4, 20]
    for row, mask, length in zip(reading.tokens[2:], reading.mask[2:], reading.probe_lengths, strict=True):
        probe = row[mask].tolist()
        assert probe[0] == 0
        assert probe[1 : 1 + length] == probe[1 + length :]
        assert len(set(probe)) == length + 1


def test_examples_are_where_most_was_moved(bundled: SubjectModel, found: Heads) -> None:
    layer, head = 3, 3
    kept = found.examples[layer, head]
    assert [e.strength for e in kept] == sorted((e.strength for e in kept), reverse=True)
    assert len({e.document for e in kept}) == len(kept) == 6
    W_O = output_matrix(bundled, layer)
    for example in kept[:2]:
        tokens = torch.tensor([found.texts[example.document]])
        x = bundled.capture(tokens, ["attn_v.3", "attn_pattern.3"])
        written = (x["attn_v.3"][0].unflatten(-1, (4, -1))[:, head] @ W_O[head].T).norm(dim=-1)
        moved = (x["attn_pattern.3"][0, head] * written).cpu()
        assert moved[example.query, example.key] == pytest.approx(example.strength, rel=1e-3)
        moved[:, 0] = 0
        assert moved.fill_diagonal_(0).max() == pytest.approx(example.strength, rel=1e-3)


def test_successors_are_counted_on_rows_of_single_tokens(bundled: SubjectModel, found: Heads) -> None:
    rows = rows_of(bundled)
    assert "numbers" in rows
    assert all(bundled.tokenizer.decode([token]).strip() for row in rows.values() for token in row)
    pairs = successions(bundled, Watch(bundled, Sums(4, 4, 1), 0))
    name, row = "numbers", rows["numbers"]
    from monosem.analysis.logit_lens import direction_logits

    first = bundled.tokenizer.bos_token_id
    for i in (0, 3):
        v = bundled.capture(torch.tensor([[first, row[i]]]), ["attn_v.2"])["attn_v.2"][0, -1].unflatten(-1, (4, -1))
        for head in range(4):
            logits = direction_logits((output_matrix(bundled, 2)[head] @ v[head])[None], bundled)[0]
            most = max(row, key=lambda token, logits=logits: float(logits[token]))
            assert bool(pairs[name][i, 2, head]) == (most == row[i + 1])
    every = torch.cat(list(pairs.values())).double().mean(0)
    torch.testing.assert_close(torch.tensor(found["successor"].value), every)


@pytest.mark.parametrize("name", [n for n in FAMILY_MODELS if not FAMILY_MODELS[n].reads_images])
def test_what_heads_write_adds_up_to_what_attention_adds(name: str) -> None:
    """With the bias and, under a norm behind attention, that norm's scale: every family's output matrix."""
    spec, model = FAMILY_MODELS[name], SubjectModel(family_module(name))
    if not model.writes_text:
        with pytest.raises(ConfigError, match="language models"):
            output_matrix(model, 0)
        return
    x = model.capture(spec.inputs(), ["attn_z.1", "attn_out.1"])
    z = x["attn_z.1"].unflatten(-1, (spec.n_heads, -1))
    written = torch.einsum("bphd,hed->bpe", z, output_matrix(model, 1))
    rest = x["attn_out.1"] - written
    if spec.attn_after is None:  # a bias, the same everywhere
        torch.testing.assert_close(rest, rest[:1, :1].expand_as(rest), rtol=0, atol=1e-10)
    else:
        ratio = x["attn_out.1"] / written
        torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", CAUSAL)
def test_head_weights_make_the_values_that_the_model_makes(name: str) -> None:
    """Of a stream without mean, of unit variance, the norm leaves its gain alone; differences leave the biases out."""
    spec, model = FAMILY_MODELS[name], SubjectModel(family_module(name))
    weights = head_weights(model, 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, model.d_model, generator=generator, dtype=torch.float64) * 1e4
    x = x - x.mean(-1, keepdim=True)
    x = x / x.pow(2).mean(-1, keepdim=True).sqrt() * 1e4
    with model.edit({"resid_pre.1": lambda _x, _c: x}):
        v = model.capture(spec.inputs(), ["attn_v.1"])["attn_v.1"].unflatten(-1, (-1, spec.head_width))
    normed = x if block_of(model).attention_norm is None else x / 1e4
    by_hand = torch.einsum("bpd,hed->bphe", normed, weights.W_V)
    v = v.repeat_interleave(spec.n_heads // v.shape[2], dim=2)
    torch.testing.assert_close(v - v[:1, :1], by_hand - by_hand[:1, :1], rtol=1e-3, atol=1e-5)
    assert weights.W_Q.shape == weights.W_K.shape == (spec.n_heads, spec.head_width, model.d_model)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_composition_and_similarity_are_those_of_whole_matrices(name: str) -> None:
    model = SubjectModel(family_module(name))
    found, layers = composition(model), [head_weights(model, layer) for layer in range(2)]
    qk = [q.T @ k for w in layers for q, k in zip(w.W_Q, w.W_K, strict=True)]
    ov = [o @ v for w in layers for o, v in zip(w.W_O, w.W_V, strict=True)]
    for reader in range(8):
        for writer in range(8):
            scale = qk[reader].norm() * ov[writer].norm()
            earlier = reader >= 4 > writer
            expected = {
                "query": (qk[reader].T @ ov[writer]).norm() / scale * earlier,
                "key": (qk[reader] @ ov[writer]).norm() / scale * earlier,
                "value": (ov[reader] @ ov[writer]).norm() / (ov[reader].norm() * ov[writer].norm()) * earlier,
                "similarity_qk": (qk[reader] * qk[writer]).sum() / (qk[reader].norm() * qk[writer].norm()),
                "similarity_ov": (ov[reader] * ov[writer]).sum() / (ov[reader].norm() * ov[writer].norm()),
            }
            for kind, value in expected.items():
                assert float(getattr(found, kind)[reader, writer]) == pytest.approx(float(value), abs=1e-5)


def test_a_file_gives_back_what_was_written(found: Heads, tmp_path: Path) -> None:
    found.save(tmp_path / "heads.json")
    again = Heads.load(tmp_path / "heads.json")
    assert again.to_json() == found.to_json()
    assert str(again) == str(found)
    content = json.loads((tmp_path / "heads.json").read_text())
    for damage in (
        {"format": "another"},
        {"scores": {}},
        {"scores": {"entropy": {"value": [1], "low": [1], "high": [1], "chance": None}}},
        {"examples": {"0.0": [[1.0, 10_000, 1, 1, 0.5]]}},
        {"texts": [["x"]]},
        {"rows": 3},
    ):
        (tmp_path / "bad.json").write_text(json.dumps({**content, **damage}))
        with pytest.raises(FileError, match="monosem heads"):
            Heads.load(tmp_path / "bad.json")


def test_the_command_prints_what_it_found(monosem: Callable[..., Any], tmp_path: Path) -> None:
    """And writes it; a score that is not known is refused before a model is loaded."""
    file = tmp_path / "heads.json"
    done = monosem("heads", "bundled", "--documents", 8, "--context-length", 64, "--compose", "--save", file)
    assert done.code == 0
    assert "previous   2.3" in done.out
    assert "2.3 → 3.3" in done.out
    assert Heads.load(file).documents == 8
    wrong = monosem("heads", "nowhere", "--by", "inducton")
    assert wrong.code != 0
    assert "did you mean induction" in wrong.err


def test_what_cannot_be_measured_is_said(bundled: SubjectModel) -> None:
    with pytest.raises(DataError, match="eight different tokens"):
        ms.heads(bundled, ["a a a a a a a a a a"], progress=False)
    with pytest.raises(ConfigError, match="at least 1"):
        ms.heads(bundled, documents=0)
    bert: FamilyModel = FAMILY_MODELS["bert"]
    with pytest.raises(ConfigError, match="language models of a known family"):
        ms.heads(SubjectModel(bert.build()))
