"""What the language model loses when activations are replaced: cross-entropy, loss recovered, KL."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from monosem.data import ContextBatch
from monosem.evaluation.intervals import DocumentSums, Interval
from monosem.interventions import Replace
from monosem.models import SubjectModel

RowFunction = Callable[[Float[Tensor, "rows d"]], Float[Tensor, "rows d"]]


class LanguageLoss:
    """Next-token cross-entropy (nats) of a model, clean and with each of several replacements at one hook point.

        loss recovered = (CE_ablated - CE_replaced) / (CE_ablated - CE_clean)

    Counted are the positions at which activations are replaced and whose next token is known.
    """

    def __init__(self, model: SubjectModel, hook: str, replacements: dict[str, RowFunction]) -> None:
        """Begin; `replacements` must have "zero" and "mean", the ablations that loss is recovered against."""
        self.model, self.hook, self.replacements = model, hook, replacements
        self.sums = DocumentSums()
        self.n_predictions = 0

    @torch.no_grad()
    def add(self, batch: ContextBatch, chosen: Bool[Tensor, "contexts pos"]) -> None:
        """Take in one batch of contexts; `chosen` are the positions to replace."""
        counted = chosen[:, :-1] & ~batch.padding[:, 1:]
        documents = batch.document[:, :-1][counted].numpy()
        device = self.model.device
        targets, mask = batch.tokens[:, 1:].to(device)[counted.to(device)], counted.to(device)
        self.n_predictions += len(documents)
        clean = F.log_softmax(self.model(batch.tokens)[:, :-1][mask].float(), dim=-1)
        self.sums.add("predictions", documents, torch.ones(len(documents)).numpy())
        self.sums.add("clean", documents, F.nll_loss(clean, targets, reduction="none").cpu().numpy())
        for name, function in self.replacements.items():
            with self.model.edit([Replace(self.hook, function, where=chosen)]):
                logits = self.model(batch.tokens)
            replaced = F.log_softmax(logits[:, :-1][mask].float(), dim=-1)
            self.sums.add(name, documents, F.nll_loss(replaced, targets, reduction="none").cpu().numpy())
            kl = (clean.exp() * (clean - replaced)).sum(-1)
            self.sums.add(f"kl {name}", documents, kl.cpu().numpy())

    def clean(self) -> Interval:
        return self.sums.interval(lambda s: s["clean"] / s["predictions"])

    def metrics(self, name: str) -> dict[str, Interval]:
        """Cross-entropy, loss recovered against both ablations, and KL(clean || replaced) of one replacement."""
        return {
            "ce": self.sums.interval(lambda s: s[name] / s["predictions"]),
            "loss_recovered_mean": self.sums.interval(lambda s: (s["mean"] - s[name]) / (s["mean"] - s["clean"])),
            "loss_recovered_zero": self.sums.interval(lambda s: (s["zero"] - s[name]) / (s["zero"] - s["clean"])),
            "kl": self.sums.interval(lambda s: s[f"kl {name}"] / s["predictions"]),
        }
