"""What several tests share: tiny random models, tokenizers, the bundled model, one small run of the command line."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from filelock import FileLock
from torch import nn

from monosem.models import BUNDLED, SubjectModel, load_model


def random_gpt2(
    seed: int = 0,
    width: int = 32,
    layers: int = 3,
    heads: int = 4,
    vocabulary: int = 4096,
    positions: int = 64,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """A GPT-2 of random weights in which no bias is zero and no norm is the identity."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            if "ln_" in name and name.endswith("weight"):
                parameter.add_(1)
    return model


class LetterTokenizer:
    """One token per character, its code point; what `PackedText` needs of a tokenizer and no more."""

    def __init__(self, bos: int | None = 1, eos: int | None = 2) -> None:
        self.bos_token_id, self.eos_token_id = bos, eos

    def __call__(self, text: str | list[str], **_: Any) -> dict[str, list[Any]]:
        if isinstance(text, str):
            return {"input_ids": [ord(c) for c in text]}
        return {"input_ids": [[ord(c) for c in t] for t in text]}

    def decode(self, tokens: list[int], **_: Any) -> str:
        return "".join(chr(t) for t in tokens)

    def get_vocab(self) -> dict[str, int]:
        return {chr(i): i for i in range(128)}


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The bundled model's tokenizer: 4,096 byte-level tokens."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(BUNDLED))


@pytest.fixture(scope="session")
def roberta_tokenizer() -> Any:
    """Letters, one a token, and the special tokens of RoBERTa: an encoder's tokenizer that has a BOS."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcdefghijklmnopqrstuvwxyz ,.'"]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    roles = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **{f"{role}_token": name for role, name in roles.items()})


@pytest.fixture(scope="session")
def make_gpt2() -> Callable[..., nn.Module]:
    return random_gpt2


@pytest.fixture(scope="session")
def letter_tokenizer() -> type[LetterTokenizer]:
    return LetterTokenizer


@pytest.fixture(scope="session")
def tiny_module() -> nn.Module:
    return random_gpt2()


@pytest.fixture
def tiny(tiny_module: nn.Module, tokenizer: Any) -> SubjectModel:
    """A random GPT-2 of 3 layers and width 32, with its tokenizer; another copy for every test."""
    return SubjectModel(copy.deepcopy(tiny_module), tokenizer, "tiny")


@pytest.fixture(scope="session")
def tiny_folder(made_once: Callable[[str, Callable[[Path], object]], Path], tokenizer: Any) -> Path:
    """A random GPT-2 of 3 layers and width 32, saved with its tokenizer: a tenth of the bundled model's time."""

    def make(folder: Path) -> None:
        random_gpt2(positions=256).save_pretrained(folder)  # type: ignore[operator]
        tokenizer.save_pretrained(folder)

    return made_once("tiny", make)


@pytest.fixture(scope="session")
def bundled() -> SubjectModel:
    return load_model("bundled")


class Outcome(NamedTuple):
    """What a command has left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def monosem(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the command line in this process: `monosem("train", "--list").code`."""

    def call(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["monosem", *map(str, arguments)])
        capsys.readouterr()
        code = run_command()
        return Outcome(code, *capsys.readouterr())

    monkeypatch.setenv("MONOSEM_DEBUG", "")
    monkeypatch.setattr("monosem.work.progress.FIRST_LINE", 600)  # the machine may be busy, and tests count lines
    monkeypatch.setattr("monosem.work.progress.A_LINE", 600)
    return call


def run_command() -> int:
    """`monosem.cli.main.run` with `sys.argv`, and its exit code."""
    from monosem.cli.main import run

    try:
        run()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


SMALL_RUN = [
    "--set=sae.n_latents=256",
    "--set=sae.k=16",
    "--set=tokens=20000",
    "--set=training.batch_size=512",
    "--set=activations.buffer_tokens=4096",
    "--set=evaluation.tokens=8000",
    "--set=evaluation.loss_tokens=2000",
]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A folder that the first of pytest's processes to need it makes, for all of them: they read it and no more."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        path, made = shared / name, shared / f"{name}.made"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(shared / f"{name}.lock"):
            if not made.exists():
                make(path)
                made.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def small_run(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A whole run of the command line on the bundled model: trained, evaluated, with features and figures."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["monosem", "train", *SMALL_RUN, f"--set=output={folder}"])
            assert run_command() == 0

    return made_once("small", make)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of a size, such as "256k"; skips the test where that is not allowed."""
    folders: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        command = shutil.which("mount")
        if command is None or subprocess.run([command, "-t", "tmpfs", "-o", f"size={size}", "none", folder]).returncode:
            pytest.skip("a disk can be mounted by root alone")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", "-l", folder], check=True)
