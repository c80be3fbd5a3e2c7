"""The description of a run, as in run.yaml; several.py says which dictionaries it describes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from monosem.errors import ConfigError, FileError
from monosem.files import Settings, named_folder, one_line, parse_yaml, read_yaml, write_text
from monosem.models import ModelSet, SubjectModel
from monosem.sae import SAE
from monosem.sae.files import setting_type
from monosem.spelling import listed, meant
from monosem.training import EndToEnd, TrainingConfig

COMMON = ("transform", "seed")
SIDE_BY_SIDE = ("n_sources", "n_layers")
"""What architectures that read several activations side by side call their number."""


LARGEST = 10**18
"""No number of a description is larger: nothing counts so far, and arithmetic of 64 bits goes no further."""


class SAEConfig(BaseModel):
    """Which SAE to train. The parameters of its architecture stand beside these: `k: 24` for topk."""

    model_config = ConfigDict(extra="allow")

    architecture: str = "topk"
    """Name of the architecture."""
    n_latents: int = Field(default=4096, ge=1)
    """Size of the dictionary."""

    @property
    def kind(self) -> type[SAE]:
        """The class of its architecture.

        Raises:
            ConfigError: there is none of this name.
        """
        if self.architecture not in SAE.registry:
            known = listed(self.architecture, sorted(SAE.registry))
            raise ConfigError(f"sae.architecture: unknown {self.architecture!r}; there are {known}")
        return SAE.registry[self.architecture]

    def check(self) -> None:
        """See that the architecture has the parameters given.

        Raises:
            ConfigError: there is no such architecture, or it has no such parameter.
        """
        known = [*self.kind.parameters_of(), *COMMON]
        for name in self.model_extra or ():
            if name not in known:
                raise ConfigError(
                    f"sae.{name}: {self.architecture} has no such parameter; it has {', '.join(known)}"
                    + meant(f"sae.{name}", (f"sae.{each}" for each in (*known, *SAEConfig.model_fields)))
                )

    def build(
        self,
        d_in: int,
        d_out: int | None = None,
        n_sources: int | None = None,
        device: torch.device | None = None,
    ) -> SAE:
        """The untrained SAE.

        Args:
            d_in: width of what it reads, or of each of several sources.
            d_out: width of what it predicts, if that is something else.
            n_sources: how many hook points or models it reads side by side, if it reads several.
            device: where to put it.

        Raises:
            ConfigError: unknown architecture or parameter, a value out of range, or an architecture that does not read
                or predict such activations.
        """
        self.check()
        kind = self.kind
        own = kind.parameters_of()
        extra = dict(self.model_extra or {})
        counts = [name for name in SIDE_BY_SIDE if name in own]
        if n_sources is not None and not counts:
            raise ConfigError(
                f"sae.architecture: {self.architecture} reads one hook point of one model, {n_sources} are given: for "
                "a dictionary at each, write hooks, not hook; for one that reads them all, sae.architecture=crosscoder"
            )
        for name in counts if n_sources is not None else ():
            if extra.setdefault(name, n_sources) != n_sources:
                raise ConfigError(f"sae.{name}: {extra[name]}, but there are {n_sources}: leave it out")
        if d_out is not None:
            extra["d_out"] = d_out
        values = {name: _fitting(kind, name, value) for name, value in extra.items()}
        return kind(d_in, self.n_latents, device=device, **values)


def _fitting(kind: type[SAE], name: str, value: Any) -> Any:
    """A value for a parameter of a constructor, of the type that it declares."""
    try:
        return TypeAdapter(setting_type(kind, name)).validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"sae.{name}: {error.errors()[0]['msg'].lower()}, got {value!r}") from error


class ActivationsConfig(BaseModel):
    """How text or images become activations."""

    model_config = ConfigDict(extra="forbid")

    context_length: int | None = Field(default=None, ge=2)
    """Tokens in a context; the model's own if not given, at most 1024."""
    prepend_bos: bool | None = None
    """Begin every context with the beginning-of-sequence token; if not given, where there is one."""
    packing: bool | None = None
    """Documents end to end; else each begins a context of its own. If not given, all but encoders pack."""
    exclude_special: bool = True
    """Leave out positions of special tokens."""
    skip_first: int = Field(default=0, ge=0)
    """Leave out so many positions at the beginning of every context."""
    last_only: bool = False
    """Keep the last token of every document alone."""
    max_norm_ratio: float | None = Field(default=None, gt=0)
    """Leave out rows of more than so many times the median norm (10 is usual): sink tokens."""
    buffer_tokens: int = Field(default=131_072, ge=1)
    """Size of the shuffle buffer."""
    seed: int = Field(default=0, ge=0)
    """Of the order of documents and the shuffle."""
    by_context: bool = False
    """Rows of a context follow one another, as end-to-end losses need them; contexts come in random order."""


