"""ms.diff_models: which latents two models share, which one has alone, and whether shared ones do the same in both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from rich import box
from rich.table import Table
from torch import Tensor

from monosem.activations import activations, first_rows, join
from monosem.activations.inputs import open_text
from monosem.analysis.cosines import over_latents
from monosem.analysis.latent_scaling import LatentScaling, latent_scaling
from monosem.arguments import NotNegative, checked
from monosem.codes import SparseCodes
from monosem.data.documents import Text
from monosem.errors import ConfigError
from monosem.intervals import Interval
from monosem.models import ModelSet, SubjectModel
from monosem.sae import Crosscoder
from monosem.text import printed
from monosem.work import as_job, doing, each

EXCLUSIVE, SHARED = 0.1, (0.4, 0.6)
"""Of two decoder norms, the share of the smaller below which a latent looks exclusive; and that of shared ones."""
SHRUNK, DECOUPLED = 0.2, 0.5
"""Ratios of latent scaling below which one that looks so is exclusive: of errors, of reconstructions (as published)."""
POOL = 32_768


@dataclass(frozen=True)
class CausalCheck:
    """Of some shared latents: do they do the same in both models? One number a latent, NaN where it did nothing."""

    latents: Int[Tensor, " n"]
    agreement: Float[Tensor, " n"]
    """Cosine of what taking the latent out changes of the logits in one model and in the other."""
    by_chance: Float[Tensor, " n"]
    """The same where another shared latent, as large, is taken out of the second model at the same tokens."""
    exchanged: Float[Tensor, " n"]
    """Cosine, within the second model, of its own direction's effect and that of the first model's direction."""
    size: Float[Tensor, " n"]
    """How much larger the change is in the second model."""


@dataclass(frozen=True)
class ModelDiff:
    """A crosscoder's latents by the model that has them, and what two checks say of that."""

    names: tuple[str, str]
    shares: Float[Tensor, " n_latents"]
    """The second model's share of the decoder norms: 0 of the first alone, 1 of the second alone."""
    cosines: Float[Tensor, " n_latents"]
    """Of the two decoder rows."""
    scaling: LatentScaling
    causal: CausalCheck
    rows: int

    @property
    def kinds(self) -> list[str]:
        """Of every latent by its norms: "shared", "only NAME", "between", or "silent" where it was never on."""
        first, second = (f"only {name}" for name in self.names)
        found: list[str] = []
        for share, fired in zip(self.shares.tolist(), self.scaling.fired.tolist(), strict=True):
            looks = first if share < EXCLUSIVE else second if share > 1 - EXCLUSIVE else "between"
            found.append("silent" if not fired else "shared" if SHARED[0] <= share <= SHARED[1] else looks)
        return found

    @property
    def confirmed(self) -> np.ndarray:
        """(n_latents,) bool: it looks exclusive by its norms, and latent scaling finds it in no other model."""
        looks = np.array([kind.startswith("only ") for kind in self.kinds])
        shrunk, decoupled = (self.scaling.ratio(name).numpy(force=True) for name in ("error", "reconstruction"))
        return looks & (shrunk < SHRUNK) & (decoupled < DECOUPLED)

    def of(self, kind: str) -> list[int]:
        """The latents of a kind.

        Raises:
            ConfigError: there is no such kind.
        """
        known = ["shared", *(f"only {name}" for name in self.names), "between", "silent"]
        if kind not in known:
            raise ConfigError(f"there is no kind {kind!r}: there are {', '.join(known)}")
        return [latent for latent, own in enumerate(self.kinds) if own == kind]

    @property
    def agreement(self) -> dict[str, Interval]:
        """Means over the latents that were checked, with 95 % intervals."""
        causal = self.causal
        values = {"agreement": causal.agreement, "by chance": causal.by_chance, "exchanged": causal.exchanged}
        return {name: over_latents(each[~each.isnan()]) for name, each in values.items()}

    def table(self) -> Table:
        """How many latents of each kind, and how many of these latent scaling confirms."""
        table = Table(title=f"{' and '.join(self.names)}: {len(self.shares):,} latents", box=box.SIMPLE_HEAD)
        table.title_justify = table.caption_justify = "left"
        for name in ("", "latents", "share", "confirmed", "cosine of the two rows"):
            table.add_column(name, justify="left" if not name else "right")
        kinds, confirmed = np.array(self.kinds), self.confirmed
        for kind in ("shared", *(f"only {name}" for name in self.names), "between", "silent"):
            own = kinds == kind
            cosine = float(self.cosines[torch.from_numpy(own)].mean()) if own.any() else np.nan
            said = f"{int(confirmed[own].sum()):,}" if kind.startswith("only") else ""
            row = (f"{int(own.sum()):,}", f"{own.mean():.1%}", said, "" if np.isnan(cosine) else f"{cosine:.3f}")
            table.add_row(kind, *row)
        found = {name: _said(value) for name, value in self.agreement.items()}
        table.caption = (
            f"{self.rows:,} rows. Confirmed: latent scaling finds nothing of it in the other model. Taking out a "
            f"shared latent changes logits alike in both: cosine {found['agreement']} over {len(self.causal.latents)} "
            f"latents; another latent in its place {found['by chance']}; the other model's direction in its place "
            f"{found['exchanged']}."
        )
        return table

    def __str__(self) -> str:
        return printed(self.table(), width=100)


