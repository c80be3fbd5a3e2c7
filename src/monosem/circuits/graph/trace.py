"""ms.trace: the attribution graph of a prompt, from one forward pass held still and rows pulled back through it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.arguments import NotNegative, Share, checked
from monosem.circuits.frozen.frozen import Frozen
from monosem.circuits.frozen.units import Dictionaries, Unit, units_of
from monosem.circuits.graph.core import OWN, Nodes, TargetInfo
from monosem.circuits.graph.estimate import estimate
from monosem.circuits.graph.graph import Graph
from monosem.circuits.graph.influence import VARIES
from monosem.circuits.graph.rows import (
    AT_LEAST,
    BATCH_NUMBERS,
    ROOM,
    Rows,
    a_round,
    edges_a_row,
    kept_rows,
    put_together,
)
from monosem.circuits.graph.sources import Sources
from monosem.circuits.graph.targets import Goal, Target, goals_of, said_token
from monosem.circuits.graph.traced import Traced
from monosem.errors import ConfigError, DataError
from monosem.models import SubjectModel
from monosem.work.progress import as_job, doing


@checked
@as_job
def trace(
    model: SubjectModel,
    dictionaries: Dictionaries,
    prompt: str | Sequence[int] | Tensor,
    target: Target | list[Target] = None,
    *,
    position: int = -1,
    max_features: NotNegative = 5_000,
    edges: Share = 1.0,
    progress: bool = True,
) -> Graph:
    """Which features, errors, tokens and constants make what a model says of a prompt, and which made these.

    graph = ms.trace(model, [transcoder_0, transcoder_1, sae], "When Mary and John went out, John gave it to")
    print(graph)

    The pass is held still: attention patterns and norm scales stay, MLPs are replaced by dictionaries where there are
    any, and by errors alone where not. In what remains everything is linear, so that each number is the sum of what its
    sources add. Features are taken in the order of their influence on the targets.

    Sources: Ameisen et al., Circuit Tracing, 2025; Marks et al., Sparse Feature Circuits, 2024.

    Args:
        model: a causal language model.
        dictionaries: SAEs of any hook points, transcoders, skip and cross-layer transcoders, mixed as you like, each
            knowing its hook point or given as `{hook: dictionary}`; "neurons" for the neurons of a layer or of all.
        prompt: a text, or token ids.
        target: what to explain: a token by text or id; two of them, as a tuple, for the difference of their logits;
            `(hook, direction)`, `(hook, direction, bias)` for a probe; `("feature", hook, latent)`; "loss"; "reward"; a
            list of such; the likeliest next tokens (10 at most, or 95 % of probability) if not given.
        position: the token at which targets are taken; negative ones from the end.
        max_features: so many features at most become nodes; what the others add is in the remainder.
        edges: of every row the largest edges from features are kept that make up this share of its absolute sum; what
            the others add is in the remainder.
        progress: show how far it is.

    Raises:
        ConfigError: the model's family is not known, or a dictionary or target is not one that graphs are made of.
        DataError: the prompt is empty or too long, or a position is outside it.
        MismatchError: a dictionary is of another model.
    """
    if max_features < 0 or not 0 < edges <= 1:
        raise ConfigError(f"max_features is 0 or more and edges between 0 and 1, got {max_features} and {edges}")
    tokens = prompt_tokens(model, prompt)
    units = units_of(model, dictionaries)
    estimate(model, units, tokens.shape[1], [0] * len(units), 0, edges).require_room()
    frozen = Frozen(model, tokens, units)
    goals = goals_of(frozen, target, position)
    sources = Sources(frozen)
    active = [len(unit.positions) for unit in frozen.units]
    estimate(model, frozen.units, frozen.length, active, max_features, edges).require_room()
    with torch.no_grad():
        tracing = _Tracing(frozen, sources, goals, edges)
        tracing.run(min(max_features, sources.n_features))
    text = prompt if isinstance(prompt, str) else ""
    return tracing.graph(model, text)


def prompt_tokens(model: SubjectModel, prompt: str | Sequence[int] | Tensor) -> Int[Tensor, "1 pos"]:
    """Token ids of one prompt.

    Raises:
        DataError: it is empty, several, too long, or has ids that are no tokens.
    """
    if isinstance(prompt, str):
        tokens = model.tokens(prompt)
    else:
        tokens = torch.as_tensor(prompt, device=model.device)
        if tokens.numel() == 0 or torch.is_floating_point(tokens):
            raise DataError("the prompt is empty, or not of token ids")
        tokens = tokens.long().reshape(1, -1) if tokens.ndim == 1 else tokens.long()
    if tokens.ndim != 2 or len(tokens) != 1:
        raise DataError(f"one prompt at a time, got token ids of shape {tuple(tokens.shape)}")
    most = model.context_length
    if most is not None and tokens.shape[1] > most:
        raise DataError(f"the prompt has {tokens.shape[1]} tokens, {model.name} reads {most}: shorten it")
    size = model.module.get_input_embeddings().weight.shape[0]  # type: ignore[operator, union-attr]
    if int(tokens.min()) < 0 or int(tokens.max()) >= size:
        raise DataError(f"the prompt has token {int(tokens.max())}: the vocabulary has 0 to {size - 1}")
    return tokens


class _Tracing:
    """Rows as they are made."""

    def __init__(self, frozen: Frozen, sources: Sources, goals: list[Goal], share: float) -> None:
        self.frozen, self.sources, self.goals, self.share = frozen, sources, goals, share
        self.table = {name: column.numpy() for name, column in sources.table().items()}
        self.varies = np.ones(sources.n_columns)
        for group in sources.groups:
            if group.kind not in VARIES:
                self.varies[group.start : group.start + group.size] = 0
        self.own = next(group.start for group in sources.groups if group.hook == OWN)
        self.others, self.to = self._other_nodes()
        self.done: list[Rows] = []
        self.visited = np.zeros(sources.n_features, dtype=bool)
        self.most = ROOM

    def run(self, most: int) -> None:
        """Targets, then features by influence."""
        self.most = edges_a_row(most + len(self.goals))
        for goal in self.goals:
            rows = self.sources.rows_of(goal.site, goal.cotangent(self.frozen))
            self._keep(goal.site, np.array([-1]), rows, np.array([goal.value(self.frozen)]), np.array([goal.constant]))
        at_once = a_round(most)
        with doing("tracing", most, unit="features") as work:
            while (left := most - int(self.visited.sum())) > 0:
                influence = self.influence()
                influence[self.visited] = 0
                order = np.argsort(-influence, kind="stable")[: min(at_once, left)]
                order = order[influence[order] > 0]
                if not len(order):
                    break
                self.visited[order] = True
                self._features(np.sort(order), work)

    def influence(self) -> Float[np.ndarray, " features"]:
        """Of every feature, through the rows that there are: each edge is touched once, the latest readers first."""
        found = np.zeros(self.sources.n_features)
        goals = [rows for rows in self.done if rows.features[0] < 0]
        for rows, goal in zip(goals, self.goals, strict=True):
            rows.pass_on(found, np.array([goal.weight]))
        for rows in sorted(self.done[len(goals) :], key=lambda rows: -rows.site):
            rows.pass_on(found, found[rows.features])
        return found

    def _features(self, chosen: Int[np.ndarray, " n"], work: Any) -> None:
        """Rows of some features, those of one site together, from early positions to late ones."""
        device = self.frozen.tokens.device
        for number, entries, _ in self.sources.feature(torch.from_numpy(chosen).to(device)):
            unit = self.frozen.units[number]
            site = self.frozen.read_at[number]
            entries = entries[torch.argsort(unit.positions[entries], stable=True)]
            room = BATCH_NUMBERS // self.frozen.sites[site].value.shape[1]
            lengths = unit.positions[entries] + 1
            start = 0
            while start < len(entries):
                together = torch.arange(1, len(entries) - start + 1, device=device) * lengths[start:]
                part = entries[start : start + max(AT_LEAST, int((together <= room).sum()))]
                self._batch(number, unit, site, part)
                start += len(part)
                work.advance(len(part))

    def _batch(self, number: int, unit: Unit, site: int, entries: Int[Tensor, " n"]) -> None:
        vectors = unit.readers(entries).to(self.frozen.dtype)
        positions = unit.positions[entries]
        rows = self.sources.rows(site, positions, vectors)
        goals = unit.goals()[entries].double()
        read = self.frozen.sites[site].value[positions]
        own = goals - (read.double() * vectors.double()).sum(1)
        columns = (entries + self.sources.starts[number]).cpu().numpy()
        self._keep(site, columns, rows, goals.cpu().numpy(), own.cpu().numpy())

    def _keep(
        self, site: int, columns: np.ndarray, rows: Float[Tensor, "n columns"], totals: np.ndarray, own: np.ndarray
    ) -> None:
        """Keep rows: all that is not a feature's, of features the largest edges."""
        dense = rows.contiguous().cpu().numpy()
        dense[:, self.own] += own
        n_features, n_others = self.sources.n_features, len(self.others["kind"])
        kept = kept_rows(dense, n_features, self.varies, self.to, n_others, self.share, self.most)
        self.done.append(Rows(site, columns, *kept, totals))

    # As a graph -------------------------------------------------------------------------------------------------------

    def graph(self, model: SubjectModel, text: str) -> Graph:
        """All rows in their order, with columns gathered into nodes."""
        frozen, table = self.frozen, self.table
        kept = np.flatnonzero(self.visited)
        kept = kept[np.lexsort((table["latent"][kept], table["position"][kept], self._order(kept)))]
        nodes = self._nodes(kept)
        n, n_goals = len(nodes), len(self.goals)
        columns = np.concatenate([rows.features for rows in self.done])
        totals = np.concatenate([rows.totals for rows in self.done])
        row_of, number = (np.full(self.sources.n_features, -1) for _ in range(2))
        row_of[columns[n_goals:]] = np.arange(n_goals, len(columns))
        number[kept] = np.arange(len(kept))
        order = np.concatenate([row_of[kept], np.arange(n_goals)])
        values, edge_columns, offsets = put_together(self.done, order, number, len(kept), n - len(kept))
        targets = [
            TargetInfo(
                label=goal.label,
                probability=goal.probability,
                value=float(total),
                position=goal.last,
                weight=goal.weight,
            )
            for goal, total in zip(self.goals, totals[:n_goals], strict=True)
        ]
        ids = frozen.tokens[0].tolist()
        graph = Graph(
            prompt=text,
            tokens=ids,
            words=[said_token(frozen, token) for token in ids],
            model=model.name,
            fingerprint=model.fingerprint(),
            dictionaries={unit.name: unit.identity() for unit in frozen.units},
            nodes=self._with_targets(nodes),
            targets=targets,
            values=values,
            columns=edge_columns,
            offsets=offsets,
            row_total=totals[order],
            settings={"edges": self.share, "active_features": self.sources.n_features},
        )
        to = np.concatenate([np.where(number < 0, n - 1, number), len(kept) + self.to])
        by_node = np.argsort(to, kind="stable")
        bounds = np.searchsorted(to[by_node], np.arange(n + 1))
        columns_of = [by_node[a:b] for a, b in pairwise(bounds)]
        graph.traced = Traced(model, frozen, self.sources, self.goals, columns_of)
        return graph

    def _order(self, columns: np.ndarray) -> np.ndarray:
        """The site at which each feature is read."""
        return np.array(self.frozen.read_at or [0])[self.table["unit"][columns]]

    def _nodes(self, kept: np.ndarray) -> Nodes:
        """Source nodes: features, then the others."""
        table, units = self.table, self.frozen.units
        names = np.array([unit.name for unit in units] or [""], dtype=object)
        layers = np.array([unit.layer for unit in units] or [-1])
        which = table["unit"][kept]
        rows: dict[str, list[Any]] = {
            "kind": ["feature"] * len(kept),
            "hook": list(names[which]),
            "layer": layers[which].tolist(),
            "position": table["position"][kept].tolist(),
            "latent": table["latent"][kept].tolist(),
            "activation": table["activation"][kept].tolist(),
        }
        return _table({name: column + self.others[name] for name, column in rows.items()})

    def _other_nodes(self) -> tuple[dict[str, list[Any]], Int[np.ndarray, " others"]]:
        """Source nodes that are no features, the remainder last; and to which of them each other column goes."""
        frozen, sources = self.frozen, self.sources
        rows: dict[str, list[Any]] = {
            name: [] for name in ("kind", "hook", "layer", "position", "latent", "activation")
        }
        to = np.zeros(sources.n_columns - sources.n_features, dtype=np.int64)
        begins = frozen.model._context((frozen.tokens,), {}).special
        first = 1 if begins is not None and bool(begins[0, 0]) and frozen.length > 1 else 0
        ids = frozen.tokens[0].tolist()
        at_beginning: list[int] = []
        for group in sources.groups:
            start = group.start - sources.n_features
            places = range(group.size) if group.by_position else [-1]
            for offset, place in enumerate(places):
                if 0 <= place < first:
                    at_beginning.append(start + offset)
                    continue
                to[start + offset] = len(rows["kind"])
                rows["kind"].append(group.kind)
                rows["hook"].append("embed" if group.kind in ("token", "position") else group.hook)
                rows["layer"].append(-1 if group.kind in ("token", "position") else group.layer)
                rows["position"].append(place)
                rows["latent"].append(ids[place] if group.kind == "token" else -1)
                rows["activation"].append(0.0)
        to[at_beginning] = len(rows["kind"])
        for kind, place in (("beginning", 0), ("remainder", -1)):
            for name, value in zip(rows, (kind, "", -1, place, -1, 0.0), strict=True):
                rows[name].append(value)
        return rows, to

    def _with_targets(self, nodes: Nodes) -> Nodes:
        last = max((layer for layer in range(self.frozen.model.n_layers)), default=0) + 1
        rows = {
            "kind": ["target"] * len(self.goals),
            "hook": [goal.hook for goal in self.goals],
            "layer": [last if "." not in goal.hook else int(goal.hook.rpartition(".")[2]) for goal in self.goals],
            "position": [goal.last for goal in self.goals],
            "latent": [goal.latent for goal in self.goals],
            "activation": [0.0] * len(self.goals),
        }
        targets = _table(rows)
        return Nodes(**{name: np.concatenate([getattr(nodes, name), getattr(targets, name)]) for name in rows})


def _table(rows: dict[str, list[Any]]) -> Nodes:
    return Nodes(
        np.array(rows["kind"], dtype=str),
        np.array(rows["hook"], dtype=str),
        np.array(rows["layer"], dtype=np.int32),
        np.array(rows["position"], dtype=np.int32),
        np.array(rows["latent"], dtype=np.int64),
        np.array(rows["activation"], dtype=np.float64),
    )
