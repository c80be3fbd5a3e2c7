"""Circuits that are known because they were put there: found with the gains that they have, and traps flagged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import monosem as ms
from monosem.circuits import aggregate, difference, path_depth
from monosem.errors import ConfigError, DataError
from monosem.models import SubjectModel
from monosem.sae import SAE

D, WIDTH, EPSILON = 16, 6, 1e12
FIRST, SECOND, LAST = 2.0, 0.5, 3.0
"""Gains: of token 3 to the first feature, of that to the second, of that to the logit of token 5."""


def directions() -> torch.Tensor:
    """Orthonormal directions of mean zero, which centring leaves alone."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(D, D, generator=generator, dtype=torch.float64)
    basis[:, 0] = 1
    return torch.linalg.qr(basis).Q[:, 1:].T


def planted() -> SubjectModel:
    """Token 3 -> feature 0 of layer 0 -> feature 0 of layer 1 -> logit 5; norms divide by nothing that moves."""
    config = GPT2Config(
        vocab_size=8,
        n_positions=12,
        n_embd=D,
        n_layer=2,
        n_head=2,
        n_inner=WIDTH,
        activation_function="relu",
        layer_norm_epsilon=EPSILON,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).to(torch.float64).eval()
    a, b, c = directions()[:3]
    parts: Any = model.transformer
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.zero_()
            if "ln_" in name and name.endswith("weight"):
                parameter.fill_(EPSILON**0.5)  # norms subtract the mean and do nothing else
        parts.wte.weight[3] = a
        parts.wte.weight[4] = 0.5 * a
        for block, reads, writes in ((parts.h[0], FIRST * a, b), (parts.h[1], SECOND * b, c)):
            block.mlp.c_fc.weight[:, 0] = reads
            block.mlp.c_proj.weight[0] = writes
        model.lm_head.weight[5] = LAST * c
    return SubjectModel(model, None, "planted")


def transcoders() -> list[SAE]:
    """The neurons of each layer as a transcoder."""
    a, b, c = directions()[:3]
    found: list[SAE] = []
    for layer, (reads, writes) in enumerate(((FIRST * a, b), (SECOND * b, c))):
        one = ms.Transcoder(D, WIDTH, k=WIDTH, transform="none", dtype=torch.float64)
        with torch.no_grad():
            for parameter in one.parameters():
                parameter.zero_()
            one.W_enc[0], one.W_dec[0] = reads, writes
        known = {"hook": f"mlp_in.{layer}", "target_hook": f"mlp_out.{layer}"}
        one.metadata = one.metadata.model_copy(update=known)
        found.append(one)
    return found


def shortcut() -> SAE:
    """A cross-layer transcoder that says the same of every prompt: its first layer writes what the second would."""
    a, b, c = directions()[:3]
    one = ms.CrossLayerTranscoder(
        D, 2 * WIDTH, n_layers=2, own_thresholds=True, k=WIDTH, transform="none", dtype=torch.float64
    )
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
        one.encoder_of(0)[0] = FIRST * a
        one.decoder_of(0)[0, 0], one.decoder_of(0)[0, 1] = b, SECOND * c
    hooks = {"hooks": ["mlp_in.0", "mlp_in.1"], "target_hooks": ["mlp_out.0", "mlp_out.1"]}
    one.metadata = one.metadata.model_copy(update=hooks)
    return one


def test_a_planted_circuit_is_found_with_its_gains() -> None:
    graph = ms.trace(planted(), transcoders(), [1, 3], target=(5, 1), progress=False)
    ids = graph.nodes.ids()
    assert ids[: graph.n_features] == ["mlp_out.0/0@1", "mlp_out.1/0@1"]
    first, second, token, target = (ids.index(i) for i in (*ids[:2], "token:embed@1", "target:difference/-1@1"))
    assert graph.edge(token, first) == pytest.approx(FIRST)
    assert graph.edge(first, second) == pytest.approx(FIRST * SECOND)
    assert graph.edge(second, target) == pytest.approx(FIRST * SECOND * LAST)
    assert graph.edge(token, second) == pytest.approx(0, abs=1e-9)
    assert graph.edge(first, target) == pytest.approx(0, abs=1e-9)
    assert graph.replacement_score == pytest.approx(1)
    assert graph.completeness_score == pytest.approx(1)
    for regime in ("iterative", "free"):  # nothing here is curved but the thresholds: halves are halves everywhere
        assert graph.verify(2, factor=0.5).agreement("node", regime).slope == pytest.approx(1)


def test_without_norms_holding_their_scales_changes_nothing() -> None:
    """A model whose norms are linear is linear between features: free and held runs are the same."""
    for test in ms.trace(planted(), transcoders(), [1, 3], target=(5, 1), progress=False).verify(2, factor=0.5).tests:
        assert test.iterative == pytest.approx(test.free, abs=1e-9)