def _said(value: Interval) -> str:
    return f"{value.value:.2f}" + ("" if value.low is None else f" ({value.low:.2f} to {value.high:.2f})")


@checked
@as_job
@torch.no_grad()
def diff_models(
    crosscoder: Crosscoder,
    models: ModelSet,
    hook: str | None = None,
    *,
    names: tuple[str, str] = ("first", "second"),
    text: Text = "bundled:held_out",
    rows: int = 20_000,
    checked: int = 32,
    contexts: int = 16,
    seed: NotNegative = 0,
    progress: bool = True,
) -> ModelDiff:
    """What do two models have in common, latent by latent?

    crosscoder = ms.Crosscoder(base.d_model, n_latents=1024, k=24)
    both = ms.ModelSet([base, chat])
    ms.train(crosscoder, ms.activations(both, "resid_post.2"), tokens=200_000)
    print(ms.diff_models(crosscoder, both, names=("base", "chat")))

    By its decoder norms a latent is shared or exclusive. Norms alone mislead: one that looks exclusive is `confirmed`
    if latent scaling finds no more than a little of it in the other model's errors and reconstructions. Shared latents
    are checked in the models: each is taken out where it is on, in both, and the changes of logits compared, with
    another shared latent in one of the models as the null.

    Args:
        crosscoder: of the two models at one hook point.
        models: both.
        hook: where; the crosscoder's own if not given.
        names: of the models, in their order.
        text: what they read.
        rows: positions to measure latent scaling on.
        checked: shared latents to take out, drawn at random; 0 leaves it out.
        contexts: of the text, in which they are taken out.
        seed: of what is drawn.
        progress: show where it is.

    Raises:
        ConfigError: it is no crosscoder of two models, nothing says the hook, or a number is out of range.
        MismatchError: crosscoder and models do not fit.
    """
    hook = hook or crosscoder.metadata.hook
    if not isinstance(models, ModelSet) or len(models.models) != 2:
        raise ConfigError("diff_models compares two models: give ms.ModelSet([base, chat])")
    if not isinstance(crosscoder, Crosscoder) or crosscoder.n_sources != 2:
        raise ConfigError("diff_models needs a crosscoder of the two models: ms.Crosscoder(d_in, n_latents)")
    if hook is None:
        raise ConfigError("say where: diff_models(crosscoder, models, 'resid_post.2')")
    if rows < 1 or checked < 0 or contexts < 1 or len(set(names)) != 2:
        raise ConfigError(
            f"rows and contexts are at least 1, checked at least 0, and there are two names, got {rows}, {contexts}, "
            f"{checked} and {names}"
        )
    join(crosscoder, models, hook)
    source = activations(models, hook, text, buffer_tokens=min(rows, POOL), seed=seed)
    with doing("reading both models", rows, unit="rows") as stage:

        def parts() -> Any:
            for part in first_rows(source, rows):
                yield part.x
                stage.advance(len(part.x))

        scaling = latent_scaling(crosscoder, parts())
    shares = crosscoder.relative_norms()[:, 1].detach().float()
    directions = crosscoder.decoder_directions()
    cosines = torch.nn.functional.cosine_similarity(directions[:, 0], directions[:, 1], dim=-1).float()
    nothing = torch.zeros(0)
    empty = CausalCheck(torch.zeros(0, dtype=torch.int64), nothing, nothing, nothing, nothing)
    found = ModelDiff(names, shares, cosines, scaling, empty, rows)
    if not checked:
        return found
    tokens = open_text(models, text, context_length=crosscoder.metadata.context_length)[0].read(0, contexts).tokens
    causal = _checked(crosscoder, models, hook, tokens.long(), found.of("shared"), checked, seed)
    return ModelDiff(names, shares, cosines, scaling, causal, rows)


