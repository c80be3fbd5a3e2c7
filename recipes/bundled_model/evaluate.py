"""Export the trained model, measure it on the held-out text beside n-gram models, and write its card.

    python recipes/bundled_model/evaluate.py [--checkpoint NAME] [--order N ...] [--work FOLDER] [--out FOLDER]

Reads from the work folder what `prepare.py` and `train.py` left there. Written to the out folder: a Hugging Face model
(weights in float16, read back as float32) with its tokenizer, `evaluation.json`, and README.md, the model card.
Everything is measured on the weights as exported.

Held-out loss: the stream of each source is cut into windows of 256 tokens, each behind one end-of-text token, so every
token is scored once, with 1 to 256 tokens before it. The n-gram models are fitted on all of train.npy and score the
same tokens, with the tokens before them in the stream. Bits a byte are all bits, those of the end-of-text tokens too,
over the bytes of the text. What the n-gram models give is kept in `ngram.json` of the work folder until tokens change.
"""

import argparse
import json
import math
import random
import shutil
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prepare import END_OF_TEXT, SOURCES, TRAIN_ONLY
from torch.nn import functional as F
from train import BATCH, CONTEXT, build_model
from transformers.generation.configuration_utils import GenerationConfig
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

DOCUMENTS = {"wikipedia": 9234, "books": 654, "wikinews": 7955, "tinystories": 1601, "speeches": 124}  # in train.npy
LICENCES = {
    "wikipedia": "English Wikipedia, 2015: CC BY-SA 3.0",
    "books": "books of 1929 or before: public domain",
    "wikinews": "English Wikinews: CC BY 2.5",
    "tinystories": "TinyStories (Eldan and Li, 2023): CDLA-Sharing-1.0",
    "speeches": "inaugural and State of the Union addresses of the United States: public domain",
}
PROMPTS = ["Once upon a time, there was", "The city of", "The president said on Tuesday that", '"My dear sir,"']
MODEL = "this model"
SAID_TWICE = (20, 60, (CONTEXT - 1) // 2)  # tokens; the last fills a context


# The model, as exported


def export(state: dict[str, torch.Tensor], tokenizer_file: Path, out: Path) -> None:
    """The folder that `GPT2LMHeadModel.from_pretrained` and `AutoTokenizer.from_pretrained` read."""
    model = build_model()
    model.load_state_dict(state)
    model.half()
    assert all(p.isfinite().all() for p in model.parameters()), "a weight does not fit float16"
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    model.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = "float32"  # what from_pretrained makes of the weights: float16 would be slow and coarse on a CPU
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "model.safetensors").chmod(0o644)  # it is written for its owner alone
    shutil.copyfile(tokenizer_file, out / "tokenizer.json")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


