"""Sparse feature circuits: effects, edges and masks beside autograd, loops, and circuits that were planted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monosem as ms
from monosem.circuits import FeatureCircuit, feature_circuit
from monosem.circuits.feature_circuit.edges import OUTPUT
from monosem.circuits.sites import Neurons
from monosem.errors import ConfigError, DataError
from monosem.models import SubjectModel
from monosem.sae import SAE, ReLUSAE, SkipTranscoder, TopKSAE

WIDE = torch.float64
FIRST, SECOND, LAST = "resid_post.0", "resid_post.1", "mlp_out.2"


@pytest.fixture(scope="module")
def model(make_gpt2: Callable[..., nn.Module], tokenizer: Any) -> SubjectModel:
    """In float64."""
    return SubjectModel(make_gpt2(dtype=WIDE), tokenizer, "wide")


def drawn(seed: int) -> Tensor:
    return torch.randint(1, 4096, (3, 8), generator=torch.Generator().manual_seed(seed))


CLEAN, CORRUPT = drawn(0), drawn(1)


@pytest.fixture(scope="module")
def dictionaries(model: SubjectModel) -> list[SAE]:
    """Two SAEs and a transcoder with a skip; every weight and bias random."""
    made: list[SAE] = []
    for seed, (cls, read, write) in enumerate(
        [(TopKSAE, FIRST, None), (TopKSAE, SECOND, None), (SkipTranscoder, "mlp_in.2", LAST)]
    ):
        hooks = [read, write] if write else [read]
        x = {h: v.reshape(-1, 32) for h, v in model.capture(CLEAN, hooks).items()}
        sae = cls(32, 64, k=7, dtype=WIDE, seed=seed)
        sae.initialise(x[read], x[write] if write else None)
        with torch.no_grad():
            for number, parameter in enumerate(sae.parameters()):
                generator = torch.Generator().manual_seed(10 * seed + number)
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=WIDE))
        sae.metadata.hook, sae.metadata.target_hook, sae.metadata.skip_first = read, write, 1
        made.append(sae)
    return made


def whole(model: SubjectModel, dictionaries: Any, corrupt: Tensor | None = CORRUPT, **options: Any) -> FeatureCircuit:
    return feature_circuit(model, dictionaries, CLEAN, corrupt, max_nodes=10_000, progress=False, **options)


# Effects --------------------------------------------------------------------------------------------------------------


def test_of_one_sae_without_its_features_the_effects_are_the_scores_of_attribute(
    model: SubjectModel, dictionaries: list[SAE]
) -> None:
    sae = dictionaries[0]
    for method in ("gradient", "integrated"):
        found = ms.attribute(model, sae, CLEAN, (17, 23), method="gradient")
        circuit = whole(model, sae, None, metric=(17, 23), ablate="zero", edges=False)
        expected = found.by_latent() / len(CLEAN)
        for node in circuit.nodes:
            wanted = found.errors.sum() / len(CLEAN) if node.is_error else expected[node.latent]
            assert abs(node.effect - wanted) < 1e-10, (method, node)
        assert circuit.n_nodes == int((expected != 0).sum()) + 1


def test_effects_are_derivatives_of_the_number_along_what_goes(model: SubjectModel, dictionaries: list[SAE]) -> None:
    """Beside differences of the number, when one node alone is moved a little, by hand."""
    circuit = whole(model, dictionaries, metric="loss", edges=False)
    clean, corrupt = (model.capture(tokens, [SECOND])[SECOND] for tokens in (CLEAN, CORRUPT))
    sae = dictionaries[1]
    codes, others = (sae.encode(x).to_dense() for x in (clean, corrupt))
    codes[:, 0] = others[:, 0] = 0
    goes = (codes - others)[..., None, :] * sae.decoder_directions().T[None, None]  # contexts, pos, d, latents
    for node in [n for n in circuit.nodes if n.site == SECOND and not n.is_error][:5]:
        numbers = []
        for step in (1e-5, -1e-5):
            with model.edit({SECOND: lambda x, _, s=step, n=node: x - s * goes[..., n.latent]}):
                logits = model(CLEAN)[:, :-1].log_softmax(-1)
            numbers.append(-logits.gather(-1, CLEAN[:, 1:, None]).mean())
        assert abs(node.effect - float(numbers[1] - numbers[0]) / 2e-5) < 1e-7


def test_where_the_number_is_linear_first_order_integral_and_exact_effects_agree(
    model: SubjectModel, dictionaries: list[SAE]
) -> None:
    v = torch.randn(32, dtype=WIDE, generator=torch.Generator().manual_seed(4))
    given = {"metric": (SECOND, v), "position": 4, "edges": False}
    for corrupt, ablate in ((CORRUPT, "mean"), (None, "mean"), (None, "zero")):
        first = whole(model, dictionaries[1], corrupt, ablate=ablate, **given)
        along = whole(model, dictionaries[1], corrupt, ablate=ablate, method="integrated", steps=3, **given)
        same = {(node.site, node.latent): node.effect for node in along.nodes}
        assert along.incompleteness[SECOND].abs().max() < 1e-10
        for place, node in enumerate(first.nodes):
            exact = (first.metric - first.run([place], but=True)).mean()
            assert abs(node.effect - exact) < 1e-9
            assert abs(node.effect - same[node.site, node.latent]) < 1e-9


def test_integrated_effects_of_a_site_add_up_to_its_exact_effect(model: SubjectModel, dictionaries: list[SAE]) -> None:
    left: list[float] = []
    for steps in (8, 16, 32, 64):
        circuit = whole(model, dictionaries, metric=5, method="integrated", steps=steps, edges=False)
        left.append(max(float(x.abs().max()) for x in circuit.incompleteness.values()))
    assert circuit.site_changes is not None
    assert min(float(x.abs().max()) for x in circuit.site_changes.values()) > 0.1
    assert left[-1] < left[1] / 10, "the error falls with the square of the steps"


def test_integrated_effects_are_complete_to_a_millionth_where_the_number_is_smooth(model: SubjectModel) -> None:
    """The way is short: prompts that differ in the last layer's neurons by little."""
    neurons = Neurons(128, "mlp_mid.2", WIDE)

    def smooth(out: Any) -> Tensor:
        return out.logits[:, -1, 3].mul(0.1).tanh()

    circuit = whole(model, neurons, metric=smooth, method="integrated", steps=32, edges=False)
    assert circuit.site_changes is not None
    assert float(circuit.site_changes["mlp_mid.2"].abs().max()) > 1e-2
    assert float(circuit.incompleteness["mlp_mid.2"].abs().max()) < 1e-6


