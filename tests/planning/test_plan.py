"""Plans: every part against tensors that are counted as they are made, bytes that are written, and runs that refuse."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from typer.testing import CliRunner

import monosem as ms
from monosem.activations import LiveActivations, Place, batches
from monosem.cli.main import app
from monosem.errors import ConfigError, FileError, HookError
from monosem.features.state import Harvest, HarvestSettings
from monosem.kernels.screening import n_rough
from monosem.models import SubjectModel, load_model
from monosem.models.outline import TensorCount, outline
from monosem.planning import hardware, labour, memory
from monosem.planning.calibrate import Measured
from monosem.planning.shapes import Dictionary, shapes_of
from monosem.runs import RunConfig
from monosem.sae import SAE, TrainingContext
from monosem.training.checkpoints import write_checkpoint

CPU = hardware("cpu")


def described(**values: Any) -> RunConfig:
    return RunConfig.read(None, [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in values.items()])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a Llama, and no weights."""
    folder = tmp_path_factory.mktemp("llama")
    transformers.LlamaConfig(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    return folder


def test_a_model_is_known_by_its_config_alone(llama: Path) -> None:
    found = outline(llama)
    with pytest.raises(FileError):
        ms.load_model(str(llama))
    d, ff, kv = 64, 160, 32
    layer = 2 * d * d + 2 * d * kv + 3 * d * ff
    assert found.n_parameters == 2 * 1000 * d + 3 * (layer + 2 * d) + d
    passed = found.rehearse(["resid_post.1", "mlp_mid.0"], 2, 128)
    assert passed.widths == {"resid_post.1": d, "mlp_mid.0": ff}
    attention = 4 * 128 * d  # all queries with all keys, and the weights with the values
    assert passed.flops_a_position == 2 * (2 * layer + attention)
    whole = found.rehearse(None, 2, 128)
    assert whole.flops_a_position == 2 * (3 * layer + 1000 * d) + 3 * attention
    assert whole.tensor_bytes >= 2 * 128 * 1000 * 4


def test_what_a_forward_pass_makes_is_what_a_real_one_makes() -> None:
    model, planned = ms.load_model("bundled"), outline("bundled")
    assert planned.n_parameters == sum(parameter.numel() for parameter in model.module.parameters())
    assert planned.model.hook_points == model.hook_points
    tokens = torch.zeros(4, 64, dtype=torch.int64)
    with torch.no_grad(), TensorCount([*model.module.parameters(), *model.module.buffers()]) as counted:
        seen = model.capture(tokens, ["resid_post.2"])["resid_post.2"]
    passed = planned.rehearse(["resid_post.2"], 4, 64)
    assert passed.widths == {"resid_post.2": seen.shape[-1]}
    assert passed.tensor_bytes == pytest.approx(counted.peak, rel=0.05)


Made = tuple[Dictionary, ms.Trainer, torch.Tensor, torch.Tensor | None]


def made(architecture: str, n: int, rows: int) -> Made:
    """A dictionary in shapes, and the same one with numbers, which has made a step."""
    targets = {"target": "mlp_out.2", "hook": "mlp_in.2"} if "transcoder" in architecture else {}
    own: dict[str, Any] = {}
    if architecture == "cross_layer_transcoder":
        targets = {"hook": ["mlp_in.1", "mlp_in.2"], "target": ["mlp_out.1", "mlp_out.2"]}
    if architecture == "crosscoder":
        targets = {"hook": ["mlp_in.1", "mlp_in.2"]}
    if "k" in SAE.registry[architecture].parameters_of():
        own["sae__k"] = 16
    config = described(
        sae__architecture=architecture,
        sae__n_latents=n,
        training__batch_size=rows,
        training__matmul="float32",
        training__revival={"method": "none"},
        **targets,
        **own,
    )
    (one,) = shapes_of(config).dictionaries
    settings = {**one.sae.settings, **one.sae.common, "device": "cpu"}
    sae = type(one.sae)(one.sae.d_in, n, **settings)
    trainer = ms.Trainer(sae, config.training, total_tokens=10**6)
    x, y = torch.randn(rows, *sae.in_shape), torch.randn(rows, *sae.out_shape)
    target = None if sae.autoencodes else y
    trainer.step(x, target)
    return one, trainer, x, target


ARCHITECTURES = sorted(set(SAE.registry) - {"jumprelu_skip_transcoder"})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_dictionary_is_counted_to_the_number_and_a_step_to_a_sixth(architecture: str) -> None:
    one, trainer, x, target = made(architecture, 4096, 512)
    sae = trainer.sae
    assert one.parameters == sum(parameter.numel() for parameter in sae.parameters())
    state = [*trainer.optimizer.mean.values(), *trainer.optimizer.square.values()]
    assert 8 * one.parameters == sum(tensor.nbytes for tensor in state)
    gc.collect()
    with TensorCount([*sae.parameters(), *sae.buffers(), *state, x]) as counted:
        trainer.step(x, target)
    assert memory.step_bytes(one, 512, CPU) == pytest.approx(counted.peak, rel=0.16)


def test_a_screen_is_planned_in_the_precision_that_training_takes() -> None:
    one, *_ = made("topk", 1024, 64)
    size = one.sae.W_enc.numel()
    for precision, a_number in (("float32", 0), ("bfloat16", 2), ("int8", 2)):
        assert labour.SCREENED[precision] == (n_rough(128, precision) / 128 if a_number else 0)
        parts = memory.standing(shapes_of(one.config), CPU, precision)
        assert [part.bytes for part in parts if "encoder in" in part.name] == [a_number * size] * bool(a_number)
        assert labour.step_work(one, 64, precision)["memory"] >= labour.step_work(one, 64, "float32")["memory"]
    assert CPU.screen(one.d_in) == ms.Trainer(ms.TopKSAE(one.d_in, 64, k=4)).screen
    assert hardware("h100").peak_tflops("float8") == 2 * hardware("h100").bfloat16_tflops


def test_reading_on_from_reconstructions_is_counted(bundled: SubjectModel) -> None:
    batch, hook = 1024, "resid_post.2"
    subject = shapes_of(described(loss__kind="end_to_end", sae__n_latents=64, training__batch_size=batch, hook=hook))
    (one,) = subject.dictionaries
    to_hook, whole = (subject.rehearsed(cpu=True, whole=end)[0].flops_a_position for end in (False, True))
    (read,) = subject.reads_on(one)
    assert read.flops_a_position == pytest.approx(whole + 2 * (whole - to_hook), rel=0.05), "there and back"
    model = bundled
    acts = ms.activations(model, hook, buffer_tokens=2048).by_context()
    (place,) = ms.EndToEnd(model).opened(acts).places
    rows, _ = next(batches(acts, batch, Place()))
    standing, gradient = acts.standing(Place(), 0, batch), torch.zeros_like(rows)
    with TensorCount([*model.module.parameters(), *model.module.buffers(), rows, gradient]) as counted:
        place.costs(rows, standing, (1.0, 0.0), gradient)
    assert memory.reading_on_part(subject, one).bytes == pytest.approx(counted.peak, rel=0.15)
    plain = shapes_of(described(sae__n_latents=64, training__batch_size=batch, hook=hook))
    local, through = (
        labour.training(each, each.rehearsed(cpu=True), CPU, 1).work["model"] for each in (plain, subject)
    )
    assert through - local >= read.flops_a_position * subject.tokens


def test_gradients_are_as_large_as_parameters() -> None:
    _, trainer, x, _ = made("topk", 1024, 64)
    loss = trainer.sae.training_loss(x, x, TrainingContext()).loss
    loss.backward()
    sizes = [parameter.grad.nbytes for parameter in trainer.sae.parameters() if parameter.grad is not None]
    assert sum(sizes) == sum(parameter.nbytes for parameter in trainer.sae.parameters())


def test_a_live_buffer_holds_what_is_planned_while_it_is_filled() -> None:
    model, rows = load_model("bundled", device="cpu"), 8_192
    source = LiveActivations(model, "resid_post.2", buffer_tokens=rows)
    source.make_pool(0)
    with TensorCount([*model.module.parameters(), *model.module.buffers()]) as counted:
        pool = source.make_pool(1)
    subject = shapes_of(described(activations__buffer_tokens=rows))
    assert memory.buffer_rows(subject) == pytest.approx(len(pool), rel=0.05)
    size = memory.buffer_rows(subject) * 256 * 4
    passes = subject.rehearsed(cpu=True)
    moments = memory.training(subject, CPU, "float32", passes, 1)
    always = sum(part.bytes for part in memory.standing(subject, CPU, "float32"))
    planned = max(moment.total() - always for moment in moments if "the buffer" in moment.name)
    carried = 0.5 * size  # made before the count began
    assert counted.peak == pytest.approx(planned - carried, rel=0.1)


def test_positions_of_a_run_are_counted_to_a_context(bundled: SubjectModel) -> None:
    tokens, buffer = 20_000, 8_192
    source = LiveActivations(bundled, "embed", buffer_tokens=buffer)
    for number, _ in enumerate(batches(source, 1000), 1):
        if number * 1000 >= tokens:
            break
    subject = shapes_of(described(hook="embed", tokens=tokens, activations__buffer_tokens=buffer))
    read = source._contexts_read * source.context_length
    assert labour.positions_read(subject) == pytest.approx(read, rel=0.05)


def test_a_harvest_holds_what_is_planned_for_every_latent() -> None:
    settings = HarvestSettings(top=5, near=3, silent_windows=64)
    for vocabulary, length in ((5000, 128), (100_000, 16)):
        harvest = Harvest(64, vocabulary, length, settings=settings)
        planned = memory.latent_bytes(settings, length, vocabulary) - settings.silent_windows / 8
        assert harvest.memory_per_latent == pytest.approx(planned)


def test_a_checkpoint_and_a_store_take_the_disk_that_is_planned(bundled: SubjectModel, tmp_path: Path) -> None:
    one, trainer, *_ = made("topk", 1024, 64)
    write_checkpoint(tmp_path, trainer, Place(), {})
    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert size == pytest.approx(12 * one.parameters, rel=0.02)
    store = ms.store_activations(bundled, ["embed", "mlp_out.0"], path=tmp_path / "acts", tokens=3000, progress=False)
    config = described(hooks=["embed", "mlp_out.0"], store=str(tmp_path / "acts"), tokens=3000, output=str(tmp_path))
    planned = labour.stored_bytes(shapes_of(config), store.store.index.dtype)
    files = [*(tmp_path / "acts").rglob("*.safetensors")]
    held = sum(file.stat().st_size for file in files if file.name != "probe.safetensors")
    assert held == pytest.approx(planned, rel=0.01)
    with pytest.raises(ConfigError, match=r"has no mlp_out.1 of width 256; it has embed of width 256"):
        ms.plan(described(hook="mlp_out.1", store=str(tmp_path / "acts")), progress=False)


def divided(parts: int, n_latents: int = 4096, k: int = 32) -> Dictionary:
    config = described(sae__n_latents=n_latents, sae__k=k)
    own = config.model_copy(update={"training": config.training.model_copy(update={"latent_ranks": parts})})
    (one,) = shapes_of(config).dictionaries
    return Dictionary("", own, one.sae)


def test_communication_with_divided_latents_does_not_grow_with_them() -> None:
    narrow, wide = (labour.sent_bytes(divided(8, n), 8) for n in (4096, 65_536))
    assert wide == narrow > 0
    rows, d, k = 2048, 256, 32
    assert narrow == pytest.approx(rows * 4 * (7 * k + 2 * d * 7 / 8))
    assert labour.sent_bytes(divided(1), 8) == pytest.approx(2 * 7 / 8 * 4 * divided(1).parameters)
    assert labour.sent_bytes(divided(1), 1) == 0


def test_divided_latents_divide_memory_and_work() -> None:
    whole, part = divided(1), divided(8)
    assert memory.dictionary_numbers(part) == pytest.approx(memory.dictionary_numbers(whole) / 8, rel=0.01)
    ratio = labour.step_work(part, 2048, "bfloat16")["matmul"] / labour.step_work(whole, 2048, "bfloat16")["matmul"]
    assert ratio == pytest.approx(1 / 8)


def test_what_cannot_fit_is_refused_and_what_would_does() -> None:
    config = described(sae__n_latents=2**23, tokens=1_000_000)
    found = ms.plan(config, hardware="a100", progress=False)
    assert found.fits
    wider = config.model_copy(update={"sae": config.sae.model_copy(update={"n_latents": 2**25})})
    refused = ms.plan(wider, hardware="a100", progress=False)
    assert not refused.fits
    assert "a device has 79.1" in refused.refusal
    (words,) = [remedy for remedy in refused.remedies if remedy.startswith("sae.n_latents=")]
    smaller = int(words.partition("=")[2].split()[0])
    again = wider.model_copy(update={"sae": wider.sae.model_copy(update={"n_latents": smaller})})
    assert ms.plan(again, hardware="a100", progress=False).fits


def test_a_batch_that_is_too_large_may_be_made_smaller() -> None:
    config = described(sae__architecture="gated", sae__n_latents=65_536, training__batch_size=65_536)
    refused = ms.plan(config, hardware="h100", progress=False)
    assert not refused.fits
    (words,) = [remedy for remedy in refused.remedies if remedy.startswith("training.batch_size=")]
    size = int(words.partition("=")[2].split()[0])
    training = config.training.model_copy(update={"batch_size": size})
    assert ms.plan(config.model_copy(update={"training": training}), hardware="h100", progress=False).fits


def test_time_grows_with_tokens_width_and_falls_with_devices() -> None:
    def seconds(gpus: int = 1, **values: Any) -> float:
        found = ms.plan(described(**values), hardware="h100", gpus=gpus, evaluation=False, progress=False)
        return found.stages[0].seconds(found.rates)

    base = seconds(tokens=2**27, sae__n_latents=2**20)
    assert seconds(tokens=2**28, sae__n_latents=2**20) == pytest.approx(2 * base, rel=0.02)
    assert 1.7 * base < seconds(tokens=2**27, sae__n_latents=2**21) < 2 * base
    assert seconds(gpus=4, tokens=2**27, sae__n_latents=2**20, training__batch_size=16_384) < base


def test_bad_input_is_refused_in_a_line(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'h10' is not in the table; there are .*Did you mean h100"):
        ms.plan(described(), hardware="h10", progress=False)
    with pytest.raises(ConfigError, match="gpus must be at least 1, got 0"):
        ms.plan(described(), gpus=0, progress=False)
    with pytest.raises(HookError, match=r"no hook point 'resid_post\.9'"):
        ms.plan(described(hook="resid_post.9"), progress=False)
    with pytest.raises(ConfigError, match=r"context_length 512 is longer than the model's own 128"):
        ms.plan(described(model=str(llama), activations__context_length=512, hook="resid_post.1"), progress=False)
    with pytest.raises(FileError, match="is not a folder"):
        ms.plan(described(model=str(tmp_path / "none")), progress=False)
    with pytest.raises(ConfigError, match="do not divide into groups"):
        ms.plan(described(training__batch_size=100), hardware="h100", gpus=64, progress=False)
    vectors = tmp_path / "x.npy"
    np.save(vectors, np.zeros((10, 4), np.float32))
    with pytest.raises(ConfigError, match="there is nothing to store"):
        ms.plan(described(vectors=str(vectors)), store=True, progress=False)


def test_several_dictionaries_crosscoders_and_vectors_are_planned(tmp_path: Path) -> None:
    several = ms.plan(described(hooks="attn_out.*", grid={"sae.k": [16, 32]}), hardware="h100", progress=False)
    assert len(several.subject.dictionaries) == 8
    assert "and 4 more" in str(several)
    both = described(hook=["resid_post.1", "resid_post.2"], sae__architecture="crosscoder", sae__n_latents=512)
    assert ms.plan(both, progress=False).subject.columns == 512
    np.save(tmp_path / "x.npy", np.zeros((100, 24), np.float32))
    ready = ms.plan(described(vectors=str(tmp_path / "x.npy")), progress=False)
    assert ready.subject.dictionaries[0].d_in == 24
    assert "model" not in ready.stages[0].work


def test_the_command_prints_a_plan_and_refuses(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["plan", "--hardware", "h100", "--gpus", "2", "--set", "training.batch_size=4096"])
    assert done.exit_code == 0, done.output
    for words in ("memory of each device", "dictionary: optimiser", "training", "tokens/s", "2 x NVIDIA H100"):
        assert words in done.output
    done = CliRunner().invoke(app, ["plan", "--hardware", "a100", "--set", "sae.n_latents=100000000", "--json"])
    assert isinstance(done.exception, ConfigError)
    assert "What would fit: sae.n_latents=" in str(done.exception)


def test_a_model_too_large_to_be_compared_is_not_loaded_to_train_on_its_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from monosem.planning import shapes
    from monosem.runs import pipeline, storing

    path = str(tmp_path / "acts")
    ms.store_activations(ms.load_model("bundled"), "resid_post.2", path=path, tokens=2000, progress=False)
    small = {"training__batch_size": 256, "sae__n_latents": 64, "sae__k": 4, "tokens": 1024}
    config = described(store=path, output=str(tmp_path / "run"), **small)
    assert "model" in {part.name for part in memory.standing(shapes_of(config), CPU, "float32")}
    monkeypatch.setattr(storing, "COMPARED", 1000)
    monkeypatch.setattr(shapes, "COMPARED", 1000)
    monkeypatch.setattr(pipeline, "open_model", lambda config: pytest.fail("the model was loaded"))
    run, model = pipeline.run_training(config, progress=False)
    assert model is None
    assert run.sae().metadata.hook == "resid_post.2"
    assert "model" not in {part.name for part in memory.standing(shapes_of(config), CPU, "float32")}


@pytest.mark.parametrize("slower", [0.5, 1.0, 2.0])
def test_what_follows_a_pass_takes_as_many_times_longer_as_starting_does(
    monkeypatch: pytest.MonkeyPatch, slower: float
) -> None:
    config: dict[str, Any] = {"sae": {"n_latents": 512}, "tokens": 10_000, "evaluation": {"tokens": 10_000}}
    table = ms.plan(config, hardware="cpu")

    def found(*_: object) -> Measured:
        return Measured(table.rates, 2.0**29, slower * table.start_s, [])

    monkeypatch.setattr(sys.modules["monosem.planning.plan"], "measure", found)
    plan = ms.plan(config, hardware="cpu", calibrate=True)
    (training, evaluation), (as_trained, as_evaluated) = table.stages, plan.stages
    assert as_trained == training
    assert as_evaluated.work == evaluation.work
    assert as_evaluated.other_s == pytest.approx(slower * evaluation.other_s)
    assert evaluation.other_s > 512 * 0.01
    assert plan.start_s == slower * table.start_s
