"""How many positions go through a model fastest at a time: what `SubjectModel.contexts_at_once` was set by.

    python benchmarks/forward.py [--device cuda] [--layers 3]

Untrained models of GPT-2's kind, of several widths; tokens/s, the best of two, by positions in a forward pass.
"""

import argparse
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel

WIDTHS, LENGTHS = (128, 256, 512, 768, 1024), (128, 512)
POSITIONS = {"cpu": (512, 1024, 2048, 4096, 8192), "cuda": (2048, 4096, 8192, 16384, 32768, 65536)}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=POSITIONS)
    parser.add_argument("--layers", type=int, default=3)
    options = parser.parse_args()
    sizes = POSITIONS[options.device]
    print("width context " + "".join(f"{size:>9,}" for size in sizes))
    for width in WIDTHS:
        shape = {"n_embd": width, "n_head": width // 64, "n_layer": options.layers, "n_positions": max(LENGTHS)}
        config = GPT2Config(**shape, vocab_size=1000, bos_token_id=None, eos_token_id=None)
        model = GPT2LMHeadModel(config).eval().transformer.to(options.device)
        for length in LENGTHS:
            tokens = torch.randint(0, 1000, (2 * sizes[-1] // length, length), device=options.device)
            rates = [tokens_per_second(model, tokens, max(1, size // length)) for size in sizes]
            print(f"{width:>5} {length:>7} " + "".join(f"{rate:>9,.0f}" for rate in rates), flush=True)


def tokens_per_second(model: torch.nn.Module, tokens: torch.Tensor, contexts: int) -> float:
    def seconds() -> float:
        begun = time.perf_counter()
        for batch in tokens.split(contexts):
            model(batch, use_cache=False)
        if tokens.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    return tokens.numel() / min(seconds(), seconds())


if __name__ == "__main__":
    main()