def test_the_shortcut_of_a_cross_layer_transcoder_is_flagged_by_depth() -> None:
    """Both explain every prompt without error; only one says that there are two steps."""
    model = planted()
    for tokens in ([1, 3], [4, 3, 1, 4]):
        graphs = [ms.trace(model, each, tokens, target=(5, 1), progress=False) for each in (transcoders(), shortcut())]
        for graph in graphs:
            assert graph.audit().largest_error <= 1e-12
            assert np.abs(graph.audit().signed["error"]).max() <= 1e-9
            assert graph.targets[0]["value"] == pytest.approx(graphs[0].targets[0]["value"])
        two_steps, one_step = (path_depth(graph) for graph in graphs)
        assert two_steps[2] == pytest.approx(1, abs=1e-9)
        assert one_step[1] == pytest.approx(1, abs=1e-9)
    middle = ms.trace(model, shortcut(), [1, 3], target=(5, 1), progress=False)
    taken = middle.verify(1, factor=0.0).tests[0]
    assert taken.total == pytest.approx(-FIRST * SECOND * LAST)
    assert taken.free == pytest.approx(taken.total)  # of the feature itself it is right: what lies between is missing


# Several prompts ------------------------------------------------------------------------------------------------------


def test_graphs_of_several_prompts_are_put_together() -> None:
    model, coders = planted(), transcoders()
    graphs = [ms.trace(model, coders, tokens, target=(5, 1), progress=False) for tokens in ([1, 3], [1, 1, 4], [3, 3])]
    both = aggregate(graphs)
    assert {feature for feature, _, _ in both.top()} == {("mlp_out.0", 0), ("mlp_out.1", 0)}
    assert both.stability() == pytest.approx(1)
    ((pair, _, there),) = both.top_edges()
    assert pair == (("mlp_out.0", 0), ("mlp_out.1", 0))
    assert there == 3
    assert difference(graphs[0], graphs[1]) == [] or max(abs(gap) for _, gap in difference(*graphs[:2])) < 1e-9
    assert "3 graphs, 2 features, stability 1.00" in str(both)
    with pytest.raises(ConfigError, match="two graphs"):
        aggregate(graphs[:1])
    with pytest.raises(ConfigError, match="different dictionaries"):
        aggregate([graphs[0], ms.trace(model, shortcut(), [1, 3], target=(5, 1), progress=False)])


def test_depths_of_a_graph_without_features() -> None:
    assert path_depth(ms.trace(planted(), [], [1, 3], target=(5, 1), progress=False)).tolist() == [1.0]


# Plans ----------------------------------------------------------------------------------------------------------------


def test_a_plan_grows_with_what_is_asked_for_and_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, coders = planted(), transcoders()
    small, large = (ms.plan_trace(model, coders, length, max_features=5) for length in (4, 4_000))
    assert small.active == 4 * 2 * WIDTH
    assert large.pass_bytes + large.edge_bytes > 100 * (small.pass_bytes + small.edge_bytes)
    assert large.memory > 2 * small.memory
    assert small.seconds is not None
    longest = ms.plan_trace(model, coders, 40_000, max_features=5)
    assert large.pass_bytes < longest.pass_bytes < 8 * 2 * 2 * 40_000**2 / 50  # of the patterns only some are laid up
    assert "GiB" in str(large)
    monkeypatch.setattr("monosem.circuits.graph.estimate.free_memory", lambda: 2**10)
    with pytest.raises(DataError, match=r"takes about .* GiB are free: give .*max_features, or a shorter prompt"):
        ms.trace(model, coders, [1, 3], target=5)


def test_a_plan_tries_rows_as_long_as_features_stand_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row ends at its feature's position: what is tried is the mean of these, not the whole prompt."""
    from monosem.circuits.frozen.steps import Mix

    lengths, own = set[int](), Mix.transpose

    def transpose(self: Mix, g: torch.Tensor) -> torch.Tensor:
        lengths.add(g.shape[1])
        return own(self, g)

    monkeypatch.setattr(Mix, "transpose", transpose)
    ms.plan_trace(planted(), transcoders(), 100)
    assert lengths == {65}


def test_the_command_prints_a_graph_and_writes_it(
    monosem: Callable[..., Any], tmp_path: Any, bundled: SubjectModel
) -> None:
    from pathlib import Path

    sae = Path(__file__).parent.parent / "data" / "demo_sae"
    done = monosem("graph", sae, "--prompt", "A little dog", "--features", 30, "--top", 3, "--save", tmp_path / "g")
    assert done.code == 0, done.err
    assert "conservation error" in done.out
    graph = ms.Graph.load(tmp_path / "g")
    assert graph.n_features == 30
    assert graph.words[-1] == " dog"
    assert graph.targets[0]["label"] in done.out
    assert graph.audit().largest_error <= 1e-4
    refused = monosem("graph", sae, "--prompt", "A little dog", "--target", "qwertyuiop")
    assert refused.code == 2
    assert "is not one token" in refused.err
