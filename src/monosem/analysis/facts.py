"""ms.edit_fact: can a model be made to forget one fact, by its latents or by what they are made of, and no other?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from rich import box
from rich.table import Table
from torch import Tensor

from monosem.activations import join
from monosem.activations.inputs import open_text
from monosem.analysis.cosines import over_latents
from monosem.analysis.meta.made import MetaSAE
from monosem.arguments import NotNegative, checked
from monosem.data.documents import Text
from monosem.errors import ConfigError
from monosem.interventions import Ablate, Intervention
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.text import printed
from monosem.work import as_job, each

WAYS = ("latents", "meta-latents")


class Fact(NamedTuple):
    """What a model says after a prompt, and what it would say if it did not know better."""

    prompt: str
    answer: str
    """A text whose first token goes on with the prompt: " Paris"."""
    foil: str
    """Another answer of the kind: " Rome"."""


@dataclass(frozen=True)
class FactEdit:
    """What one edit does."""

    chosen: tuple[int, ...]
    """The latents, or meta-latents, that are taken out."""
    fact: float
    """logit(answer) - logit(foil) after the prompt."""
    neighbours: Float[Tensor, " n"]
    """The same of every neighbour."""
    loss: Float[Tensor, " contexts"]
    """Cross-entropy of held-out text, nats a token."""


@dataclass(frozen=True)
class FactEdits:
    """Edits of one fact in several ways and sizes, beside the model as it is."""

    fact: Fact
    clean: FactEdit
    edits: Mapping[tuple[str, int], list[FactEdit]]
    """By way ("latents", "meta-latents", and each with "random " before it) and how many are taken out; one edit, or
    one for each random draw."""

    def forgotten(self, way: str, size: int) -> float:
        """How much of logit(answer) - logit(foil) is gone, as a share: 1 where both are as likely, above 1 the foil is.

        Raises:
            ConfigError: there is no such edit.
        """
        return 1 - float(np.mean([one.fact for one in self._of(way, size)])) / self.clean.fact

    def neighbours(self, way: str, size: int) -> Float[Tensor, " n"]:
        """Of each neighbour, how much of its own difference is gone.

        Raises:
            ConfigError: there is no such edit.
        """
        after = torch.stack([one.neighbours for one in self._of(way, size)]).mean(0)
        return 1 - after / self.clean.neighbours

    def loss(self, way: str, size: int) -> Float[Tensor, " contexts"]:
        """Of each context of held-out text, how much more the model loses, nats a token.

        Raises:
            ConfigError: there is no such edit.
        """
        return torch.stack([one.loss for one in self._of(way, size)]).mean(0) - self.clean.loss

    def _of(self, way: str, size: int) -> list[FactEdit]:
        if (way, size) not in self.edits:
            known = ", ".join(f"{name} {n}" for name, n in self.edits)
            raise ConfigError(f"there is no edit of {size} {way}: there are {known}")
        return self.edits[way, size]

    def table(self) -> Table:
        """One row an edit."""
        table = Table(title=f"{self.fact.prompt}{self.fact.answer}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.title_justify = table.caption_justify = "left"
        for name in ("taken out", "of the fact", "of its neighbours", "loss"):
            table.add_column(name, justify="left" if name == "taken out" else "right", no_wrap=True)
        for way, size in self.edits:
            beside, loss = over_latents(self.neighbours(way, size)), over_latents(self.loss(way, size))
            interval = "" if beside.low is None else f" ({beside.low:.2f} to {beside.high:.2f})"
            more = "" if loss.low is None else f" ({loss.low:+.4f} to {loss.high:+.4f})"
            forgotten = f"{self.forgotten(way, size):.2f}"
            table.add_row(f"{size} {way}", forgotten, f"{beside.value:.2f}{interval}", f"{loss.value:+.4f}{more}")
        table.caption = (
            f"Share that is gone of logit({self.fact.answer.strip()}) - logit({self.fact.foil.strip()}), which is "
            f"{self.clean.fact:.2f}; of {len(self.clean.neighbours)} neighbours; nats a token more on held-out text."
        )
        return table

    def __str__(self) -> str:
        return printed(self.table(), width=100)


@checked
@as_job
def edit_fact(
    model: SubjectModel,
    sae: SAE,
    fact: Fact | tuple[str, str, str],
    neighbours: Sequence[Fact | tuple[str, str, str]],
    *,
    meta: MetaSAE | None = None,
    sizes: Sequence[int] = (1, 4, 16),
    draws: int = 3,
    hook: str | None = None,
    text: Text = "bundled:held_out",
    contexts: int = 8,
    length: int = 64,
    seed: NotNegative = 0,
    progress: bool = True,
) -> FactEdits:
    """Take out what a fact rests on, by latents and by meta-latents, and see what else goes.

    found = ms.edit_fact(
        model, sae, ("The capital of France is", " Paris", " Rome"),
        [("The capital of Italy is", " Rome", " Paris")], meta=ms.meta_sae(sae),
    )
    print(found)

    Latents are ranked by their attribution to logit(answer) - logit(foil): code <decoder row, gradient>, summed over
    the prompt; meta-latents by the same of their part in the rows of all latents that are on. The largest are taken out
    wherever they are on: latents by `ms.Ablate`, meta-latents of all latents by `meta.edit`. Controls: as many drawn
    at random of those that are on in the prompt.

    Args:
        model: a language model.
        sae: an SAE of one hook point.
        fact: prompt, answer, foil.
        neighbours: facts that are to stay.
        meta: the SAE's meta-latents; latents alone if not given.
        sizes: how many are taken out.
        draws: of each control.
        hook: the SAE's hook point, if it does not know it.
        text: held-out text, for the loss.
        contexts: of it.
        length: tokens of each.
        seed: of the controls.
        progress: show where it is.

    Raises:
        ConfigError: no neighbours or sizes, answer and foil begin with one token, or a number is out of range; the
            model does not know the fact or a neighbour: the foil is likelier.
        DataError: a prompt, an answer or a foil is empty.
        MismatchError: model, SAE and meta-latents do not fit.
    """
    hook = hook or sae.metadata.hook
    if hook is None or not sae.autoencodes or len(sae.in_shape) > 1 or sae.transform.per_row:
        raise ConfigError("edit_fact needs an SAE of one hook point: edit_fact(..., hook='resid_post.2')")
    if not neighbours or not sizes or min(sizes) < 1 or draws < 1 or contexts < 1 or length < 2:
        raise ConfigError(
            "edit_fact needs a neighbour, sizes and draws of at least 1, and contexts of 2 tokens or more, got "
            f"{len(neighbours)} neighbours, sizes {list(sizes)}, draws {draws}, {contexts} x {length}"
        )
    own, facts = Fact(*fact), [Fact(*one) for one in (fact, *neighbours)]
    known = _Known(model, facts)
    join(sae, model, hook)
    if meta is not None:
        meta.require_own(sae)
    held_out = open_text(model, text, context_length=length)[0].read(0, contexts).tokens.long().to(model.device)

    def measured(chosen: Sequence[int], edits: list[Intervention]) -> FactEdit:
        with torch.no_grad(), model.edit(edits):
            values = known.differences().cpu()
            logits = model(held_out)[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), held_out[:, 1:], reduction="none").mean(1)
        return FactEdit(tuple(chosen), float(values[0]), values[1:], loss.cpu())

    clean = measured((), [])
    for one, value in zip(facts, [clean.fact, *clean.neighbours.tolist()], strict=True):
        if value <= 0:
            raise ConfigError(
                f"the model does not know that {one.prompt!r} goes on with {one.answer!r}: {one.foil!r} is likelier"
            )
    codes, gradient = _read(model, sae, own, hook)
    ranked = {"latents": _latents(sae, codes, gradient)}
    if meta is not None:
        ranked["meta-latents"] = _meta_latents(sae, meta, codes, gradient)
    planned: list[tuple[str, int, list[int]]] = []
    generator = np.random.default_rng(seed)
    for way, scores in ranked.items():
        on = scores.nonzero()[:, 0].tolist()
        best = [i for i in scores.argsort(descending=True).tolist() if scores[i] > 0]
        planned += [(way, size, best[:size]) for size in sizes if len(best) >= size]
        planned += [
            (f"random {way}", size, [int(i) for i in generator.permutation(on)[:size]])
            for size in sizes
            if len(best) >= size
            for _ in range(draws)
        ]
    edits: dict[tuple[str, int], list[FactEdit]] = {}
    for way, size, chosen in each("taking latents out", planned, unit="edits"):
        if meta is not None and way.endswith("meta-latents"):
            edit: Intervention = meta.edit(sae, without=chosen, hook=hook)
        else:
            edit = Ablate(sae, chosen, hook=hook)
        edits.setdefault((way, size), []).append(measured(chosen, [edit]))
    return FactEdits(own, clean, edits)


class _Known:
    """Facts and their tokens."""

    def __init__(self, model: SubjectModel, facts: Sequence[Fact]) -> None:
        self.model, self.inputs = model, model.padded([fact.prompt for fact in facts])
        self.last = last_columns(self.inputs["attention_mask"])
        pairs = [
            [int(model.tokens(text, prepend_bos=False)[0, 0]) for text in (fact.answer, fact.foil)] for fact in facts
        ]
        for fact, (answer, foil) in zip(facts, pairs, strict=True):
            if answer == foil:
                raise ConfigError(f"answer {fact.answer!r} and foil {fact.foil!r} begin with the same token")
        self.pairs = torch.tensor(pairs)

    def differences(self) -> Float[Tensor, " n"]:
        """logit(answer) - logit(foil) of each."""
        out = self.model._call(self.inputs).logits
        last = out[torch.arange(len(out), device=out.device), self.last.to(out.device)].float()
        chosen = last.gather(1, self.pairs.to(last.device))
        return chosen[:, 0] - chosen[:, 1]


def last_columns(mask: Int[Tensor, "n pos"]) -> Int[Tensor, " n"]:
    """Where each text ends; padding may stand on either side."""
    return mask.shape[1] - 1 - mask.flip(1).long().argmax(1)


def _read(
    model: SubjectModel, sae: SAE, fact: Fact, hook: str
) -> tuple[Float[Tensor, "pos n_latents"], Float[Tensor, "pos d"]]:
    """The codes of the prompt, and the gradient of the fact's difference at the hook point."""
    kept: list[Tensor] = []

    def leaf(x: Tensor, _: Any) -> Tensor:
        kept.append(x.detach().requires_grad_())
        return kept[0]

    alone = _Known(model, [fact])
    with torch.enable_grad(), model.edit({hook: leaf}):
        gradient = torch.autograd.grad(alone.differences()[0], kept[0])[0][0]
    with torch.no_grad():
        codes = sae.encode(kept[0].detach()[0].to(sae.W_enc)).to_dense()
    return codes, gradient.to(codes)


@torch.no_grad()
def _latents(
    sae: SAE, codes: Float[Tensor, "pos n_latents"], gradient: Float[Tensor, "pos d"]
) -> Float[Tensor, " n_latents"]:
    """Each latent's attribution: 0 where it is not on."""
    return (codes * (gradient @ sae.decoder_directions().T)).sum(0).cpu()


@torch.no_grad()
def _meta_latents(
    sae: SAE, meta: MetaSAE, codes: Float[Tensor, "pos n_latents"], gradient: Float[Tensor, "pos d"]
) -> Float[Tensor, " meta_latents"]:
    """Each meta-latent's: its part of the rows of all latents that are on."""
    on = (codes > 0).any(0).nonzero()[:, 0]
    weights = meta.codes[on.tolist()].to_dense().to(codes) * sae.decoder_directions(on).norm(dim=-1, keepdim=True)
    return ((codes[:, on] @ weights) * (gradient @ meta.directions.to(codes).T)).sum(0).cpu()
