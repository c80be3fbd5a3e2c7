"""Capture through stream and shuffle against the bare forward; whether the reader of text keeps up with the model.

    python benchmarks/streaming.py [--blocks 1] [--rounds 5] [--hook resid_post.2] [--text bundled]

The bare forward reads contexts that lie tokenised in memory, as many at a time as the stream does, stops after the same
layer and keeps nothing. The stream is `ms.activations` from raw text: tokenised, captured, shuffled and cut into
batches, whose rows are thrown away. A block is what goes through the shuffle buffer, of the usual size. A round
measures so many blocks of both, one after the other; the median of the rounds counts. Prints JSON: tokens/s of both,
their ratio (the bar: at least 0.85), and the largest share of a stream's time, its first block included, in which the
model waited for the reader (the bar: at most 0.05).
"""

import argparse
import json
import time
from statistics import median

import torch

import monosem as ms
from monosem.activations import LiveActivations, batches

BATCH, BUFFER = 4096, 131_072


class Stop(Exception):
    """Ends a bare forward."""


def bare_forward(model: ms.SubjectModel, hook: str, contexts: torch.Tensor) -> float:
    """Seconds of the forward pass up to a hook point that is a module's output."""

    def stop(*_: object) -> None:
        raise Stop

    handle = model.module.get_submodule(model.hook_point(hook).path).register_forward_hook(stop)
    began = time.perf_counter()
    with torch.no_grad():
        for batch in contexts.split(model.contexts_at_once(contexts.shape[1])):
            try:
                model.module(input_ids=batch, use_cache=False)
            except Stop:
                continue
    seconds = time.perf_counter() - began
    handle.remove()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hook", default="resid_post.2")
    parser.add_argument("--text", default="bundled")
    options = parser.parse_args()
    model = ms.load_model("bundled")

    def opened() -> LiveActivations:
        return LiveActivations(model, options.hook, options.text, buffer_tokens=BUFFER)

    def stream() -> tuple[float, float]:
        """Seconds that the blocks after the first take, and the share of all blocks' time that was spent waiting."""
        source = opened()
        source.pool(0)  # the first block fills the buffer
        began = time.perf_counter()
        for _, place in batches(source, BATCH):
            if place.pool == options.blocks:
                break
        return time.perf_counter() - began, source.idle_share

    source = opened()
    contexts = source.contexts.read(0, options.blocks * BUFFER // source.context_length).tokens
    bare_forward(model, options.hook, contexts[:32])
    rounds = [(bare_forward(model, options.hook, contexts), *stream()) for _ in range(options.rounds)]
    figures = {
        "bare": median(contexts.numel() / bare for bare, _, _ in rounds),
        "stream": median(contexts.numel() / streamed for _, streamed, _ in rounds),
        "ratio": median(bare / streamed for bare, streamed, _ in rounds),
        "idle": max(idle for _, _, idle in rounds),
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
