"""Nothing is lost: a run that is stopped anywhere, by anything, goes on to the same bits and the same log."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from monosem.activations import LiveActivations, VectorActivations, vectors
from monosem.errors import ConfigError, FileError, MismatchError
from monosem.kernels import sparse
from monosem.models import SubjectModel
from monosem.sae import (
    SAE,
    BatchTopKSAE,
    GatedSAE,
    JumpReLUSAE,
    MatchingPursuitSAE,
    MatryoshkaSAE,
    ProLUSAE,
    ReLUSAE,
    SkipTranscoder,
    SwitchSAE,
    ThresholdSAE,
    TopKSAE,
    load_sae,
)
from monosem.training import TrainingConfig, TrainingInterrupted, TrainingResult, checkpoints, fit, train, trainer
from monosem.training.revival import RevivalConfig

N_STEPS = 5
CASES = [
    pytest.param(TopKSAE, {"k": 3}, id="topk"),
    pytest.param(ReLUSAE, {}, id="relu"),
    pytest.param(BatchTopKSAE, {"k": 3}, id="batchtopk"),
    pytest.param(MatryoshkaSAE, {"k": 3}, id="matryoshka"),
    pytest.param(ReLUSAE, {"p_end": 0.2, "tied": True, "target_l0": 3.0}, id="relu, all that changes in a run"),
    pytest.param(GatedSAE, {}, id="gated"),
    pytest.param(ProLUSAE, {}, id="prolu"),
    pytest.param(JumpReLUSAE, {"target_l0": 3.0}, id="jumprelu"),
    pytest.param(SwitchSAE, {"k": 3, "n_experts": 2}, id="switch"),
    pytest.param(SkipTranscoder, {"k": 3}, id="skip_transcoder"),
    pytest.param(MatchingPursuitSAE, {"k": 3}, id="matching_pursuit"),
]
RESAMPLED = RevivalConfig(method="resample", resample_at=(0.4, 0.6))


class Killed(BaseException):
    """Ends a run in the middle, past all `except Exception`."""


@pytest.fixture(autouse=True)
def small_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches span pools, latents die, and ReLU goes over from its dense to its sparse path, all within few steps."""
    monkeypatch.setattr(vectors, "POOL_ROWS", 7)
    monkeypatch.setattr(trainer, "MIN_DEAD_STEPS", 1)
    monkeypatch.setattr(sparse, "DENSE_ABOVE", 0.9)


def small_run(
    path: Path | None,
    cls: type[SAE] = TopKSAE,
    options: dict[str, Any] | None = None,
    kill_at: int | None = None,
    minutes: float = 0,
    revival: RevivalConfig | None = None,
    steps: int = N_STEPS,
) -> TrainingResult:
    """Five steps of ten rows, or another number; a checkpoint after each, if minutes is 0."""

    def callback(running: Any, _: Any) -> None:
        if running.steps == kill_at:
            raise Killed

    x = 3 * torch.randn(23, 6, generator=torch.Generator().manual_seed(0)) + 1
    config = TrainingConfig(batch_size=10, log_every=2, checkpoint_minutes=minutes, revival=revival or RevivalConfig())
    sae = cls(6, 24, **{"k": 3} if options is None else options)  # pyright: ignore[reportArgumentType]
    source, tokens = VectorActivations(x), 10 * steps
    return train(sae, source, tokens=tokens, config=config, path=path, callbacks=[callback], progress=False)


def assert_same_run(found: TrainingResult, expected: TrainingResult) -> None:
    """Parameters, buffers, log, metadata, and what was saved."""
    assert_same_tensors(found.sae, expected.sae)
    assert found.history == expected.history
    assert found.sae.metadata == expected.sae.metadata
    if found.path:
        assert read_log(found.path) == expected.history
        saved = load_sae(found.path)
        assert_same_tensors(saved, expected.sae)
        assert torch.equal(saved.probe["activations"], expected.sae.probe["activations"])


