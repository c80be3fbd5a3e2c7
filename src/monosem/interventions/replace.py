"""Replace activations by a function of them; splice an SAE's reconstruction in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.interventions.amounts import Places
from monosem.interventions.base import Intervention, joined_once, reads
from monosem.interventions.where import Condition
from monosem.models import EditContext, SubjectModel
from monosem.sae import SAE


class Replace(Intervention):
    """At one hook point, `function(rows)` in place of the rows; other positions stay as they are.

    with model.edit([Replace("resid_post.2", torch.zeros_like)]):
        logits = model(tokens)
    """

    @checked
    def __init__(
        self,
        hook: str,
        function: Callable[[Float[Tensor, "rows d"]], Float[Tensor, "rows d"]],
        where: Condition = None,
        keep_tokens: Sequence[int] = (),
    ) -> None:
        """Make the edit.

        Args:
            hook: name of a hook point.
            function: raw activations to raw activations, row by row.
            where: positions to replace; all if not given.
            keep_tokens: token ids at whose positions nothing is replaced.
        """
        super().__init__([hook], where)
        self.function = function
        if not isinstance(keep_tokens, Sequence) or not all(isinstance(token, int) for token in keep_tokens):
            raise ConfigError(f"keep_tokens are ids of tokens, got {keep_tokens!r}")
        self.keep_tokens = torch.tensor(list(keep_tokens), dtype=torch.int64)

    def allowed(self, x: Float[Tensor, "batch pos d"], context: EditContext) -> Bool[Tensor, "batch pos"]:
        allowed = super().allowed(x, context)
        if len(self.keep_tokens) and context.tokens is not None:
            allowed = allowed & ~torch.isin(context.tokens, self.keep_tokens.to(x.device))
        return allowed

    def replace(self, rows: Float[Tensor, "chosen d"], places: Places) -> Float[Tensor, "chosen d"]:
        return self.function(rows).to(rows.dtype)


class Splice(Replace):
    """The SAE's reconstruction in place of the activations that it was trained on.

    Where these are, the SAE's rules say (special tokens, first positions, norms, last tokens); padding and all other
    positions stay as they are. Every text given to the model counts as a document.

    with model.edit([ms.Splice(sae)]):
        text = model.generate("The history of")
    """

    fields = ("sae", "hook", "keep_tokens", "where")

    @checked
    def __init__(
        self, sae: SAE, hook: str | None = None, keep_tokens: Sequence[int] = (), *, where: Condition = None
    ) -> None:
        """Make the edit; `hook` may be left out if the SAE knows its own.

        In use it warns where the SAE does not fit the model or hook, and raises MismatchError for width and tokenizer.
        """
        name = hook or sae.metadata.hook
        if name is None:
            raise ConfigError("this SAE does not know its hook point: Splice(sae, hook='resid_post.2')")
        super().__init__(name, lambda rows: sae(rows).reconstruction, where, keep_tokens)
        self.sae = sae

    @property
    def reader(self) -> SAE:
        return self.sae

    def join(self, model: SubjectModel) -> None:
        """Ask once whether the SAE fits a model.

        Raises:
            MismatchError: it does not.
        """
        joined_once(self.sae, model, self.hooks[0])

    def allowed(self, x: Float[Tensor, "batch pos d"], context: EditContext) -> Bool[Tensor, "batch pos"]:
        return super().allowed(x, context) & reads(self.sae.metadata, x, context)

    def __repr__(self) -> str:
        return f"Splice({self.hooks[0]!r})"
