"""What stands in a graph for a part of the model: a dictionary's features at one place, or raw neurons.

A unit reads one site and writes one or several. Its features that are on are entries: a position, a latent, a value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosem.errors import ConfigError
from monosem.hook_names import layer_of
from monosem.interventions.base import joined_once
from monosem.interventions.plain import sae_hash
from monosem.models import SubjectModel
from monosem.models.blocks import block_module, block_of, matrix
from monosem.sae import SAE, CrossLayerTranscoder, GatedSAE, SwitchSAE

Dictionaries = SAE | str | Sequence[SAE] | Mapping[str, SAE | str]
"""One dictionary, several, or each with its hook point; "neurons" for the neurons of a layer, or of all."""
NEURONS = "neurons"
UNREADABLE = ("crosscoder", "pursuit")


@dataclass
class Unit(ABC):
    """Features at one place, and after `look` those of one prompt that are on, sorted by position."""

    name: str
    """Its hook point in the graph: the first that it writes; of neurons their own."""
    read: str
    """The hook point that it reads."""
    writes: list[str]
    """The hook points that it writes, in the order of the pass."""
    positions: Int[Tensor, " entries"] = field(init=False, repr=False)
    latents: Int[Tensor, " entries"] = field(init=False, repr=False)
    values: Float[Tensor, " entries"] = field(init=False, repr=False)

    @property
    def layer(self) -> int:
        return layer_number(self.name)

    @property
    def rebuilds(self) -> bool:
        """Whether it stands in for the very thing that it reads."""
        return self.read == self.name

    @abstractmethod
    def look(self, x: Float[Tensor, "pos d"], kept: Bool[Tensor, " pos"]) -> None:
        """Find the features that are on."""

    def goals(self) -> Float[Tensor, " entries"]:
        """Of each entry the number that its row adds up to: what it reads, before its activation function."""
        return self.values

    @abstractmethod
    def readers(self, entries: Int[Tensor, " n"]) -> Float[Tensor, "n d_in"]:
        """By what each entry's value grows with what is read at its position."""

    @abstractmethod
    def written(self, write: int, entries: Int[Tensor, " n"]) -> Float[Tensor, "n d_out"]:
        """What each entry adds at one of the places that it writes."""

    def bias(self, write: int) -> Float[Tensor, "pos d_out"] | None:
        """What it writes whatever is on."""
        return None

    def skip(self, write: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """A linear path from what it reads: matrix (d_out, d_in), and a factor for each position before and after."""
        return None

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the graph keeps of it: name, hash, kind, number of latents."""


@dataclass
class DictionaryUnit(Unit):
    """Features of an SAE or transcoder, or of one layer of a cross-layer transcoder."""

    sae: SAE = field(repr=False)
    part: int = 0
    """The layer of a cross-layer transcoder."""

    @property
    def crosses(self) -> bool:
        return isinstance(self.sae, CrossLayerTranscoder)

    def look(self, x: Float[Tensor, "pos d"], kept: Bool[Tensor, " pos"]) -> None:
        sae, self._kept = self.sae, kept
        inputs, targets = sae.transform.sources[self.part], sae.target_transform.sources[self.part]
        rows = x.to(sae.W_enc.dtype)
        self._inner = (1 / _deviation(inputs, rows)) * kept[:, None]
        self._outer = _deviation(targets, rows) * kept[:, None] if targets is inputs else kept[:, None].to(rows)
        places = kept.nonzero()[:, 0]
        if isinstance(sae, CrossLayerTranscoder):
            self.positions, self.latents, self.values = _on_in_layer(sae, self.part, inputs(rows[kept]), places)
        else:
            codes = sae.encode(rows[kept])
            on = codes.values != 0
            self.positions, self.latents = places[codes.rows()[on]], codes.indices[on].long()
            self.values = codes.values[on].detach()
        self._gain = self._gains(rows)
        self._rows = rows

    def _reading(self, latents: Int[Tensor, " n"]) -> Float[Tensor, "n d_in"]:
        sae = self.sae
        rows = sae.transform.sources[self.part].raw_readers(sae.W_enc.detach()[latents])
        return rows * sae.r_mag.detach().exp()[latents, None] if isinstance(sae, GatedSAE) else rows

    def _writing(self, write: int, latents: Int[Tensor, " n"]) -> Float[Tensor, "n d_out"]:
        sae = self.sae
        if isinstance(sae, CrossLayerTranscoder):
            rows = sae.decoder_of(self.part).detach()[latents - self.part * sae.latents_per_layer, write]
        else:
            rows = sae.W_dec.detach()[latents]
        return sae.target_transform.sources[self.part + write].raw_directions(rows)

    def _gains(self, rows: Float[Tensor, "pos d"]) -> Float[Tensor, " entries"]:
        if not isinstance(self.sae, SwitchSAE):
            return torch.ones_like(self.values)
        chances = self.sae.route(self.sae.centred(self.sae.transform(rows))).max(-1).values
        return chances.detach()[self.positions]

    def readers(self, entries: Int[Tensor, " n"]) -> Float[Tensor, "n d_in"]:
        strength = self._inner[self.positions[entries]] * self._gain[entries, None]
        return self._reading(self.latents[entries]) * strength

    def written(self, write: int, entries: Int[Tensor, " n"]) -> Float[Tensor, "n d_out"]:
        strength = self.values[entries, None] * self._outer[self.positions[entries]]
        return self._writing(write, self.latents[entries]) * strength

    def bias(self, write: int) -> Float[Tensor, "pos d_out"] | None:
        if write:
            return None
        sae = self.sae
        shift = sae.b_dec.detach().unflatten(0, sae.out_shape)[self.part] if self.crosses else sae.b_dec.detach()
        if sae.other_writers():  # W_skip t(x) is linear in x but for t(0)
            zero = sae.transform.sources[self.part](torch.zeros_like(self._rows[:1]))[0]
            shift = shift + self._skip_weight() @ zero
        transform, rows = sae.target_transform.sources[self.part], self._rows
        return transform.inverse(shift.expand(len(rows), -1), rows if transform.per_row else None) * self._kept[:, None]

    def _skip_weight(self) -> Tensor:
        weight = self.sae.get_parameter("W_skip").detach()
        return weight[self.part] if self.crosses else weight

    def skip(self, write: int) -> tuple[Tensor, Tensor, Tensor] | None:
        sae = self.sae
        if write or not sae.other_writers():
            return None
        reading = sae.transform.sources[self.part].raw_readers(self._skip_weight())
        whole = sae.target_transform.sources[self.part].raw_directions(reading.T).T
        return whole, self._inner, self._outer

    def identity(self) -> dict[str, Any]:
        sae = self.sae
        return {
            "name": sae.metadata.source or f"{sae.architecture} of {sae.n_latents} latents",
            "hash": sae_hash(sae),
            "kind": sae.architecture,
            "n_latents": sae.n_latents,
            "read": self.read,
        }


def _on_in_layer(
    sae: CrossLayerTranscoder, layer: int, x: Float[Tensor, "rows d"], places: Int[Tensor, " rows"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, latents and values of one layer's latents that are on."""
    first = layer * sae.latents_per_layer
    own = slice(first, first + sae.latents_per_layer)
    before = x @ sae.encoder_of(layer).detach().T + sae.b_enc.detach()[own]
    limit = sae.own_threshold.detach()[own] if sae.own_thresholds else sae.threshold
    rows, latents = (before > limit.clamp_min(0)).nonzero(as_tuple=True)
    return places[rows], latents + first, before[rows, latents]


def _deviation(transform: Any, rows: Float[Tensor, "pos d"]) -> Float[Tensor, "pos 1"]:
    """By what a transform divides each row beside what all rows share."""
    return (
        transform.raw_changes(torch.ones_like(rows[:, :1]), rows) if transform.per_row else torch.ones_like(rows[:, :1])
    )


@dataclass
class NeuronUnit(Unit):
    """The neurons of a layer as they are: an entry for every neuron at every position.

    A plain neuron's value in the graph is what its activation function reads. A gated one's is its activation, half of
    it laid to the gate (the slope of the chord from 0) and half to what is gated, so that it is conserved.

    Source: RelP, as in Circuits in the neuron basis, 2026 (arXiv 2601.22594).
    """

    model: SubjectModel = field(repr=False)

    def look(self, x: Float[Tensor, "pos d"], kept: Bool[Tensor, " pos"]) -> None:
        block, layer = block_of(self.model), self.layer
        output, self._output_bias = matrix(block_module(self.model, layer, block.mlp_output))
        self._decoder = output.T
        act = _activation(self.model, layer)
        if block.neurons is not None:
            weight, bias = matrix(block_module(self.model, layer, block.neurons))
            before = x @ weight.T + (0 if bias is None else bias)
            self.activations, self._encoders = act(before), [(weight, torch.ones_like(before))]
            self._values = before
        elif block.gate is not None and block.up is not None:
            (gate, gate_bias), (up, up_bias) = (
                matrix(block_module(self.model, layer, name)) for name in (block.gate, block.up)
            )
            g = x @ gate.T + (0 if gate_bias is None else gate_bias)
            u = x @ up.T + (0 if up_bias is None else up_bias)
            self.activations = self._values = act(g) * u
            slope = torch.where(g == 0, torch.zeros_like(g), act(g) / torch.where(g == 0, torch.ones_like(g), g))
            self._encoders = [(gate, 0.5 * slope * u), (up, 0.5 * act(g))]
        else:
            raise ConfigError(f"{self.name}: the neurons of a {self.model.family} model are not read by circuits yet")
        on = (self.activations != 0) & kept[:, None]
        self.positions, self.latents = on.nonzero(as_tuple=True)
        self.values = self.activations[on]
        self._goals = self._values[on]

    def goals(self) -> Float[Tensor, " entries"]:
        return self._goals

    def bias(self, write: int) -> Float[Tensor, "pos d_out"] | None:
        return None if self._output_bias is None else self._output_bias.expand(len(self.activations), -1)

    def readers(self, entries: Int[Tensor, " n"]) -> Float[Tensor, "n d_in"]:
        at, neuron = self.positions[entries], self.latents[entries]
        return torch.stack([weight[neuron] * slope[at, neuron, None] for weight, slope in self._encoders]).sum(0)

    def written(self, write: int, entries: Int[Tensor, " n"]) -> Float[Tensor, "n d_out"]:
        return self._decoder[self.latents[entries]] * self.values[entries, None]

    def identity(self) -> dict[str, Any]:
        return {
            "name": f"neurons of layer {self.layer}",
            "hash": self.model.fingerprint(),
            "kind": NEURONS,
            "n_latents": len(self._decoder),
            "read": self.read,
        }


def _activation(model: SubjectModel, layer: int) -> Callable[[Tensor], Tensor]:
    for name in ("mlp.act_fn", "mlp.act", "mlp.activation_fn", "mlp.gelu_impl", "activation_fn"):
        try:
            return block_module(model, layer, name)
        except AttributeError:
            continue
    raise ConfigError(f"the activation function of {model.name} was not found: use dictionaries, not neurons")


def layer_number(hook: str) -> int:
    """The layer in a hook's name; -1 where it has none."""
    found = layer_of(hook)
    return -1 if found is None else found


def units_of(model: SubjectModel, dictionaries: Dictionaries) -> list[Unit]:
    """Every unit that dictionaries come to, in the order of the pass.

    Raises:
        ConfigError: the model's family is not known; a dictionary does not say where it belongs or cannot be in a
            graph, or two write the same place.
        MismatchError: one does not fit the model.
    """
    block_of(model)
    pairs: list[tuple[str | None, SAE | str]]
    if isinstance(dictionaries, Mapping):
        pairs = list(dictionaries.items())
    elif isinstance(dictionaries, SAE | str):
        pairs = [(None, dictionaries)]
    else:
        pairs = [(None, one) for one in dictionaries]
    found: list[Unit] = []
    for hook, one in pairs:
        found += _units(model, hook, one)
    taken: dict[str, str] = {}
    for unit in found:
        for write in (
            unit.writes if not isinstance(getattr(unit, "sae", None), CrossLayerTranscoder) else unit.writes[:1]
        ):
            if write in taken:
                raise ConfigError(f"two dictionaries stand in for {write}: give one of them")
            taken[write] = unit.name
    return found


def _units(model: SubjectModel, hook: str | None, one: SAE | str) -> list[Unit]:
    if isinstance(one, str):
        if one != NEURONS:
            raise ConfigError(f'a dictionary is an SAE, a transcoder or "{NEURONS}", got {one!r}')
        layers = range(model.n_layers) if hook is None else [layer_number(model.hook_point(hook).name)]
        if "mlp_mid.0" not in model.hook_points:
            raise ConfigError(f"{model.name} is a mixture of experts ({model.family}): its neurons have no hook point")
        return [NeuronUnit(f"mlp_mid.{layer}", f"mlp_in.{layer}", [f"mlp_raw.{layer}"], model) for layer in layers]
    if one.architecture in UNREADABLE:
        raise ConfigError(
            f"a {one.architecture} reads no single place by an encoder: trace with SAEs, transcoders, cross-layer "
            "transcoders or neurons"
        )
    known = one.metadata
    if isinstance(one, CrossLayerTranscoder):
        reads, targets = known.hooks, known.target_hooks
        if reads is None or targets is None or not len(reads) == len(targets) == one.n_layers:
            raise ConfigError("this cross-layer transcoder does not know which hook points it reads and predicts")
        reads, targets = ([model.hook_point(name).name for name in names] for names in (reads, targets))
        return [DictionaryUnit(targets[i], reads[i], targets[i:], one, i) for i in range(one.n_layers)]
    read = hook or known.hook
    if read is None:
        raise ConfigError("this dictionary does not know its hook point: give {'resid_post.2': dictionary}")
    read = model.hook_point(read).name
    if one.autoencodes:
        write = read
    else:
        target = known.target_hook or (read.replace("mlp_in", "mlp_out") if read.startswith("mlp_in") else None)
        if hook is not None and known.hook is not None and model.hook_point(hook).name == known.target_hook:
            read = model.hook_point(known.hook).name
        if target is None:
            raise ConfigError(f"this transcoder reads {read} and does not say what it predicts: metadata.target_hook")
        write = model.hook_point(target).name
    joined_once(one, model, read)
    return [DictionaryUnit(write, read, [write], one)]