class LossConfig(BaseModel):
    """What a dictionary learns to lower."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["reconstruction", "end_to_end", "downstream"] = "reconstruction"
    """"reconstruction": the squared error; "end_to_end": KL of the model's output with the reconstruction put in;
    "downstream": that, and the error of later activations."""
    later: list[str] | None = None
    """downstream: at which hook points; if not given, the residual stream after every later block."""
    kl_weight: float | None = Field(default=None, ge=0)
    """Of KL; if not given 1, for "downstream" 0.5."""
    downstream_weight: float | None = Field(default=None, ge=0)
    """Of the error of later activations; 2.5 if not given."""

    @property
    def end_to_end(self) -> bool:
        """Whether the model reads on from reconstructions."""
        return self.kind != "reconstruction"

    def build(self, model: SubjectModel | ModelSet) -> EndToEnd | None:
        """The loss; None of a squared error."""
        if not self.end_to_end:
            return None
        later = (self.later or True) if self.kind == "downstream" else False
        weights = {"kl_weight": self.kl_weight, "downstream_weight": self.downstream_weight}
        return EndToEnd(model, downstream=later, **weights)

    @model_validator(mode="after")
    def _of_its_kind(self) -> LossConfig:
        """Nothing is set that its kind has not.

        Raises:
            ConfigError: it is.
        """
        lacking = {
            "reconstruction": ("later", "kl_weight", "downstream_weight"),
            "end_to_end": ("later", "downstream_weight"),
        }
        for name in lacking.get(self.kind, ()):
            if getattr(self, name) is not None:
                raise ConfigError(
                    f"loss.{name} has no meaning with loss.kind={self.kind}: leave it out, or set loss.kind=downstream"
                )
        return self


class EvaluationConfig(BaseModel):
    """What to measure after training."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = None
    """Held-out text; the bundled held-out text if not given and the run trains on the bundled text."""
    images: str | None = None
    """Held-out images of a run on images."""
    vectors: str | None = None
    """Held-out vectors of a run on vectors; of a synthetic world other rows of the same world if not given."""
    tokens: int = Field(default=500_000, ge=1)
    """Tokens for reconstruction, firing rates and features."""
    loss_tokens: int = Field(default=65_536, ge=0)
    """Tokens for the losses of the model."""
    controls: bool = True
    """Measure the mean, PCA, raw neurons and a random SAE beside it."""
    suite: Literal["core", "full"] = "core"
    """"core": what one pass of the model says; "full": all that is known of a dictionary."""
    last_words: str | None = None
    """A file of passages whose last word is to be guessed."""
    untrained_tokens: int | None = Field(default=None, ge=1)
    """full: for how many tokens the SAE of the untrained model is trained; if not given, as many as the dictionary, but
    at most 300,000, and fewer of a large model."""