def test_of_the_basis_itself_effects_are_activations_times_gradients(model: SubjectModel) -> None:
    """Neurons have no error, and their effects are those of autograd on the activations."""
    circuit = whole(model, Neurons(32, FIRST, WIDE), metric=5, edges=False)
    clean, corrupt = (model.capture(tokens, [FIRST])[FIRST] for tokens in (CLEAN, CORRUPT))
    leaf = clean.clone().requires_grad_()

    def put(x: Tensor, _: Any) -> Tensor:
        torch.set_grad_enabled(True)
        return leaf

    with torch.no_grad(), model.edit({FIRST: put}):
        number = model._call(CLEAN).logits[:, -1, 5].sum()
    (gradient,) = torch.autograd.grad(number, leaf)
    expected = (gradient * (clean - corrupt)).sum((0, 1)) / 3
    assert circuit.n_errors == 0
    assert len(circuit.nodes) == 32
    for node in circuit.nodes:
        assert abs(node.effect - expected[node.latent]) < 1e-10


# Edges ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("paired", [True, False])
def test_all_edges_out_of_a_node_add_up_to_its_effect(
    model: SubjectModel, dictionaries: list[SAE], by_position: bool, paired: bool
) -> None:
    """So what runs through the MLP and attention in between is counted once: direct = total - all that is indirect."""
    corrupt = CORRUPT if paired else None
    circuit = whole(model, dictionaries, corrupt, metric="loss", by_position=by_position)
    out = torch.zeros(len(circuit.nodes), dtype=WIDE)
    for edge in circuit.edges:
        out[edge.source] += edge.effect
    effects = torch.tensor([node.effect for node in circuit.nodes], dtype=WIDE)
    assert {node.site for node in circuit.nodes} == {FIRST, SECOND, LAST}
    torch.testing.assert_close(out, effects, rtol=1e-9, atol=1e-10)
    sites = [FIRST, SECOND, LAST]
    for edge in circuit.edges:
        if edge.target != OUTPUT:
            pair = [sites.index(circuit.nodes[end].site) for end in (edge.source, edge.target)]
            assert pair[0] < pair[1]


