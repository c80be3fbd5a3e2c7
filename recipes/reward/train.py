"""Train a small reward model on pairs of answers. Can be killed at any moment: the same command goes on.

    python recipes/reward/train.py PAIRS [--model FOLDER] [--work FOLDER] [--epochs N] [--minutes N]

PAIRS are JSON lines with `chosen` and `rejected`, whole dialogues that differ in their last answer, as of Anthropic's
hh-rlhf. The model is the lower two thirds of SmolLM2-135M-Instruct (`recipes/smollm2/model.py` fetches it) with a
scalar head: 16 layers as they are, so that a dictionary of `resid_post.15` of SmolLM2 reads the same activations, and
4 layers trained on -log sigmoid(reward of the chosen answer - reward of the rejected one). What the lower layers say of
every text is computed once and kept in the work folder. The result is `model` there, which transformers and
`monosem.load_model` read; every fifth question is held out, and its accuracy printed.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from pairs import Pair, read_pairs
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForSequenceClassification

import monosem as ms
from monosem import kernels
from monosem.models import SubjectModel

FROZEN, TRAINED = 16, 4
BATCH = 16
LR, WARMUP = 1e-4, 20
PART = 64
"""Pairs in a file of activations."""


def activations(model: SubjectModel, pairs: list[Pair], folder: Path) -> list[Path]:
    """What the frozen layers say of both texts of every pair: files of `x` (texts, pos, d), float16, and `mask`."""
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    start = time.monotonic()
    for first in range(0, len(pairs), PART):
        file = folder / f"{first // PART:04}.safetensors"
        files.append(file)
        if file.exists():
            continue
        texts = [text for pair in pairs[first : first + PART] for text in pair.texts()]
        batch = model.padded(texts)
        order = batch["attention_mask"].sum(1).argsort()
        x = torch.zeros(*batch["input_ids"].shape, model.d_model, dtype=torch.float16)
        for rows in order.split(16):
            length = int(batch["attention_mask"][rows].sum(1).max())
            part = {name: value[rows, :length] for name, value in batch.items()}
            hook = f"resid_post.{FROZEN - 1}"
            x[rows.cpu(), :length] = model.capture(part, [hook])[hook].to(x)
        new = file.with_suffix(".new")
        save_file({"x": x, "mask": batch["attention_mask"]}, new)
        new.replace(file)
        done = {"activations": min(first + PART, len(pairs)), "of": len(pairs)}
        print(json.dumps(done | {"seconds": round(time.monotonic() - start)}), flush=True)
    return files


def of_layers(base: SubjectModel, n: int) -> LlamaConfig:
    """Of a model with so many layers and one number to say."""
    known: dict[str, Any] = base.module.config.to_dict()  # pyright: ignore
    for name in ("id2label", "label2id"):
        known.pop(name, None)
    return LlamaConfig.from_dict(known | {"num_hidden_layers": n, "num_labels": 1})


def build_top(base: SubjectModel) -> LlamaForSequenceClassification:
    """The layers that are trained, as they are in the model, and a head of zeros."""
    top = LlamaForSequenceClassification(of_layers(base, TRAINED))
    layers = base.module.model.layers[FROZEN : FROZEN + TRAINED]  # pyright: ignore
    top.model.layers.load_state_dict(layers.state_dict())  # pyright: ignore
    top.model.norm.load_state_dict(base.module.model.norm.state_dict())  # pyright: ignore
    top.model.embed_tokens = torch.nn.Embedding(1, base.d_model)  # pyright: ignore
    torch.nn.init.zeros_(top.score.weight)
    return top.float().requires_grad_(True)


def rewards(top: LlamaForSequenceClassification, x: Tensor, mask: Tensor) -> Tensor:
    """(texts,) read at the last token of each."""
    length = int(mask.sum(1).max())
    fast = kernels.speed(torch.bfloat16, x.device) > 1
    with torch.autocast("cpu", torch.bfloat16, enabled=fast):
        out = top.model(inputs_embeds=x[:, :length].float(), attention_mask=mask[:, :length]).last_hidden_state
    last = out[torch.arange(len(x)), mask.sum(1) - 1].float()
    return (last @ top.score.weight.T)[:, 0]


@torch.no_grad()
def accuracy(top: LlamaForSequenceClassification, files: list[Path]) -> tuple[float, int]:
    """Share of the pairs whose chosen answer has the higher reward, and how many there are."""
    differences: list[Tensor] = []
    for file in files:
        kept = load_file(file)
        for x, mask in zip(kept["x"].split(2 * BATCH), kept["mask"].split(2 * BATCH), strict=True):
            found = rewards(top, x, mask)
            differences.append(found[::2] - found[1::2])
    difference = torch.cat(differences)
    return float((difference > 0).float().mean()), len(difference)


def save(top: LlamaForSequenceClassification, base: SubjectModel, folder: Path) -> None:
    """All layers together, as one model."""
    whole = LlamaForSequenceClassification(of_layers(base, FROZEN + TRAINED))
    own = base.module.model  # pyright: ignore
    whole.model.embed_tokens.load_state_dict(own.embed_tokens.state_dict())  # pyright: ignore
    for i, layer in enumerate(whole.model.layers):
        source = own.layers[i] if i < FROZEN else top.model.layers[i - FROZEN]  # pyright: ignore
        layer.load_state_dict(source.state_dict())  # pyright: ignore
    whole.model.norm.load_state_dict(top.model.norm.state_dict())
    whole.score.load_state_dict(top.score.state_dict())
    new = folder.with_name("new")
    whole.save_pretrained(new)
    base.tokenizer.save_pretrained(new)
    shutil.rmtree(folder, ignore_errors=True)
    new.replace(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="JSON lines with chosen and rejected dialogues")
    parser.add_argument("--model", type=Path, default=Path(__file__).parent.parent / "smollm2" / "work" / "model")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--limit", type=int, help="so many pairs at most")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop, with a checkpoint, after this long")
    options = parser.parse_args()

    base = ms.load_model(options.model)
    pairs = read_pairs(options.pairs)[: options.limit]
    sides = {"train": [p for p in pairs if not p.held_out], "held_out": [p for p in pairs if p.held_out]}
    fast = kernels.speed(torch.bfloat16, base.device) > 1
    reader = ms.load_model(options.model, dtype=torch.bfloat16) if fast else base
    files = {side: activations(reader, of, options.work / "activations" / side) for side, of in sides.items()}
    torch.manual_seed(0)
    top = build_top(base)
    parameters = [p for name, p in top.named_parameters() if "embed_tokens" not in name]
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=(0.9, 0.98), weight_decay=0.01)
    checkpoint, step = options.work / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        top.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        print(f"going on from step {step:,}", flush=True)

    per_file = PART // BATCH
    n_steps = math.ceil(options.epochs * len(files["train"])) * per_file
    began, running, kept = time.monotonic(), 0.69, {}
    while step < n_steps:
        factor = min(1.0, (step + 1) / WARMUP) * (1 - step / n_steps)
        for group in optimizer.param_groups:
            group["lr"] = LR * factor
        epoch, place = divmod(step, per_file * len(files["train"]))
        order = torch.randperm(len(files["train"]), generator=torch.Generator().manual_seed(epoch)).tolist()
        if not kept or place % per_file == 0:
            kept = load_file(files["train"][order[place // per_file]])
        own = slice(2 * BATCH * (place % per_file), 2 * BATCH * (place % per_file + 1))
        x, mask = kept["x"][own], kept["mask"][own]
        step += 1
        if len(x):
            found = rewards(top, x, mask)
            loss = -F.logsigmoid(found[::2] - found[1::2]).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            running = 0.9 * running + 0.1 * loss.item()
        stop = time.monotonic() - began > 60 * options.minutes
        if step % 20 == 0 or step == n_steps:
            seconds = round(time.monotonic() - began)
            print(json.dumps({"step": step, "of": n_steps, "loss": round(running, 3), "seconds": seconds}), flush=True)
        if step % 40 == 0 or step == n_steps or stop:
            new = checkpoint.with_suffix(".new")
            torch.save({"model": top.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, new)
            new.replace(checkpoint)
        if stop:
            print(f"stopped at step {step:,} of {n_steps:,}; the same command goes on", flush=True)
            return
    right, n = accuracy(top, files["held_out"])
    print(f"held-out pairs: {right:.1%} of {n} right", flush=True)
    save(top, base, options.work / "model")


if __name__ == "__main__":
    main()
