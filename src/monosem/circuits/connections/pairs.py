"""Features of two places on the same tokens, and what they do together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.activations.inputs import reopened
from monosem.codes import SparseCodes
from monosem.data.documents import Text
from monosem.errors import DataError
from monosem.interventions.number import number_of
from monosem.interventions.way import Put, Site, Way
from monosem.models import EditContext, SubjectModel
from monosem.models.blocks import NormWeights
from monosem.work import doing


@dataclass(frozen=True)
class Pairs:
    """Codes of two dictionaries, token by token, where both read."""

    source: SparseCodes
    """(tokens, latents)"""
    target: SparseCodes
    shrunk: Float[Tensor, " tokens"]
    """By what a norm before the target divides; 1 where there is none."""
    documents: Int[Tensor, " tokens"]

    def __len__(self) -> int:
        return self.source.n_rows

    def rows(self, chosen: Tensor) -> Pairs:
        """Some tokens alone."""
        return Pairs(self.source[chosen], self.target[chosen], self.shrunk[chosen], self.documents[chosen])


def sparse(codes: SparseCodes, factors: Float[Tensor, " rows"] | None = None) -> Any:
    """(rows, latents) as SciPy has it, in float64; each row times a factor."""
    values = codes.values.detach().double()
    if factors is not None:
        values = values * factors.double()[codes.rows()]
    arrays = [x.cpu().numpy() for x in (values, codes.indices, codes.offsets)]
    return scipy.sparse.csr_array(tuple(arrays), shape=(codes.n_rows, codes.n_latents))


@torch.no_grad()
def read_pairs(
    model: SubjectModel, sites: Sequence[Site], inputs: Any, stream: str | None, norm: NormWeights | None
) -> tuple[Pairs, Way]:
    """Of what one forward pass reads."""
    seen: list[Tensor] = []

    def look(x: Tensor, context: EditContext) -> Tensor:
        seen.append(x)
        return x

    fresh = [Site(site.sae, site.read, site.write) for site in sites]
    way = Way(model, fresh, inputs, number_of(model, lambda _: torch.zeros(1)))
    functions: list[tuple[str, Put]] = [(site.write, _looking(site)) for site in fresh]
    way.run(functions + ([(stream, look)] if stream is not None else []))
    first, second = fresh
    both = first.kept & second.kept
    shrunk = norm.scale(seen[0][both])[:, 0] if norm is not None else torch.ones(int(both.sum()))
    contexts = both.nonzero()[:, 0]
    return Pairs(first.codes[both], second.codes[both], shrunk.to(first.codes.values), contexts), way


def collect(
    model: SubjectModel,
    source: Site,
    target: Site,
    text: Text,
    tokens: int,
    stream: str | None,
    norm: NormWeights | None,
) -> Pairs:
    """Of the first tokens of a text.

    Raises:
        DataError: the text has no token that both read.
    """
    contexts, _ = reopened(source.sae.metadata, model, source.read, text=text)
    parts: list[Pairs] = []
    n = 0
    at_once = max(1, model.contexts_at_once(getattr(contexts, "context_length", 256)))
    with doing("reading features", tokens, unit="tokens") as work:
        for batch in contexts.in_batches(at_once):
            found, _ = read_pairs(model, (source, target), batch.inputs, stream, norm)
            of_rows = torch.as_tensor(np.asarray(batch.document)).amax(1).to(found.documents.device)
            parts.append(Pairs(found.source, found.target, found.shrunk, of_rows[found.documents]))
            n += len(found)
            work.advance(len(found))
            if n >= tokens:
                break
    if not n:
        raise DataError(f"the text has no token that both dictionaries read, at {source.read} and {target.read}")
    return Pairs(
        SparseCodes.cat([part.source for part in parts]),
        SparseCodes.cat([part.target for part in parts]),
        torch.cat([part.shrunk for part in parts]),
        torch.cat([part.documents for part in parts]),
    )


def _looking(site: Site) -> Put:
    def look(x: Tensor, context: EditContext) -> Tensor:
        site.look(x, context)
        return x

    return look