def test_an_edge_is_what_its_source_moves_in_its_target_while_all_other_sites_stay(
    model: SubjectModel, dictionaries: list[SAE]
) -> None:
    """By differences, from a feature of the first SAE to one of the transcoder past the second SAE, held by hand."""
    circuit = whole(model, dictionaries, metric=5)
    first, _, coder = dictionaries
    edge = next(
        e
        for e in circuit.edges
        if e.target != OUTPUT
        and circuit.nodes[e.source].site == SECOND
        and circuit.nodes[e.target].site == LAST
        and not circuit.nodes[e.target].is_error
        and not circuit.nodes[e.source].is_error
    )
    source, target = circuit.nodes[edge.source], circuit.nodes[edge.target]
    sae = dictionaries[1]
    clean, corrupt = (model.capture(tokens, [SECOND])[SECOND] for tokens in (CLEAN, CORRUPT))
    goes = (sae.encode(clean).to_dense() - sae.encode(corrupt).to_dense())[..., source.latent, None]
    goes = goes * sae.decoder_directions([source.latent])
    goes[:, 0] = 0
    codes = []
    for step in (1e-5, -1e-5):
        with model.edit({SECOND: lambda x, _, s=step: x - s * goes}):
            read = model.capture(CLEAN, ["mlp_in.2"])["mlp_in.2"]
        codes.append(coder.encode(read).to_dense()[..., target.latent])
    moved = (codes[1] - codes[0]) / 2e-5
    moved[:, 0] = 0
    leaf = torch.zeros(3, 8, 32, dtype=WIDE, requires_grad=True)

    def tap(x: Tensor, _: Any) -> Tensor:
        torch.set_grad_enabled(True)
        return x + leaf

    with torch.no_grad(), model.edit({LAST: tap}):
        number = model._call(CLEAN).logits[:, -1, 5].sum()
    (gradient,) = torch.autograd.grad(number, leaf)
    by_code = gradient @ coder.decoder_directions([target.latent])[0]
    assert abs(edge.effect - float((by_code * moved).detach().sum() / 3)) < 1e-7
    assert abs(edge.effect) > 1e-6
    assert first.metadata.hook == FIRST


# Running with parts of it ---------------------------------------------------------------------------------------------


def test_with_all_nodes_the_model_is_itself_bit_for_bit_and_with_none_every_site_is_in_its_other_state(
    model: SubjectModel, dictionaries: list[SAE]
) -> None:
    v = torch.randn(32, dtype=WIDE, generator=torch.Generator().manual_seed(4))
    for by_position in (False, True):
        circuit = whole(model, dictionaries, metric="loss", by_position=by_position, edges=False)
        every = list(range(len(circuit.nodes)))
        assert torch.equal(circuit.run(every), circuit.metric)
        assert torch.equal(circuit.run([], but=True), circuit.metric)
        assert torch.equal(circuit.run(every, but=True), circuit.run([]))
        found = circuit.faithfulness([1, 10_000], baselines=[], progress=False)["circuit"]
        assert found.faithfulness[-1].value == 1
        assert found.completeness[-1].value == 0
    for hook in (FIRST, SECOND, LAST):
        nothing = whole(model, dictionaries, metric=(hook, v), edges=False).without
        there = model.capture(CORRUPT, [hook])[hook][:, -1] @ v
        torch.testing.assert_close(nothing, there, rtol=1e-9, atol=1e-9)


