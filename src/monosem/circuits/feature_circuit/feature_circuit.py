"""ms.feature_circuit: which features of which places make a number, and which of them make each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.arguments import NotNegative, Positive, checked
from monosem.circuits.feature_circuit.batches import Asked, Method, Told
from monosem.circuits.feature_circuit.edges import OUTPUT, edges_of
from monosem.circuits.feature_circuit.faithfulness import BASELINES, SIZES, Baseline, Errors, Faithfulness, faithfulness
from monosem.circuits.feature_circuit.parts import Parts
from monosem.circuits.feature_circuit.saved import CircuitData, read_circuit, write_circuit
from monosem.circuits.feature_circuit.states import Ablation
from monosem.circuits.sites import Dictionaries
from monosem.errors import ConfigError
from monosem.interventions.number import Of
from monosem.models import SubjectModel
from monosem.work import as_job


@dataclass(frozen=True)
class FeatureCircuit(CircuitData):
    """Nodes by their effects on a number, and the edges between the first of them."""

    parts: Parts | None = field(default=None, repr=False)
    """The way to run the model again, while it is there: for `run` and `faithfulness`."""

    @property
    def incompleteness(self) -> dict[str, Float[Tensor, " contexts"]]:
        """Of each site the sum of effects less what it stands for: near 0 for integrated gradients of enough steps.

        Raises:
            ConfigError: the effects are not integrated.
        """
        if self.site_changes is None:
            raise ConfigError('effects to first order do not add up to a change: method="integrated"')
        return {site: self.site_totals[site] - change for site, change in self.site_changes.items()}

    @property
    def n_errors(self) -> int:
        """Of the nodes, how many are errors."""
        return sum(node.is_error for node in self.nodes)

    @torch.no_grad()
    def run(self, nodes: Sequence[int] | Sequence[tuple[int, int]], but: bool = False) -> Float[Tensor, " contexts"]:
        """The number with these nodes alone as they are, all others in their other state; with `but`, the reverse.

        Args:
            nodes: places in `nodes`, or (site, number) of any nodes.
            but: these are in their other state, and all others as they are.

        Raises:
            ConfigError: the circuit was read from a file.
        """
        parts = self._live()
        return parts.run([parts.order[n] if isinstance(n, int) else n for n in nodes], but)

    def _live(self) -> Parts:
        if self.parts is None:
            raise ConfigError("this circuit was read from a file and has no model to run: find it anew")
        return self.parts

    @as_job
    def faithfulness(
        self,
        sizes: Sequence[int] = SIZES,
        *,
        baselines: Sequence[Baseline] = BASELINES,
        errors: Errors = "nodes",
        seed: NotNegative = 0,
        progress: bool = True,
    ) -> Faithfulness:
        """Run the model with the largest nodes alone, and without them, for several sizes.

        found = circuit.faithfulness()
        print(found); found["circuit"].faithfulness

        Nodes that are in are computed anew from what stands before them; all others are put in their other state.
        Baselines, all of equal sizes: the model's own neurons at the same places and a dictionary that never learned,
        each with effects of its own; nodes at random (a mean of 3 draws). Edges, beside as many at random: each node
        is computed from the sources that have an edge to it and from nothing else, so that every set of sources costs a
        forward pass; without them, each from all but these.

        Args:
            sizes: numbers of nodes, or of edges; those above what there is are cut to it.
            baselines: which.
            errors: errors are nodes among others ("nodes"), in every circuit ("kept"), or in none ("removed").
            seed: of what is drawn.
            progress: show where it is.

        Raises:
            ConfigError: there are no sizes, a baseline is not known, or the circuit was read from a file.
        """
        return faithfulness(self._live(), self.edges, sizes, baselines, errors, seed)

    def save(self, folder: str | Path) -> Path:
        """Write circuit.json and circuit.safetensors into a folder.

        Raises:
            FileError: it cannot be written.
        """
        write_circuit(self, Path(folder))
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> FeatureCircuit:
        """Read what `save` has written; it is checked, and nothing in it is run. What runs the model is not in it.

        Raises:
            FileError: files are missing, damaged, or do not belong together.
        """
        return cls(**read_circuit(Path(folder)))

    def __str__(self) -> str:
        lines = [
            f"{float(self.metric.mean()):.4g}, {float(self.without.mean()):.4g} without all features and errors of "
            f"{', '.join(self.site_totals)}; {self.n_nodes:,} nodes, of the first {len(self.nodes)} "
            f"{self.n_errors} are errors ({self.error_share:.0%} of all effects)"
        ]
        lines += [f"  {node.effect:+.4g}  {node.name}" for node in self.nodes[:10]]
        for edge in self.edges[:10]:
            target = "the number" if edge.target == OUTPUT else self.nodes[edge.target].name
            lines.append(f"  {edge.effect:+.4g}  {self.nodes[edge.source].name} -> {target}")
        return "\n".join(lines)


@checked
@as_job
def feature_circuit(
    model: SubjectModel,
    dictionaries: Dictionaries,
    clean: Any,
    corrupt: Any = None,
    metric: Of | Told = "loss",
    *,
    method: Method = "gradient",
    steps: Positive = 16,
    position: int = -1,
    ablate: Ablation = "mean",
    by_position: bool = False,
    max_nodes: Positive = 100,
    edges: bool = True,
    batch_size: Positive | None = None,
    progress: bool = True,
) -> FeatureCircuit:
    """Which features at several places make a number, by how much, and which of them make each other.

    circuit = ms.feature_circuit(model, [sae_0, sae_1, sae_2], clean, corrupt, metric=(" Mary", " John"))
    print(circuit); print(circuit.faithfulness())

    A node is a feature of one dictionary, or all that it leaves unexplained (its error). Each has two states: that of
    the clean prompts, and another: that of the corrupt ones, token by token; without these its mean over the clean
    prompts at the same token, or zero. The effect of a node is how much the number falls when it goes to its other
    state:

        gradient:   (state - other state) * d number / d state, at the clean prompts, all nodes in one backward pass
        integrated: the same with the gradient averaged along the way, a site at a time, at the middles of equal steps:
                    the effects of a site add up to number - number with that site in its other state, but for
                    O(1 / steps^2)

    An edge is what of this runs straight into another node, past all other sites: all of a node's edges add up to its
    effect to first order. It is the mechanism of `ms.attribute`, at several sites and with other states.

    Source: Marks et al., Sparse Feature Circuits, 2024; integrated gradients by midpoint.

    Args:
        model: the model.
        dictionaries: SAEs and transcoders, one a place; by the hook point that they read, if they do not know it.
        clean: what the model reads: texts, token ids, a mapping.
        corrupt: as many prompts of the same lengths, token by token beside the clean ones.
        metric: "loss", a token, two of them, `(hook, direction)` or a function, as `of` of `ms.attribute`.
        method: "gradient", or "integrated".
        steps: of integrated gradients, a forward and backward pass each, at every site.
        position: the token at which logits and directions are taken; negative: from the end of each text.
        ablate: the other state where there is no corrupt prompt.
        by_position: a node for each token's position, in place of one for all.
        max_nodes: how many nodes are listed, and have edges between them.
        edges: find the edges: a backward pass for every node listed.
        batch_size: prompts that are read at once; as many as have 4,096 tokens, if not given. A function that is not
            told which prompts it sees reads all at once: let it take a second argument, a slice of the prompts.
        progress: show where it is.

    Raises:
        ConfigError: it is not known where a dictionary stands, or what is asked for.
        DataError: prompts do not stand side by side, one prompt has no mean, the number is not finite.
        MismatchError: a dictionary does not fit the model.
    """
    read = _read(model, clean), _read(model, corrupt)
    asked = Asked(model, *read, metric, position, method, steps, ablate, by_position, batch_size)
    parts = Parts(asked, dictionaries)
    listed = parts.order[:max_nodes]
    return FeatureCircuit(
        nodes=[parts.node(*each) for each in listed],
        edges=edges_of(parts, listed) if edges else [],
        metric=parts.value,
        without=parts.run([]),
        n_nodes=len(parts.order),
        method=method,
        site_totals=dict(zip(parts.hooks, (each.totals for each in parts.effects), strict=True)),
        site_changes=None if parts.changes is None else dict(zip(parts.hooks, parts.changes, strict=True)),
        error_share=parts.error_share,
        model=model.name,
        fingerprint=model.fingerprint(),
        parts=parts,
    )


def _read(model: SubjectModel, inputs: Any) -> Any:
    if isinstance(inputs, list | tuple) and all(isinstance(text, str) for text in inputs):
        return model.padded(list(inputs))
    return inputs
