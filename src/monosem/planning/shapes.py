"""What a run is made of, in shapes: its model, its hook points, its dictionaries. Nothing of it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path

from monosem.activations import StoreFolder, read_vectors
from monosem.errors import ConfigError, DataError
from monosem.files import safetensors_shapes
from monosem.models.outline import Outline, Rehearsal, outline
from monosem.models.subject import CPU_POSITIONS, GPU_POSITIONS
from monosem.runs.config import RunConfig
from monosem.runs.several import describe_each
from monosem.runs.storing import COMPARED
from monosem.sae import SAE, CrossLayerTranscoder, Transcoder
from monosem.sae.blank import outlined
from monosem.synthetic import is_world, world_width
from monosem.training.spliced import NUMBERS, POSITIONS

LONGEST = 1024
"""Tokens in a context where neither run nor model says it."""


@dataclass(frozen=True)
class Dictionary:
    """One dictionary of a run."""

    name: str
    config: RunConfig
    sae: SAE = field(repr=False)
    """Of shapes alone."""

    @cached_property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.sae.parameters())

    @cached_property
    def encoder(self) -> int:
        """Numbers of the encoder that one row meets."""
        return self.sae.W_enc.numel() // getattr(self.sae, "n_experts", 1)

    @property
    def steps(self) -> int:
        """Steps of its training."""
        return -(-self.config.tokens // self.batch)

    @property
    def d_in(self) -> int:
        """Numbers in a row that it reads."""
        return prod(self.sae.in_shape)

    @property
    def d_out(self) -> int:
        """Numbers in a row that it predicts."""
        return prod(self.sae.out_shape)

    @property
    def read(self) -> float:
        """Numbers of the encoder that belong to one latent."""
        return self.sae.W_enc.numel() / self.sae.n_latents

    @cached_property
    def written(self) -> float:
        """Numbers of the decoder that belong to one latent, on average."""
        decoders = [p.numel() for name, p in self.sae.named_parameters() if name.startswith("W_dec")]
        return (sum(decoders) or self.sae.W_enc.numel()) / self.sae.n_latents

    @property
    def k(self) -> int | None:
        """Latents on a row; None where they are learned."""
        return getattr(self.sae, "k", None)

    @property
    def batch(self) -> int:
        return self.config.training.batch_size

    @property
    def parts(self) -> int:
        """Processes over which its latents are divided."""
        return getattr(self.config.training, "latent_ranks", 1)


@dataclass(frozen=True)
class Subject:
    """What is read, and by which dictionaries."""

    config: RunConfig
    dictionaries: list[Dictionary]
    widths: dict[str, int]
    """Columns of a row of activations, at each hook point (of all models)."""
    length: int
    """Tokens in a context; 1 of ready vectors."""
    outlines: list[Outline] = field(default_factory=list, repr=False)

    @property
    def tokens(self) -> int:
        """Tokens that the longest training reads."""
        return max(one.config.tokens for one in self.dictionaries)

    @property
    def hooks(self) -> list[str]:
        return list(self.widths)

    @property
    def columns(self) -> int:
        """Numbers in a row of activations."""
        return sum(self.widths.values())

    @property
    def live(self) -> bool:
        """Whether training reads what the model gives as it runs."""
        return bool(self.outlines) and self.config.store is None

    @property
    def weight_bytes(self) -> int:
        return sum(outline.weight_bytes for outline in self.outlines)

    @property
    def loaded(self) -> bool:
        """Whether training has the model in memory: to run it, or to compare it with a store."""
        return self.live or 0 < self.weight_bytes <= COMPARED

    def rehearsed(self, cpu: bool, whole: bool = False) -> list[Rehearsal]:
        """A forward pass of each model over as many contexts as go through it at a time.

        Args:
            cpu: whether it is on a CPU.
            whole: to the output, not only to the last hook point.
        """
        contexts = max(1, (CPU_POSITIONS if cpu else GPU_POSITIONS) // self.length)
        return [each.rehearse(None if whole else self.hooks, contexts, self.length) for each in self.outlines]

    def reads_on(self, one: Dictionary) -> list[Rehearsal]:
        """What each model does that reads on from reconstructions, for each place that they are put in."""
        predicted = _listed(one.config.target) or _listed(one.config.hook)
        sizes = [getattr(each.model.module.config, "vocab_size", 0) or 1 for each in self.outlines]
        touched = 1 + one.batch // self.length
        return [
            each.read_on(
                hook, max(1, min(POSITIONS // self.length, NUMBERS // size // self.length, touched)), self.length
            )
            for each, size in zip(self.outlines, sizes, strict=True)
            for hook in predicted
        ]


def shapes_of(config: RunConfig) -> Subject:
    """The shapes of a run.

    Raises:
        ConfigError: the description does not fit the model, or its dictionaries what they read.
        FileError: there is no such model, store or file.
        HookError: the model has no such hook point.
    """
    if config.vectors is not None:
        return _of_vectors(config)
    names = [config.model] if isinstance(config.model, str) else config.model or []
    outlines = [outline(name) for name in names]
    each = describe_each(config, [p for p in outlines[0].model.hook_points if _in_all(p, outlines)])
    places = [name for one in each.values() for side in (one.hook, one.target) for name in _listed(side)]
    hooks = list(dict.fromkeys(outlines[0].model.hook_point(name).name for name in places))
    longest = min((o.model.context_length for o in outlines if o.model.context_length), default=LONGEST)
    length = config.activations.context_length or min(longest, LONGEST)
    if config.images is not None:
        length = outlines[0].model.context_length or length
    elif length > longest:
        raise ConfigError(f"context_length {length} is longer than the model's own {longest}")
    found = [each.rehearse(hooks, 1, min(length, 8) if config.images is None else length) for each in outlines]
    widths = {hook: sum(one.widths[hook] for one in found) for hook in hooks}
    if config.store is not None and Path(config.store).is_dir():
        stored = StoreFolder(config.store).index.hooks
        lacking = [hook for hook in hooks if stored.get(hook) != widths[hook]]
        if lacking:
            have = ", ".join(f"{name} of width {width}" for name, width in stored.items())
            raise ConfigError(f"{config.store} has no {lacking[0]} of width {widths[lacking[0]]}; it has {have}")
    dictionaries = [Dictionary(name, one, _sae(one, widths, len(outlines))) for name, one in each.items()]
    return Subject(config, dictionaries, widths, length, outlines)


def _of_vectors(config: RunConfig) -> Subject:
    name = config.vectors or ""
    width = world_width(name) if is_world(name) else _columns(Path(name))
    each = describe_each(config)
    dictionaries = [
        Dictionary(one, member, outlined(lambda member=member: member.sae.build(width))) for one, member in each.items()
    ]
    return Subject(config, dictionaries, {name: width}, 1)


def _columns(file: Path) -> int:
    """The width of the vectors in a file: of a .safetensors from its header, a .npy is mapped, a table is read.

    Raises:
        FileError: the file is missing or damaged.
        DataError: they are no rows of numbers.
    """
    if file.suffix == ".safetensors":
        shapes = list(safetensors_shapes(file).values())
        shape = shapes[0] if len(shapes) == 1 else ()
    else:
        shape = tuple(read_vectors(file).shape)
    if len(shape) != 2:
        raise DataError(f"{file}: vectors are rows of numbers, (rows, d), got {shape}")
    return shape[1]


def _sae(config: RunConfig, widths: dict[str, int], n_models: int) -> SAE:
    """The dictionary of a description, of shapes alone."""
    hooks, targets = _listed(config.hook), _listed(config.target)
    if config.target is None and issubclass(config.sae.kind, Transcoder | CrossLayerTranscoder):
        raise ConfigError(f"target: a {config.sae.architecture} predicts another hook point than it reads: name it")
    side_by_side = n_models if len(hooks) == 1 else len(hooks)
    d_in = _one_width(hooks, widths) // (n_models if len(hooks) == 1 else 1)
    d_out = _one_width(targets, widths) if targets else None
    stacked = isinstance(config.hook, list) or n_models > 1
    return outlined(lambda: config.sae.build(d_in, d_out, side_by_side if stacked else None))


def _one_width(hooks: Sequence[str], widths: dict[str, int]) -> int:
    found = sorted({widths[hook] if hook in widths else max(widths.values()) for hook in hooks})
    if len(found) > 1:
        raise ConfigError(f"hook points read side by side must be of one width, {', '.join(hooks)} have {found}")
    return found[0]


def _listed(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else names or []


def _in_all(hook: str, outlines: Sequence[Outline]) -> bool:
    return all(hook in each.model.hook_points for each in outlines[1:])


def resized(subject: Subject, n_latents: int) -> Subject | None:
    """The same with dictionaries of another size; None where an architecture cannot have it."""
    each = list[Dictionary]()
    for one in subject.dictionaries:
        sae = one.sae
        try:
            other = outlined(lambda sae=sae: type(sae)(sae.d_in, n_latents, **sae.settings, **sae.common))
        except ConfigError:
            return None
        each.append(replace(one, sae=other))
    return replace(subject, dictionaries=each)