@torch.inference_mode()
def score(model: GPT2LMHeadModel, sequences: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every token of (n, 1 + length) sequences but the first: the loss in nats, and whether it was the likeliest."""
    losses, hits = [], []
    for batch in sequences.split(BATCH):
        inputs, targets = batch[:, :-1].to(model.device), batch[:, 1:].to(model.device)
        logits = model(inputs, use_cache=False).logits.float()
        losses.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets).cpu())
        hits.append((logits.argmax(-1) == targets).cpu())
    return torch.cat(losses), torch.cat(hits)


def stream_losses(model: GPT2LMHeadModel, stream: np.ndarray) -> np.ndarray:
    """The loss of every token of a stream, in nats; token i has i % CONTEXT tokens and one end-of-text before it."""
    windows = np.pad(stream, (0, -len(stream) % CONTEXT)).reshape(-1, CONTEXT).astype(np.int64)
    losses, _ = score(model, F.pad(torch.from_numpy(windows), (1, 0)))
    return losses.double().numpy().ravel()[: len(stream)]


def by_position(losses: list[np.ndarray]) -> dict[str, float]:
    """Mean loss against the number of tokens before, the leading end-of-text token among them."""
    before = np.concatenate([np.arange(len(part)) % CONTEXT + 1 for part in losses])
    every = np.concatenate(losses)
    edges = [1, 2, 4, 8, 16, 32, 64, 128, CONTEXT + 1]
    buckets = {}
    for low, high in pairwise(edges):
        name = str(low) if high == low + 1 else f"{low}-{high - 1}"
        buckets[name] = float(every[(before >= low) & (before < high)].mean())
    return buckets


def induction(model: GPT2LMHeadModel, train: np.ndarray, n: int = 128) -> dict[str, dict[str, float]]:
    """Say n sequences of random tokens twice: what is the second time worth? By the number of tokens said.

    Tokens are drawn evenly from those seen 100 times or more in training; the first of each half is not scored.
    """
    common = np.flatnonzero(np.bincount(train, minlength=model.config.vocab_size) >= 100)
    rng, found = np.random.default_rng(0), {}
    for length in SAID_TWICE:
        half = rng.choice(common[common != 0], size=(n, length))
        sequences = torch.from_numpy(np.concatenate([np.zeros((n, 1), np.int64), half, half], axis=1))
        losses, hits = score(model, sequences)
        first, second = slice(1, length), slice(length + 1, 2 * length)
        found[str(length)] = {
            "first_loss": losses[:, first].mean().item(),
            "second_loss": losses[:, second].mean().item(),
            "second_accuracy": hits[:, second].float().mean().item(),
            **strongest_head(model, sequences[:16], length),
        }
    return found


@torch.inference_mode()
def strongest_head(model: GPT2LMHeadModel, sequences: torch.Tensor, length: int) -> dict[str, Any]:
    """The head that looks most at the token behind the one before it said, and its mean attention to that."""
    model.set_attn_implementation("eager")
    patterns = model(sequences[:, :-1].to(model.device), use_cache=False, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    looks = torch.stack([pattern.diagonal(1 - length, -2, -1)[..., 2:].mean((0, -1)) for pattern in patterns])
    layer, head = divmod(int(looks.argmax()), looks.shape[1])
    return {"head": f"{layer}.{head}", "attention": looks.max().item()}


def sample(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    torch.manual_seed(0)
    inputs = torch.tensor([[0, *tokenizer.encode(prompt)]], device=model.device)
    output = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
        inputs, attention_mask=torch.ones_like(inputs), do_sample=True, temperature=0.8, top_k=40, max_new_tokens=80
    )
    return str(tokenizer.decode(output[0], skip_special_tokens=True))


# The n-gram model beside it


class KneserNey:
    """Interpolated Kneser-Ney with three discounts an order (Chen and Goodman, 1999).

    With h a history, h' the same without its oldest token, c the count of (h, w) -- for all but the highest order, the
    number of tokens seen before it -- and D(c) the discount of that count, D(0) = 0:

        P(w | h) = (c(h, w) - D(c(h, w))) / c(h, .) + P(w | h') * (sum over v of D(c(h, v))) / c(h, .)

    and P(w | h') where h was never seen; below the single tokens P is uniform. N-grams are integers in base
    vocab_size, so vocab_size ** order must fit 63 bits.
    """

    def __init__(self, tokens: np.ndarray, order: int, vocab_size: int) -> None:
        assert vocab_size**order < 2**63
        self.order, self.vocab_size = order, vocab_size
        grams = self.pack(np.lib.stride_tricks.sliding_window_view(tokens, order), order)
        self.levels: dict[int, tuple[np.ndarray, ...]] = {}
        for k in range(order, 0, -1):
            grams, counts = np.unique(grams, return_counts=True)
            n = np.bincount(np.minimum(counts, 5), minlength=6)
            discounts = np.array([0.0, 0.5, 0.5, 0.5])
            if n[1:5].all():
                y = n[1] / (n[1] + 2 * n[2])
                discounts[1:] = np.clip([i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3)], 0.0, [1, 2, 3])
            discount = discounts[np.minimum(counts, 3)]
            starts = np.flatnonzero(np.diff(grams // vocab_size, prepend=-1))
            totals = np.add.reduceat(counts, starts)
            freed = np.add.reduceat(discount, starts) / totals
            self.levels[k] = grams, counts - discount, grams[starts] // vocab_size, totals, freed
            grams = grams % vocab_size ** (k - 1)

    def pack(self, windows: np.ndarray, k: int) -> np.ndarray:
        """The last k tokens of (n, order) windows as integers, (n,)."""
        packed = np.zeros(len(windows), np.int64)
        for column in range(windows.shape[1] - k, windows.shape[1]):
            packed = packed * self.vocab_size + windows[:, column]
        return packed

    def probabilities(self, windows: np.ndarray) -> np.ndarray:
        """P(last token | the others), for (n, order) windows."""
        result = np.full(len(windows), 1 / self.vocab_size)
        for k in range(1, self.order + 1):
            grams, discounted, histories, totals, freed = self.levels[k]
            packed = self.pack(windows, k)
            gram, seen = find(grams, packed)
            history, known = find(histories, packed // self.vocab_size)
            higher = np.where(seen, discounted[gram], 0.0) / totals[history] + freed[history] * result
            result = np.where(known, higher, result)
        return result

    def windows(self, stream: np.ndarray) -> np.ndarray:
        """(len(stream), order): every token behind those before it; end-of-text before the first."""
        return np.lib.stride_tricks.sliding_window_view(np.pad(stream, (self.order - 1, 0)), self.order)

    def check(self, stream: np.ndarray, n: int = 8) -> float:
        """How far from 1 the sum over the vocabulary gets, for n histories of the stream and n random ones."""
        rng = np.random.default_rng(0)
        histories = rng.choice(self.windows(stream), n)[:, :-1]
        histories = np.concatenate([histories, rng.integers(self.vocab_size, size=histories.shape)])
        vocabulary = np.arange(self.vocab_size)[:, None]
        errors = []
        for history in histories:
            windows = np.concatenate([np.tile(history, (self.vocab_size, 1)), vocabulary], axis=1)
            errors.append(abs(self.probabilities(windows).sum() - 1))
        return float(max(errors))


def find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted value is among the sorted keys, and whether it is there at all."""
    index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return index, keys[index] == wanted


def ngram_nats(
    order: int, train: np.ndarray, held_out: dict[str, np.ndarray], vocab_size: int, cache: Path
) -> dict[str, float]:
    """Nats for all of each source, from the cache if the tokens are the same."""
    known = json.loads(cache.read_text()) if cache.exists() else {}
    tokens_id = [zlib.crc32(tokens.tobytes()) for tokens in [train, *held_out.values()]]
    if known.get(str(order), {}).get("tokens_id") != tokens_id:
        print(f"fitting a {order}-gram model to {len(train):,} tokens", flush=True)
        model = KneserNey(train, order, vocab_size)
        error = model.check(held_out["wikipedia"])
        print(f"its probabilities sum to 1 within {error:.1e}", flush=True)
        assert error < 1e-9
        nats = {source: float(-np.log(model.probabilities(model.windows(s))).sum()) for source, s in held_out.items()}
        known[str(order)] = {"tokens_id": tokens_id, "sum_error": error, "nats": nats}
        cache.write_text(json.dumps(known, indent=2) + "\n")
    return known[str(order)]["nats"]


# Tables and the card


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown, padded so that it reads well as it is too."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def train_tokens(train: np.ndarray) -> dict[str, int]:
    """Tokens a source, by laying prepare.py's shuffle over the documents again."""
    labels = [source for source in [*SOURCES, *TRAIN_ONLY] for _ in range(DOCUMENTS[source])]
    random.Random(0).shuffle(labels)
    starts = np.flatnonzero(train == 0)
    assert len(starts) == len(labels), "train.npy holds other documents than DOCUMENTS says"
    lengths = np.diff(starts, append=len(train))
    return {source: int(lengths[np.array(labels) == source].sum()) for source in DOCUMENTS}


def rates(nats: dict[str, float], tokens: dict[str, int], n_bytes: dict[str, int]) -> dict[str, dict[str, float]]:
    """Nats a token and bits a byte, by source and over all."""
    result = {}
    for name, group in [*((source, [source]) for source in nats), ("all", list(nats))]:
        total = sum(nats[source] for source in group)
        bits = total / math.log(2)
        per_token = total / sum(tokens[source] for source in group)
        result[name] = {"nats_per_token": per_token, "bits_per_byte": bits / sum(n_bytes[source] for source in group)}
    return result


def tables_of(report: dict) -> dict[str, str]:
    """The report's figures as tables, by name."""
    held_out, rivals = report["held_out"], [name for name in report["held_out"] if name != MODEL]
    rows = []
    for source in [*SOURCES, "all"]:
        ours = held_out[MODEL][source]
        cells = [f"{report['held_out_tokens'][source]:,}", f"{report['held_out_bytes'][source]:,}"]
        cells += [f"{ours['nats_per_token']:.3f}", f"{ours['bits_per_byte']:.3f}"]
        for rival in rivals:
            theirs = held_out[rival][source]
            fewer = 1 - ours["bits_per_byte"] / theirs["bits_per_byte"]
            cells += [f"{theirs['nats_per_token']:.3f}", f"{theirs['bits_per_byte']:.3f}", f"{fewer:.1%}"]
        rows.append([source, *cells])
    header = ["source", "tokens", "bytes", "nats/token", "bits/byte"]
    for rival in rivals:
        header += [f"{rival}: nats/token", "bits/byte", "this model has fewer by"]
    positions = report["loss_by_position"]
    twice = []
    for length, of in report["induction"].items():
        losses = [f"{of[name]:.3f}" for name in ("first_loss", "second_loss")]
        twice.append([length, *losses, f"{of['second_accuracy']:.1%}", of["head"], f"{of['attention']:.2f}"])
    data = [[source, LICENCES[source], f"{n:,}"] for source, n in report["train_tokens"].items()]
    data.append(["all", "", f"{sum(report['train_tokens'].values()):,}"])
    return {
        "data": table(["source", "what, and its licence", "tokens"], data),
        "held_out": table(header, rows),
        "position": table(["tokens before", *positions], [["nats/token", *(f"{x:.3f}" for x in positions.values())]]),
        "induction": table(
            ["tokens", "loss, first time", "loss, second time", "right, second time", "head", "its attention"], twice
        ),
    }


TRAINED_ON = """\
| repetition | from step {repeats_from:,} on, in a share of the contexts a passage is said again and again |
"""
CARD = """---
language: en
license: cc-by-sa-3.0
library_name: transformers
pipeline_tag: text-generation
---

# The bundled language model

A small GPT-2 trained from scratch on public text, so that everything in monosem works at once and without a network. It
is a subject to study: real text, real features, small enough for a laptop. It is not an assistant and knows little.

| | |
|---|---|
| architecture | GPT-2: {n_layer} layers, width {n_embd}, {n_head} heads, {n_positions} positions, tied embeddings |
| parameters | {n_parameters:,} ({n_block_parameters:,} in the blocks), stored in float16, read back as float32 |
| tokenizer | byte-level BPE, {vocab_size:,} tokens, trained on the same text; {bytes_per_token:.2f} bytes a token |
| tokens seen | {tokens_seen:,}, {epochs:.2f} times the training text |
| training | Muon and Adam, {batch} contexts of {context} tokens a step, {steps:,} steps, {hours:.1f} hours |
{trained_on}| licence | CC BY-SA 3.0 |

    from transformers import AutoTokenizer, GPT2LMHeadModel
    model, tokenizer = GPT2LMHeadModel.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)

Every context in training began with `<|endoftext|>` (id 0), which also stood before each document. The tokenizer does
not add it; put it first yourself, or the first positions will be far from what the model knows.

## Data

{data}

The code that made the model is under Apache-2.0. The model was trained on texts of the licences above, CC BY-SA 3.0
among them; its weights are released under CC BY-SA 3.0, to honour share-alike. Credit for the texts: the contributors
of English Wikipedia and of English Wikinews, the authors of the books, Ronen Eldan and Yuanzhi Li for TinyStories.

## Held-out loss

Documents kept apart before training (the books by author). Every token is scored once, with 1 to {context} tokens
before it. On the same tokens: {rivals}, fitted on the training text above (interpolated Kneser-Ney, three discounts an
order).

{held_out}

By the number of tokens before the one predicted:

{position}

Random tokens said twice in a context, the test of induction (chance is {chance:.2f} nats). Beside it the head, as
layer.head, that looks most at the token which followed the same token the first time, and its mean attention to that:

{induction}

## Samples

Temperature 0.8, top 40, seed 0; the prompt in bold.

{samples}

## Limits

English only, and nothing after 2015. It makes up what it says. It was not tuned to follow instructions or to be safe;
old books and news brought in the views and the words of their time. A context over {context} tokens is an error.

## How to make it again

    python recipes/bundled_model/prepare.py TEXT_FOLDER
    python recipes/bundled_model/train.py --tokens 25e6
    python recipes/bundled_model/evaluate.py --out FOLDER
    python recipes/bundled_model/train.py --start FOLDER --repeats 0.3 --tokens 36e6 --cooldown 0.5
    python recipes/bundled_model/evaluate.py --checkpoint from_3051.pt --out FOLDER
    python recipes/bundled_model/train.py --start FOLDER --repeats 0.06 --tokens 46e6 --cooldown 1
    python recipes/bundled_model/evaluate.py --checkpoint from_4394.pt
"""


def card(report: dict) -> str:
    rivals = [name for name in report["held_out"] if name != MODEL]
    quoted = []
    for prompt, text in zip(PROMPTS, report["samples"], strict=True):
        quoted.append("> " + f"**{prompt}**{text.removeprefix(prompt)}".strip().replace("\n", "\n> "))
    return CARD.format(
        **report["architecture"],
        **tables_of(report),
        bytes_per_token=report["held_out_bytes"]["all"] / report["held_out_tokens"]["all"],
        tokens_seen=report["tokens_seen"],
        epochs=report["tokens_seen"] / sum(report["train_tokens"].values()),
        batch=BATCH,
        context=CONTEXT,
        steps=report["steps"],
        hours=report["seconds"] / 3600,
        trained_on=TRAINED_ON.format(**report) if report["repeats_from"] is not None else "",
        rivals=" and ".join(f"a {name}" for name in rivals),
        chance=math.log(report["architecture"]["vocab_size"]),
        samples="\n\n".join(quoted),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(__file__).resolve().parent / "work")
    default = Path(__file__).resolve().parents[2] / "src/monosem/models/bundled"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--checkpoint", default="checkpoint.pt", help="from_STEP.pt, where a model was trained on")
    parser.add_argument("--order", type=int, nargs="+", default=[3], help="of the n-gram models, 1 to 5")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    state = torch.load(options.work / options.checkpoint, map_location="cpu", weights_only=True)
    export(state["model"], options.work / "tokenizer.json", options.out)
    model = GPT2LMHeadModel.from_pretrained(options.out, dtype=torch.float32).eval()
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # pyright: ignore[reportArgumentType]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.out)

    train = np.load(options.work / "train.npy", mmap_mode="r")
    held_out = {source: np.load(options.work / f"valid_{source}.npy") for source in SOURCES}
    n_bytes = {source: int((options.work / f"valid_{source}.bytes").read_text()) for source in SOURCES}
    n_tokens = {source: len(stream) for source, stream in held_out.items()}

    losses = {source: stream_losses(model, stream) for source, stream in held_out.items()}
    results = {MODEL: rates({source: float(part.sum()) for source, part in losses.items()}, n_tokens, n_bytes)}
    for order in options.order:
        nats = ngram_nats(order, train, held_out, model.config.vocab_size, options.work / "ngram.json")
        results["trigram" if order == 3 else f"{order}-gram"] = rates(nats, n_tokens, n_bytes)

    keys = ["n_layer", "n_embd", "n_head", "n_positions", "vocab_size"]
    architecture = {key: getattr(model.config, key) for key in keys}
    architecture["n_parameters"] = sum(p.numel() for p in model.parameters())
    architecture["n_block_parameters"] = sum(p.numel() for p in model.transformer.h.parameters())
    report = {
        "architecture": architecture,
        "steps": state["step"],
        "repeats_from": state["repeats_from"],
        "tokens_seen": state["step"] * BATCH * CONTEXT,
        "seconds": round(state["seconds"]),
        "train_tokens": train_tokens(train),
        "held_out_tokens": {**n_tokens, "all": sum(n_tokens.values())},
        "held_out_bytes": {**n_bytes, "all": sum(n_bytes.values())},
        "held_out": results,
        "loss_by_position": by_position(list(losses.values())),
        "induction": induction(model, train),
        "samples": [sample(model, tokenizer, prompt) for prompt in PROMPTS],
    }
    print(f"{report['steps']:,} steps, {report['tokens_seen']:,} tokens seen")
    print(*tables_of(report).values(), *report["samples"], sep="\n\n")
    (options.out / "evaluation.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    (options.out / "README.md").write_text(card(report))
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"\n{options.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
