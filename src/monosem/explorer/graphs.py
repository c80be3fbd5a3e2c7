"""The attribution graphs that stand beside a dictionary: in the folder `graphs` of its run, a folder or file each."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from monosem.circuits.graph.core import Supernode
from monosem.circuits.graph.exchange_read import read_graph
from monosem.circuits.graph.exchange_write import exchanged
from monosem.circuits.graph.graph import Graph
from monosem.circuits.graph.single_file import graph_page
from monosem.circuits.graph.supernodes import check_supernodes, find_supernodes
from monosem.circuits.graph.trace import trace
from monosem.circuits.graph.view import graph_view
from monosem.errors import MonosemError
from monosem.explorer import shapes
from monosem.explorer.answers import to_json
from monosem.explorer.card import previews
from monosem.explorer.dictionary import Dictionary, Unavailable
from monosem.explorer.site import Site
from monosem.files import as_json
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.spelling import listed

KEPT = 6
"""Graphs that are kept open."""
PREVIEWS = 300
"""Features of which an HTML file holds what is known."""
NAMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


class GraphShelves:
    """The graphs of every dictionary of a site."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._shelves: dict[str, GraphShelf] = {}

    def __getitem__(self, name: str) -> GraphShelf:
        """Those of one.

        Raises:
            IndexError: there is no such dictionary.
        """
        dictionary = self._site[name]
        return self._shelves.setdefault(name, GraphShelf(self._site, dictionary))


