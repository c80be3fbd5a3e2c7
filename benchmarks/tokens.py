"""Tokens a second of training, with equal loss curves: ours and each peer, on one store, at three sizes.

    python benchmarks/tokens.py [--no-peers] [--tokens 400000] [--seconds 8] [--sizes 1024 4096 16384] [--k 32]
        [--hook resid_post.2] [--model bundled] [--figure benchmarks/tokens.svg]

A TopK dictionary of every size learns the same rows in the same order, read from the same store of activations
(bfloat16, written first by `ms.store_activations`), twice in every library:

equal     the same rows, centred and scaled beforehand, the same weights at the start (decoders of unit norm, encoders
          along them), batches of 2,048, Adam at 1e-3 without warm-up or decay, no loss for dead latents, float32
authors'  what each library's authors recommend for TopK, as its own training code has it

A run ends after so many tokens or seconds, whichever comes first; schedules are made for all the tokens. Now and then
it is measured on 4,096 rows that it never reads (FVU, centred); the clock stands still meanwhile. Equal curves against
tokens say that all do the same work; what differs against seconds is speed. Everything, imports and the store included,
takes about 5 minutes on two cores; results are kept in benchmarks/.results/tokens.json.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
LIBRARIES = ("monosem", "saelens", "dictionary_learning", "sparsify")
SETTINGS = ("equal", "authors")
HELD_OUT, SHARD_ROWS, EQUAL_BATCH, EQUAL_LR = 4096, 16_384, 2048, 1e-3
COLOURS = dict(zip(LIBRARIES, ("#e07b00", "#2166ac", "#4d9221", "#8e0152"), strict=True))

Reconstruct = Callable[[torch.Tensor], torch.Tensor]


class Enough(Exception):
    """The time of a run is over."""


# One library, in a process of its own --------------------------------------------------------------------------------


class Rows:
    """The rows of a store in the order in which they stand, again and again; the last ones are held out."""

    def __init__(self, folder: Path, hook: str, equal: bool) -> None:
        from safetensors.torch import load_file

        shards = sorted((folder / hook).glob("*.safetensors"))
        self._load = lambda path: load_file(path)["rows"].float()
        last = self._load(shards[-1])
        self.shards, self.held_out = shards[:-1], last[:HELD_OUT]
        self.d, self.centre, self.scale = last.shape[1], torch.zeros(last.shape[1]), 1.0
        if equal:
            first = self._load(shards[0])
            self.centre = first.mean(0)
            self.scale = (self.d / (first - self.centre).pow(2).sum(1).mean().item()) ** 0.5
            self.held_out = self._alike(self.held_out)

    def weights(self, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoder and decoder (n, d) at the start: random directions, encoder rows as long as fits the rows best."""
        decoder = torch.nn.functional.normalize(torch.randn(n, self.d, generator=torch.Generator().manual_seed(0)))
        x = self.held_out
        top = (x @ decoder.T).relu().topk(k)
        rebuilt = torch.einsum("rk,rkd->rd", top.values, decoder[top.indices])
        return decoder * ((x * rebuilt).sum() / rebuilt.pow(2).sum()), decoder

    def _alike(self, rows: torch.Tensor) -> torch.Tensor:
        return (rows - self.centre) * self.scale

    def blocks(self) -> Iterator[torch.Tensor]:
        for path in itertools.cycle(self.shards):
            yield self._alike(self._load(path))

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        rest = torch.zeros(0, self.d)
        for block in self.blocks():
            rest = torch.cat([rest, block])
            while len(rest) >= size:
                yield rest[:size]
                rest = rest[size:]


class Clock:
    """Counts tokens and seconds, and measures at about equal ratios of tokens."""

    def __init__(self, held_out: torch.Tensor, tokens: int, seconds: float) -> None:
        self.held_out, self.most_tokens, self.most_seconds = held_out, tokens, seconds
        self.tokens, self.spent, self.curve = 0, 0.0, list[tuple[int, float, float]]()
        self._total = (held_out - held_out.mean(0)).double().pow(2).sum().item()
        self._begun = time.perf_counter()
        self._next = 0

    def tick(self, rows: int, reconstruct: Reconstruct) -> None:
        """After a step of so many rows.

        Raises:
            Enough: the run is at its end.
        """
        self.spent += time.perf_counter() - self._begun
        self.tokens += rows
        ends = self.tokens >= self.most_tokens or self.spent >= self.most_seconds
        if ends or self.tokens >= self._next:
            with torch.no_grad():
                error = (self.held_out - reconstruct(self.held_out)).double().pow(2).sum().item()
            self.curve.append((self.tokens, self.spent, error / self._total))
            self._next = max(int(self.tokens * 1.6), self.tokens + 1)
        if ends:
            raise Enough
        self._begun = time.perf_counter()