def assert_same_tensors(found: SAE, expected: SAE) -> None:
    tensors, others = found.state_dict(), expected.state_dict()
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def read_log(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


# Stopped between two steps ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:L0 is")
@pytest.mark.parametrize(("cls", "options"), CASES)
def test_a_run_stopped_at_any_step_ends_in_the_same_bits(
    cls: type[SAE], options: dict[str, Any], tmp_path: Path
) -> None:
    expected = small_run(None, cls, options)
    assert expected.sae.metadata.tokens_trained == 10 * N_STEPS
    assert issubclass(cls, ThresholdSAE) or expected.history[-1]["dead"] > 0
    for step in range(1, N_STEPS + 1):
        path = tmp_path / f"stopped_{step}"
        with pytest.raises(Killed):
            small_run(path, cls, options, kill_at=step)
        assert_same_run(small_run(path, cls, options), expected)


@pytest.mark.filterwarnings("ignore:.*rows occur again")  # a model of one layer knows few contexts
@pytest.mark.parametrize("with_state", [True, False])
def test_a_run_on_text_goes_on_without_tokenising_again_what_comes_before(
    tmp_path: Path,
    make_gpt2: Callable[..., Any],
    letter_tokenizer: type,
    monkeypatch: pytest.MonkeyPatch,
    with_state: bool,
) -> None:
    """The bits are the same without the reader's state, as in the checkpoints of earlier versions."""
    monkeypatch.setattr("monosem.data.packing.CHUNK_CHARACTERS", 1024)
    tokenised: list[int] = []

    class Counting(letter_tokenizer):
        def __call__(self, text: Any, **options: Any) -> Any:
            tokenised.append(len(text))
            return super().__call__(text, **options)

    model = SubjectModel(make_gpt2(vocabulary=128, width=16, layers=1), Counting(), "letters")
    texts = [chr(97 + i % 26) + str(i * i * i) * 30 for i in range(1500)]

    def run(path: Path, kill_at: int | None = None) -> TrainingResult:
        def callback(running: Any, _: Any) -> None:
            if running.steps == kill_at:
                raise Killed

        source = LiveActivations(model, "mlp_in.0", texts, context_length=32, buffer_tokens=1024)
        config = TrainingConfig(batch_size=1024, log_every=2, checkpoint_minutes=0)
        sae = TopKSAE(source.d_in, 24, k=3)
        options: dict[str, Any] = {"tokens": 1024 * 40, "config": config, "path": path, "callbacks": [callback]}
        tokenised.clear()
        return train(sae, source, progress=False, **options)

    expected = run(tmp_path / "whole")
    all_chunks = sum(tokenised)
    with pytest.raises(Killed):
        run(tmp_path / "stopped", kill_at=30)
    if not with_state:
        for file in (tmp_path / "stopped" / "checkpoints").glob("step_*/trainer.json"):
            content = json.loads(file.read_text())
            del content["source"]
            file.write_text(json.dumps(content))
            file.with_name("sums.json").unlink()
    assert_same_tensors(run(tmp_path / "stopped").sae, expected.sae)
    assert (sum(tokenised) < 0.6 * all_chunks) == with_state


def test_a_run_stopped_around_a_resampling_ends_in_the_same_bits(tmp_path: Path) -> None:
    expected = small_run(None, revival=RESAMPLED)
    assert not torch.equal(expected.sae.W_dec, small_run(None).sae.W_dec)
    for step in range(1, N_STEPS + 1):
        path = tmp_path / f"stopped_{step}"
        with pytest.raises(Killed):
            small_run(path, kill_at=step, revival=RESAMPLED)
        assert_same_run(small_run(path, revival=RESAMPLED), expected)


def test_a_run_stopped_at_every_step_ends_in_the_same_bits(tmp_path: Path) -> None:
    for step in range(2, N_STEPS + 1):  # after one step each, for the one before is in its checkpoint
        with pytest.raises(Killed):
            small_run(tmp_path, kill_at=step)
    assert_same_run(small_run(tmp_path), small_run(None))


def test_a_run_stopped_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        small_run(tmp_path, kill_at=4, minutes=60)
    assert len(read_log(tmp_path)) == 1
    assert_same_run(small_run(tmp_path, minutes=60), small_run(None))


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    expected = small_run(tmp_path)
    for _ in range(2):
        assert_same_run(small_run(tmp_path), expected)


def test_a_torn_last_line_of_the_log_is_dropped(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        small_run(tmp_path, kill_at=5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "tok')
    assert_same_run(small_run(tmp_path), small_run(None))


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    small_run(tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000005"]


# Stopped in the middle of writing ---------------------------------------------------------------------------------


@contextmanager
def killed_at_operation(number: int) -> Iterator[None]:
    """The n-th change of a file is half made, or, if it is made at once, not made; then the run ends."""
    made = 0

    def watched(change: Callable[..., Any], halfway: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal made
            made += 1
            if made == number:
                halfway(*arguments)
                raise Killed
            return change(*arguments, **options)

        return call

    def half_removed(folder: Path, *_: Any) -> None:
        for file in sorted(folder.glob("*"))[:2]:
            file.unlink()

    def half_saved(tensors: dict[str, Tensor], path: Path, *_: Any) -> None:
        save_file(tensors, path)
        path.write_bytes(path.read_bytes()[:100])

    def half_written(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])

    save_file = safetensors.torch.save_file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", watched(save_file, half_saved))
        patch.setattr(shutil, "rmtree", watched(shutil.rmtree, half_removed))
        patch.setattr(Path, "write_bytes", watched(Path.write_bytes, half_written))
        patch.setattr(Path, "replace", watched(Path.replace, lambda *_: None))
        yield


def test_a_run_stopped_within_any_change_of_a_file_ends_in_the_same_bits(tmp_path: Path) -> None:
    expected = small_run(None, steps=3)
    number, finished = 0, False
    while not finished:
        number += 1
        path = tmp_path / f"stopped_{number}"
        try:
            with killed_at_operation(number):
                small_run(path, steps=3)
            finished = True
        except Killed:
            pass
        assert_same_run(small_run(path, steps=3), expected)
    assert number > 5 * 3


def test_a_resumption_stopped_within_any_change_of_a_file_ends_in_the_same_bits(tmp_path: Path) -> None:
    """Stopped half-way first; and, the second time, a run that is finished already."""
    expected = small_run(None, steps=4)
    for first in (3, None):
        number, finished = 0, False
        while not finished:
            number += 1
            path = tmp_path / f"stopped_{first}_{number}"
            with suppress(Killed):
                small_run(path, kill_at=first, steps=4)
            try:
                with killed_at_operation(number):
                    small_run(path, steps=4)
                finished = True
            except Killed:
                pass
            assert_same_run(small_run(path, steps=4), expected)
        assert number > 3 if first else number == 1, "a finished run is left as it is"


# Killed by the system ---------------------------------------------------------------------------------------------

CHILD = """
import sys, time
import monosem as ms
from monosem.training import TrainingInterrupted

data, path, minutes, pause = sys.argv[1:]
sae = ms.TopKSAE(d_in=6, n_latents=24, k=3)
config = ms.TrainingConfig(batch_size=16, log_every=1, checkpoint_minutes=float(minutes))
if float(pause):
    source = ms.activations(data)
    slow = [lambda *_: time.sleep(float(pause))]
    try:
        ms.train(sae, source, tokens=16 * 120, config=config, path=path, callbacks=slow, progress=False)
    except TrainingInterrupted as error:
        sys.exit(f"interrupted: {error}")
else:
    ms.fit(sae, data, tokens=16 * 120, config=config, path=path, progress=False)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, 3 * np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32) + 1)
    return path


@pytest.fixture
def true_scale(monkeypatch: pytest.MonkeyPatch, small_scale: None) -> None:
    """As in the child."""
    monkeypatch.undo()


def same_call(data: Path, path: Path | None, minutes: float = 60) -> TrainingResult:
    config = TrainingConfig(batch_size=16, log_every=1, checkpoint_minutes=minutes)
    return fit(TopKSAE(6, 24, k=3), data, tokens=16 * 120, config=config, path=path, progress=False)


def newest_step(path: Path) -> int:
    return max(map(checkpoints.step_of, checkpoints.checkpoints_of(path)), default=0)


@pytest.mark.usefixtures("true_scale")
def test_a_process_killed_twice_ends_in_the_same_bits(data: Path, tmp_path: Path, forks: Any) -> None:
    path = tmp_path / "run"
    steps: list[int] = []
    for wanted in (10, 30):
        process = forks("-c", CHILD, data, path, "0", "0")
        process.until(lambda wanted=wanted: newest_step(path) >= wanted)
        process.kill()
        steps.append(newest_step(path))
        assert not (path / "sae").exists()
    assert 10 <= steps[0] < steps[1] < 120
    assert_same_run(same_call(data, path), same_call(data, None))


@pytest.mark.usefixtures("true_scale")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_process_writes_a_checkpoint_and_ends_in_the_same_bits(
    number: signal.Signals, data: Path, tmp_path: Path, forks: Any
) -> None:
    path = tmp_path / "run"
    process = forks("-c", CHILD, data, path, "60", "0.01")
    log = path / "metrics.jsonl"
    process.until(lambda: log.exists() and len(log.read_text().splitlines()) >= 5)
    assert newest_step(path) == 0
    process.send_signal(number)
    assert process.wait() == 1
    step = newest_step(path)
    assert f"interrupted: stopped after {16 * step:,} of 1,920 tokens" in process.complained
    assert str(path / "checkpoints") in process.complained
    assert 5 <= step < 120
    assert step == len(read_log(path))
    assert_same_run(same_call(data, path), same_call(data, None))


def test_an_interrupted_run_without_a_folder_says_so() -> None:
    def interrupt(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    source, config = VectorActivations(torch.randn(30, 6)), TrainingConfig(batch_size=10)
    with pytest.raises(TrainingInterrupted, match=r"^stopped after 10 of 90 tokens$"):
        train(TopKSAE(6, 24, k=3), source, tokens=90, config=config, callbacks=[interrupt], progress=False)
    assert signal.getsignal(signal.SIGINT) is before


# Folders that do not fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        pytest.param(TopKSAE, {"k": 4}, id="another k"),
        pytest.param(TopKSAE, {"k": 3, "n_latents": 25}, id="another number of latents"),
        pytest.param(TopKSAE, {"k": 3, "transform": "centre"}, id="another transform"),
        pytest.param(TopKSAE, {"k": 3, "dtype": torch.float64}, id="another precision"),
        pytest.param(ReLUSAE, {}, id="another architecture"),
    ],
)
def test_a_checkpoint_of_another_sae_is_refused(cls: type[SAE], options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Killed):
        small_run(tmp_path, kill_at=3)
    sae = cls(6, options.pop("n_latents", 24), **options)
    (tmp_path / "identity.json").unlink()  # as in the folders of version 0.1
    with pytest.raises(MismatchError, match=r"step_00000002 is of another SAE, .*: choose another run folder"):
        fit(sae, torch.randn(30, 6), tokens=70, path=tmp_path, progress=False)


def damage_json(folder: Path) -> None:
    (folder / "sums.json").unlink()  # as in this and the next ones: a checkpoint of a version that wrote none
    (folder / "trainer.json").write_text('{"steps": 2, "tok')


def drop_place(folder: Path) -> None:
    (folder / "sums.json").unlink()
    (folder / "trainer.json").write_text('{"steps": 2, "tokens": 20}')


def endless_steps(folder: Path) -> None:
    (folder / "sums.json").unlink()
    content = json.loads((folder / "trainer.json").read_text())
    (folder / "trainer.json").write_text(json.dumps({**content, "steps": float("nan")}))


def damage_tensors(folder: Path) -> None:
    (folder / "sums.json").unlink()
    (folder / "trainer.safetensors").write_bytes((folder / "trainer.safetensors").read_bytes()[:1000])


def other_tensors(folder: Path) -> None:
    (folder / "sums.json").unlink()
    shutil.copy(folder / "sae.safetensors", folder / "trainer.safetensors")


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "sae.safetensors").read_bytes())
    content[-3] ^= 4
    (folder / "sae.safetensors").write_bytes(content)


DAMAGES = [damage_json, drop_place, endless_steps, damage_tensors, other_tensors, flip_a_bit]


@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_damaged_checkpoint_the_one_before_is_used_and_it_is_said(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        small_run(tmp_path, kill_at=4)
    newest, before = (tmp_path / "checkpoints" / f"step_0000000{step}" for step in (3, 2))
    damage(newest)
    with (
        pytest.raises(Killed),
        pytest.warns(UserWarning, match=f"{newest}.*goes on from the one before, {before.name}"),
    ):
        small_run(tmp_path, kill_at=3, minutes=60)
    damage(before)
    with pytest.raises(FileError, match=str(before)):
        small_run(tmp_path)
    with pytest.raises(Killed):
        small_run(tmp_path / "other", kill_at=4)
    damage(tmp_path / "other" / "checkpoints" / newest.name)
    with pytest.warns(UserWarning, match="goes on from the one before"):
        resumed = small_run(tmp_path / "other")
    assert_same_run(resumed, small_run(None))


def test_checkpoints_take_a_fiftieth_of_the_time_at_most_whatever_they_weigh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from monosem.training import member

    written = list[int]()

    def slow(folder: Path, *rest: Any) -> Path:
        written.append(rest[0].steps)
        time.sleep(0.2)
        return checkpoints.write_checkpoint(folder, *rest)

    monkeypatch.setattr(member, "write_checkpoint", slow)
    small_run(tmp_path, minutes=1e-9)
    assert written == [1, N_STEPS]  # the second would have been due 10 seconds later


@pytest.mark.filterwarnings("ignore:the activations ended")
def test_activations_from_an_iterable_cannot_be_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "ITERABLE_ROWS", 10)  # what is read at a time; within it a run does go on

    def once() -> TrainingResult:
        generator = torch.Generator().manual_seed(0)
        rows = (torch.randn(10, 6, generator=generator) for _ in range(4))
        config = TrainingConfig(batch_size=10)
        return fit(TopKSAE(6, 24, k=3), rows, tokens=60, config=config, path=tmp_path, progress=False)

    with pytest.warns(UserWarning, match="ended after 40 of 60 tokens"):
        once()
    with pytest.raises(ConfigError, match="cannot be resumed"):
        once()
