"""What each text is, in numbers: the codes of SAEs and the activations of a model over the tokens of the text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor

from monosem.activations import Reading, Wanted, join, reopened, rows_a_context
from monosem.codes import SparseCodes
from monosem.data.documents import Text
from monosem.errors import ConfigError, DataError
from monosem.evaluation.going_on import Keeper, Keeping
from monosem.evaluation.probing.columns import Columns
from monosem.models import SubjectModel, load_model
from monosem.sae import SAE
from monosem.sae.metadata import SAEMetadata
from monosem.work import doing

Pool = Literal["mean", "max", "last"]


class Rows(NamedTuple):
    """Some tokens: what the model has there, and of which text they are."""

    x: dict[str, Float[Tensor, "rows d"]]
    """At each hook point."""
    texts: Int[Tensor, " rows"]


class Place(NamedTuple):
    """Where SAEs read: a model, a hook point, and the rules by which positions are read."""

    model: SubjectModel
    hook: str
    known: SAEMetadata


def place_of(saes: Mapping[str, SAE], model: SubjectModel | None, hook: str | None) -> Place:
    """The one place that all the SAEs read.

    Raises:
        ConfigError: they read several, or do not know it and it was not given.
        MismatchError: an SAE does not fit the model.
    """
    first = next(iter(saes.values()))
    for name, sae in saes.items():
        if sae.metadata.hooks or sae.metadata.models:
            raise ConfigError(f"{name} reads several hook points or models: texts are probed at one, of one model")
    known = first.metadata
    if model is None:
        if known.model is None:
            raise ConfigError("this SAE does not know its model: give model=ms.load_model(...)")
        with doing("loading the model"):
            model = load_model(known.model)
    wanted = hook or known.hook
    if wanted is None:
        raise ConfigError("this SAE does not know its hook point: give hook='resid_post.2'")
    name = model.hook_point(wanted).name
    for title, sae in saes.items():
        own = sae.metadata.hook
        if hook is None and own is not None and model.hook_point(own).name != name:
            raise ConfigError(f"{title} reads {own}, not {name}: probe SAEs of one hook point together")
        join(sae, model, name)
    return Place(model, name, known)


def read_texts(
    place: Place,
    texts: Text,
    hooks: Sequence[str] = (),
    *,
    last_only: bool = False,
    rows: int | None = None,
    what: str = "reading texts",
    keeper: Keeper | None = None,
) -> Iterator[Rows]:
    """Tokens of texts, each text in contexts of its own; from where they were kept.

    Args:
        place: the model and what is read there.
        texts: what `read_documents` takes.
        hooks: other hook points beside.
        last_only: the last token of each text alone.
        rows: read no more tokens than so many (a context more at most).
        what: how the work is called.
        keeper: what keeps the sums of who reads.

    Raises:
        DataError: activations are not finite, or there is nothing to read.
        Interrupted: the user asked to stop; all is kept.
    """
    known = place.known.model_copy(update={"packing": False, "last_only": last_only or place.known.last_only})
    contexts, _ = reopened(known, place.model, place.hook, text=texts)
    rows_a_context(contexts, known)
    total = float(rows) if rows is not None else float(len(texts)) if isinstance(texts, list) else None
    with doing(what, total, unit="tokens" if rows is not None else "texts") as work:
        wanted = [Wanted(known, list(dict.fromkeys([place.hook, *hooks])))]
        start, before = keeper.go_on() if keeper else (0, 0)
        reading = Reading(
            place.model, contexts, wanted, 2**62 if rows is None else rows, start=start, counted=(before, start)
        )
        for piece in reading:
            found, documents = piece.found[0], piece.batch.document[piece.found[0].kept]
            for name, x in found.rows.items():
                if not bool(x.isfinite().all()):
                    row = int((~x.isfinite()).any(-1).nonzero()[0])
                    raise DataError(
                        f"the activations at {name} of {place.model.name} are not finite in text "
                        f"{int(documents[row])}: load the model in float32, or leave the text out"
                    )
            yield Rows(found.rows, documents)
            done = len(documents) if rows is not None else int(piece.batch.document.max()) + 1 - work.done
            work.advance(max(0.0, done))
            if keeper:
                keeper.round_is_over(reading.start, reading.rows)


class PooledCodes:
    """Codes of tokens, added up (or their largest kept) over each text; sparse throughout."""

    def __init__(self, n_latents: int, pool: Pool) -> None:
        self.n_latents, self.pool = n_latents, pool
        self._keys: list[np.ndarray] = []
        self._values: list[np.ndarray] = []

    def add(self, codes: SparseCodes, texts: Int[Tensor, " rows"]) -> None:
        """Take in the codes of some tokens."""
        on = codes.values != 0
        keys = (texts.to(codes.device)[codes.rows()] * self.n_latents + codes.indices)[on]
        keys, values = self._gathered(keys.cpu().numpy(), codes.values[on].detach().double().cpu().numpy())
        self._keys.append(keys)
        self._values.append(values)

    def _gathered(self, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each key once, with the sum (or the largest) of its values."""
        order = np.argsort(keys, kind="stable")
        keys, values = keys[order], values[order]
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])
        if not len(starts):
            return keys, values
        return keys[starts], (np.maximum if self.pool == "max" else np.add).reduceat(values, starts)

    def state(self) -> dict[str, np.ndarray]:
        """All that it knows."""
        keys, values = (
            np.concatenate([np.zeros(0, np.int64), *self._keys]),
            np.concatenate([np.zeros(0), *self._values]),
        )
        return {"keys": keys, "values": values}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state` gave."""
        self._keys, self._values = [state["keys"]], [state["values"]]

    def columns(self, n_tokens: Int[np.ndarray, " texts"]) -> Columns:
        """One row a text: means over its tokens, or the largest values."""
        keys, values = self._gathered(*self.state().values())
        texts, latents = np.divmod(keys, self.n_latents)
        if self.pool != "max":
            values = values / n_tokens[texts]
        return Columns(sparse.csr_array((values, (texts, latents)), shape=(len(n_tokens), self.n_latents)))


class PooledRows:
    """Activations of tokens, added up (or their largest kept) over each text."""

    def __init__(self, n_texts: int, pool: Pool) -> None:
        self.n_texts, self.pool = n_texts, pool
        self._sums: Tensor | None = None

    def add(self, x: Float[Tensor, "rows d"], texts: Int[Tensor, " rows"]) -> None:
        if self._sums is None:
            first = -torch.inf if self.pool == "max" else 0.0
            self._sums = torch.full((self.n_texts, x.shape[1]), first, dtype=torch.float64)
        place = texts[:, None].expand_as(x).cpu()
        how = "amax" if self.pool == "max" else "sum"
        self._sums.scatter_reduce_(0, place, x.detach().double().cpu(), how)

    def state(self) -> dict[str, np.ndarray]:
        """All that it knows."""
        return {} if self._sums is None else {"sums": self._sums.numpy()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state` gave."""
        self._sums = torch.from_numpy(state["sums"])

    def columns(self, n_tokens: Int[np.ndarray, " texts"]) -> Columns:
        """One row a text; zeros where nothing was read of it."""
        sums = (self._sums if self._sums is not None else torch.zeros(self.n_texts, 1)).numpy()
        if self.pool == "max":
            return Columns(np.where(np.isfinite(sums), sums, 0.0))
        return Columns(sums / n_tokens[:, None].clip(1))


class TokenCounts:
    """How many tokens of each text were read."""

    def __init__(self, n_texts: int) -> None:
        self.each = np.zeros(n_texts, np.int64)

    def add(self, texts: Int[Tensor, " rows"]) -> None:
        self.each += np.bincount(texts.cpu().numpy(), minlength=len(self.each))

    def state(self) -> dict[str, np.ndarray]:
        """All that it knows."""
        return {"each": self.each}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state` gave."""
        self.each = state["each"].copy()


