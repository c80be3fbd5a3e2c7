"""Every Python block, command and YAML file of README.md and docs/ is run in order, in a folder that has what it names.

They are made small by `SMALLER` and by settings that every training gets; what a page takes as given is in `GIVEN`. A
block that cannot be run says why on the line before it: `<!-- not run: reason -->`. Commands of `make`, `pip` and of
scripts are not run here: test_links.py sees that their targets, extras, files and options exist.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blocks import PAGES, ROOT, Block, blocks
from gguf_files import written

from monosem.explorer.page import Page
from monosem.runs import RunConfig
from monosem.training import LOGGERS

SMALLER = [
    (r"\b((?:(?:held_out|buffer)_)?tokens(?:=|: ))[\d_]{4,}", r"\g<1>1024"),
    (r"\b(loss_tokens(?:=|: ))[\d_]{4,}", r"\g<1>300"),
    (r"\bgames=[\d_]{4,}", "games=60"),
    (r"\b(n_latents(?:=|: ))(?:[\d_]{3}|[12]_?\d{3})\b", r"\g<1>64"),
    (r"\b(n_latents(?:=|: ))[\d_]{4,}", r"\g<1>96"),
    (r"\b(batch_size(?:=|: ))[\d_]{3,}", r"\g<1>256"),
    (r"--widths [\d,]+ --tokens [\d,]+", "--widths 16,32,64 --tokens 500,1000,2000"),
    (r"--tokens [\d_]{4,}", "--tokens 1000"),
    (r"(monosem eval \S+ --tokens 1000)", r"\1 --loss-tokens 300"),
    (r"(tokens=)\[2048, 4096, 8192\]", r"\1[512, 1024, 2048]"),
    (r"\brows=4096", "rows=1024"),
    (r"(ms\.optimise_image\(model, sae, )\[[\d, ]+\]", r"\1[14, 18], steps=16, n_random=2"),
    (r"budgets=\[1024, 2048\]", "budgets=[256, 512]"),
    (r"(ms\.evaluate\(sae, model)\)", r"\1, tokens=1000, loss_tokens=300)"),
    (r"(ms\.harvest\(\[sae[^)]*)\)", r"\1, tokens=1024)"),
    (r"(ms\.activations\((?![^\n]*buffer_tokens)(?:[^()]|\([^()]*\))*)\)", r"\1, buffer_tokens=1024)"),
    (r"ms\.fit\(own, x\)", "ms.fit(own, x, tokens=1024)"),
    (r"(monosem (?:top|token-sets) \S+)( \d+)+", r"\1 17 25"),
    (r"(?<=of\()1572|301, 1572", "17"),
    (r"sae\.k: \[16, 32\]", "sae.k: [16]"),
    (r"hooks(=|: )attn_out\.\*", r"hooks\1attn_out.[01]*"),
    (r"batches\(acts, 4096\)", "islice(batches(acts, 512), 2)"),  # it has no end
    (r"checked=8", "checked=2, contexts=2"),
    (r"--feature \d+", "--feature 36"),
    (r"(monosem heads \S+)", r"\1 --documents 8"),
    (r"(monosem explore [^-]+)$", r"\1 --export site"),  # it would serve until Ctrl-C
    (r"(monosem rate [^-]+)$", r"\1 --results"),  # so would it
]
"""Replaced in every block and command: lengths, sizes, numbers of features."""
TRAINING = {
    "tokens": 1024,
    "sae.n_latents": 64,
    "training.batch_size": 256,
    "activations.buffer_tokens": 1024,
    "evaluation.tokens": 1000,
    "evaluation.loss_tokens": 300,
    "evaluation.controls": "false",
}
"""Set in every `monosem train` that reads a model, before what it sets itself."""
MEASURED_ONCE = "docs/runs.md"
"""The page of most trainings: after the first they are not evaluated."""
GIVEN = """
from itertools import islice
import numpy as np, torch, monosem as ms
from transformers import ViTConfig, ViTForImageClassification
from monosem.activations import batches, inspect_rows
from monosem.sae import load_sae
model = ms.load_model("bundled")
sae = sae_a = sae_b = ms.load_sae("runs/demo")
x = torch.randn(4096, model.d_model)
codes = sae.encode(x[:64])
tokens = [17, 18, 19]
base = chat = model
acts = ms.activations(model, "resid_post.2", buffer_tokens=1024)
pairs = [(torch.randn(64, 128), torch.randn(64, 128))]
"""
"""What pages take as given (with the files that `folder` makes)."""
OF_PAGES = {
    "docs/architectures.md": """