def monosem(rows: Rows, n: int, k: int, equal: bool, clock: Clock) -> None:
    """At its defaults; a schedule of the whole run."""
    import monosem as ms

    sae = ms.TopKSAE(rows.d, n, k=k, transform="none" if equal else "centre_scale")
    config = ms.TrainingConfig()
    if equal:
        with torch.no_grad():
            for parameter, start in zip((sae.W_enc, sae.W_dec), rows.weights(n, k), strict=True):
                parameter.copy_(start)
        sae.metadata = sae.metadata.model_copy(update={"tokens_trained": 1})  # so that it keeps these weights
        revival = {"method": "none"}
        config = ms.TrainingConfig.model_validate(
            {
                "lr": EQUAL_LR,
                "warmup": 0,
                "decay": 0,
                "revival": revival,
                "matmul": "float32",
                "batch_size": EQUAL_BATCH,
            }
        )

    def after(_: Any, __: Any) -> None:
        clock.tick(config.batch_size, lambda x: sae(x).reconstruction)

    source = ms.activations(block.numpy() for block in rows.blocks())
    ms.train(sae, source, tokens=clock.most_tokens, config=config, callbacks=[after], progress=False)


def saelens(rows: Rows, n: int, k: int, equal: bool, clock: Clock) -> None:
    """Its configs' defaults."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    size = EQUAL_BATCH if equal else 4096
    own: dict[str, Any] = {"aux_loss_coefficient": 0.0, "decoder_init_norm": 1.0} if equal else {}
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=rows.d, d_sae=n, k=k, device="cpu", dtype="float32", **own))
    config = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=clock.most_tokens,
        device="cpu",
        autocast=False,
        lr=EQUAL_LR if equal else 3e-4,
        lr_end=EQUAL_LR if equal else 3e-5,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=size,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
    )
    if equal:
        sae.W_enc.data, sae.W_dec.data = rows.weights(n, k)[0].T.contiguous(), rows.weights(n, k)[1]
    trainer = SAETrainer(sae=sae, data_provider=iter([]), evaluator=None, cfg=config)
    for x in rows.batches(size):
        trainer._train_step(sae=sae, sae_in=x)
        clock.tick(size, lambda x: sae.decode(sae.encode(x)))


def dictionary_learning(rows: Rows, n: int, k: int, equal: bool, clock: Clock) -> None:
    """Its trainer's defaults, its demonstration's batch; of its 1,000 steps of warm-up a tenth of the run at most."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    steps = clock.most_tokens // EQUAL_BATCH
    own: dict[str, Any] = {"warmup_steps": min(1000, steps // 10)}
    if equal:
        own = {"lr": EQUAL_LR, "auxk_alpha": 0.0, "warmup_steps": 0}
    trainer = TopKTrainer(
        steps=steps, activation_dim=rows.d, dict_size=n, k=k, layer=0, lm_name="none", seed=0, device="cpu", **own
    )
    if equal:
        encoder, decoder = rows.weights(n, k)
        trainer.ae.encoder.weight.data, trainer.ae.decoder.weight.data = encoder, decoder.T.contiguous()
    for i, x in enumerate(rows.batches(EQUAL_BATCH)):
        trainer.update(i + equal, x)  # step 0 sets b_dec
        clock.tick(EQUAL_BATCH, trainer.ae)


def sparsify(rows: Rows, n: int, k: int, equal: bool, clock: Clock) -> None:
    """Its trainer's optimiser and rate: signum, schedule-free; b_dec begins as the mean of the first batch."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify.config import SparseCoderConfig
    from sparsify.sign_sgd import SignSGD
    from sparsify.sparse_coder import SparseCoder

    size = EQUAL_BATCH if equal else 4096
    sae = SparseCoder(rows.d, SparseCoderConfig(num_latents=n, k=k))
    if equal:
        sae.encoder.weight.data, sae.W_dec.data = rows.weights(n, k)
        optimizer: Any = torch.optim.Adam(sae.parameters(), lr=EQUAL_LR)
    else:
        optimizer = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=5e-3 / (n / 2**14) ** 0.5), momentum=0.95)
        optimizer.train()

    def reconstruct(x: torch.Tensor) -> torch.Tensor:
        if equal:
            return sae(x).sae_out
        optimizer.eval()
        out = sae(x).sae_out
        optimizer.train()
        return out

    for i, x in enumerate(rows.batches(size)):
        if i == 0 and not equal:
            sae.b_dec.data = x.mean(0)
        sae.set_decoder_norm_to_unit_norm()
        sae(x).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        clock.tick(size, reconstruct)


def child(options: argparse.Namespace) -> None:
    """All runs of one library; a line of JSON for each. The first, small one is not counted: it is what warms up."""
    fits = {fit.__name__: fit for fit in (monosem, saelens, dictionary_learning, sparsify)}
    tasks = [(n, setting) for n in options.sizes for setting in SETTINGS]
    for number, (n, setting) in enumerate([(256, "equal"), *tasks]):
        equal = setting == "equal"
        torch.manual_seed(0)
        rows = Rows(Path(options.store), options.hook, equal)
        clock = Clock(rows.held_out, options.tokens if number else 3 * 4096, options.seconds)
        with suppress(Enough):
            fits[options.library](rows, n, options.k, equal, clock)
        if number:
            print(json.dumps({"n": n, "setting": setting, "curve": clock.curve}), flush=True)


# All of them ---------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--hook", default="resid_post.2")
    parser.add_argument("--store", help="one that is there already; else one is written")
    parser.add_argument("--figure", default=str(HERE / "tokens.svg"))
    parser.add_argument("--library", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library:
        child(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        if options.store is None:
            options.store = f"{folder}/acts"
            write(options)
        found = {library: measured(library, options) for library in LIBRARIES if usable(library, options)}
    kept = {library: runs for library, runs in found.items() if runs}
    results = HERE / ".results" / "tokens.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(kept))
    report(kept, options)
    draw(kept, options)
    print(f"{time.perf_counter() - begun:.0f} s in all; the curves: {options.figure}")


def write(options: argparse.Namespace) -> None:
    """The store, with one shard more than is trained on."""
    import monosem as ms

    model, rows = ms.load_model(options.model), options.tokens + SHARD_ROWS
    layout = {"shard_rows": SHARD_ROWS, "window_shards": 1 + rows // SHARD_ROWS}
    ms.store_activations(model, options.hook, "bundled", options.store, tokens=rows, **layout)


def usable(library: str, options: argparse.Namespace) -> bool:
    import peers

    return library == "monosem" or (not options.no_peers and peers.set_up(library))


def measured(library: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The runs of one library; none where it fails."""
    import peers

    python = sys.executable if library == "monosem" else str(peers.python_of(library))
    command = [python, str(HERE / "tokens.py"), "--library", library, "--sizes", *map(str, options.sizes)]
    for name in ("store", "tokens", "seconds", "k", "hook"):
        command += [f"--{name}", str(getattr(options, name))]
    print(f"{library} ...", file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{library}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"n"')]


def report(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    """One row for every size, setting and library."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    title = f"TopK, k = {options.k}, {options.hook} of {options.model}: tokens/s of training, and FVU of held-out rows"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("latents", "settings", "", "tokens/s", "ours over it", "at tokens", "FVU", "after", "FVU "):
        table.add_column(column, justify="left" if column in ("settings", "") else "right")
    for n, setting in itertools.product(options.sizes, SETTINGS):
        curves = {
            library: one["curve"]
            for library, runs in found.items()
            for one in runs
            if (one["n"], one["setting"]) == (n, setting)
        }
        if not curves:
            continue
        tokens = min(curve[-1][0] for curve in curves.values())
        seconds = min(curve[-1][1] for curve in curves.values())
        for i, (library, curve) in enumerate(curves.items()):
            rate, ours = (speed(each) if each else float("nan") for each in (curve, curves.get("monosem")))
            table.add_row(
                f"{n:,}" if i == 0 and setting == SETTINGS[0] else "",
                setting.replace("authors", "authors'") if i == 0 else "",
                library,
                f"{rate:,.0f}",
                "" if library == "monosem" else f"{ours / rate:.1f}x",
                f"{tokens:,}",
                f"{at(curve, 0, tokens):.3f}",
                f"{seconds:.1f} s",
                f"{at(curve, 1, seconds):.3f}",
                end_section=i == len(curves) - 1,
            )
    Console(highlight=False, width=118).print(table)


def speed(curve: list[list[float]]) -> float:
    """Tokens a second from the first point to the last."""
    (first, began, _), (last, ended, _) = curve[0], curve[-1]
    return (last - first) / (ended - began) if len(curve) > 1 else last / ended


def at(curve: list[list[float]], axis: int, where: float) -> float:
    """FVU at so many tokens (axis 0) or seconds (axis 1), between points by their logarithms."""
    points = np.array(curve)
    return float(np.exp(np.interp(np.log(where), np.log(points[:, axis]), np.log(points[:, 2]))))


def draw(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    """A column for every size; above against tokens, below against seconds; equal settings solid, authors' dashed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure = Figure(figsize=(3.7 * len(options.sizes), 6.4), layout="constrained")
    axes = figure.subplots(2, len(options.sizes), squeeze=False, sharey="col")
    for column, n in enumerate(options.sizes):
        for row, label in enumerate(("tokens", "seconds")):
            panel = axes[row, column]
            panel.spines[["top", "right"]].set_visible(False)
            panel.set(xscale="log", yscale="log", xlabel=label, ylabel="FVU, held out" if not column else "")
            for axis, steps in ((panel.xaxis, (1.0, 3.0)), (panel.yaxis, (1.0, 2.0, 5.0))):
                axis.set_major_locator(LogLocator(subs=steps))
                axis.set_major_formatter(
                    FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
                )
                axis.set_minor_locator(LogLocator(subs=()))
            for library, runs in found.items():
                for one in runs:
                    if one["n"] == n:
                        points, equal = np.array(one["curve"]), one["setting"] == "equal"
                        panel.plot(
                            points[:, row],
                            points[:, 2],
                            color=COLOURS[library],
                            linestyle="-" if equal else "--",
                            linewidth=1.5,
                            label=f"{library}, {'equal' if equal else 'authors’'}",
                        )
        axes[0, column].set_title(f"{n:,} latents", fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, frameon=False, fontsize=8, ncols=min(4, 2 * len(options.sizes)), loc="outside lower center"
    )
    figure.savefig(options.figure, metadata={"Date": None})


if __name__ == "__main__":
    main()
