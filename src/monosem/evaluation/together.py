"""ms.splice_together: what several dictionaries cost a model, each alone and all at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from rich import box
from rich.table import Table

from monosem.activations import join
from monosem.activations.inputs import open_text
from monosem.arguments import checked
from monosem.data.documents import Text
from monosem.errors import ConfigError, DataError
from monosem.intervals import DocumentSums, Interval
from monosem.interventions import Splice
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.text import printed
from monosem.training.model_tuning import losses_of, next_known
from monosem.work import as_job, doing

TOGETHER = "together"
AT_ONCE = 2048


@dataclass(frozen=True)
class Together:
    """Cross-entropies on the same held-out tokens, nats, with 95 % intervals over documents."""

    clean: Interval
    costs: dict[str, Interval]
    """How much more the model loses with each dictionary's reconstruction in its place, and with all "together"."""
    beyond: Interval
    """What all cost together beyond the sum of what they cost alone: above 0, errors of one disturb the others."""
    tokens: int

    def table(self) -> Table:
        """One row a dictionary."""
        table = Table(title="Dictionaries put in alone and together", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.title_justify = table.caption_justify = "left"
        table.add_column("")
        table.add_column("nats more a token", justify="right", no_wrap=True)
        for name, cost in self.costs.items():
            table.add_row(name, _said(cost))
        table.add_row("beyond the sum of those alone", _said(self.beyond))
        table.caption = f"{self.tokens:,} tokens; the model loses {self.clean.value:.4f}."
        return table

    def __str__(self) -> str:
        return printed(self.table(), width=100)


def _said(value: Interval) -> str:
    interval = "" if value.low is None else f" ({value.low:+.4f} to {value.high:+.4f})"
    return f"{value.value:+.4f}{interval}"


@checked
@as_job
@torch.no_grad()
def splice_together(
    saes: Mapping[str, SAE],
    model: SubjectModel,
    *,
    text: Text = "bundled:held_out",
    tokens: int = 16_384,
    progress: bool = True,
) -> Together:
    """Put dictionaries of several places into a model, each alone and all at once.

    saes = {name: ms.TopKSAE(model.d_model, 1024, k=16) for name in ("early", "late")}
    ms.train_together(saes, {"early": acts.select("resid_post.0"), ...}, loss=ms.EndToEnd(model), ...)
    print(ms.splice_together(saes, model))

    Each was trained with the model as it is around it, end to end or not; together the later ones read what the
    earlier ones have made.

    Args:
        saes: by name; each knows its hook point, and no two have the same one.
        model: their language model.
        text: held-out text.
        tokens: to read.
        progress: show where it is.

    Raises:
        ConfigError: fewer than two dictionaries, one that knows no hook point or does not rebuild what it reads, two of
            one hook point, or tokens below 1.
        MismatchError: dictionaries and model do not fit.
        DataError: the text has nothing to measure on.
    """
    if len(saes) < 2 or tokens < 1 or TOGETHER in saes:
        raise ConfigError(
            f"splice_together needs two dictionaries or more, none of them called {TOGETHER!r}, and tokens of at least "
            f"1, got {list(saes)} and {tokens}"
        )
    hooks: dict[str, str] = {}
    for name, sae in saes.items():
        hook = sae.metadata.hook
        if hook is None or not sae.autoencodes or len(sae.in_shape) > 1:
            raise ConfigError(f"{name!r} is no SAE that knows its one hook point: it cannot be put in")
        hook = model.hook_point(hook).name
        if hook in hooks:
            raise ConfigError(f"{hooks[hook]!r} and {name!r} are both of {hook}: one of them can stand there")
        hooks[hook] = name
        join(sae, model, hook)
    known = [sae.metadata.context_length for sae in saes.values() if sae.metadata.context_length is not None]
    contexts, _ = open_text(model, text, context_length=min(known, default=None))
    edits = {name: [Splice(sae)] for name, sae in saes.items()} | {TOGETHER: [Splice(sae) for sae in saes.values()]}
    sums, read, at_once = DocumentSums(), 0, max(1, AT_ONCE // contexts.context_length)
    with doing("putting dictionaries in", tokens, unit="tokens") as stage:
        while read < tokens:
            start = read // contexts.context_length
            batch = contexts.read(start, start + at_once)
            if not len(batch):
                break
            where = next_known(batch) & (batch.document[:, 1:] >= 0)
            documents = batch.document[:, 1:][where].numpy()
            sums.add("tokens", documents, np.ones(len(documents)))
            for name, edit in {"clean": [], **edits}.items():
                with model.edit(edit):
                    sums.add(name, documents, losses_of(model, batch).cpu()[where].double().numpy())
            read += batch.tokens.numel()
            stage.advance(batch.tokens.numel())
    if "tokens" not in sums:
        raise DataError("the text has nothing to measure on")

    def more(name: str) -> Interval:
        return sums.interval(lambda s: (s[name] - s["clean"]) / s["tokens"])

    return Together(
        clean=sums.interval(lambda s: s["clean"] / s["tokens"]),
        costs={name: more(name) for name in edits},
        beyond=sums.interval(
            lambda s: (s[TOGETHER] - s["clean"] - sum(s[name] - s["clean"] for name in saes)) / s["tokens"]
        ),
        tokens=int(sums.total("tokens")),
    )
