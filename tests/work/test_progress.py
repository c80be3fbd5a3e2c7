"""No silence: long work says from its first second where it is and how long all that is to come will take."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from monosem.evaluation import evaluate
from monosem.models import SubjectModel
from monosem.runs import RunConfig, pipeline, run_evaluation, run_training
from monosem.sae import TopKSAE
from monosem.training import fit
from monosem.work import Job, as_job, doing, each, job, progress, stage
from monosem.work.progress import duration


def seconds(words: str) -> float:
    number, unit = words.split()
    return float(number) * {"s": 1, "min": 60, "h": 3600}[unit]


class Listener(io.StringIO):
    """Remembers when it was told what."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[float, str]] = []

    def write(self, words: str) -> int:
        self.told += [(time.monotonic(), line) for line in words.splitlines() if line]
        return len(words)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What else the machine does changes the time of a step little."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Watching:
    """Takes part in an evaluation and harvests nothing."""

    harvest = None

    def __call__(self, *_: object) -> None: ...


@pytest.mark.usefixtures("one_thread")
def test_a_run_on_a_slow_model_says_from_its_first_second_what_it_does_and_counts_all_that_is_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_gpt2: Callable[..., Any], letter_tokenizer: type
) -> None:
    """Without a terminal. The model sleeps, so that reading for training and evaluation takes nearly all the time."""
    x = torch.randn(128, 16)  # what is imported and compiled at the first use would stand between
    evaluate(fit(TopKSAE(16, 16, k=2), x, tokens=128, progress=False).sae, x, progress=False)
    module: Any = make_gpt2(vocabulary=128, width=16, layers=2, positions=32)
    module.transformer.h[0].register_forward_pre_hook(lambda *_: time.sleep(0.1))
    model = SubjectModel(module, letter_tokenizer(), "slow")
    monkeypatch.setattr(model, "contexts_at_once", lambda length: 4)
    monkeypatch.setattr(pipeline, "load_model", lambda name: model)
    monkeypatch.setattr(pipeline, "new_harvest", lambda *_, **__: None)
    monkeypatch.setattr(pipeline, "HarvestObserver", lambda *_: Watching())
    for name in ("write_store", "FeatureStore", "_explain"):
        monkeypatch.setattr(pipeline, name, lambda *_: None)
    monkeypatch.setattr(progress, "A_LINE", 0.1)
    monkeypatch.setattr(progress, "FIRST_LINE", 0.15)
    text = tmp_path / "words.txt"
    text.write_text("\n\n".join(f"{i} {i * i * i} and {i * 7919 % 1000} " * 9 for i in range(400)))
    sizes = {"activations": {"buffer_tokens": 768}, "training": {"batch_size": 64}}
    measured = {"text": str(text), "tokens": 3840, "loss_tokens": 256}
    about = {"output": str(tmp_path / "run"), "model": "slow", "hook": "mlp_in.0", "text": str(text), "tokens": 960}
    config = RunConfig.of({**about, **sizes, "sae": {"n_latents": 16, "k": 2}, "evaluation": measured})
    monkeypatch.setattr(sys, "stderr", listener := Listener())
    with job(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run, _ = run_training(config, evaluated=True)
        run_evaluation(run, model)
    told = listener.told
    ended = max(at for at, line in told if line.startswith(("evaluating", "measuring losses")))
    kinds = [re.split(r"  | \d+%", line)[0] for _, line in told]
    assert {"filling the shuffle buffer", "training", "evaluating"} <= set(kinds), told
    assert any(re.search(r"^training.*\(filling the shuffle buffer \d+%\)$", line) for _, line in told), told
    known = [
        (at, seconds(left[1]))
        for at, line in told
        if (left := re.search(r"  (?:more than )?([\d.]+ (?:s|min|h)) left", line)) and "filling" in line
    ]
    early = [(left, ended - at) for at, left in known[2:6]]  # two are enough to know the model's rate
    assert early, told
    for left, true in early:
        assert 0.3 * true < left < 3 * true, (early, told)


def test_the_time_left_is_every_kind_of_work_at_its_own_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    job = Job(enabled=False)
    outer = job.stage("training", 1000, unit="tokens")
    job.expect("reading", lambda: 300)
    job.expect("evaluating", 50, like="reading", weight=2)
    with outer:
        inner = job.stage("reading", 100)
        with inner:
            now[0] += 10
            inner.advance(50)
            assert job.seconds_left() == pytest.approx((0.2 * (50 + 300) + 2 * 0.2 * 50, True))
            assert job.left() == "more than 90 s left"
            now[0] += 10
            inner.advance(50)
        inner.close()
        now[0] += 5
        outer.advance(100)
        assert job.seconds_left() == pytest.approx((0.05 * 900 + 0.2 * 300 + 2 * 0.2 * 50, False))
        begun = job.stage("evaluating", 50)
        assert job.seconds_left()[0] == pytest.approx(0.05 * 900 + 0.2 * 300 + 2 * 0.2 * 50), "it is not counted twice"
        begun.close()
        assert job.seconds_left()[0] == pytest.approx(0.05 * 900 + 0.2 * 300)
        now[0] += 2
        assert job.seconds_left()[0] == pytest.approx(0.05 * 900 + 0.2 * 300 - 2), "it goes on while a step is made"
    assert (duration(99), duration(150), duration(7200)) == ("99 s", "2 min", "2.0 h")


def test_the_share_of_the_whole_stands_first_and_what_takes_long_within_it_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    job = Job(enabled=False)
    outer = job.stage("training", 1000)
    lines: list[str] = []
    with outer:
        for _ in range(2):  # each filling begins anew, the whole goes on
            with job.stage("reading", 100) as inner:
                now[0] += 0.5
                inner.advance(50)
                short = job.line()
                now[0] += 0.5
                lines.append(job.line())
            outer.advance(250)
            assert "(reading" not in short
            assert "(reading" not in job.line()
    assert [re.sub(r"  [^(]*", "  ", line) for line in lines] == [
        "training 0%  (reading 50%)",
        "training 25%  (reading 50%)",
    ]


def test_lines_come_while_a_single_step_is_made_and_a_short_job_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE", 0.05)
    monkeypatch.setattr(pipeline, "new_harvest", lambda *_, **__: None)
    monkeypatch.setattr(pipeline, "HarvestObserver", lambda *_: Watching())
    monkeypatch.setattr(pipeline, "write_store", lambda *_: None)
    monkeypatch.setattr(progress, "A_LINE", 0.2)
    monkeypatch.setattr(progress, "LOOK", 0.01)
    with job(), doing("working", 10, unit="rows"):
        time.sleep(0.7)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 5
    assert set(lines) == {"working 0%  time left not known yet"}
    with job(enabled=False), doing("working", 10):
        time.sleep(0.2)
    with job():
        assert list(each("working", range(3))) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_job_within_a_job_is_part_of_it_unless_it_is_to_be_silent() -> None:
    @as_job
    def work(name: str, *, progress: bool = True) -> Job:
        with job() as found:
            stage(name, 3)
            return found

    with job(enabled=False) as outer:
        assert work("inner") is outer
        assert work("inner", progress=False) is not outer
    assert work("alone", progress=False) is not outer


def test_nobody_listening_is_no_reason_to_stop(tmp_path: Path) -> None:
    script = "from monosem.work import job\nimport sys, os\nos.close(2)\nwith job() as j: j.say('x')\nprint('done')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    assert done.stdout == "done\n"
