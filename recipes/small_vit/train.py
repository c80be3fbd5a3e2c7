"""Train a small vision transformer on labelled images. Can be killed at any moment: the same command goes on.

    python recipes/small_vit/train.py IMAGES [--test IMAGES] [--epochs N] [--work FOLDER]

IMAGES is what `monosem.data.Images` reads, with labels: a folder with a subfolder for each class, an IDX file as in
MNIST, or an .npz of one array of images and one of labels (`classes`, if it is there, names them). The result is a
folder `model` in the work folder that transformers, and `monosem.load_model`, can read.

Muon for the matrices of the blocks, AdamW for the rest; the learning rate falls to zero along a half cosine. An image
is flipped at random (not with --no-flip) and shifted by up to an eighth of its size. Everything is seeded.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.vit.configuration_vit import ViTConfig
from transformers.models.vit.modeling_vit import ViTForImageClassification

from monosem.data import Images
from monosem.sae.metadata import PixelFormat

BATCH = 128
MUON_LR, ADAM_LR, WARMUP = 4e-3, 2e-3, 100


def build_model(size: int, channels: int, classes: list[str]) -> ViTForImageClassification:
    """4 layers of width 64; patches of 4 x 4 pixels."""
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=size,
        patch_size=4,
        num_channels=channels,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
    )
    return ViTForImageClassification(config)


def read(source: str, wanted: PixelFormat) -> tuple[Tensor, Tensor, list[str]]:
    """All images (images, channels, height, width), their labels, and the names of these."""
    images = Images(source, wanted)
    if images.labels is None:
        raise SystemExit(f"{source} has no labels to learn")
    batch = images.read(0, len(images))
    labels = torch.from_numpy(np.asarray(batch.labels, dtype=np.int64))
    readable = ~batch.unreadable
    names = images.classes or [str(i) for i in range(int(labels.max()) + 1)]
    return batch.pixels[readable], labels[readable], names


def varied(pixels: Tensor, random: torch.Generator, flip: bool) -> Tensor:
    """Each image shifted and perhaps flipped; what comes in from outside is the edge repeated."""
    n, _, height, width = pixels.shape
    most = height // 8
    down, across = torch.randint(-most, most + 1, (2, n), generator=random)
    rows = (torch.arange(height) + down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width) + across[:, None]).clamp(0, width - 1)
    if flip:
        columns = torch.where(torch.rand(n, 1, generator=random) < 0.5, columns.flip(1), columns)
    return pixels[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def build_optimizers(model: ViTForImageClassification) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layer" in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=MUON_LR, momentum=0.95, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]


@torch.no_grad()
def accuracy(model: ViTForImageClassification, pixels: Tensor, labels: Tensor) -> float:
    model.eval()
    right = [(model(x).logits.argmax(-1) == y).sum() for x, y in zip(pixels.split(500), labels.split(500), strict=True)]
    return torch.stack(right).sum().item() / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="labelled images to learn from")
    parser.add_argument("--test", help="labelled images to measure on, at the end")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images, a multiple of 4")
    parser.add_argument("--channels", type=int, default=3, choices=(1, 3))
    parser.add_argument("--epochs", type=float, default=10, help="times over the images")
    parser.add_argument("--no-flip", dest="flip", action="store_false", help="for digits and letters")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop, with a checkpoint, after this long")
    options = parser.parse_args()

    wanted = PixelFormat(channels=options.channels, height=options.size, width=options.size)
    pixels, labels, classes = read(options.images, wanted)
    model = build_model(options.size, options.channels, classes)
    optimizers = build_optimizers(model)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    options.work.mkdir(parents=True, exist_ok=True)
    checkpoint, step, seconds = options.work / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, seconds = state["step"], state["seconds"]
        print(f"going on from step {step:,}", flush=True)

    n_steps = math.ceil(options.epochs * len(pixels) / BATCH)
    model.train()
    began, before, running = time.monotonic(), seconds, None
    while step < n_steps:
        factor = min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / n_steps))
        for optimizer, own in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, own, strict=True):
                group["lr"] = peak * factor
        random = torch.Generator().manual_seed(step)  # so that a run that was killed draws the same
        rows = torch.randint(len(pixels), (BATCH,), generator=random)
        loss = F.cross_entropy(model(varied(pixels[rows], random, options.flip)).logits, labels[rows])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        seconds = before + time.monotonic() - began
        stop = time.monotonic() - began > 60 * options.minutes
        if step % 100 == 0 or step == n_steps:
            print(
                json.dumps({"step": step, "of": n_steps, "loss": round(running, 3), "seconds": round(seconds)}),
                flush=True,
            )
        if step % 200 == 0 or step == n_steps or stop:
            states = [optimizer.state_dict() for optimizer in optimizers]
            new = checkpoint.with_suffix(".new")
            torch.save({"model": model.state_dict(), "optimizers": states, "step": step, "seconds": seconds}, new)
            new.replace(checkpoint)
        if stop:
            print(f"stopped at step {step:,} of {n_steps:,}; the same command goes on", flush=True)
            return
    model.save_pretrained(options.work / "model")
    size = sum(p.numel() for p in model.parameters())
    print(f"{options.work / 'model'}: {size:,} parameters, {seconds / 60:.1f} minutes")
    if options.test:
        print(f"accuracy on {options.test}: {accuracy(model, *read(options.test, wanted)[:2]):.1%}")


if __name__ == "__main__":
    main()
