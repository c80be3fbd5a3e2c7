"""All that a server, or an export, has to show."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from monosem.explorer import shapes
from monosem.explorer.dictionary import Dictionaries, Dictionary
from monosem.explorer.geometry import Geometry
from monosem.explorer.subject import Source, Subjects
from monosem.explorer.table import Filters, columns_of, histogram_of
from monosem.spelling import listed

NOTABLE = 12
RATE_BINS = 48


class Site:
    """The dictionaries given, the models behind them, and what is computed from several of them."""

    def __init__(self, dictionaries: dict[str, Dictionary], alone: Iterable[Source] = ()) -> None:
        """Args: dictionaries by name, and SAEs without a store, whose models write texts and no more."""
        self.dictionaries = dictionaries
        self.written: dict[str, Source] = {**dictionaries, **{each.name: each for each in alone}}
        self.subjects = Subjects()
        self.geometry = Geometry(dictionaries, self.subjects)
        self._lock = threading.Lock()
        self._of_stores: dict[str, dict[str, Any]] = {}

    def close(self) -> None:
        """End what runs in the background."""
        self.subjects.close()
        for dictionary in self.dictionaries.values():
            dictionary.limited.close()

    def __getitem__(self, name: str) -> Dictionary:
        """A dictionary.

        Raises:
            IndexError: there is none of this name.
        """
        if name not in self.dictionaries:
            raise IndexError(f"there is no dictionary {name!r}: there are {listed(name, self.dictionaries)}")
        return self.dictionaries[name]

    def writer(self, name: str) -> Source:
        """A dictionary or SAE whose model writes texts.

        Raises:
            IndexError: there is none of this name.
        """
        if name not in self.written:
            raise IndexError(f"there is no model {name!r} here: there are {listed(name, self.written)}")
        return self.written[name]

    def load(self) -> None:
        """Load the models of all; raises as `Subjects.ask`."""
        for source in self.written.values():
            self.subjects.ask(source, lambda sae, model: None)

    def overview(self) -> shapes.Site:
        """All dictionaries, in a line each."""
        summaries = [dictionary.summary() for dictionary in self.dictionaries.values()]
        missing = self.dictionaries.missing if isinstance(self.dictionaries, Dictionaries) else []
        return shapes.Site(monosem_version=version("monosem"), static=False, dictionaries=summaries, missing=missing)

    def has_read(self, name: str) -> bool:
        """Whether what is said of a dictionary is known without reading all of its store."""
        return name in self._of_stores

    def dictionary(self, name: str) -> shapes.Dictionary:
        """Everything on a dictionary's first page."""
        dictionary = self[name]
        with self._lock:
            known = self._of_store(name)
        return shapes.Dictionary(
            **dictionary.summary(),
            **known,
            texts=dictionary.texts(),
            context_length=dictionary.index["context_length"],
            prepend_bos=bool(dictionary.index.get("prepend_bos")),
            settings=dictionary.settings,
            evaluation=dictionary.evaluation,
            lists=dictionary.notes.lists(),
        )

    def _of_store(self, name: str) -> dict[str, Any]:
        """What is read of the whole store, once."""
        if name not in self._of_stores:
            self._of_stores[name] = self._read_store(self[name])
        return self._of_stores[name]

    def _read_store(self, dictionary: Dictionary) -> dict[str, Any]:
        vocabulary = dictionary.store.vocabulary
        return {
            "special_texts": [vocabulary.text(token) for token in sorted(vocabulary.special)],
            "rate_histogram": histogram_of(dictionary, Filters(), "rate", RATE_BINS, log=True),
            "columns": columns_of(dictionary),
            "notable": dictionary.store.notable(NOTABLE),
        }

    def notes(self, name: str) -> shapes.Notes:
        """All notes of a dictionary."""
        notes = self[name].notes
        return shapes.Notes(
            format="monosem notes",
            format_version=1,
            dictionary=notes.dictionary,
            name=name,
            notes=list(notes.all().values()),
            lists=notes.lists(),
        )
