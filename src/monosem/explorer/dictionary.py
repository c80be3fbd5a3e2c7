"""A dictionary to explore: its feature store, and what lies beside it: the SAE, the evaluation, the notes."""

from __future__ import annotations

import functools
import logging
import re
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
from torch import Tensor

from monosem.analysis import KeptImages, MetaSAE
from monosem.errors import ConfigError, FileError, MonosemError
from monosem.evaluation import EvaluationReport
from monosem.evaluation.definitions import GROUPS
from monosem.explorer.notes import Notes
from monosem.explorer.origin import Origin, read_origin
from monosem.explorer.said import said
from monosem.explorer.scoring import names_reward
from monosem.explorer.shapes import (
    Abilities,
    Evaluation,
    Images,
    MeasuredColumn,
    Metric,
    Missing,
    Named,
    Sources,
    Summary,
    Text,
)
from monosem.features import Explanations, FeatureStore
from monosem.features.explanations import explainers
from monosem.features.rows import numbers
from monosem.features.store import NEVER
from monosem.files import open_parquet, read_json
from monosem.sae import SAE, load_sae
from monosem.sae.identity import dictionary_hash
from monosem.sql import Limited, readable

COMPARED = ("l0", "fvu", "loss_recovered_mean", "loss_recovered_zero")
_LOG = logging.getLogger(__name__)
NO_REWARD = "there is no reward model: monosem explore RUN --reward MODEL"
WITH_PIECES = 4
"""Version of stores from which names have pieces."""


class Unavailable(MonosemError):
    """This store cannot do that: it has no model, no weights, or another width."""