def test_what_is_in_is_computed_anew_and_what_is_out_stands_in_its_other_state(
    model: SubjectModel, dictionaries: list[SAE]
) -> None:
    """Every feature and the errors of two SAEs set by hand, densely, one site after the other."""
    pair = dictionaries[:2]
    other = model.capture(CORRUPT, [FIRST, SECOND])
    for by_position in (False, True):
        circuit = whole(model, pair, metric=5, by_position=by_position, edges=False)
        chosen = list(range(0, len(circuit.nodes), 3))
        inside = {(circuit.nodes[i].site, circuit.nodes[i].position, circuit.nodes[i].latent) for i in chosen}

        def is_in(site: str, position: int, latent: int, known: Any = inside) -> bool:
            return (site, position, latent) in known or (site, -1, latent) in known

        def put(sae: SAE) -> Callable[[Tensor, Any], Tensor]:
            hook = str(sae.metadata.hook)

            def edit(x: Tensor, _: Any) -> Tensor:
                new = x.clone()
                for position in range(x.shape[1]):
                    now, then = x[:, position], other[hook][:, position]
                    reads = position > 0
                    codes, others = (sae.encode(rows).to_dense() * reads for rows in (now, then))
                    nothing = sae.decode(sae.encode(now)) - sae.encode(now).to_dense() @ sae.decoder_directions()
                    bias = nothing if reads else torch.zeros_like(nothing)
                    errors = [
                        rows - of @ sae.decoder_directions() - bias for rows, of in ((now, codes), (then, others))
                    ]
                    mask = torch.tensor([is_in(hook, position, latent) for latent in range(64)])
                    mixed = torch.where(mask, codes, others)
                    error = errors[0] if is_in(hook, position, -1) else errors[1]
                    new[:, position] = mixed @ sae.decoder_directions() + bias + error
                return new

            return edit

        with model.edit({FIRST: put(pair[0]), SECOND: put(pair[1])}):
            expected = model(CLEAN)[:, -1, 5]
        torch.testing.assert_close(circuit.run(chosen), expected, rtol=1e-9, atol=1e-9)


# A planted circuit ----------------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """Features stand on axes: token 1 to 4 writes axis 0 to 3; the first layer makes axis 4 of axis 0 (and 6 of 2), the
    second axis 5 of axis 4 (and 7 of 3); the logit reads axis 5 alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="chain", max_position_embeddings=None)
        self.embed = nn.Embedding(5, 8)
        self.one, self.two = Adds([(0, 4, 2.0), (2, 6, 1.0)]), Adds([(4, 5, 3.0), (3, 7, 1)])
        self.head = nn.Linear(8, 2, bias=False)
        with torch.no_grad():
            self.embed.weight.copy_(torch.cat([torch.zeros(1, 8), torch.eye(8)[:4]]))
            self.head.weight.zero_()[0, 5] = 1
        self.to(WIDE)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.embed(input_ids))))


class Adds(nn.Module):
    """x with some axes added to others, after a ReLU."""

    def __init__(self, gains: list[tuple[int, int, float]]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 8))
        with torch.no_grad():
            for source, target, gain in gains:
                self.weight[target, source] = gain

    def forward(self, x: Tensor) -> Tensor:
        return x + (x @ self.weight.T).relu()


def axes(hook: str) -> ReLUSAE:
    sae = ReLUSAE(8, 8, transform="none", dtype=WIDE)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(8))
        sae.W_dec.copy_(torch.eye(8))
    sae.metadata.hook = hook
    return sae


@pytest.fixture(scope="module")
def planted() -> FeatureCircuit:
    tokens = torch.tensor([[1, 3], [1, 4], [2, 1], [1, 1]])
    model = SubjectModel(Chain(), None, "chain")
    return feature_circuit(
        model,
        [axes("two:output"), axes("embed:output"), axes("one:output")],
        tokens,
        metric=lambda out: out[..., 0].sum(1),
        ablate="zero",
        progress=False,
    )


