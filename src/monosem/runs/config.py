"""The description of a run, as in run.yaml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from monosem.errors import ConfigError, FileError
from monosem.sae import SAE
from monosem.training import TrainingConfig

COMMON = ("transform", "seed")


class SAEConfig(BaseModel):
    """Which SAE to train. The parameters of its architecture stand beside these: `k: 24` for topk."""

    model_config = ConfigDict(extra="allow")

    architecture: str = "topk"
    """Name of the architecture."""
    n_latents: int = Field(default=4096, ge=1)
    """Size of the dictionary."""

    def build(self, d_in: int) -> SAE:
        """The untrained SAE.

        Raises:
            ConfigError: unknown architecture or parameter, or a value out of range.
        """
        if self.architecture not in SAE.registry:
            raise ConfigError(
                f"sae.architecture: unknown {self.architecture!r}; there are {', '.join(sorted(SAE.registry))}"
            )
        kind = SAE.registry[self.architecture]
        known = [*kind.parameters_of(), *COMMON]
        extra = self.model_extra or {}
        unknown = [name for name in extra if name not in known]
        if unknown:
            raise ConfigError(f"sae.{unknown[0]}: {self.architecture} has no such parameter; it has {', '.join(known)}")
        return kind(d_in, self.n_latents, **{name: _fitting(kind, name, value) for name, value in extra.items()})


def _fitting(kind: type[SAE], name: str, value: Any) -> Any:
    """A value for a parameter of a constructor, of the type that it declares."""
    hints = [get_type_hints(base.__init__) for base in kind.__mro__ if issubclass(base, SAE)]
    hint = next(found[name] for found in hints if name in found)
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"sae.{name}: {error.errors()[0]['msg'].lower()}, got {value!r}") from error


class ActivationsConfig(BaseModel):
    """How text becomes activations."""

    model_config = ConfigDict(extra="forbid")

    context_length: int | None = Field(default=None, ge=2)
    """Tokens in a context; the model's own if not given, at most 1024."""
    prepend_bos: bool | None = None
    """Begin every context with the beginning-of-sequence token; if not given, where there is one."""
    exclude_special: bool = True
    """Leave out positions of special tokens."""
    buffer_tokens: int = Field(default=131_072, ge=1)
    """Size of the shuffle buffer."""
    seed: int = Field(default=0, ge=0)
    """Of the order of documents and the shuffle."""


class EvaluationConfig(BaseModel):
    """What to measure after training."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = None
    """Held-out text; the bundled held-out text if not given and the run trains on the bundled text."""
    images: str | None = None
    """Held-out images."""
    tokens: int = Field(default=500_000, ge=1)
    """Tokens for reconstruction, firing rates and features."""
    loss_tokens: int = Field(default=65_536, ge=0)
    """Tokens for the losses of the model."""


class RunConfig(BaseModel):
    """A run: model, hook point, text, SAE, training, evaluation."""

    model_config = ConfigDict(extra="forbid")

    output: str = "runs/run"
    """The run folder."""
    model: str = "bundled"
    """"bundled", a local folder or a Hugging Face id."""
    hook: str = "resid_post.2"
    """Hook point: a canonical name, a TransformerLens name or a module path."""
    text: str = "bundled"
    """"bundled", a file (.txt, .jsonl, .parquet, also .gz) or a folder of such files."""
    images: str | None = None
    """In place of text, for a model that reads images: a folder, an IDX file, an .npz file, or hub:owner/name."""
    tokens: int = Field(default=1_000_000, ge=1)
    """Length of training."""
    sae: SAEConfig = SAEConfig()
    activations: ActivationsConfig = ActivationsConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

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
        try:
            return RunConfig.model_validate(content)
        except ValidationError as error:
            raise ConfigError(_in_words(error, path)) from error

    def write(self, path: Path) -> None:
        """Write it, fully resolved, as YAML."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        new.write_text(yaml.safe_dump(self.model_dump(), sort_keys=False))
        new.replace(path)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: `1e-3` is one, which YAML 1.1 takes for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(), _Loader)
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist: give a run.yaml, or leave it out for the defaults") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FileError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
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
        content[last] = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is no YAML: {' '.join(str(error).split())}") from error


def _in_words(error: ValidationError, path: str | Path | None) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    source = f"{path}: " if path is not None else ""
    if first["type"] == "extra_forbidden":
        section = RunConfig.model_fields
        for part in first["loc"][:-1]:
            annotation = section[str(part)].annotation
            section = (
                annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, BaseModel) else {}
            )
        return f"{source}unknown key {where!r}; known here: {', '.join(section)}"
    return f"{source}{where}: {first['msg'].lower()}, got {first['input']!r}"