sae = ms.TopKSAE(d_in=128, n_latents=64, k=8)
ms.CrossLayerTranscoder(d_in=16, n_latents=120, n_layers=4, k=8).save("my_clt")
transcoder = ms.SkipTranscoder(d_in=128, n_latents=96, k=24)
codes = transcoder.encode(torch.randn(64, 128))
""",
    "docs/data.md": """
trainers = [ms.Trainer(ms.TopKSAE(256, 64, k=8)), ms.Trainer(ms.Transcoder(256, 64, k=8))]
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_run: Path, tokenizer: Any) -> Path:
    """One for all pages: a trained run, a Llama of stories and a reward model (of random weights), images, notes."""
    import transformers

    folder = tmp_path_factory.mktemp("docs")
    for name in ("demo", "seed_0", "seed_1"):
        shutil.copytree(small_run, folder / "runs" / name)
    sizes = {"hidden_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4, "intermediate_size": 172}
    config = transformers.LlamaConfig(vocab_size=4096, max_position_embeddings=512, **sizes)
    for name, kind in (("stories", "ForCausalLM"), ("reward", "ForSequenceClassification")):
        config.num_labels, config.pad_token_id = 1, 0
        getattr(transformers, f"Llama{kind}")(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    noise = np.random.default_rng(0)
    for name in ("cifar10_train.npz", "cifar10_test.npz", "other_images.npz"):
        images, labels = noise.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8), np.arange(40) % 10
        np.savez(folder / name, x=images, y=labels, classes=np.array(list("abcdefghij")))
    vit = transformers.ViTConfig(image_size=32, patch_size=4, num_labels=10, **{**sizes, "num_hidden_layers": 4})
    transformers.ViTForImageClassification(vit).save_pretrained(folder / "vit/model")
    (folder / "notes").mkdir()
    text = "words of many kinds stand in this line, and then there are some more of them " * 20
    rows = [f'{{"text": "The first note, {text}"}}', '{"text": 5}', f'{{"text": "The second note, {text}"}}']
    (folder / "notes/a.jsonl").write_text("\n".join(rows))
    shutil.copytree(ROOT / "docs", folder / "docs")
    written(folder / "model.gguf")
    return folder


@pytest.mark.parametrize("name", [str(page.relative_to(ROOT)) for page in PAGES])
@pytest.mark.filterwarnings("default")
def test_examples_run(
    name: str, folder: Path, tmp_path: Path, monosem: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Page().built:
        pytest.skip("the explorer's page is not built: make page")
    monkeypatch.chdir(shutil.copytree(folder, tmp_path / "here"))
    names: dict[str, Any] = {"__name__": "example"}
    exec(GIVEN + OF_PAGES.get(name, ""), names)
    loggers = dict(LOGGERS)
    try:
        for block in blocks(ROOT / name):
            if block.not_run is None:
                run_block(block, names, monosem)
    finally:
        LOGGERS.clear()
        LOGGERS.update(loggers)


def run_block(block: Block, names: dict[str, Any], monosem: Callable[..., Any]) -> None:
    text = smaller(block.text)
    if block.language == "python":
        try:
            exec(compile(text, block.where, "exec"), names)
        except Exception as error:
            error.add_note(f"in the example at {block.where}")
            raise
    elif block.language == "yaml":
        first = re.match(r"# (\w+\.yaml)\n", text)
        path = Path(first[1] if first else "run.yaml")
        path.write_text(text)
        RunConfig.read(path)
    for command in block.commands():
        program, *words = shlex.split(smaller(command))
        if program == "monosem" and not {"--help", "--list"} & set(words):
            if words[0] == "train" and "vectors=" not in command:
                words[1:1] = [f"--set={key}={value}" for key, value in TRAINING.items()]
            if words[0] == "train" and block.where.startswith(MEASURED_ONCE) and Path("runs/attention").exists():
                words.append("--no-evaluation")
            done = monosem(*words)
            assert done.code == 0, f"{block.where}: {command}: {done.err}"


def smaller(text: str) -> str:
    for pattern, replacement in SMALLER:
        text = re.sub(pattern, replacement, text, flags=re.M)
    return text


def test_what_is_not_run_says_why() -> None:
    every = [block for page in PAGES for block in blocks(page)]
    marks = [block for block in every if block.not_run is not None]
    assert len(marks) <= len(every) / 8
    assert all(len(str(block.not_run).split()) >= 3 for block in marks)