class GraphShelf:
    """The graphs of one dictionary. May be used by several threads."""

    def __init__(self, site: Site, dictionary: Dictionary) -> None:
        self.site, self.dictionary = site, dictionary
        self.folder = dictionary.store.path.resolve().parent / "graphs"
        self._open: OrderedDict[str, tuple[int, Graph]] = OrderedDict()
        self._summaries: dict[str, tuple[int, shapes.GraphSummary]] = {}
        self._lock = threading.RLock()

    # What is there ----------------------------------------------------------------------------------------------------

    def _places(self) -> dict[str, Path]:
        """Folders and files of graphs by their names in addresses."""
        if not self.folder.is_dir():
            return {}
        found = {path.name.removesuffix(".json"): path for path in sorted(self.folder.iterdir())}
        return {name: path for name, path in found.items() if NAMED.fullmatch(name)}

    def overview(self) -> shapes.Graphs:
        """All, in a line each."""
        graphs, missing = list[shapes.GraphSummary](), list[shapes.GraphMissing]()
        for name, path in self._places().items():
            try:
                graphs.append(self._summary(name, path))
            except MonosemError as error:
                missing.append({"id": name, "words": str(error)})
        return shapes.Graphs(graphs=graphs, closed=self.closed, missing=missing)

    def _summary(self, name: str, path: Path) -> shapes.GraphSummary:
        stamp = _stamp(path)
        with self._lock:
            known = self._summaries.get(name)
        if known is None or known[0] != stamp:
            known = stamp, summary_of(name, self[name])
            with self._lock:
                self._summaries[name] = known
        return known[1]

    @property
    def closed(self) -> str | None:
        """Why no prompt can be traced here; None if one can."""
        why_not = self.dictionary.can["prompt"]
        if why_not:
            return why_not
        place = next(folder for folder in (self.folder, *self.folder.parents) if folder.is_dir())
        return None if os.access(place, os.W_OK) else f"graphs cannot be kept: {place} is read-only"

    def __getitem__(self, name: str) -> Graph:
        """A graph.

        Raises:
            IndexError: there is none of this name.
            FileError: it is damaged.
        """
        places = self._places()
        if name not in places:
            known = listed(name, places) if places else "none"
            raise IndexError(f"there is no graph {name[:120]!r} of {self.dictionary.name}: there are {known}")
        path = places[name]
        stamp = _stamp(path)
        with self._lock:
            known = self._open.get(name)
            if known is not None and known[0] == stamp:
                self._open.move_to_end(name)
                return known[1]
        graph = read_graph(path)
        with self._lock:
            self._open[name] = stamp, graph
            while len(self._open) > KEPT:
                self._open.popitem(last=False)
        return graph

    # What it looks like -----------------------------------------------------------------------------------------------

    def view(self, name: str, most: int) -> shapes.GraphView:
        """A graph's most influential nodes, with the names that its features have here."""
        graph = self[name]
        found = graph_view(graph, most)
        shown = self.shown(graph)
        self._name(found["nodes"], shown)
        dictionaries = {
            hook: shapes.GraphDictionary(**{**about, "shown": shown[hook].name if hook in shown else None})
            for hook, about in found["dictionaries"].items()
        }
        own = {"id": name, "dictionaries": dictionaries, "closed": self.unchangeable(graph)}
        return shapes.GraphView(**{**found, **own})

    def shown(self, graph: Graph) -> dict[str, Dictionary]:
        """The dictionaries of a graph that are on this site, by hook point: those of the same weights."""
        by_hash = {each.index.get("dictionary"): each for each in self.site.dictionaries.values()}
        by_hash[self.dictionary.index.get("dictionary")] = self.dictionary
        found = {hook: by_hash.get(about.get("hash")) for hook, about in graph.dictionaries.items()}
        return {hook: dictionary for hook, dictionary in found.items() if dictionary is not None}

    @staticmethod
    def _name(nodes: Iterable[dict[str, Any]], shown: dict[str, Dictionary]) -> None:
        """Give features that have no label what their dictionaries call them."""
        nameless = [node for node in nodes if node["kind"] == "feature" and not node["label"]]
        for hook, dictionary in shown.items():
            own = [node for node in nameless if node["hook"] == hook]
            names = dictionary.all_named(node["latent"] for node in own)
            for node in own:
                named, explanation = names[node["latent"]], names[node["latent"]]["explanation"]
                said = explanation["text"].replace("*", "") if explanation else None
                node["label"] = named["label"] or named["name"] or said

    def unchangeable(self, graph: Graph) -> str | None:
        """Why no feature of a graph can be changed and the model measured here; None if all can."""
        if self.dictionary.can["prompt"]:
            return self.dictionary.can["prompt"]
        lacking = [hook for hook in graph.dictionaries if hook not in self.shown(graph)]
        if lacking:
            return f"the dictionary at {lacking[0]} is not on this server: give its run to `monosem explore` too"
        return None

    # Groups -----------------------------------------------------------------------------------------------------------

    def found(self, name: str, alike: float) -> list[shapes.GraphGroup]:
        """Groups that are found in a graph, named by what its features are called here."""
        graph = self[name]
        nodes = graph_view(graph, len(graph.nodes))["nodes"]
        self._name(nodes, self.shown(graph))
        named = [node for node in nodes if node["label"] and node["latent"] is not None]
        labels = {(node["hook"], node["latent"]): node["label"] for node in named}
        return [shapes.GraphGroup(**group) for group in find_supernodes(graph, alike=alike, labels=labels)]

    def keep(self, name: str, given: shapes.KeptGroups) -> list[shapes.GraphGroup]:
        """Keep groups with a graph, in place of those that were there.

        Raises:
            ConfigError: two have one name, or one names a node that is not there or in another.
            Unavailable: the graph is a file of others, which stays as it is.
        """
        path = self._places().get(name)
        graph = self[name]
        groups = [Supernode(name=group.name, nodes=group.nodes) for group in given.groups]
        check_supernodes(graph, groups)
        if path is None or not path.is_dir():
            raise Unavailable(f"{name} is a file made elsewhere, and stays as it is: `Graph.save` makes a folder of it")
        graph.supernodes = groups
        graph.save(path)
        return [shapes.GraphGroup(name=group.name, nodes=group.nodes) for group in given.groups]

    # Others -----------------------------------------------------------------------------------------------------------

    def trace(self, text: str, target: str | None) -> str:
        """Trace a prompt, keep the graph, and say under which name.

        Raises:
            Unavailable: no prompt can be traced here.
            ConfigError: the target is not one token.
        """
        if self.closed:
            raise Unavailable(f"{self.dictionary.name}: {self.closed}")

        def work(sae: SAE, model: SubjectModel) -> Graph:
            return trace(model, {str(self.dictionary.hook): sae}, text, target)

        graph = self.site.subjects.ask(self.dictionary, work)
        name = name_of(graph)
        if name in self._places():
            graph.supernodes = self[name].supernodes
        graph.save(self.folder / name)
        return name

    def exchanged(self, name: str) -> bytes:
        """A graph as others read it."""
        return as_json(exchanged(self[name], slug=name)).encode()

    def html(self, name: str) -> str:
        """A graph as one HTML file, with what is known of its most influential features."""
        graph, found = self[name], self.view(name, 1_000)
        known, shown = dict[str, set[int]](), self.shown(graph)
        features = sorted((n for n in found["nodes"] if n["kind"] == "feature"), key=lambda n: -n["influence"])
        for node in features[:PREVIEWS]:
            if node["hook"] in shown and node["latent"] is not None:
                known.setdefault(str(node["hook"]), set()).add(node["latent"])
        cards = {
            f"{hook}/{card['latent']}": card
            for hook, latents in known.items()
            for card in previews(shown[hook], sorted(latents))
        }
        return graph_page(found, json.loads(to_json(cards)))


def summary_of(name: str, graph: Graph) -> shapes.GraphSummary:
    """A graph in a line."""
    return shapes.GraphSummary(
        id=name,
        prompt=graph.prompt or "".join(graph.words),
        words=list(graph.words),
        model=graph.model or None,
        targets=[target["label"] for target in graph.targets],
        nodes=len(graph.nodes),
        features=graph.n_features,
        replacement_score=graph.replacement_score,
        completeness_score=graph.completeness_score,
        groups=len(graph.supernodes),
    )


def name_of(graph: Graph) -> str:
    """What a graph is called in addresses: its first words, and some letters of the hash of prompt and targets."""
    words = re.sub(r"[^a-z0-9]+", "-", (graph.prompt or "".join(graph.words)).lower()).strip("-")[:40].strip("-")
    asked = json.dumps([graph.fingerprint, graph.tokens, [t["label"] for t in graph.targets], graph.dictionaries])
    return f"{words or 'prompt'}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"


def _stamp(path: Path) -> int:
    """Changes when a graph is written anew."""
    files = [path, *path.iterdir()] if path.is_dir() else [path]
    return max(file.stat().st_mtime_ns for file in files)