class Pooled(NamedTuple):
    """All that is known of texts."""

    columns: dict[str, Columns]
    n_tokens: Int[np.ndarray, " texts"]


def pooled(
    place: Place,
    texts: list[str],
    encoders: Mapping[str, Callable[[Float[Tensor, "rows d"]], SparseCodes]],
    n_latents: Mapping[str, int],
    hooks: Mapping[str, str],
    pool: Pool,
    keeping: Keeping | None = None,
) -> Pooled:
    """One pass over texts for all SAEs and controls.

    Args:
        place: where.
        texts: the texts.
        encoders: by name, what gives codes of what the model has there.
        n_latents: by name, how many latents each of them has.
        hooks: by name, the hook points whose activations are kept too.
        pool: "mean" or "max" over a text's tokens, or its "last" token.
        keeping: where the state of the pass is kept, if it is.

    Raises:
        Interrupted: the user asked to stop; all is kept.
    """
    codes = {name: PooledCodes(n_latents[name], pool) for name in encoders}
    rows = {name: PooledRows(len(texts), pool) for name in hooks}
    n_tokens = TokenCounts(len(texts))
    keeper = keeping and keeping.keeper("texts", [n_tokens, *codes.values(), *rows.values()])
    with keeper.request if keeper else nullcontext():
        for read in read_texts(place, texts, list(hooks.values()), last_only=pool == "last", keeper=keeper):
            if not len(read.texts):
                continue
            n_tokens.add(read.texts)
            for name, encode in encoders.items():
                codes[name].add(encode(read.x[place.hook]), read.texts)
            for name, hook in hooks.items():
                rows[name].add(read.x[hook], read.texts)
    if keeper:
        keeper.save()
    counts = n_tokens.each
    found = {name: part.columns(counts) for name, part in codes.items()}
    return Pooled(found | {name: part.columns(counts) for name, part in rows.items()}, counts)
