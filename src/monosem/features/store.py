"""FeatureStore: a harvest on disk, read feature by feature or table by table."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from monosem.arguments import Positive, checked
from monosem.errors import ConfigError
from monosem.features import embeddings as embedded
from monosem.features import explanations as explained
from monosem.features import search, search_images, search_rows
from monosem.features.embeddings import Embeddings
from monosem.features.explanations import Explanations
from monosem.features.feature import (
    Cofiring,
    Example,
    Feature,
    FiringToken,
    Histogram,
    LogitStatistics,
    Neighbour,
    SourcePart,
    TokenWeight,
)
from monosem.features.files import PART, read_index
from monosem.features.labels import Rows
from monosem.features.lookup import TokenIndex, WordIndex
from monosem.features.meaning import Meanings
from monosem.features.pictures import Pictures
from monosem.features.rows import LatentFile, Row, columns_of, numbers, require_numbers
from monosem.features.tables import histogram_edges
from monosem.features.word_table import WordTable, wilson
from monosem.models.sentences import SentenceEncoder
from monosem.models.vocabulary import Vocabulary
from monosem.sql import Tables, condition, readable
from monosem.work import job

ROOM = 20
"""Tokens to show before and after a window, where the passage has them."""
FIGURES = ("clarity", "count", "rate", "mean", "deviation", "max", "decoder_norm", "encoder_cosine")
NEVER = "never fired"
"""Name of a latent that has none."""
OLD_SAMPLE = 64
"""Firings of a latent from which stores before version 4 estimate the tokens on which it fires."""
PARTS_KEPT = 8
"""Parts whose passages stay in memory: a few MB each."""
EXPLAINERS_KEPT = 8
"""Explainers whose explanations do."""
FILES_KEPT = 3 * PARTS_KEPT
"""Files whose footers do: some 0.2 MB each."""


class Passages:
    """The passages of a part, in which the examples of its latents stand."""

    def __init__(self, table: pa.Table, vocabulary: Vocabulary, text_names: Sequence[str]) -> None:
        tokens = table.column("tokens").combine_chunks()
        self.first = table.column("passage")[0].as_py() if len(table) else 0
        """Number of the first."""
        self.facts = table.select(["text", "context", "offset"]).to_pylist()
        self.text_names = text_names
        self._ends, self._tokens, self._vocabulary = numbers(tokens.offsets), numbers(tokens.values), vocabulary
        self._texts: dict[int, list[str]] = {}

    def __len__(self) -> int:
        return len(self.facts)

    def texts(self, passage: int) -> list[str]:
        """The text of each of its tokens; a character of several tokens stands at the last of them."""
        i = passage - self.first
        if i not in self._texts:
            self._texts[i] = self._vocabulary.texts(self._tokens[int(self._ends[i]) : int(self._ends[i + 1])])
        return self._texts[i]

    def around(self, passage: int, start: int, length: int) -> Row:
        """Of a window: where its passage is from, its tokens, and what is stored before and after."""
        i, texts, stop = passage - self.first, self.texts(passage), start + length
        at = int(self._ends[i])
        return {
            "text": self.text_names[self.facts[i]["text"]],
            "context": self.facts[i]["context"],
            "tokens": self._tokens[at + start : min(at + stop, int(self._ends[i + 1]))],
            "texts": texts[start:stop],
            "before": texts[max(0, start - ROOM) : start],
            "after": texts[stop : stop + ROOM],
        }


class FeatureStore:
    """The features of one dictionary. `store[123]` is one of them; `table`, `search` and `sql` find them.

    Reading needs neither model nor tokenizer. May be used by several threads.
    """

    @checked
    def __init__(self, path: str | Path) -> None:
        """Open a store.

        Args:
            path: its folder, or that of a run that has one.

        Raises:
            FileError: there is none, it is damaged, or of another version.
        """
        self.path, self.index = read_index(path)
        self.n_latents: int = self.index["n_latents"]
        self.n_tokens: int = self.index["tokens"]
        own: weakref.ref[FeatureStore] = weakref.ref(self)  # a store that nobody holds any more is closed at once
        self._tables = functools.lru_cache(1)(lambda files: _alive(own)._open_tables(files))
        self._meanings = functools.lru_cache(1)(lambda _, __: Meanings(_alive(own)))
        self._embedded = functools.lru_cache(1)(lambda _: _alive(own)._open_embeddings())
        self._explained = functools.lru_cache(EXPLAINERS_KEPT)(
            lambda explainer, _: explained.read(_alive(own).path, explainer)
        )
        self.passages = functools.lru_cache(PARTS_KEPT)(lambda part: _alive(own)._read_passages(part))
        self._files = functools.lru_cache(FILES_KEPT)(LatentFile.open)
        self.word_index = functools.lru_cache(PARTS_KEPT)(lambda part: _alive(own)._read_words(part))

    @property
    def tables(self) -> Tables:
        """Its tables, and that of the explanations beside them, as they are now."""
        files = explained.files_of(self.path)
        return self._tables(tuple(str(path.relative_to(self.path)) for path in files))

    def _open_tables(self, explanations: tuple[str, ...]) -> Tables:
        tables = {name: [part["file"] for part in about["parts"]] for name, about in self.index["tables"].items()}
        return Tables(self.path, tables | ({"explanations": list(explanations)} if explanations else {}))

    @checked
    def explanations(self, explainer: str | None = None) -> Explanations:
        """What latents mean, as an explainer said; none if nobody has explained them.

        Args:
            explainer: "rules", the name of a model, "person" ...; None: of every latent the best of all, which is what
                a person wrote or else what has the highest score.

        Raises:
            FileError: a file of them is damaged.
        """
        return self._explained(explainer, self._facts())

    def _facts(self) -> tuple[tuple[str, int, int], ...]:
        """By which it is seen whether explanations have changed."""
        facts = [(str(path), path.stat()) for path in explained.files_of(self.path)]
        return tuple((name, fact.st_mtime_ns, fact.st_size) for name, fact in facts)

    def __len__(self) -> int:
        return self.n_latents

    def __getitem__(self, latent: int) -> Feature:
        """One feature.

        Raises:
            IndexError: the dictionary has no such latent.
        """
        return self.features([latent])[0]

    @checked
    def features(self, latents: Sequence[int]) -> list[Feature]:
        """Several features, in the order asked for."""
        for latent in latents:
            if not 0 <= latent < self.n_latents:
                raise IndexError(f"latent {latent} is not among 0 to {self.n_latents - 1}")
        found: dict[int, Feature] = {}
        for part in sorted({latent // PART for latent in latents}):
            wanted = sorted({int(latent) for latent in latents if latent // PART == part})
            found |= self._read_part(part, wanted)
        return [found[latent] for latent in latents]

    def _read_part(self, part: int, latents: list[int]) -> dict[int, Feature]:
        with readable(self.path):
            features, details, examples = (
                self._files(self._path(name, latents[0])).rows(latents) for name in ("features", "details", "examples")
            )
            passages = self.passages(part)
            parts = self._files(self._path("sources", latents[0])).rows(latents) if self.index.get("sources") else []
            examples.sort(key=lambda row: (-row["activation"], row["passage"], row["start"]))
            of_latent: dict[int, list[Row]] = {latent: [] for latent in latents}
            for row in examples:
                of_latent[row["latent"]].append(row | passages.around(row["passage"], row["start"], row["length"]))
            parts_of: dict[int, list[Row]] = {latent: [] for latent in latents}
            for row in parts:
                parts_of[row["latent"]].append(row)
            found: dict[int, Feature] = {}
            for row, more in zip(features, details, strict=True):
                latent = row["latent"]
                require_numbers(row, FIGURES)
                found[latent] = self._feature(row | more, of_latent[latent], parts_of[latent])
            return {latent: found[latent] for latent in latents}

    def _read_passages(self, part: int) -> Passages:
        with readable(self.path), pq.ParquetFile(self._path("passages", part * PART)) as file:
            return Passages(file.read(use_threads=False), self.vocabulary, self.index["text_names"])

    def _read_words(self, part: int) -> WordIndex:
        return WordIndex.of(self, part * PART, min(self.n_latents, (part + 1) * PART))

    @functools.cached_property
    def words(self) -> WordTable | None:
        """Which latents fire on which words; None of images, of rows, and in stores before version 4."""
        if "word_features" not in self.index["tables"]:
            return None
        with readable(self.path):
            return WordTable(self)

    @functools.cached_property
    def token_index(self) -> TokenIndex:
        """The tokens that latents fire on, promote and suppress, to search in."""
        return TokenIndex.of(self)

    def _path(self, table: str, latent: int) -> Path:
        about = self.index["tables"][table]
        return self.path / about["parts"][latent // about["latents_per_part"]]["file"]

    @checked
    def columns(self, names: Sequence[str]) -> pa.Table:
        """Some columns of the table `features`, of every latent in order; words as dictionaries."""
        with readable(self.path):
            return columns_of([self.path / part["file"] for part in self.index["tables"]["features"]["parts"]], names)

    def _feature(self, row: Row, examples: list[Row], parts: list[Row]) -> Feature:
        text = self.vocabulary.text

        def pairs(*names: str) -> Any:
            return zip(*(row[name] for name in names), strict=True)

        kinds: dict[str, list[Example]] = {"top": [], "sample": [], "near_miss": [], "silent": []}
        for example in examples:
            kinds[example["kind"]].append(self._example(example))
        moments = tuple(row[f"logit_{name}"] for name in LogitStatistics._fields)
        counts = np.array(row["histogram"], np.int64)
        return Feature(
            **{name: row[name] for name in ("latent", "clarity", "count", "rate", "mean", "deviation", "max")},
            name=row["name"] if row["count"] else NEVER,
            name_piece=None if row.get("name_piece") is None else (row["name_piece"][0], row["name_piece"][1]),
            n_tokens=self.n_tokens,
            counted_tokens=self.counted_tokens,
            histogram=Histogram(histogram_edges(row["histogram_first"], len(counts)), counts),
            promoted=[TokenWeight(t, text(t), w) for t, w in pairs("promoted_tokens", "promoted_weights")],
            suppressed=[TokenWeight(t, text(t), w) for t, w in pairs("suppressed_tokens", "suppressed_weights")],
            logits=None if moments[0] is None else LogitStatistics(*moments),
            firing_tokens=[
                FiringToken(t, text(t), share, recall, *self._share_interval(share, row))
                for t, share, recall in pairs("firing_tokens", "firing_shares", "firing_recalls")
            ],
            neighbours=[Neighbour(*pair) for pair in pairs("neighbours", "neighbour_cosines")],
            cofiring=[Cofiring(*t) for t in pairs("cofiring_latents", "cofiring_shares", "cofiring_lifts")],
            decoder_norm=row["decoder_norm"],
            encoder_cosine=row["encoder_cosine"],
            output_score=row.get("output_score"),
            confidence_change=row.get("confidence_change"),
            top=kinds["top"],
            samples=kinds["sample"],
            near_misses=kinds["near_miss"],
            silent=kinds["silent"],
            parts=[self._part(part) for part in parts],
            reads=None if row.get("reads") is None else self.index["sources"]["reads"][row["reads"]],
            pictures=self.pictures,
            rows=self.rows,
        )

    def _share_interval(self, share: float, row: Row) -> tuple[float, float]:
        """Of a share of a latent's firings: itself if all were counted."""
        log = self.index.get("log")
        sampled = min(row["count"], OLD_SAMPLE) if log is None else row["logged"]
        if sampled == row["count"]:
            return share, share
        return wilson(round(share * sampled), sampled)

    @property
    def counted_tokens(self) -> int:
        """In how many tokens it was counted on which tokens and words latents fire."""
        log = self.index.get("log")
        return self.n_tokens if log is None else log["tokens"]

    def _part(self, row: Row) -> SourcePart:
        text = self.vocabulary.text
        promoted, suppressed = (
            [
                TokenWeight(token, text(token), weight)
                for token, weight in zip(row[f"{side}_tokens"], row[f"{side}_weights"], strict=True)
            ]
            for side in ("promoted", "suppressed")
        )
        name = self.index["sources"]["predicts"][row["source"]]
        return SourcePart(name, row["norm"], row["share"], row["cosines"], promoted, suppressed)

    def _example(self, row: Row) -> Example:
        tokens = np.array(row["tokens"], np.int64)
        shades = np.array(row["shades"] or [0] * len(tokens), np.float32)
        return Example(
            row["activation"],
            row["weight"],
            tokens,
            row["texts"],
            shades * (row["scale"] / 255),
            row["peak"],
            row["document"],
            row["position"],
            row["text"],
            row["context"],
            row["before"],
            row["after"],
            row["passage"],
            row["start"],
        )

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens that the text is made of."""
        table = self.tables.run("select bytes, special from vocabulary order by token")
        special = [token for token, special in enumerate(table.column("special").to_pylist()) if special]
        return Vocabulary(table.column("bytes").to_pylist(), special)

    @property
    def things(self) -> str:
        """What its latents fire on."""
        return "patches" if self.pictures is not None else "rows" if self.rows is not None else "tokens"

    @functools.cached_property
    def rows(self) -> Rows | None:
        """The rows of a store of ready vectors; None for others."""
        return Rows(self.path, self.index) if self.index.get("vectors") else None

    @functools.cached_property
    def pictures(self) -> Pictures | None:
        """The images of a store of images; None for others."""
        return Pictures(self.path, self.index) if self.index.get("images") else None

    @checked
    def table(
        self,
        where: str | None = None,
        sort: str | None = None,
        limit: int | None = 100,
        offset: int = 0,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """A page of the table `features`.

        Args:
            where: an SQL condition on its columns: one expression.
            sort: a column; with "-" before it, downwards. Latents without a value come last, equal ones by number.
            limit: rows, at most; None for all.
            offset: rows to leave out.
            columns: names; all if not given.

        Raises:
            ConfigError: a column is unknown or the condition is none.
        """
        known = self._names
        for name in [*(columns or []), *([sort.removeprefix("-")] if sort else [])]:
            if name not in known:
                raise ConfigError(f"features have no column {name!r}; there are {', '.join(known)}")
        order = "latent"
        if sort and sort.removeprefix("-") != "latent":
            order = f"{sort.removeprefix('-')} {'desc' if sort.startswith('-') else 'asc'} nulls last, latent"
        elif sort == "-latent":
            order = "latent desc"
        wanted, shown = f"where {condition(where)} order by {order}", ", ".join(columns or ["*"])
        if limit is None:
            return self.tables.ask(f"select {shown} from features {wanted}", where=where)
        page = f"select latent from features {wanted} limit {int(limit)} offset {int(offset)}"
        chosen = self.tables.ask(page, where=where).column("latent").to_pylist()
        among = f"latent in ({', '.join(map(str, chosen))})" if chosen else "false"
        return self.tables.run(f"select {shown} from features where {among} order by {order}")

    @functools.cached_property
    def _names(self) -> list[str]:
        return self.tables.run("select * from features limit 0").column_names

    @checked
    def count(self, where: str | None = None) -> int:
        """How many features a condition leaves: one expression in SQL.

        Raises:
            ConfigError: it is none.
        """
        found = self.tables.ask(f"select count(*) as n from features where {condition(where)}", where=where)
        return found.column("n")[0].as_py()

    @checked
    def search(
        self, token: str | None = None, words: str | None = None, limit: Positive = 50, *, meaning: str | None = None
    ) -> pa.Table:
        """Features by a word or token that they fire on, promote or suppress; by words in passages; or by meaning.

        Args:
            token: a word, or the text of a token; case and a space before it do not count.
            words: all of them must stand in a passage, whole, or in parts of words if nowhere whole; case does not
                count. Of images: the name of a class; of ready vectors: a part of a label.
            limit: rows, at most.
            meaning: "negation", "names of countries": looked for in explanations and names, by stems; in the kinds of
                words at the peaks of passages; and in embeddings, if `embed` has made them.

        Returns:
            latent, score (higher is better), how ("fires on": a word, by how reliably and strongly; "named", "fires on
            token", "promotes", "suppresses", "passages", "images", "rows", "meaning"), best first; of a meaning also
            why each is there.

        Raises:
            ConfigError: none or several were given, or the text is nowhere.
        """
        if sum(given is not None for given in (token, words, meaning)) != 1:
            raise ConfigError(
                "search for a token, for words or for a meaning: search(token=' river'), search(words='the river') or "
                "search(meaning='bodies of water')"
            )
        if meaning is not None:
            found = self.meanings.find(meaning, limit)
            hits = search.as_table([search.Hit(one.latent, one.score, "meaning") for one in found])
            return hits.append_column("why", pa.array([one.why for one in found], pa.string()))
        if token is not None:
            if self.rows is not None:
                raise ConfigError("rows of ready vectors have no tokens: search(words=...) looks in their labels")
            return search.by_token(self, token, limit)
        if self.rows is not None:
            return search_rows.by_label(self, words or "", limit)
        if self.pictures is not None:
            return search_images.by_class(self, words or "", limit)
        return search.as_table(search.by_passages(self, words or "")[:limit])

    @property
    def meanings(self) -> Meanings:
        """What is searched by meaning; read when first asked for, and again when explanations or embeddings change."""
        return self._meanings(self._facts(), self.embeddings)

    @property
    def embeddings(self) -> Embeddings | None:
        """Embeddings of explanations and passages; None if `embed` has not made them.

        Raises:
            FileError: they are damaged.
        """
        index = self.path / embedded.FOLDER / "index.json"
        return self._embedded(index.stat().st_mtime_ns if index.is_file() else None)

    def _open_embeddings(self) -> Embeddings | None:
        return embedded.opened(self.path / embedded.FOLDER, self.n_latents)

    @checked
    def embed(self, encoder: str | Path | None = None, *, progress: bool = True) -> Embeddings:
        """Make embeddings of explanations and strongest passages, and keep them beside the store, for `search`.

        Stopped, it goes on with what is missing; after new explanations it makes again what has changed.

        Args:
            encoder: as for `SentenceEncoder`: a folder or hub id; MiniLM if not given.
            progress: whether to show where it is.

        Raises:
            ConfigError: there is no encoder.
            FileError: it cannot be loaded, or the store not be written.
        """

        def read(latents: Sequence[int]) -> list[tuple[Feature, str]]:
            return list(zip(self.features(latents), [self.meanings.said(latent) for latent in latents], strict=True))

        with job(progress):
            embedded.make(self.path / embedded.FOLDER, self.n_latents, SentenceEncoder(encoder), read)
        found = self.embeddings
        assert found is not None, "they have just been written"
        return found

    @checked
    def sql(self, query: str, values: Sequence[Any] = ()) -> pa.Table:
        """One query (DuckDB's SQL) on `features`, `details`, `examples`, `passages`, `vocabulary`, `explanations`.

        It is parsed before it is run: nothing can be written and no other file read. `?` in it stand for `values`.

        Raises:
            ConfigError: the query is wrong, or wants to do more than read the store.
        """
        return self.tables.ask(query, values)

    @checked
    def notable(self, n: Positive = 20, whole_words: bool = True) -> list[int]:
        """Latents worth looking at first: those that fire on few tokens, strongly, and clearly on what names them.

        They are ordered by clarity times maximum; of several of the same name the best is taken. Of images: those that
        fire on few patches, by clarity; of ready vectors those that fire on few rows.

        Args:
            n: how many.
            whole_words: only latents that are named by whole words, the first of three letters at least.
        """
        if self.pictures is not None:
            return search_images.notable(self, n)
        if self.rows is not None:
            return search_rows.notable(self, n)
        return search.notable(self, n, whole_words)

    @checked
    def similar(self, latent: int, n: Positive = 8) -> list[tuple[int, float]]:
        """The latents with the closest decoder rows, and cosines; as many as were stored, at most n."""
        return [(found, cosine) for found, cosine in self[latent].neighbours[:n]]

    def __repr__(self) -> str:
        about = self.index
        return (
            f"FeatureStore({str(self.path)!r}: {self.n_latents:,} latents of a {about['architecture']} SAE at "
            f"{about.get('hook')} of {about.get('model')}, {self.n_tokens:,} tokens)"
            if self.rows is None
            else f"FeatureStore({str(self.path)!r}: {self.n_latents:,} latents of a {about['architecture']} SAE on "
            f"{self.rows.source}, {self.n_tokens:,} rows)"
        )


def _alive(store: weakref.ref[FeatureStore]) -> FeatureStore:
    found = store()
    assert found is not None, "it is asked for by itself"
    return found
