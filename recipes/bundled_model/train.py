"""Train the bundled language model. Can be killed at any moment: the same command goes on from the last checkpoint.

    python recipes/bundled_model/train.py [--tokens N] [--minutes M] [--work FOLDER]
    python recipes/bundled_model/train.py --start FOLDER --repeats SHARE [...]

The second form trains an exported model on, with contexts among the others in which something is said again and again:
in them induction is worth learning. Its checkpoint is a file of its own, from_STEP.pt.

Muon for the matrices of the blocks, Adam for embeddings, norms and biases; the learning rate is constant and falls
linearly to zero over the last `--cooldown` of `--tokens`, so a later call with fewer tokens ends the run early.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel

from monosem import kernels

CONTEXT = 256
BATCH = 32  # contexts a step
PERIOD = (20, 127)  # tokens of what is said again; the longest is said twice


def build_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=4096,
        n_positions=CONTEXT,
        n_embd=256,
        n_layer=4,
        n_head=4,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def build_optimizers(model: GPT2LMHeadModel, device: str) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=4e-3, momentum=0.95, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    optimizers: list[torch.optim.Optimizer] = [muon, adam]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def lr_factor(step: int, n_steps: int, cooldown: float, warmup: int = 100) -> float:
    """On the learning rate, at a step of this run's `n_steps`."""
    to_go = (n_steps - step) / max(1, round(cooldown * n_steps))
    return max(0.0, min(1.0, (step + 1) / warmup, to_go))


def contexts(tokens: np.ndarray, step: int, order: np.ndarray) -> torch.Tensor:
    """(BATCH, CONTEXT + 1): the end-of-text token, then a window of the packed stream."""
    windows = order[np.arange(step * BATCH, (step + 1) * BATCH) % len(order)]
    body = np.stack([tokens[w * CONTEXT : (w + 1) * CONTEXT] for w in windows]).astype(np.int64)
    return torch.from_numpy(np.concatenate([np.zeros((BATCH, 1), np.int64), body], axis=1))


def say_again(batch: torch.Tensor, step: int, share: float, common: np.ndarray) -> torch.Tensor:
    """The contexts, a share of them with a passage repeated to their end; the same for the same step.

    The passage is text or evenly drawn common tokens, of `PERIOD` tokens. Half the time text stands before it; else the
    context begins anywhere in it.
    """
    rng, contexts = np.random.default_rng([1, step]), batch.numpy().copy()
    for context in (contexts[row] for row in np.flatnonzero(rng.random(len(contexts)) < share)):
        period = int(rng.integers(PERIOD[0], PERIOD[1] + 1))
        passage = rng.choice(common, period) if rng.random() < 0.5 else context[-period:].copy()
        if rng.random() < 0.5:
            first, phase = int(rng.integers(1, CONTEXT + 2 - 2 * period)), 0
        else:
            first, phase = 1, int(rng.integers(period))
        context[first:] = passage[(np.arange(CONTEXT + 1 - first) + phase) % period]
    return torch.from_numpy(contexts)


def loss_of(model: GPT2LMHeadModel, batch: torch.Tensor) -> torch.Tensor:
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=kernels.fast_bfloat16(batch.device)):
        hidden = model.transformer(batch[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden)
    return F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def save(path: Path, state: dict) -> None:
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--tokens", type=float, default=38e6, help="tokens in the whole run")
    parser.add_argument(
        "--cooldown", type=float, default=0.3, help="share of the run over which the rate falls to zero"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop, with a checkpoint, after this long")
    parser.add_argument("--start", type=Path, help="a folder of evaluate.py, whose weights to train on")
    parser.add_argument("--repeats", type=float, default=0.0, help="share of contexts that repeat themselves")
    parser.add_argument("--checkpoint-every", type=int, default=200, help="steps")
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens = np.load(options.work / "train.npy", mmap_mode="r")
    order = np.random.default_rng(0).permutation(len(tokens) // CONTEXT)
    model = build_model()
    torch.nn.Module.to(model, device)
    optimizers = build_optimizers(model, device)
    common = np.flatnonzero(np.bincount(tokens, minlength=model.config.vocab_size) >= 100)
    common = common[common != 0]
    first_step, repeats_from, seconds_before = 0, None, 0.0
    if options.start:
        before = json.loads((options.start / "evaluation.json").read_text())
        first_step, seconds_before = before["steps"], before["seconds"]
        repeats_from = before["repeats_from"]
    if options.repeats and repeats_from is None:
        repeats_from = first_step
    step, checkpoint = first_step, options.work / (f"from_{first_step}.pt" if options.start else "checkpoint.pt")
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, first_step, seconds_before = state["step"], state["first_step"], state["seconds"]
        repeats_from = state["repeats_from"]
        print(f"going on from step {step:,}", flush=True)
    elif options.start:
        weights = GPT2LMHeadModel.from_pretrained(options.start, dtype=torch.float32).state_dict()
        model.load_state_dict(weights)
        print(f"training {options.start} on from step {step:,}", flush=True)

    n_steps = int(options.tokens / (BATCH * CONTEXT))
    start, running = time.monotonic(), None
    while step < n_steps:
        factor = lr_factor(step - first_step, n_steps - first_step, options.cooldown)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
        batch = say_again(contexts(tokens, step, order), step, options.repeats, common)
        loss = loss_of(model, batch.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        seconds = seconds_before + time.monotonic() - start
        stop = time.monotonic() - start > 60 * options.minutes
        if step % 50 == 0 or step == n_steps:
            seen = step * BATCH * CONTEXT
            line = {
                "step": step,
                "tokens": seen,
                "loss": round(running, 4),
                "lr": round(factor, 3),
                "seconds": round(seconds),
            }
            print(json.dumps(line), flush=True)
            with (options.work / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        if step % options.checkpoint_every == 0 or step == n_steps or stop:
            optimizer_states = [optimizer.state_dict() for optimizer in optimizers]
            save(
                checkpoint,
                {
                    "model": model.state_dict(),
                    "optimizers": optimizer_states,
                    "step": step,
                    "first_step": first_step,
                    "repeats_from": repeats_from,
                    "seconds": seconds,
                },
            )
        if stop:
            print(f"stopped at step {step:,} of {n_steps:,}; the same command goes on", flush=True)
            return


if __name__ == "__main__":
    main()
