"""Train a small transformer to play Othello on 6 x 6 squares. Can be killed at any moment: the same command goes on.

    python recipes/othello/train.py [--steps N] [--minutes M] [--work FOLDER]

Every step is of new games, drawn by its number, so that nothing is seen twice and a run that goes on is the run that
was stopped. Under random play all legal moves are equally likely, so the model learns, at each position, that whole
distribution (cross-entropy against it) instead of the one move that was drawn: the same optimum, with less noise.
Nothing but moves is ever shown to it: the board it has to find by itself.

Muon for the matrices of the blocks, AdamW for the rest; the learning rate is constant and falls linearly to zero over
the last `--cooldown` of `--steps`, so a later call with fewer steps ends the run early. At the end the model is written
in half precision to a folder `model` in the work folder, with its tokenizer and its figures, for `ms.load_model`.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from monosem.synthetic.othello import END, LONGEST, N_TOKENS, NAMES, SQUARES, OthelloGames, othello_games

POSITIONS = 36  # tokens a game in training: 99.5 % of games are not longer
BATCH = 128  # games a step
WIDTH, LAYERS = 128, 5  # a million weights
HELD_OUT_GAMES = 2048  # for the figures at the end
TRAINING, HELD_OUT = 0, 1  # first number of the seeds of games


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# A model of Othello on 6 x 6 squares

A small GPT-2 that has seen the moves of random games and nothing else; the board it had to find by itself. It is a
subject to study, in which what there is to know is known. It does not play well: it says what is legal.

| | |
|---|---|
| architecture | GPT-2: {layers} layers, width {width}, 4 heads, ReLU, {longest} positions, tied embeddings |
| parameters | {parameters:,}, stored in float16, read back as float32 |
| tokens | {tokens}: 36 squares, row by row from a1 to f6; `pass`; `end`, before a game and after it |
| games seen | {games:,}, each once, moves drawn evenly from the legal ones |
| training | Muon and AdamW, {batch} games a step, {steps:,} steps, {minutes:.0f} minutes on a busy CPU core |
| learned | at each position the even distribution over all legal moves, not the one move that was drawn |
| licence | Apache-2.0 |

On {held_out_games:,} games never trained on, at all positions at which something follows:

| | |
|---|---|
| legal moves: the likeliest next token is legal, where there is a move to make | {legal_moves:.2%} |
| the same at all positions, those where a pass or the end follows too | {legal_share:.2%} |
| legal mass: probability of all legal tokens together | {legal_mass:.2%} |
| all legal: each legal token is likelier than each that is not | {all_legal:.2%} |
| divergence (KL) from the even distribution over legal tokens | {divergence:.4f} nats |

    import monosem as ms
    model, games = ms.load_model("othello"), ms.othello_games(100)

Contexts begin with `end` (id 37). Made by `recipes/othello/train.py`.
"""


