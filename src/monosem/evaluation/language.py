"""What a language model loses: cross-entropy of the next token."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from monosem.data import Batch
from monosem.evaluation.downstream import Counted, DownstreamLoss


class LanguageLoss(DownstreamLoss):
    """Next-token cross-entropy. Counted are the positions that are replaced and whose next token is known."""

    what = "cross-entropy of the next token"

    def counted(self, batch: Batch, chosen: Bool[Tensor, "contexts pos"]) -> Counted:
        next_known = torch.nn.functional.pad(~batch.padding[:, 1:], (0, 1), value=False)
        where = chosen & next_known
        return Counted(where, batch.document[where], batch.tokens.roll(-1, 1)[where])