def test_a_planted_chain_is_found_with_its_gains_and_nothing_else(planted: FeatureCircuit) -> None:
    assert planted.metric.tolist() == [6, 6, 6, 12]
    real = {(n.site, n.latent): n.effect for n in planted.nodes if n.effect}
    assert real == {("embed:output", 0): 7.5, ("one:output", 4): 7.5, ("two:output", 5): 7.5}
    named = {
        (planted.nodes[e.source].name, planted.nodes[e.target].name if e.target != OUTPUT else "out"): e.effect
        for e in planted.edges
    }
    assert named == {
        ("embed:output 0", "one:output 4"): 7.5,
        ("one:output 4", "two:output 5"): 7.5,
        ("two:output 5", "out"): 7.5,
    }


def test_the_planted_chain_is_faithful_and_complete_at_three_nodes_and_random_ones_are_not(
    planted: FeatureCircuit,
) -> None:
    found = planted.faithfulness([1, 2, 3], progress=False)
    curve = found["circuit"]
    assert [one.value for one in curve.faithfulness] == [0, 0, 1]
    assert [one.value for one in curve.completeness] == [0, 0, 0]
    assert curve.size_for(0.9) == 3
    assert found["edges"].faithfulness[-1].value == 1
    assert torch.equal(curve.each_prompt(3), torch.ones(4, dtype=WIDE))
    assert found["random nodes"].faithfulness[-1].value < 0.5
    assert found["random dictionary"].faithfulness[-1].value < 0.9
    assert found["neurons"].faithfulness[-1].value == 1, "here the features are the axes"
    assert "random edges" in str(found)


# Edges alone ----------------------------------------------------------------------------------------------------------


def test_with_all_edges_the_number_is_the_models_own_and_with_none_every_site_is_in_its_other_state(
    model: SubjectModel, dictionaries: list[SAE]
) -> None:
    for by_position, corrupt in ((False, CORRUPT), (True, None)):
        circuit = whole(model, dictionaries[:2], corrupt, metric="loss", by_position=by_position, edges=False)
        parts = circuit.parts
        assert parts is not None
        order = parts.order
        every: list[Any] = [(a, b) for a in order for b in order if a[0] < b[0]] + [(a, None) for a in order]
        found = parts.edge_runs([(every, False, []), ([], True, []), (every, True, []), ([], False, [])])
        for row, wanted in zip(found, (circuit.metric, circuit.metric, circuit.without, circuit.without), strict=True):
            torch.testing.assert_close(row, wanted, rtol=1e-9, atol=1e-9)


def test_a_node_reads_its_own_sources_alone(model: SubjectModel, dictionaries: list[SAE]) -> None:
    """Two edges, source to target to the number, and all others but these, beside the same runs by hand."""
    circuit = whole(model, dictionaries[:2], metric=5)
    parts, (first, second) = circuit.parts, dictionaries[:2]
    assert parts is not None
    edge = next(
        e
        for e in circuit.edges
        if e.target != OUTPUT and not any(circuit.nodes[n].is_error for n in (e.source, e.target))
    )
    source, target = circuit.nodes[edge.source], circuit.nodes[edge.target]
    other, clean = (model.capture(tokens, [FIRST, SECOND]) for tokens in (CORRUPT, CLEAN))

    def moved(sae: SAE, now: Tensor, then: Tensor, latent: int) -> Tensor:
        goes = (sae.encode(now).to_dense() - sae.encode(then).to_dense())[..., latent, None]
        goes[:, 0] = 0
        return goes * sae.decoder_directions([latent])

    def second_reads(x: Tensor) -> Tensor:
        with model.edit({FIRST: lambda _, __: x}):
            return model.capture(CLEAN, [SECOND])[SECOND]

    def number(x: Tensor) -> Tensor:
        with model.edit({SECOND: lambda _, __: x}):
            return model(CLEAN)[:, -1, 5]

    goes = moved(first, clean[FIRST], other[FIRST], source.latent)
    alone = second_reads(other[FIRST] + goes)
    kept = number(other[SECOND] + moved(second, alone, other[SECOND], target.latent))
    without = second_reads(clean[FIRST] - goes)
    changed = clean[SECOND] - moved(second, clean[SECOND], without, target.latent)
    left = number(changed - moved(second, without, other[SECOND], target.latent))
    links: list[Any] = [(parts.order[edge.source], parts.order[edge.target]), (parts.order[edge.target], None)]
    found = parts.edge_runs([(links, False, []), (links, True, [])])
    torch.testing.assert_close(found, torch.stack([kept, left]), rtol=1e-9, atol=1e-9)
    assert (found[0] - circuit.without).abs().max() > 1e-6


