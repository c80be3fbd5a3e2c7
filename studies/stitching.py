"""What does a dictionary of 4,096 latents have that one of 1,024 has not, and does putting it in help?

    python studies/stitching.py [--output studies] [--tokens 600000] [--rows 50000] [--keep FOLDER]

Dictionaries of three widths learn from one pass over the bundled text. Latents of the largest are similar to one of the
1,024, split, or novel, by a cosine of 0.7 (`ms.stitch`); each is put into the small dictionary alone. Paths of mixtures
lead from small to large.
Rule, written before looking: novel latents help and others hurt (as published) if more than half of the novel ones
ever on lower the error, and more than half of the others, of at least 20, raise it, by the interval of either share.
A mixture beats its size if its error is below the straight line, by latents, between the two dictionaries. Control:
1,024
random directions of the small dictionary's covariance in place of its latents, for the share that is near.
Published (GPT-2 small, 768 to 98,304 latents): 65 % similar, 35 % novel; novel ones help, similar ones hurt.
Writes stitching.svg and stitching.md.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from widths import dictionaries

import monosem as ms
from monosem.analysis.stitch.path import Path as Walk
from monosem.intervals import Interval

SMALL, LARGE = 1024, 4096
FEWEST = 20
"""Latents of a kind of which something is said."""
ORDERS = ("steady", "published", "greedy")


def share(which: np.ndarray) -> Interval:
    """With Wilson's 95 % interval: latents as a sample of those that training could have found."""
    n, z = len(which), 1.959964
    if not n:
        return Interval(math.nan)
    p = float(which.mean())
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n))


def said(interval: Interval) -> str:
    return f"{interval.value:.1%} ({interval.low or 0:.1%} to {interval.high or 0:.1%})"


def beats(path: Walk) -> tuple[int, float]:
    """Where a path is furthest below the straight line between its ends by latents, and how far, in FVU."""
    latents = path.n_small + path.n_large
    line = np.interp(latents, [latents[0], latents[-1]], [path.fvu[0], path.fvu[-1]])
    at = int(np.argmin(path.fvu - line))
    return at, float((path.fvu - line)[at])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--tokens", type=int, default=600_000)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--keep", type=Path, help="a folder that keeps the dictionaries")
    options = parser.parse_args()
    model = ms.load_model("bundled")
    saes = dictionaries(model, options.tokens, options.keep)
    source = ms.activations(model, "resid_post.2", text="bundled", buffer_tokens=min(65_536, options.rows), seed=1)
    found = ms.stitch(saes[SMALL], saes[LARGE], source, rows=options.rows)
    print(found)
    paths = {order: found.path(order) for order in ORDERS}
    for path in paths.values():
        print(path)
    last = found.at(paths["steady"], -1)
    probe = next(iter(ms.activations(model, "resid_post.2", text="bundled", buffer_tokens=4096).pool(0).split(2048)))
    same = bool((last(probe).reconstruction == saes[LARGE](probe).reconstruction).all())
    (options.output / "stitching.md").write_text(page(found, paths, options.tokens, same))
    draw(options.output / "stitching.svg", found, paths)
    print(verdict(found, paths))


def counts(found: ms.Stitching) -> tuple[Interval, Interval, Interval, Interval]:
    """The shares of novel and of similar latents; of novel ones that help and of others that hurt."""
    signs, novel = found.insertions.signs(), found.kinds == "novel"
    alive = ~np.isnan(signs)
    return (
        share(novel),
        share(~novel),
        share(signs[alive & novel] < 0),
        share(signs[alive & ~novel] > 0),
    )


def verdict(found: ms.Stitching, paths: dict[str, Walk]) -> str:
    novel, near, help_, hurt = counts(found)
    few = int((found.kinds != "novel").sum()) < FEWEST
    helps, hurts = (help_.low or 0) > 0.5, (hurt.low or 0) > 0.5 and not few
    called = {
        (True, True): "As published, novel latents help and the others hurt",
        (True, False): "Novel latents help, " + ("the others are too few to tell" if few else "the others do not hurt"),
        (False, True): "The others hurt, but novel latents do not mostly help",
        (False, False): "Neither do novel latents mostly help nor do the others mostly hurt",
    }[helps, hurts]
    greedy = paths["greedy"]
    at, below = beats(greedy)
    l0 = greedy.l0[at] - np.interp(at, [0, len(greedy.moves)], [greedy.l0[0], greedy.l0[-1]])
    mixture = (
        f"A mixture of {greedy.n_small[at] + greedy.n_large[at]:,} latents is {-below:.3f} of FVU below the line "
        f"between them, with {l0:+.1f} latents on beside it"
        if below < 0
        else "No mixture beats its size"
    )
    return (
        f"{called}: {said(novel)} of the {LARGE:,} latents are novel, {said(near)} near to one of the {SMALL:,} (to "
        f"random directions: {found.grouped.by_chance:.1%}); {said(help_)} of the novel ones lower the error, "
        f"{said(hurt)} of the others raise it. {mixture}."
    )


def page(found: ms.Stitching, paths: dict[str, Walk], tokens: int, same: bool) -> str:
    shown = "\n\n".join(f"```\n{str(path).rstrip()}\n```" for path in paths.values())
    return f"""# What a larger dictionary has that a smaller one has not

Written by `python studies/stitching.py --tokens {tokens}`, as it came out.

**{verdict(found, paths)}**

![paths from small to large, and what each latent does alone](stitching.svg)

Dictionaries (BatchTopK, 24 on) of {SMALL:,} and {LARGE:,} latents, trained on {tokens:,} tokens of one pass. Intervals
are 95 %, of shares over latents and of signs over documents. The end of every path gives the large dictionary's outputs
{"bit for bit" if same else "NOT bit for bit"}.

```
{str(found).rstrip()}
```

## Paths

{shown}
"""


def draw(path: Path, found: ms.Stitching, paths: dict[str, Walk]) -> None:
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6))
    for order, one in paths.items():
        latents = one.n_small + one.n_large
        axes[0].plot(latents, one.fvu, label=order)
        axes[1].plot(latents, one.l0, label=order)
    ends = paths["steady"]
    axes[0].plot([SMALL, LARGE], [ends.fvu[0], ends.fvu[-1]], "--", color="0.6", linewidth=1)
    axes[0].set(xlabel="latents", ylabel="FVU", title="Error along the paths")
    axes[1].set(xlabel="latents", ylabel="latents on", title="L0 along the paths")
    change = 100 * found.insertions.change / found.path_ends()[0]
    alive, novel = ~np.isnan(change), found.kinds == "novel"
    for name, which, colour in (("novel", novel, "C0"), ("near", ~novel, "C1")):
        axes[2].plot(
            found.grouped.cosines[which & alive],
            change[which & alive],
            ".",
            color=colour,
            markersize=2,
            label=name,
            rasterized=True,
        )
    axes[2].axhline(0, color="0.6", linewidth=1)
    axes[2].axvline(found.threshold, color="0.8", linewidth=1)
    axes[2].set(xlabel="largest cosine with the small dictionary", title="Put in alone", ylabel="% of the error")
    axes[2].set_yscale("symlog", linthresh=0.01)
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