class RunConfig(Settings):
    """A run: what is read, which dictionaries learn from it, how they are trained and measured."""

    model_config = ConfigDict(extra="forbid")

    output: str = "runs/run"
    """The run folder."""
    model: str | list[str] | None = "bundled"
    """"bundled", a local folder or a Hugging Face id; a list is read side by side (crosscoder)."""
    hook: str | list[str] | None = "resid_post.2"
    """What a dictionary reads: a canonical name, a TransformerLens name or a module path. A list, or a pattern such as
    resid_post.*, is read side by side (crosscoder, cross-layer transcoder)."""
    target: str | list[str] | None = None
    """What it must predict, if that is something else (transcoders). In it, * is the layer of the hook."""
    hooks: str | list[str] | None = None
    """In place of hook: a dictionary for each of these; a list, or a pattern such as attn_out.*."""
    text: str | None = "bundled"
    """"bundled", a file (.txt, .jsonl, .parquet, also .gz, .zst), a folder of such files, or hub:owner/name."""
    images: str | None = None
    """In place of text, for an image model: a folder, an IDX or .npz file, or hub:owner/name."""
    vectors: str | None = None
    """In place of a model: ready activations; a .npy, .safetensors or .parquet file. Or rows that are drawn, of known
    truth: synthetic:small, synthetic:16k, with settings synthetic:small,roots=0,seed=3."""
    store: str | None = None
    """A folder of activations that `monosem store` writes; training reads them there, and not from the model."""
    tokens: int = Field(default=1_000_000, ge=1)
    """Length of training, of each dictionary."""
    sae: SAEConfig = SAEConfig()
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    """A dictionary for every combination, such as {sae.k: [16, 32], training.lr: [1e-3, 2e-3]}."""
    dictionaries: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    """Dictionaries by name, with what each has of its own: hook, target, sae, loss and training."""
    activations: ActivationsConfig = ActivationsConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _one_source(self) -> RunConfig:
        """What stands in place of something else leaves that out, also in the resolved file.

        Raises:
            ConfigError: both are given, or no hook point.
        """
        replaced = {
            "vectors": ("model", "hook", "hooks", "target", "text", "images", "store"),
            "images": ("text",),
            "hooks": ("hook",),
        }
        for name, others in replaced.items():
            for other in others if getattr(self, name) is not None else ():
                if other in self.model_fields_set and getattr(self, other) is not None:
                    raise ConfigError(f"{name} and {other} cannot be given together: {name} stands in its place")
                setattr(self, other, None)
        idle = [name for name, info in ActivationsConfig.model_fields.items() if self._set(name, info.default)]
        if self.vectors is not None and idle != [name for name in idle if name == "seed"]:
            raise ConfigError(f"activations.{idle[0]}: ready vectors have no contexts: leave it out")
        self.activations.by_context |= self.loss.end_to_end
        instead = next((name for name in ("vectors", "store") if getattr(self, name) is not None), None)
        if self.activations.by_context and instead is not None:
            why = f"loss.kind: {self.loss.kind}" if self.loss.end_to_end else "activations.by_context"
            raise ConfigError(f"{why} needs the text that the model reads on: leave {instead} out")
        named_folder(self.output, "output")
        if self.vectors is None and not self.model:
            raise ConfigError("model: name a model, or give vectors")
        if self.vectors is None and not (self.hook or self.hooks):
            raise ConfigError("hook: name a hook point, such as resid_post.2")
        return self

    def _set(self, name: str, default: Any) -> bool:
        return getattr(self.activations, name) != default

    @property
    def reads(self) -> str:
        """Where its activations come from, in a few words."""
        if self.vectors is not None:
            return self.vectors
        places = self.hook if self.hook is not None else self.hooks
        hooks, targets = ([x] if isinstance(x, str) else x or [] for x in (places, self.target))
        return _in_short(hooks) + (f" -> {_in_short(targets)}" if targets else "")

    @property
    def several(self) -> bool:
        """Whether it describes dictionaries with a folder each."""
        return bool(self.hooks is not None or self.grid or self.dictionaries)

    @staticmethod
    def read(path: str | Path | None, overrides: list[str] | None = None) -> RunConfig:
        """Read a YAML file (or begin with the defaults) and apply `key=value` overrides such as `sae.k=32`.

        Raises:
            FileError: the file is missing or is no YAML.
            ConfigError: a key is unknown or a value does not fit.
        """
        content: dict[str, Any] = {}
        if path is not None:
            content = _read_yaml(Path(path))
        for override in overrides or []:
            _override(content, override)
        return RunConfig.of(content, path)

    @staticmethod
    def of(content: dict[str, Any], source: str | Path | None = None) -> RunConfig:
        """As pydantic's `model_validate`, with errors in a line.

        Raises:
            ConfigError: a key is unknown or a value does not fit.
        """
        for key, value in _leaves(content):
            if isinstance(value, int) and abs(value) > LARGEST:
                place = f"{source}: " if source is not None else ""
                raise ConfigError(f"{place}{key}: the number is too large: write one of at most {LARGEST:.0e}")
        try:
            return RunConfig.model_validate(content)
        except ValidationError as error:
            raise ConfigError(_in_words(error, source)) from error

    def write(self, path: Path) -> None:
        """Write it, fully resolved, as YAML."""
        import yaml

        write_text(path, yaml.safe_dump(self.model_dump(), sort_keys=False))


