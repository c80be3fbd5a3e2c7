"""Replace activations by a function of them; splice an SAE's reconstruction in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosem.activations.check import join
from monosem.activations.reading import within_norm
from monosem.errors import ConfigError
from monosem.models import EditContext, SubjectModel
from monosem.sae import SAE


class Replace:
    """At one hook point, `function(rows)` in place of the rows; other positions stay as they are.

    with model.edit([Replace("resid_post.2", torch.zeros_like)]):
        logits = model(tokens)
    """

    def __init__(
        self,
        hook: str,
        function: Callable[[Float[Tensor, "rows d"]], Float[Tensor, "rows d"]],
        where: Bool[Tensor, "batch pos"] | None = None,
        keep_tokens: Sequence[int] = (),
    ) -> None:
        """Make the edit.

        Args:
            hook: name of a hook point.
            function: raw activations to raw activations, row by row.
            where: positions to replace; all if not given.
            keep_tokens: token ids at whose positions nothing is replaced.
        """
        self.hooks, self.function, self.where = [hook], function, where
        self.keep_tokens = torch.tensor(list(keep_tokens), dtype=torch.int64)

    def chosen(self, x: Float[Tensor, "batch pos d"], context: EditContext) -> Bool[Tensor, "batch pos"]:
        """The positions to replace."""
        chosen = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        if self.where is not None:
            chosen &= self.where.to(x.device)
        if context.mask is not None:
            chosen &= context.mask
        if len(self.keep_tokens) and context.tokens is not None:
            chosen &= ~torch.isin(context.tokens, self.keep_tokens.to(x.device))
        return chosen

    def apply(self, x: Float[Tensor, "batch pos d"], context: EditContext) -> Float[Tensor, "batch pos d"]:
        chosen = self.chosen(x, context)
        if not chosen.any():
            return x
        replaced = x.clone()
        replaced[chosen] = self.function(x[chosen]).to(x.dtype)
        return replaced


class Splice(Replace):
    """The SAE's reconstruction in place of the activations that it was trained on.

    Where these are, the SAE's rules say (special tokens, first positions, norms, last tokens); padding and all other
    positions stay as they are. Every text given to the model counts as a document.

    with model.edit([ms.Splice(sae)]):
        text = model.generate("The history of")
    """

    def __init__(self, sae: SAE, hook: str | None = None, keep_tokens: Sequence[int] = ()) -> None:
        """Make the edit; `hook` may be left out if the SAE knows its own.

        In use it warns where the SAE does not fit the model or hook, and raises MismatchError for width and tokenizer.
        """
        name = hook or sae.metadata.hook
        if name is None:
            raise ConfigError("this SAE does not know its hook point: Splice(sae, hook='resid_post.2')")
        super().__init__(name, lambda rows: sae(rows).reconstruction, keep_tokens=keep_tokens)
        self.sae = sae
        self._joined: str | None = None

    def join(self, model: SubjectModel) -> None:
        """Ask once whether the SAE fits a model.

        Raises:
            MismatchError: it does not.
        """
        fingerprint = model.fingerprint()
        if self._joined != fingerprint:
            join(self.sae, model, self.hooks[0])
            self._joined = fingerprint

    def chosen(self, x: Float[Tensor, "batch pos d"], context: EditContext) -> Bool[Tensor, "batch pos"]:
        known = self.sae.metadata
        chosen = super().chosen(x, context) & within_norm(known, context.hook, x)
        if context.special is not None and known.exclude_special is not False:
            chosen &= ~context.special
        if known.last_only:
            chosen &= chosen.flip(1).cumsum(1).flip(1) == 1
        if context.positions is not None:
            chosen &= context.positions >= (known.skip_first or 0)
        return chosen