class Dictionary:
    """One dictionary. May be used by several threads."""

    def __init__(
        self, name: str, path: Path, store: FeatureStore, limited: Limited | None = None, reward: str | None = None
    ) -> None:
        self.name, self.path, self.store = name, path, store
        self.limited = limited or Limited()
        self.index: dict[str, Any] = store.index
        self.n_latents = store.n_latents
        self.model_name: str | None = store.index.get("model")
        self.hook: str | None = store.index.get("hook")
        self.reward_name = reward or (self.model_name if names_reward(self.model_name) else None)
        """The reward model that it reads beside its own, or its own."""
        self.notes = Notes.beside(store.path, store.index.get("dictionary") or "", store.n_latents)
        self._lock, self._told = threading.Lock(), False

    # Beside the store --------------------------------------------------------------------------------------------

    @functools.cached_property
    def _sae_folder(self) -> Path | None:
        folder = self.store.path.resolve().parent / "sae"
        return folder if (folder / "cfg.json").is_file() else None

    @property
    def can(self) -> Abilities:
        """What may be asked of it."""
        no_sae = None if self._sae_folder else "the SAE's weights are not beside the store, in sae/"
        no_model = None if self.model_name else "the store does not name its model"
        if self.store.pictures is not None:
            return Abilities(
                prompt="this dictionary reads images, not text",
                map=no_sae,
                notes=self.notes.why_not,
                context="an image is shown whole",
                rewards="this dictionary reads images, not text",
            )
        if self.store.rows is not None:
            none = "this dictionary reads ready vectors, not text"
            return Abilities(prompt=none, map=no_sae, notes=self.notes.why_not, context=none, rewards=none)
        if self.sources is not None:
            several = f"this dictionary reads {self.hook}: prompts are for those of one place"
            return Abilities(prompt=several, map=no_sae, notes=self.notes.why_not, context=several, rewards=several)
        return Abilities(
            prompt=no_sae or no_model,
            map=no_sae,
            notes=self.notes.why_not,
            context=no_sae or no_model,
            rewards=no_sae or (None if self.reward_name else NO_REWARD),
        )

    @property
    def sources(self) -> Sources | None:
        """The names of its sources, if it reads or writes several side by side."""
        names = self.index.get("sources")
        return None if names is None else Sources(predicts=names["predicts"], reads=names["reads"])

    @property
    def width(self) -> int:
        """Of what it writes, all sources together: rows of other widths do not compare."""
        return self.index["d_out"] * (1 if self.sources is None else len(self.sources["predicts"]))

    @functools.cached_property
    def _sae(self) -> SAE:
        if self._sae_folder is None:
            raise Unavailable(f"{self.name}: {self.can['map']}")
        sae = load_sae(self._sae_folder)
        if dictionary_hash(sae) != self.index.get("dictionary"):
            raise Unavailable(
                f"the SAE in {self._sae_folder} is not the one that was harvested: `monosem harvest` the run again"
            )
        return sae

    def sae(self) -> SAE:
        """The SAE, loaded when first asked for.

        Raises:
            Unavailable: it is not there, or not the one that was harvested.
        """
        with self._lock:
            return self._sae

    @functools.cached_property
    def _directions(self) -> Tensor:
        rows = self._sae.decoder_directions().float().reshape(self.n_latents, -1)
        return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)

    def directions(self) -> Tensor:
        """(n_latents, d) decoder rows in raw units, at unit length; raises as `sae`."""
        with self._lock:
            return self._directions

    @functools.cached_property
    def meta(self) -> MetaSAE | None:
        """What its latents are made of, kept in `meta_sae` beside the store; None if there is no such thing."""
        folder = self.store.path.resolve().parent / "meta_sae"
        if not (folder / "meta.json").is_file():
            return None
        try:
            found = MetaSAE.load(folder)
        except FileError as error:
            _LOG.warning("%s", error)
            return None
        if found.dictionary != self.index.get("dictionary"):
            _LOG.warning("%s is of another dictionary than was harvested: make it anew with ms.meta_sae", folder)
            return None
        return found

    @functools.cached_property
    def optimised(self) -> KeptImages | None:
        """Images made for its features, kept in `optimised` beside the store; None if there are none."""
        folder, pictures = self.store.path.resolve().parent / "optimised", self.store.pictures
        if pictures is None or not (folder / "images.json").is_file():
            return None
        try:
            found = KeptImages(folder)
        except FileError as error:
            _LOG.warning("%s", error)
            return None
        positions = pictures.n_special + pictures.rows * pictures.columns
        if found.dictionary != self.index.get("dictionary"):
            _LOG.warning("%s is of another dictionary than was harvested: make it anew with ms.optimise_image", folder)
            return None
        if any(len(facts["activations"]) != positions for facts in found.facts.values()):
            _LOG.warning("%s is of images of another size than were harvested: it is left out", folder)
            return None
        return found

    @functools.cached_property
    def origin(self) -> Origin:
        """What the run's files tell of the weights that it began with."""
        return Origin(None, None) if self._sae_folder is None else read_origin(self._sae_folder.parent)

    @functools.cached_property
    def evaluation(self) -> Evaluation | None:
        """The run's evaluation; None if it has none that can be read."""
        path = self.store.path.resolve().parent / "evaluation.json"
        if not path.is_file():
            return None
        report = EvaluationReport.load(path)
        metrics = [
            Metric(
                key=key,
                label=one.label.strip(),
                group=group,
                formula=one.formula,
                unit=one.unit,
                direction=one.direction,
                note=report.notes.get(key, ""),
                columns=[
                    MeasuredColumn(name=name, value=column[key].value, low=column[key].low, high=column[key].high)
                    for name, column in report.columns.items()
                    if key in column
                ],
            )
            for group, definitions in GROUPS.items()
            for key, one in definitions.items()
            if key in report.metrics
        ]
        return Evaluation(facts=dict(report.facts), metrics=metrics)

    @functools.cached_property
    def columns(self) -> dict[str, Literal["number", "text"]]:
        """The columns of the table of features, and what they hold."""
        schema = self.store.table(limit=0).schema
        words = ("string", "large_string")
        fields = [field for field in schema if not pa.types.is_nested(field.type)]
        return {field.name: "text" if str(field.type) in words else "number" for field in fields}

    def ask(self, query: str, values: Sequence[Any] = (), where: str | None = None) -> dict[str, list[Any]]:
        """The columns of what a query finds in the store.

        Args:
            query: in SQL.
            values: for every `?` in it.
            where: a part of it that a stranger has written: it is parsed, and ended when it takes long.

        Raises:
            ConfigError: it cannot be run.
        """
        if where:
            return self.limited.ask(self.store.tables, query, values, where)
        return self.store.tables.run(query, values).to_pydict()

    # Names -------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _columns(self) -> tuple[pa.ChunkedArray, np.ndarray, np.ndarray, pa.ChunkedArray | None]:
        """Name, firing rate and maximum of every latent: 12 bytes each, and every name once a file; pieces of names."""
        pieces = ("name_piece",) if self.index["format_version"] >= WITH_PIECES else ()
        table = self.store.columns(("name", "rate", "max", *pieces))
        with readable(self.store.path):
            rates, maxima = numbers(table.column("rate")).astype(np.float32), numbers(table.column("max"))
            return table.column("name"), rates, maxima, table.column("name_piece") if pieces else None

    @property
    def rates(self) -> np.ndarray:
        """(n_latents,)"""
        return self._columns[1]

    @property
    def maxima(self) -> np.ndarray:
        """(n_latents,) largest activations; NaN where it never fired."""
        return self._columns[2]

    def own_name(self, latent: int) -> str | None:
        """The latent's name in the store, as `Feature.name`."""
        return self._columns[0][latent].as_py() if self.rates[latent] > 0 else NEVER

    def named(self, latent: int) -> Named:
        """How to call a latent."""
        return self.all_named([latent])[latent]

    def all_named(self, latents: Iterable[int]) -> dict[int, Named]:
        """How to call each of some latents: by what a person calls it, by the best of its explanations, by its name."""
        explained, pieces, labels = self.explanations(), self._columns[3], self.notes.labels()
        found = dict[int, Named]()
        for latent in {*latents}:
            item = explained.get(latent)
            found[latent] = Named(
                latent=latent,
                explanation=None if item is None else said(item),
                name=self.own_name(latent),
                name_piece=None if pieces is None else pieces[latent].as_py(),
                label=labels.get(latent),
                rate=float(self.rates[latent]),
            )
        return found

    def explanations(self, explainer: str | None = None) -> Explanations:
        """Of the store; none where they are damaged: the features can be looked at all the same."""
        try:
            return self.store.explanations(explainer)
        except FileError as error:
            return self._damaged(error, explainer)

    def explainers(self) -> list[str]:
        """Who has explained latents; nobody where what they said is damaged."""
        try:
            return explainers(self.store.path)
        except FileError as error:
            self._damaged(error, None)
            return []

    def _damaged(self, error: FileError, explainer: str | None) -> Explanations:
        if not self._told:
            _LOG.warning("%s", error)
            self._told = True
        return Explanations(self.store.path, explainer, ())

    def short_names(self, latents: Sequence[int] | np.ndarray) -> list[str]:
        """Label, or else name, or else number, of each."""
        labels = self.notes.labels()
        names = ((latent, labels.get(latent) or self.own_name(latent)) for latent in np.asarray(latents).tolist())
        return [name or f"f/{latent}" for latent, name in names]

    def check(self, latent: int) -> int:
        """The latent, if there is such a one.

        Raises:
            IndexError: there is none.
        """
        if not 0 <= latent < self.n_latents:
            raise IndexError(f"{self.name} has no feature {latent}: there are 0 to {self.n_latents - 1}")
        return latent

    # What it is --------------------------------------------------------------------------------------------------

    def summary(self) -> Summary:
        """The dictionary in a line."""
        alive = int((self.rates > 0).sum())
        about = self.index
        return Summary(
            name=self.name,
            path=str(self.path),
            model=self.model_name,
            hook=self.hook,
            architecture=about["architecture"],
            n_latents=self.n_latents,
            d_in=about["d_in"],
            tokens=self.store.n_tokens,
            alive=alive,
            dead=self.n_latents - alive,
            can=self.can,
            images=self.images(),
            things=self.store.things,
            sources=self.sources,
            figures=self.figures(),
        )

    def figures(self) -> list[MeasuredColumn]:
        """The figures of the evaluation by which dictionaries are compared, as far as it has them."""
        try:
            evaluation = self.evaluation
        except FileError:  # the dictionary's own page says what is wrong with it
            return []
        metrics = [] if evaluation is None else evaluation["metrics"]
        return [
            MeasuredColumn(**{**metric["columns"][0], "name": metric["key"]})
            for key in COMPARED
            for metric in metrics
            if metric["key"] == key
        ]

    def images(self) -> Images | None:
        """How positions lie on its images; None for text."""
        pictures = self.store.pictures
        if pictures is None:
            return None
        special = [self.store.vocabulary.text(i) for i in range(pictures.n_special)]
        return Images(rows=pictures.rows, columns=pictures.columns, special=special, classes=pictures.classes)

    def texts(self) -> list[Text]:
        """What was read."""
        length = self.index["context_length"]
        return [
            Text(text=t["text"], tokens=(t["stop_context"] - t["first_context"]) * length) for t in self.index["texts"]
        ]

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Of the SAE, as its cfg.json says; empty where it cannot be read."""
        try:
            described = read_json((self._sae_folder or Path()) / "cfg.json", dict[str, Any])
        except FileError:
            return {}
        settings = described.get("settings")
        return cast("dict[str, Any]", settings) if isinstance(settings, dict) else {}


class Dictionaries(dict[str, Dictionary]):
    """Dictionaries under names that may stand in an address, and those of the paths given that cannot be opened."""

    def __init__(self) -> None:
        super().__init__()
        self.missing: list[Missing] = []


def open_dictionaries(paths: Sequence[str | Path], reward: str | None = None) -> Dictionaries:
    """Open the stores of some run folders or feature store folders, and say which reward model reads beside theirs.

    One that cannot be opened does not stop the others: it is among the `missing`, with what to do.

    Raises:
        FileError: none can be opened; what is said is of the first.
        ConfigError: none was given, or one twice.
    """
    if not paths:
        raise ConfigError("give a run folder or a feature store to explore: monosem explore runs/demo")
    opened, first = Dictionaries(), None
    limited = Limited()
    for given in paths:
        path = Path(given)
        try:
            store = FeatureStore(path)
            check_parts(store)
        except FileError as error:
            opened.missing.append(Missing(path=str(path), words=str(error)))
            first = first or error
            continue
        if any(store.path.resolve() == other.store.path.resolve() for other in opened.values()):
            raise ConfigError(f"{path} was given twice")
        name = _free_name(store.path.resolve(), opened)
        opened[name] = Dictionary(name, path, store, limited, reward)
    if first is not None and not opened:
        raise first
    return opened


def check_parts(store: FeatureStore) -> None:
    """Read the footer of every file of a store, and its first feature.

    Raises:
        FileError: one is damaged.
    """
    for table in store.index["tables"].values():
        for part in table["parts"]:
            path = store.path / part["file"]
            with open_parquet(path, "harvest the run again") as file:
                rows = file.metadata.num_rows
            if rows != part["rows"]:
                raise FileError(f"{path} has {rows} rows, not {part['rows']}: harvest the run again")
    with readable(store.path):
        store[0].to_dict()


def _free_name(folder: Path, taken: dict[str, Dictionary]) -> str:
    base = folder.parent.name if folder.name == "features" else folder.name
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", base).strip(".-") or "dictionary"
    name, i = base, 2
    while name in taken:
        name, i = f"{base}-{i}", i + 1
    return name