def build_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=N_TOKENS,
        n_positions=LONGEST,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=4,
        activation_function="relu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=END,
        eos_token_id=END,
    )
    return GPT2LMHeadModel(config)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word is a move: "c2 b4 ...", with `end` before a game."""
    tokenizer = Tokenizer(models.WordLevel({name: token for token, name in enumerate(NAMES)}, unk_token="end"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="end $A", special_tokens=[("end", END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="end", eos_token="end", model_max_length=LONGEST
    )


def build_optimizers(model: GPT2LMHeadModel) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=4e-3, momentum=0.95, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]


def lr_factor(step: int, n_steps: int, cooldown: float, warmup: int = 100) -> float:
    return max(0.0, min(1.0, (step + 1) / warmup, (n_steps - step) / max(1, round(cooldown * n_steps))))


def log_odds(model: GPT2LMHeadModel, games: OthelloGames) -> Tensor:
    """Log probabilities of the next token, of each position at which there is one: (rows, 38)."""
    logits = model(torch.from_numpy(games.tokens), use_cache=False).logits
    return logits[torch.from_numpy(games.playing)].log_softmax(-1)


def loss_of(model: GPT2LMHeadModel, games: OthelloGames) -> Tensor:
    """Kullback-Leibler divergence from what may come next, all of it equally likely, to what the model says."""
    legal = torch.from_numpy(games.legal[games.playing]).float()
    wanted = legal / legal.sum(-1, keepdim=True)
    return F.kl_div(log_odds(model, games), wanted, reduction="batchmean")


@torch.no_grad()
def measured(model: GPT2LMHeadModel, n_games: int, positions: int = POSITIONS) -> dict[str, float]:
    """Figures on games never trained on.

    legal_share: of the positions, those whose likeliest next token is legal; legal_moves: the same of those at which
    there is a move, so without those where a pass or the end follows; legal_mass: probability of all legal tokens
    together; all_legal: share of positions at which each legal one is likelier than each that is not.
    """
    model.eval()
    rows: list[tuple[Tensor, Tensor]] = []
    for part in range(-(-n_games // BATCH)):
        games = othello_games(min(BATCH, n_games - part * BATCH), (HELD_OUT, part), positions)
        rows.append((log_odds(model, games), torch.from_numpy(games.legal[games.playing])))
    odds, legal = (torch.cat(column) for column in zip(*rows, strict=True))
    model.train()
    least, most = (odds.masked_fill(~legal, torch.inf).amin(-1), odds.masked_fill(legal, -torch.inf).amax(-1))
    wanted = legal.float() / legal.sum(-1, keepdim=True)
    right = legal.gather(1, odds.argmax(-1, keepdim=True))[:, 0].float()
    figures = {
        "legal_share": right.mean(),
        "legal_moves": right[legal[:, :SQUARES].any(-1)].mean(),
        "legal_mass": (odds.exp() * legal).sum(-1).mean(),
        "all_legal": (least > most).float().mean(),
        "divergence": F.kl_div(odds, wanted, reduction="batchmean"),
    }
    return {name: round(value.item(), 5) for name, value in figures.items()}


def save(path: Path, state: dict) -> None:
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def export(model: GPT2LMHeadModel, folder: Path, step: int, seconds: float) -> None:
    """The model in half precision as transformers reads it, measured as it was written."""
    folder.mkdir(parents=True, exist_ok=True)
    half = build_model().half()
    half.load_state_dict(model.state_dict())
    half.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    build_tokenizer().save_pretrained(folder)
    written = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    figures = {
        "steps": step,
        "games": step * BATCH,
        "seconds": round(seconds),
        "held_out_games": HELD_OUT_GAMES,
        **measured(written, HELD_OUT_GAMES, LONGEST),
    }
    (folder / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n")
    sizes = {"layers": LAYERS, "width": WIDTH, "longest": LONGEST, "tokens": N_TOKENS, "batch": BATCH}
    sizes |= {"parameters": written.num_parameters(), "minutes": seconds / 60}
    (folder / "README.md").write_text(CARD.format(**sizes, **figures))
    print(json.dumps(figures), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--steps", type=int, default=5620, help=f"of {BATCH} games, in the whole run")
    parser.add_argument("--cooldown", type=float, default=0.66, help="share of the run in which the rate falls to zero")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop, with a checkpoint, after this long")
    parser.add_argument("--checkpoint-every", type=int, default=100, help="steps")
    options = parser.parse_args()

    options.work.mkdir(parents=True, exist_ok=True)
    model, checkpoint, step, before = build_model(), options.work / "checkpoint.pt", 0, 0.0
    optimizers = build_optimizers(model)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, before = state["step"], state["seconds"]
        print(f"going on from step {step:,}", flush=True)

    start, running = time.monotonic(), list[float]()
    while step < options.steps:
        factor = lr_factor(step, options.steps, options.cooldown)
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        loss = loss_of(model, othello_games(BATCH, (TRAINING, step), POSITIONS))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step, running = step + 1, [*running[-49:], loss.item()]
        seconds = before + time.monotonic() - start
        stop = time.monotonic() - start > 60 * options.minutes
        if step % options.checkpoint_every == 0 or step == options.steps or stop:
            states = [optimizer.state_dict() for optimizer in optimizers]
            save(checkpoint, {"model": model.state_dict(), "optimizers": states, "step": step, "seconds": seconds})
            line = {"step": step, "loss": round(float(np.mean(running)), 4), "lr": round(factor, 3)}
            line |= {"seconds": round(seconds), **measured(model, BATCH)}
            print(json.dumps(line), flush=True)
            with (options.work / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        if stop:
            print(f"stopped at step {step:,} of {options.steps:,}; the same command goes on", flush=True)
            return
    export(model, options.work / "model", step, before + time.monotonic() - start)


if __name__ == "__main__":
    main()
