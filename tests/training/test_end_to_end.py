"""End-to-end training: what a reconstruction does to the model's output, against plain loops, and as any other run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_table import ARCHITECTURES
from family_models import FAMILY_MODELS, family_module
from torch import Tensor, nn
from torch.nn import functional as F

import monosem as ms
from monosem.activations import ContextActivations, LiveActivations, Place, Standing
from monosem.errors import ConfigError, HookError, MismatchError
from monosem.models import FAMILIES, ModelSet, SubjectModel
from monosem.sae import SAE
from monosem.training import Cost, EndToEnd, Trainer, TrainingConfig, spliced, train, train_together, trainer
from monosem.training.revival import RevivalConfig

CAUSAL = list({id(FAMILIES[spec.family][0]): name for name, spec in FAMILY_MODELS.items() if spec.causal}.values())
"""Of families whose points lie alike, one."""
LETTERS = "".join(chr(i) for i in range(3, 40))
TEXT = [LETTERS[i:] + LETTERS[:i] * 2 for i in range(1, 30, 3)]


@pytest.fixture
def model(make_gpt2: Callable[..., nn.Module], letter_tokenizer: type) -> SubjectModel:
    module = make_gpt2(width=16, vocabulary=40, dtype=torch.float64)
    return SubjectModel(module, letter_tokenizer(), "tiny")


def reading(model: Any, hook: str | list[str] = "resid_post.0", **options: Any) -> LiveActivations:
    return LiveActivations(model, hook, TEXT, context_length=8, buffer_tokens=64, **options)


def standing(source: ContextActivations, first: int = 3, last: int = 20) -> list[Standing]:
    """Rows of which the first and the last are within a context."""
    source.pool(0)
    return source.standing(Place(), first, last)


def here(model: SubjectModel, hook: str, places: list[Standing]) -> Tensor:
    """What the model itself has there, in its own precision."""
    return torch.cat([model.capture(batch.inputs, [hook])[hook][where] for batch, where in places])


def reference(
    model: SubjectModel,
    hook: str,
    later: list[str],
    variances: list[float],
    places: list[Standing],
    raw: Tensor,
    weights: tuple[float, float],
    read: dict[Any, Any] | None = None,
) -> Tensor:
    """The loss by its definition, context by context, of rows with gradient; `read`: what the model alone gave."""
    read = {} if read is None else read
    total, start = raw.new_zeros(()), 0
    for batch, where in places:
        for tokens, own in zip(batch.tokens, where, strict=True):
            rows = raw[start : (start := start + int(own.sum()))]
            kept: dict[str, Tensor] = {}

            def put_in(x: Tensor, _: Any, own: Tensor = own, rows: Tensor = rows) -> Tensor:
                return torch.where(own[None, :, None], torch.zeros_like(x).index_put((own[None],), rows), x)

            def keep(x: Tensor, context: Any, kept: dict[str, Tensor] = kept) -> Tensor:
                kept[context.hook] = x
                return x

            context = (*tokens.tolist(), *later)
            if context not in read:
                read[context] = model.capture(tokens[None], [*later]) if later else {}, model(tokens[None])[0]
            clean, expected = read[context][0], read[context][1][own].log_softmax(-1)
            with torch.enable_grad(), model.edit({hook: put_in}), model.edit(dict.fromkeys(later, keep)):
                found = model.module(input_ids=tokens[None], use_cache=False).logits[0, own].log_softmax(-1)
            total = total + weights[0] * F.kl_div(found, expected, log_target=True, reduction="sum")
            for name, variance in zip(later, variances, strict=True):
                error = (kept[name] - clean[name])[0, own].pow(2).mean(-1).sum()
                total = total + weights[1] * error / variance / len(later)
    return total / len(raw)


# The loss and its gradient ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("downstream", [False, True])
def test_what_the_model_has_costs_nothing_and_has_no_slope(model: SubjectModel, downstream: bool) -> None:
    source = reading(model).by_context()
    places = standing(source)
    raw = here(model, "resid_post.0", places).requires_grad_()
    cost = EndToEnd(model, downstream=downstream).opened(source).on(places)(raw)
    (slope,) = torch.autograd.grad(cost.loss, raw)
    assert abs(cost.loss.item()) < 1e-14
    assert slope.abs().max() < 1e-12
    assert list(cost.terms) == (["kl", "downstream"] if downstream else ["kl"])


@pytest.mark.parametrize("name", CAUSAL)
def test_values_and_gradients_are_those_of_the_definition_at_every_hook(name: str, letter_tokenizer: type) -> None:
    model = SubjectModel(family_module(name), letter_tokenizer(), name)
    live = reading(model)
    places = standing(live.by_context(), 3, 17)
    alone = [(model.capture(batch.inputs, [*model.hook_points]), where) for batch, where in places]
    read: dict[Any, Any] = {}
    for number, hook in enumerate(model.hook_points):
        at_end = hook in (model.hook_points[-1], "resid_post.1") or hook.startswith("final")
        loss = spliced.Spliced(model, hook, False if at_end else ["resid_post.1"], live)
        x = torch.cat([kept[hook][where] for kept, where in alone])
        generator = torch.Generator().manual_seed(number)
        raw = (x + 0.3 * torch.randn(x.shape, generator=generator, dtype=x.dtype)).requires_grad_()
        variances = [float(v) for v in loss._usual()]
        expected = reference(model, hook, loss.later, variances, places, raw, (0.5, 2.5), read) * len(raw)
        (slope,) = torch.autograd.grad(expected, raw)
        found = torch.zeros_like(x)
        kl, error = loss.costs(raw.detach(), places, (0.5, 2.5), found)
        torch.testing.assert_close(0.5 * kl + 2.5 * error, expected.detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found, slope, rtol=1e-7, atol=1e-10, msg=lambda words, hook=hook: f"{hook}: {words}")
        assert kl > 1e-6, hook


def test_the_gradient_is_that_of_finite_differences(model: SubjectModel) -> None:
    source = reading(model).by_context()
    places = standing(source)
    function = EndToEnd(model, downstream=True).opened(source).on(places)
    x, generator = here(model, "resid_post.0", places), torch.Generator().manual_seed(0)
    raw = (x + 0.3 * torch.randn(x.shape, generator=generator, dtype=x.dtype)).requires_grad_()
    (slope,) = torch.autograd.grad(function(raw).loss, raw)
    for _ in range(3):
        way = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        up, down = (function(raw.detach() + step * way).loss.item() for step in (1e-5, -1e-5))
        assert (up - down) / 2e-5 == pytest.approx((slope * way).sum().item(), rel=1e-6)


def test_the_divergence_is_of_the_spliced_output_from_the_original(model: SubjectModel) -> None:
    """And not the other way round, which is another number."""
    source = reading(model).by_context()
    places = standing(source, 0, 7)
    raw = here(model, "resid_post.0", places).roll(1, 0)
    found = EndToEnd(model).opened(source).on(places)(raw).loss.item()
    ((batch, where),) = places
    clean = model(batch.inputs)[where].log_softmax(-1)
    with model.edit({"resid_post.0": lambda x, _: x.index_put((where,), raw)}):
        new = model(batch.inputs)[where].log_softmax(-1)
    assert found == pytest.approx((clean.exp() * (clean - new)).sum(-1).mean().item(), rel=1e-12)
    assert found != pytest.approx((new.exp() * (new - clean)).sum(-1).mean().item(), rel=1e-3)


def test_before_a_linear_head_it_is_a_quadratic_form(model: SubjectModel) -> None:
    """KL(p || p of x + e) = 1/2 e' W' (diag p - p p') W e, up to the third order of e."""
    source = reading(model, "final_norm").by_context()
    places = standing(source)
    x = here(model, "final_norm", places)
    e = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    W = model.module.get_parameter("transformer.wte.weight")
    p, z = (x @ W.T).softmax(-1), e @ W.T
    form = 0.5 * ((p * z.pow(2)).sum(-1) - (p * z).sum(-1).pow(2)).mean().item()
    function = EndToEnd(model).opened(source).on(places)
    for size in (1e-2, 1e-3):
        assert function(x + size * e).loss.item() / size**2 == pytest.approx(form, rel=30 * size)


def test_how_many_positions_go_through_the_model_at_a_time_changes_nothing(
    model: SubjectModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = reading(model, packing=False).by_context()
    places = standing(source, 2, 60)
    raw = here(model, "resid_post.0", places).roll(1, 0).requires_grad_()
    found: list[tuple[Tensor, Tensor]] = []
    for positions in (4096, 8):
        monkeypatch.setattr(spliced, "POSITIONS", positions)
        loss = EndToEnd(model, downstream=["resid_post.1"]).opened(source).on(places)(raw).loss
        found.append((loss.detach(), torch.autograd.grad(loss, raw)[0]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-14)


# Any loss of reconstructions, in every architecture ---------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_squared_error_passed_in_trains_as_the_squared_error_does(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it: gradients, what dead latents learn and where they start anew."""
    monkeypatch.setattr(trainer, "MIN_DEAD_STEPS", 1)
    architecture, options = ARCHITECTURES[name]
    rows = torch.randn(80, 4, generator=torch.Generator().manual_seed(0)) + 1
    trained: list[SAE] = []
    for passed_in in (False, True):
        sae = SAE.registry[architecture](4, 24, transform="centre_scale", dtype=torch.float64, **options)
        config = TrainingConfig(batch_size=16, matmul="float32", revival=RevivalConfig(method="aux_k"))
        one = Trainer(sae, config, total_tokens=160)
        for batch in rows.double().split(16):
            x = batch[:, None].expand(-1, *sae.in_shape) * torch.arange(1, 1 + sae.in_shape[0])[None, :, None] if (
                len(sae.in_shape) > 1
            ) else batch  # fmt: skip
            target = x[..., :1].expand(-1, *sae.out_shape).clone() if sae.in_shape != sae.out_shape else None

            def squares(raw: Tensor, x: Tensor = x, target: Tensor | None = target, sae: SAE = sae) -> Cost:
                goal = sae.target_transform((x if target is None else target).reshape(len(x), -1))
                loss = (sae.target_transform(raw.reshape(len(x), -1)) - goal).pow(2).mean()
                return Cost(loss, {"own": loss.detach()})

            step = one.step(x, target, loss=squares if passed_in else None)
            if passed_in:
                assert step.metrics["own"] == pytest.approx(step.metrics["mse"], rel=1e-9)
        trained.append(sae)
    for key, value in trained[0].state_dict().items():
        torch.testing.assert_close(trained[1].state_dict()[key], value, rtol=1e-6, atol=1e-8, msg=key)


# As any other run -------------------------------------------------------------------------------------------------

CONFIG = TrainingConfig(batch_size=24, checkpoint_minutes=0, log_every=1, lr=1e-2)
TOKENS = 24 * 6


def dictionary(**options: Any) -> ms.TopKSAE:
    return ms.TopKSAE(16, 32, **{"k": 4, **options})


def test_the_dictionary_alone_learns_and_kl_falls(model: SubjectModel) -> None:
    weights = {name: parameter.clone() for name, parameter in model.module.named_parameters()}
    assert all(parameter.requires_grad for parameter in model.module.parameters())
    config = CONFIG.model_copy(update={"batch_size": 64})
    result = train(dictionary(), reading(model), tokens=64 * 40, loss=EndToEnd(model), config=config, progress=False)
    assert result.history[-1]["kl"] < 0.7 * result.history[0]["kl"]
    assert result.history[-1]["loss"] == pytest.approx(result.history[-1]["kl"], rel=1e-5)
    assert result.sae.metadata.loss == "end to end: 1 KL of the model's output"
    for name, parameter in model.module.named_parameters():
        assert parameter.requires_grad
        assert parameter.grad is None
        assert torch.equal(parameter, weights[name])


class Killed(BaseException):
    """Ends a run where a kill would."""


@pytest.mark.parametrize("at", [1, 4])
def test_a_run_that_is_killed_goes_on_to_the_same_bits(model: SubjectModel, tmp_path: Path, at: int) -> None:
    def run(path: Path | None, kill_at: int | None = None) -> ms.SAE:
        def callback(running: Any, _: Any) -> None:
            if running.steps == kill_at:
                raise Killed

        sae, loss = ms.BatchTopKSAE(16, 32, k=4), EndToEnd(model, downstream=True)
        options: dict[str, Any] = {"config": CONFIG, "path": path, "callbacks": [callback], "progress": False}
        return train(sae, reading(model), tokens=TOKENS, loss=loss, **options).sae

    expected = run(None)
    with pytest.raises(Killed):
        run(tmp_path, at)
    found = run(tmp_path)
    assert all(torch.equal(found.state_dict()[key], value) for key, value in expected.state_dict().items())
    other: dict[str, Any] = {"loss": EndToEnd(model), "config": CONFIG, "path": tmp_path}
    with pytest.raises(ConfigError, match="another loss"):
        train(ms.BatchTopKSAE(16, 32, k=4), reading(model), tokens=TOKENS, **other)


def test_several_at_several_layers_end_as_alone_beside_a_local_one(model: SubjectModel) -> None:
    def make() -> dict[str, SAE]:
        return {"first": dictionary(), "second": dictionary(seed=1), "local": dictionary(seed=1)}

    loss = EndToEnd(model)

    def views() -> dict[str, Any]:
        both = reading(model, ["resid_post.0", "mlp_out.1"])
        hooks = {"first": "resid_post.0", "second": "mlp_out.1", "local": "mlp_out.1"}
        return {name: both.select(hook) for name, hook in hooks.items()}

    losses = {"first": loss, "second": loss}
    train_together(together := make(), views(), tokens=TOKENS, loss=losses, config=CONFIG, progress=False)
    alone, sources = make(), views()
    for name, sae in alone.items():
        own: dict[str, Any] = {"loss": loss} if name in losses else {}
        source = sources[name] if own else sources[name].by_context()
        train(sae, source, tokens=TOKENS, config=CONFIG, progress=False, **own)
        for key, value in sae.state_dict().items():
            assert torch.equal(together[name].state_dict()[key], value), (name, key)
    assert together["local"].metadata.loss is None


def test_transcoders_and_crosscoders_are_put_in_where_they_write(model: SubjectModel) -> None:
    acts = reading(model, ["mlp_in.0", "mlp_out.0", "mlp_in.1", "mlp_out.1"])
    cases = {
        "transcoder": (ms.SkipTranscoder(16, 32, k=4), acts.pair("mlp_in.0", "mlp_out.0")),
        "crosscoder": (ms.Crosscoder(16, 32, k=4), acts.stack(["mlp_out.0", "mlp_out.1"])),
        "layers": (
            ms.CrossLayerTranscoder(16, 32, n_layers=2, k=4),
            acts.pair(["mlp_in.0", "mlp_in.1"], ["mlp_out.0", "mlp_out.1"]),
        ),
    }
    for name, (sae, source) in cases.items():
        places = standing(source.by_context().source, 0, 24)  # pyright: ignore
        targets = source.targets or source.hooks
        whole = source.whole.by_context().pool(0)[:24]  # pyright: ignore
        x, target = source.split(source.take(whole))
        sae.initialise(x, target)
        raw = sae(x).reconstruction.detach().double()
        cost = EndToEnd(model).opened(source.by_context()).on(places)(raw)
        own = [
            reference(model, hook, [], [], places, rows, (1.0, 0.0))
            for hook, rows in zip(targets, raw.reshape(24, len(targets), 16).unbind(1), strict=True)
        ]
        assert cost.loss.item() == pytest.approx(torch.stack(own).mean().item(), rel=1e-9), name
        result = train(sae, source, tokens=TOKENS, loss=EndToEnd(model), config=CONFIG, progress=False)
        assert result.history[-1]["kl"] > 0


# What cannot be ---------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_in_a_line_before_work_starts(
    model: SubjectModel, make_gpt2: Callable[..., nn.Module], letter_tokenizer: type, tmp_path: Path
) -> None:
    def refused(kind: type[Exception], words: str, call: Callable[[], Any]) -> None:
        with pytest.raises(kind, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)

    def run(loss: EndToEnd, source: Any = None, sae: SAE | None = None) -> None:
        source = reading(model) if source is None else reading(model, source) if isinstance(source, str) else source
        train(sae or dictionary(), source, tokens=TOKENS, loss=loss, path=tmp_path / "run", progress=False)

    headless = SubjectModel(model.module.get_submodule("transformer"), letter_tokenizer(), "headless")
    other = SubjectModel(make_gpt2(seed=1, width=16, vocabulary=40), letter_tokenizer(), "other")
    loss = EndToEnd(model)
    refused(ConfigError, "model must be a SubjectModel", lambda: EndToEnd("gpt2"))  # pyright: ignore
    refused(ConfigError, "kl_weight must not be negative", lambda: EndToEnd(model, kl_weight=-1))
    refused(ConfigError, "nothing to learn", lambda: EndToEnd(model, kl_weight=0))
    refused(ConfigError, "no meaning without downstream", lambda: EndToEnd(model, downstream_weight=1))
    refused(HookError, "resid_post.7", lambda: EndToEnd(model, downstream=["resid_post.7"]))
    refused(ConfigError, "headless gives no logits", lambda: run(EndToEnd(headless), reading(headless, "h.0:output")))
    refused(MismatchError, "the loss is of tiny, the activations are of other", lambda: run(loss, reading(other)))
    refused(
        MismatchError,
        "the loss is of tiny",
        lambda: run(loss, reading(ModelSet([model, other])), ms.Crosscoder(16, 32)),
    )
    refused(ConfigError, "the text is not at hand", lambda: run(loss, ms.activations(torch.randn(99, 16))))
    refused(MismatchError, "width 8", lambda: run(loss, sae=ms.TopKSAE(8, 32, k=4)))
    two = reading(model, ["resid_post.0", "resid_post.1"])
    refused(ConfigError, "one dictionary cannot stand in for all", lambda: run(loss, two, ms.TopKSAE(32, 64, k=4)))
    early = EndToEnd(model, downstream=["resid_post.0"])
    refused(
        ConfigError,
        "does not come to resid_post.0 after resid_post.1",
        lambda: run(early, reading(model, "resid_post.1")),
    )
    last = EndToEnd(model, downstream=True)
    refused(ConfigError, "no residual stream behind resid_post.2", lambda: run(last, reading(model, "resid_post.2")))
    assert not (tmp_path / "run").exists()