def _leaves(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that stands in keys and lists, and its key with dots."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else None
    if inner is None:
        yield key, content
        return
    for name, value in inner:
        yield from _leaves(value, f"{key}.{name}" if key else str(name))


def _read_yaml(path: Path) -> dict[str, Any]:
    content = read_yaml(path, remedy="give a run.yaml, or leave it out for the defaults")
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise FileError(f"{path} must hold keys and values, such as 'hook: resid_post.2'")
    return content


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: write key=value, such as --set sae.k=32")
    *parents, last = key.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
        if not isinstance(content, dict):
            raise ConfigError(f"--set {override}: {parent} has no keys of its own")
    try:
        content[last] = parse_yaml(value, f"--set {override}: the value", remedy="write a number, a word or [a, list]")
    except FileError as error:
        raise ConfigError(str(error)) from error


def _in_words(error: ValidationError, path: str | Path | None) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("str", "list[str]"))
    source = f"{path}: " if path is not None else ""
    if first["type"] == "extra_forbidden":
        section = RunConfig.model_fields
        for part in first["loc"][:-1]:
            annotation = section[str(part)].annotation
            section = (
                annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, BaseModel) else {}
            )
        return f"{source}unknown key {where!r}; known here: {', '.join(section)}{meant(where, all_keys())}"
    return one_line(f"{source}{where}: {first['msg'].lower()}, got {first['input']!r}")


def all_keys() -> list[str]:
    """Every key that a run.yaml may hold, those of sections as `training.lr`; of `sae`, what any architecture has."""
    own = (f"sae.{name}" for kind in SAE.registry.values() for name in (*kind.parameters_of(), *COMMON))
    return list(dict.fromkeys([*_keys_of(RunConfig), *own]))


def _keys_of(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys_of(field.annotation, f"{prefix}{name}.")


def _in_short(hooks: list[str]) -> str:
    """Hook points as `attn_out.0 + mlp_out.0`, or `mlp_in.0-3` where one kind goes through the layers."""
    kinds, layers = {hook.rpartition(".")[0] for hook in hooks}, [hook.rpartition(".")[2] for hook in hooks]
    if len(hooks) > 2 and len(kinds) == 1 and all(layer.isdigit() for layer in layers):
        first, last = int(layers[0]), int(layers[-1])
        if layers == [str(layer) for layer in range(first, last + 1)]:
            return f"{kinds.pop()}.{first}-{last}"
    return " + ".join(hooks)