def _checked(
    crosscoder: Crosscoder,
    models: ModelSet,
    hook: str,
    tokens: Int[Tensor, "contexts pos"],
    shared: list[int],
    n: int,
    seed: int,
) -> CausalCheck:
    """Take shared latents out of both models, where they are on past the first position."""
    codes = crosscoder.encode(models.capture(tokens, [hook])[hook].to(crosscoder.W_enc))
    mask = torch.ones(tokens.shape, dtype=torch.bool)
    mask[:, 0] = False
    on = _on(codes, shared, mask)
    order = torch.randperm(len(on), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = [on[i] for i in order[:n]]
    drawn = np.random.default_rng(seed)
    clean = [_logits(model, tokens) for model in models.models]
    found = torch.full((4, len(chosen)), torch.nan)
    for number in each("taking latents out", range(len(chosen)), unit="latents"):
        latent = chosen[number]
        others = [one for one in on if one != latent]
        own = codes.select([latent]).to_dense()[..., 0].to(mask.device) * mask
        rows = crosscoder.decoder_directions([latent])[0]
        length = rows[1].norm()
        first = _effect(models.models[0], hook, tokens, clean[0], own, rows[0])
        in_second = (models.models[1], hook, tokens, clean[1], own)
        second = _effect(*in_second, rows[1])
        exchanged = _effect(*in_second, rows[0] / rows[0].norm() * length)
        found[0, number], found[2, number] = _cosine(first, second), _cosine(second, exchanged)
        found[3, number] = second.norm() / first.norm()
        if others:
            other = crosscoder.decoder_directions([int(drawn.choice(others))])[0, 1]
            found[1, number] = _cosine(first, _effect(*in_second, other / other.norm() * length))
    return CausalCheck(torch.tensor(chosen, dtype=torch.int64), *found)


def _effect(
    model: SubjectModel,
    hook: str,
    tokens: Int[Tensor, "contexts pos"],
    clean: Float[Tensor, "contexts pos vocabulary"],
    codes: Float[Tensor, "contexts pos"],
    direction: Float[Tensor, " d"],
) -> Float[Tensor, " change"]:
    """What taking codes times a direction out changes of the logits of contexts that have any."""
    some = (codes > 0).any(1)
    part = codes[some][..., None] * direction.to(codes)
    return (_logits(model, tokens[some], {hook: lambda x, _: x - part.to(x)}) - clean[some]).flatten()


def _on(codes: SparseCodes, latents: list[int], mask: Tensor) -> list[int]:
    """Which of some latents are on anywhere."""
    counted = (codes.values > 0) & mask.flatten().to(codes.device)[codes.rows()]
    there = set(codes.indices[counted].tolist())
    return [latent for latent in latents if latent in there]


def _logits(model: SubjectModel, tokens: Tensor, edits: Any = None) -> Float[Tensor, "contexts pos vocabulary"]:
    """Less their mean over the vocabulary, which says nothing."""
    with model.edit(edits or {}):
        logits = model(tokens).float().cpu()
    return logits - logits.mean(-1, keepdim=True)


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))