def test_the_same_nodes_by_a_wrong_edge_keep_nothing(planted: FeatureCircuit) -> None:
    parts = planted.parts
    assert parts is not None
    one, four, five = sorted(parts.order[:3])
    right: list[Any] = [(one, four), (four, five), (five, None)]
    wrong: list[Any] = [(one, five), (four, None), (five, None)]
    kept, gone, left = parts.edge_runs([(right, False, []), (wrong, False, []), (right, True, [])])
    assert torch.equal(kept, planted.metric)
    assert torch.equal(gone, planted.without)
    assert torch.equal(left, planted.without)


# Some prompts at a time -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paired", [True, False])
def test_prompts_read_some_at_a_time_give_the_same_circuit_and_no_more_are_in_memory(
    model: SubjectModel, dictionaries: list[SAE], paired: bool
) -> None:
    wanted = torch.tensor([5, 6, 7])

    def own_token(out: Any, contexts: slice) -> Tensor:
        return out.logits[:, -1].gather(1, wanted[contexts, None])[:, 0]

    def all_tokens(out: Any) -> Tensor:
        return own_token(out, slice(None))

    given: dict[str, Any] = {"method": "gradient" if paired else "integrated", "steps": 2, "progress": False}
    found: list[FeatureCircuit] = []
    curves: list[Any] = []
    most: list[int] = []
    metric: Any
    for metric, size in ((all_tokens, None), (own_token, 2)):
        seen: list[int] = []
        handle = model.module.register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.append(len(args[0] if args else kwargs["input_ids"])),
            with_kwargs=True,
        )
        corrupt = CORRUPT if paired else None
        circuit = feature_circuit(model, dictionaries, CLEAN, corrupt, metric, max_nodes=12, batch_size=size, **given)
        curves.append(circuit.faithfulness([4], baselines=["edges"], progress=False))
        handle.remove()
        found.append(circuit)
        most.append(max(seen))
    assert most == [3, 2]
    one, other = found
    assert [node.name for node in one.nodes] == [node.name for node in other.nodes]
    for ours, theirs in ((one.nodes, other.nodes), (one.edges, other.edges)):
        assert len(ours) == len(theirs)
        assert all(abs(a.effect - b.effect) < 1e-9 for a, b in zip(ours, theirs, strict=True))
    pairs = [(one.metric, other.metric), (one.without, other.without)]
    pairs += [(one.site_totals[site], other.site_totals[site]) for site in one.site_totals]
    sides = [(name, side) for name in ("circuit", "edges") for side in ("kept", "left", "empty")]
    pairs += [(getattr(curves[0][name], side), getattr(curves[1][name], side)) for name, side in sides]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert one.error_share == pytest.approx(other.error_share, rel=1e-9)


def test_a_function_that_sees_all_prompts_is_not_given_some(model: SubjectModel, dictionaries: list[SAE]) -> None:
    with pytest.raises(ConfigError, match="let it take another"):
        whole(model, dictionaries[0], metric=lambda out: out.logits[:, -1, 3], batch_size=2)
    with pytest.raises(DataError, match="gives 1 numbers for 2 prompts"):
        whole(model, dictionaries[0], metric=lambda out, _: out.logits[:, -1, 3].mean(), batch_size=2)
    with pytest.raises(ConfigError, match="batch_size must be a whole number of at least 1"):
        whole(model, dictionaries[0], batch_size=0)


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_saved_circuit_is_read_as_it_was_and_damaged_files_are_refused(
    model: SubjectModel, dictionaries: list[SAE], tmp_path: Path
) -> None:
    circuit = feature_circuit(
        model, dictionaries, CLEAN, CORRUPT, max_nodes=12, method="integrated", steps=2, progress=False
    )
    again = FeatureCircuit.load(circuit.save(tmp_path / "circuit"))
    assert str(again) == str(circuit)
    assert (again.nodes, again.edges, again.fingerprint) == (circuit.nodes, circuit.edges, model.fingerprint())
    assert torch.equal(again.metric, circuit.metric)
    assert again.site_changes is not None
    assert circuit.site_changes is not None
    assert all(torch.equal(again.site_changes[site], change) for site, change in circuit.site_changes.items())
    with pytest.raises(ConfigError, match="find it anew"):
        again.run([0])
    about = tmp_path / "circuit/circuit.json"
    words = about.read_text()
    for damaged, said in (
        (words.replace('"integrated"', '"gradient"'), "changes of sites"),
        (words.replace(f'"{SECOND}",', ""), "are not of each site"),
        (words.replace('"format": 1', '"format": 2'), "of format 2"),
        (words.replace('"n_nodes"', '"nodes"'), "n_nodes"),
        (words[:-20], "cannot be"),
    ):
        assert damaged != words
        about.write_text(damaged)
        with pytest.raises(ms.MonosemError, match=said):
            FeatureCircuit.load(tmp_path / "circuit")


