"""harvest: one pass of the model over text or images, for all latents of one or several dictionaries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosem.activations import (
    ActivationSource,
    Found,
    Mapping,
    Piece,
    Reading,
    VectorRows,
    join,
    models_of,
    reopened,
    rows_a_context,
)
from monosem.arguments import Positive, checked
from monosem.codes import SparseCodes
from monosem.data import Batch, BatchReader, Images
from monosem.data.documents import Text
from monosem.errors import ConfigError, DataError, FileError, Interrupted, MismatchError
from monosem.features.files import STATE, write_store
from monosem.features.merged import merge_at_first
from monosem.features.near import near_misses
from monosem.features.parts import source_names
from monosem.features.pictures import image_facts
from monosem.features.state import Harvest, HarvestSettings
from monosem.features.store import FeatureStore
from monosem.files import named_folder
from monosem.models import ModelSet, SubjectModel, load_model
from monosem.models.vocabulary import vocabulary_size
from monosem.ranks import agreed, by_itself, everyone, first_alone_in
from monosem.sae import SAE
from monosem.sae.identity import dictionary_hash
from monosem.text import first_token
from monosem.work import StopRequest, as_job, doing

HELD_OUT = "bundled:held_out"
VECTOR_ROWS = 8192
ROWS = "rows"
"""In place of a hook point, of ready vectors."""


class HarvestObserver:
    """Feeds a harvest from whatever runs an SAE over contexts: an observer for `evaluate`."""

    def __init__(self, harvest: Harvest, sae: SAE, begun: Callable[[], Harvest] | None = None) -> None:
        """Feed `harvest`; `begun` makes an empty one like it, for what is kept of several processes."""
        self.harvest, self.sae, self.begun = harvest, sae, begun

    @property
    def next_context(self) -> int:
        """The contexts before this one have been taken in."""
        return self.harvest.next_context

    def keep(self, path: Path) -> None:
        """Write all that has been taken in, by all processes; it is with the first then."""
        every = everyone()
        if merge_at_first(self.harvest, every):
            self.harvest.save(path)
        elif self.begun is not None:
            self.harvest = self.begun()

    def go_on(self, path: Path) -> None:
        """Go on from what `keep` has written: the first process has it, the others begin anew.

        Raises:
            FileError: it is of another harvest.
        """
        if everyone().first:
            self.harvest = _going_on(self.harvest, path)

    def at(self, context: int) -> None:
        """The contexts from this one on come next."""
        self.harvest.go_to(context)

    def __call__(
        self,
        batch: Batch,
        kept: Bool[Tensor, "contexts pos"],
        codes: SparseCodes,
        x: Float[Tensor, "rows d_in"],
    ) -> None:
        """Take in the codes of the kept positions of a batch, and their activations."""
        ranks = self.harvest.settings.near_ranks

        def near(rows: Tensor) -> tuple[Tensor, Tensor]:
            rows = rows.to(x.device)
            return near_misses(self.sae, x[rows], codes[rows], ranks)

        self.harvest.add(batch, kept, codes, near)


def new_harvest(
    sae: SAE,
    model: SubjectModel | ModelSet | None,
    hook: str | Sequence[str] | None,
    text: str,
    settings: HarvestSettings | None = None,
    first_context: int = 0,
    shown: Images | VectorRows | None = None,
) -> Harvest:
    """An empty harvest of what an SAE does at its hook points of a model, on a text, from one of its contexts on.

    With images a context is an image, what stands at a position is its place in the image, and a window is all of it.
    With ready vectors, which have no model, a context is a row, of one position.
    """
    settings = settings or HarvestSettings()
    if isinstance(shown, Images):
        length, bos, size = shown.n_positions, False, shown.n_positions
        settings = settings.model_copy(update={"before": length - 1, "after": length - 1})
    elif model is None:
        length, bos, size = 1, False, 1
        settings = settings.model_copy(update={"before": 0, "after": 0, "silent": 0})
    else:
        length, bos = context_kind([sae], model)
        size = vocabulary_size(model.tokenizer)
    hooks = [hook] if isinstance(hook, str) else list(hook or [])
    known = None if model is None else models_of(model)
    facts: dict[str, Any] = {
        "model": None if model is None else model.name,
        "model_fingerprint": None if known is None else " + ".join(one.fingerprint() for one in known),
        "tokenizer_fingerprint": None if model is None else model.tokenizer_fingerprint(),
        "hook": " + ".join(hooks) or None,
        "dictionary": dictionary_hash(sae),
        "prepend_bos": bos,
        "exclude_special": sae.metadata.exclude_special is not False,
    }
    if isinstance(shown, Images):
        facts["images"] = image_facts(shown)
    if isinstance(shown, VectorRows):
        facts["vectors"] = {"source": shown.name, "rows": len(shown), "labelled": shown.labels is not None}
    sources = source_names(sae, model, hooks or None)
    if sources is not None:
        facts |= {"hooks": hooks or None, "sources": sources}
    return Harvest(sae.n_latents, size, length, text=text, first_context=first_context, settings=settings, facts=facts)


@overload
def harvest(
    sae: SAE,
    path: str | Path,
    model: SubjectModel | ModelSet | ActivationSource | Tensor | np.ndarray | None = None,
    hook: str | Sequence[str] | None = None,
    *,
    text: Text | None = ...,
    images: Any = ...,
    vectors: Any = ...,
    labels: Any = ...,
    tokens: int = ...,
    settings: HarvestSettings | None = ...,
    keep_state: bool = ...,
    minutes: float = ...,
    progress: bool = ...,
) -> FeatureStore: ...


@overload
def harvest(
    sae: Sequence[SAE],
    path: Sequence[str | Path],
    model: SubjectModel | ModelSet | ActivationSource | Tensor | np.ndarray | None = None,
    hook: str | Sequence[str] | None = None,
    *,
    text: Text | None = ...,
    images: Any = ...,
    vectors: Any = ...,
    labels: Any = ...,
    tokens: int = ...,
    settings: HarvestSettings | None = ...,
    keep_state: bool = ...,
    minutes: float = ...,
    progress: bool = ...,
) -> list[FeatureStore]: ...


@checked
@as_job
@torch.no_grad()
def harvest(
    sae: SAE | Sequence[SAE],
    path: str | Path | Sequence[str | Path],
    model: SubjectModel | ModelSet | ActivationSource | Tensor | np.ndarray | None = None,
    hook: str | Sequence[str] | None = None,
    *,
    text: Text | None = None,
    images: Any = None,
    vectors: Any = None,
    labels: Any = None,
    tokens: Positive = 1_000_000,
    settings: HarvestSettings | None = None,
    keep_state: bool = False,
    minutes: float = 2.0,
    progress: bool = True,
) -> FeatureStore | list[FeatureStore]:
    """Harvest features into a store; several SAEs share one pass of the model.

    Any dictionary has features: one of a place in a model, a transcoder, a crosscoder or cross-layer transcoder (then
    with what each source has of a latent), and one of ready vectors (then with the rows on which it fires most).

    The state is saved every few minutes beside the store, and a harvest that was killed goes on from there, to the same
    result. With `keep_state` it stays, so that a later call with more tokens reads on instead of anew.

    Args:
        sae: one or several.
        path: the folder of the store, one for each.
        model: the subject model, or several side by side; the SAE's own if not given. Or ready vectors, as `vectors`.
        hook: name of the hook point, one for each, or those that the one SAE reads side by side; its own if not given.
        text: what `read_documents` takes. It is read once, in order. The bundled held-out text if not given.
        images: what to read in place of text: what `Images` takes.
        vectors: in place of a model and what it reads: rows (rows, d), as a tensor, an array or a file; or a store.
        labels: one integer an image, where the images come without; of vectors a word for each row.
        tokens: tokens (rows of vectors, positions of images) that the SAE is to read, the first of several; at most one
            context more.
        settings: what to keep of every latent.
        keep_state: keep `harvest.safetensors`.
        minutes: between saves.
        progress: show where it is.

    Returns:
        The store, or a list of them.

    Raises:
        ConfigError: what the SAE does not know was not given, or paths and SAEs do not pair up.
        MismatchError: an SAE does not fit the model, or the SAEs read contexts of different kinds.
        FileError: a state in the folder is damaged, or of another harvest; or another process writes into the folder.
        Interrupted: Ctrl-C; the state is saved.
    """
    saes = [sae] if isinstance(sae, SAE) else list(sae)
    folders = [named_folder(p) for p in ([path] if isinstance(path, str | Path) else path)]
    if len(saes) != len(folders) or not saes or len({f.resolve() for f in folders}) != len(folders):
        raise ConfigError(f"{len(saes)} SAEs and {len(folders)} folders: give every SAE a folder of its own")
    if isinstance(model, ActivationSource | Tensor | np.ndarray):
        model, vectors = None, model
    if vectors is not None:
        if model is not None or text is not None or images is not None:
            raise ConfigError("vectors stand in place of a model and what it reads: give one or the other")
        contexts: BatchReader = VectorRows(vectors, labels)
        name, takes, mappings = contexts.name, [_rows_of(s) for s in saes], list[Mapping]()
        places: Sequence[Sequence[str] | None] = [None] * len(saes)
    else:
        model = model or _model_of(saes[0])
        _check_same(saes, model, images)
        mappings = [Mapping(s, model, h) for s, h in zip(saes, _hooks(saes, hook), strict=True)]
        for mapping in mappings:
            join(mapping.sae, model, mapping.hooks)
        takes, places = [m.inputs for m in mappings], [m.hooks for m in mappings]
        text = HELD_OUT if text is None else text
        first_hook = mappings[0].hooks[0]
        contexts, name = reopened(saes[0].metadata, model, first_hook, text=text, images=images, labels=labels)
    shown = contexts if isinstance(contexts, Images | VectorRows) else None

    def begun() -> list[Harvest]:
        return [new_harvest(s, model, h, name, settings, shown=shown) for s, h in zip(saes, places, strict=True)]

    rows_a_context(contexts, saes[0].metadata)
    every = everyone()
    with first_alone_in(*folders):
        harvests = begun()
        if every.first:
            harvests = [_going_on(h, folder / STATE) for h, folder in zip(harvests, folders, strict=True)]
        observers = [HarvestObserver(h, s) for h, s in zip(harvests, saes, strict=True)]
        done, n_tokens = every.tell([[h.next_context for h in harvests], harvests[0].n_tokens])
        first, counted = min(done), (n_tokens, done[0])
        pieces: Iterable[Piece | None] = []
        if isinstance(contexts, VectorRows):
            pieces = _vector_pieces(contexts, len(saes), first, tokens)
        elif model is not None:
            wanted = [mapping.wanted_inputs for mapping in mappings]
            pieces = Reading(model, contexts, wanted, tokens, start=first, counted=counted).rounds()
        saved = time.monotonic()

        def take_in(piece: Piece) -> None:
            for one, take, observer, before, found in zip(saes, takes, observers, done, piece.found, strict=True):
                if before <= piece.start:  # else it was saved later than the others
                    x = take(found).to(one.W_enc.device)
                    observer.at(piece.start)
                    observer(piece.batch, found.kept, one.encode(x), x)

        def collect() -> None:
            """What all have found is with the first."""
            for observer, anew in zip(observers, begun() if not every.first else harvests, strict=True):
                merge_at_first(observer.harvest, every)
                observer.harvest = anew

        def save() -> None:
            collect()
            for one, folder in zip(harvests if every.first else (), folders, strict=every.first):
                one.save(folder / STATE)

        with StopRequest() as request, doing("harvesting", tokens, done=counted[0], unit="tokens") as work:
            for piece in pieces:
                if piece is not None:
                    take_in(piece)
                work.advance(every.size * int(piece.found[0].kept.sum()) if piece else 0)
                stopped, due = agreed(request.requested, time.monotonic() - saved > 60 * minutes)
                if stopped or due:
                    save()
                    saved = time.monotonic()
                if stopped:
                    raise Interrupted(
                        f"stopped after {work.done:,} of {tokens:,} tokens; the state is kept, and the "
                        "same command goes on from it"
                    )
        collect()
        if every.first:
            if not all(h.n_tokens for h in harvests):
                raise DataError(f"{name}: there is nothing that the SAE reads")
            for one, folder, s in zip(harvests, folders, saes, strict=True):
                if keep_state:
                    one.save(folder / STATE)
                with by_itself():
                    write_store(one, folder, s, model, shown)
                if not keep_state:
                    (folder / STATE).unlink(missing_ok=True)
        every.wait()
        stores = [FeatureStore(folder) for folder in folders]
    return stores[0] if isinstance(sae, SAE) else stores


def _rows_of(sae: SAE) -> Callable[[Found], Tensor]:
    """Takes ready vectors as they are."""
    return lambda found: found.rows[ROWS].to(sae.W_enc)


def _vector_pieces(contexts: VectorRows, n_saes: int, first: int, stop: int) -> Iterator[Piece | None]:
    """Ready vectors, all of which every SAE reads; dealt to all processes, in rounds as those of `Reading`."""
    every = everyone()
    stop = min(stop, len(contexts))
    for start in range(first, stop, VECTOR_ROWS * every.size):
        own = start + VECTOR_ROWS * every.rank
        batch = contexts.read(own, min(own + VECTOR_ROWS, stop)) if own < stop else None
        yield None if batch is None else Piece(own, batch, [Found({ROWS: batch.inputs}, ~batch.padding)] * n_saes)


def _going_on(begun: Harvest, state: Path) -> Harvest:
    """The harvest of which a state is there, if it is the same one."""
    if not state.is_file():
        return begun
    saved = Harvest.load(state)
    for name in ("n_latents", "vocabulary_size", "context_length", "settings", "facts"):
        if getattr(saved, name) != getattr(begun, name):
            raise FileError(f"{state} is of another harvest ({name} differ): delete it to begin again")
    if saved.spans[-1].text != begun.spans[-1].text:
        raise FileError(f"{state} is of a harvest of {saved.spans[-1].text}: delete it to begin again")
    return saved


def _model_of(sae: SAE) -> SubjectModel | ModelSet:
    known = sae.metadata
    if known.models:
        return ModelSet([load_model(name) for name in known.models])
    if known.model is None and known.vectors is not None:
        raise ConfigError(f"this SAE was trained on {known.vectors}: harvest(sae, path, vectors=...)")
    if known.model is None:
        raise ConfigError("this SAE does not know its model: harvest(sae, path, model, hook)")
    return load_model(known.model)


def _hooks(saes: list[SAE], hook: str | Sequence[str] | None) -> list[str | Sequence[str] | None]:
    """What is given for each; of one SAE that reads several places a list is all of them."""
    if hook is None or isinstance(hook, str):
        return [hook] * len(saes)
    if len(saes) == 1 and len(saes[0].in_shape) > 1:
        return [list(hook)]
    if len(hook) != len(saes):
        raise ConfigError(f"{len(saes)} SAEs and {len(hook)} hook points: name one for each")
    return list(hook)


def _check_same(saes: Sequence[SAE], model: SubjectModel | ModelSet, images: Any) -> None:
    """One reading of the data must serve all SAEs.

    Raises:
        as `context_kind`; MismatchError: they want documents packed, or images prepared, differently.
    """
    if images is None:
        context_kind(saes, model)
    for rule in ("packing",) if images is None else ("pixels",):
        if any(getattr(sae.metadata, rule) != getattr(saes[0].metadata, rule) for sae in saes):
            raise MismatchError(f"the SAEs were trained on data of different {rule}: harvest them one by one")


def context_kind(saes: Sequence[SAE], model: SubjectModel | ModelSet) -> tuple[int, bool]:
    """How text is cut for these SAEs: tokens in a context, and whether each begins with a special token.

    Raises:
        DataError: the model has no tokenizer.
        MismatchError: they want it differently, or the model's context is too short.
    """
    if model.tokenizer is None:
        raise DataError(f"{model.name} has no tokenizer to read text with: load_model(module, tokenizer=...)")
    own = min(model.context_length or 1024, 1024)
    has_bos = first_token(model.tokenizer) is not None
    kinds: set[tuple[int, bool]] = set()
    for sae in saes:
        bos = sae.metadata.prepend_bos
        kinds.add((sae.metadata.context_length or own, has_bos if bos is None else bos))
    if len(kinds) > 1:
        raise MismatchError("the SAEs read contexts of different lengths or beginnings: harvest them one by one")
    length, bos = kinds.pop()
    if model.context_length is not None and length > model.context_length:
        raise MismatchError(
            f"the SAE reads contexts of {length} tokens, {model.name} has a context of {model.context_length}"
        )
    return length, bos