def test_what_is_printed_names_nodes_edges_and_errors(model: SubjectModel, dictionaries: list[SAE]) -> None:
    circuit = feature_circuit(model, dictionaries, CLEAN, CORRUPT, max_nodes=20, progress=False)
    words = str(circuit)
    assert circuit.nodes[0].name in words
    assert f"of the first 20 {circuit.n_errors} are errors" in words
    assert 0 < circuit.error_share < 1
    with pytest.raises(ConfigError, match="integrated"):
        _ = circuit.incompleteness
    assert not any(p.grad is not None for p in model.module.parameters())
    assert torch.is_grad_enabled()


def test_questions_that_have_no_answer(model: SubjectModel, dictionaries: list[SAE]) -> None:
    sae = dictionaries[0]
    lost = TopKSAE(32, 64, k=7, dtype=WIDE)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ([], {}, "needs a dictionary"),
        ([sae, sae], {}, "two dictionaries write at resid_post.0"),
        (lost, {}, "does not know its hook point"),
        ({"resid_post.7": sae}, {}, "resid_post.7"),
        (sae, {"corrupt": CORRUPT[:, :5]}, "side by side"),
        (sae, {"clean": CLEAN[:1]}, "a mean needs several prompts"),
        (sae, {"method": "slopes"}, "method must be"),
        (sae, {"ablate": "median"}, "ablate must be"),
        (sae, {"metric": " the cat"}, "is 2 tokens, not one"),
        (sae, {"metric": lambda out: out.logits[:, 0, 0] * torch.nan}, "not finite"),
    ]
    for given, options, words in cases:
        with pytest.raises(ms.MonosemError, match=words):
            feature_circuit(model, given, **{"clean": CLEAN, "progress": False, **options})
    circuit = feature_circuit(model, sae, CLEAN, CORRUPT, progress=False)
    with pytest.raises(ConfigError, match="sizes are numbers"):
        circuit.faithfulness([])
    with pytest.raises(ConfigError, match="baselines are"):
        circuit.faithfulness(baselines=["luck"])  # type: ignore[list-item]
    with pytest.raises(DataError, match="reads nothing"):
        feature_circuit(model, sae, CLEAN[:, :1], CORRUPT[:, :1], progress=False)


def test_what_comes_before_all_sites_is_not_run_again_and_no_bit_changes(
    model: SubjectModel, dictionaries: list[SAE]
) -> None:
    circuit = whole(model, dictionaries[1:], metric="loss", edges=False)
    plain = [circuit.run(range(n)) for n in (0, 3, 40)]
    calls: list[int] = []
    handle = model.module.get_submodule("transformer.h.0.mlp").register_forward_hook(lambda *_: calls.append(1))
    parts = circuit.parts
    assert parts is not None
    spared = parts.runs([(parts.order[:n], False) for n in (0, 3, 40)])
    assert len(calls) == 2, "once to see what comes before, once to keep what it gives"
    handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(plain, spared, strict=True))
    curve = circuit.faithfulness([3], baselines=[], progress=False)["circuit"]
    assert torch.equal(curve.kept[0], plain[1])
