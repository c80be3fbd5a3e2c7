"""The frame that all architectures share: parameters, encode, decode, and what training needs of them."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from monosem import kernels
from monosem.codes import SparseCodes
from monosem.errors import ConfigError, DataError
from monosem.kernels import Selection
from monosem.sae.metadata import SAEMetadata
from monosem.sae.transform import InputTransform, TransformKind

if TYPE_CHECKING:
    from typing import Self


class SAEOutput(NamedTuple):
    """What calling an SAE returns."""

    reconstruction: Float[Tensor, "*batch d_out"]
    codes: SparseCodes


@dataclass(frozen=True)
class TrainingContext:
    """What a loss may know of the run."""

    dead: Bool[Tensor, " n_latents"] | None = None
    """Latents that have not fired for a while; None while none has."""
    screen: bool = False
    """Whether candidates may be found in bfloat16."""


@dataclass(frozen=True)
class TrainingLoss:
    """One batch's loss and what the trainer keeps books of. Nothing here forces a synchronisation."""

    loss: Float[Tensor, ""]
    reconstruction: Float[Tensor, "rows d_out"]
    """In transformed units."""
    fired: Int[Tensor, " n_latents"]
    """On how many rows each latent was on."""
    terms: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """The parts of the loss, for the log."""


def row_norms(W: Float[Tensor, "n d"]) -> Float[Tensor, "n 1"]:
    """The L2 norm of every row."""
    return W.pow(2).sum(-1, keepdim=True).sqrt()


class SAE(nn.Module, ABC):
    """A dictionary of `n_latents` directions and the encoder that says which of them an activation is made of.

        codes          = select(W_enc (t(x) - b_dec) + b_enc)
        reconstruction = t^-1(codes W_dec + b_dec)

    with t the input transform. Parameters are latent-major: W_enc (n_latents, d_in), b_enc (n_latents,),
    W_dec (n_latents, d_out), b_dec (d_out,). Decoder rows start as random unit vectors, and encoder rows equal to them.
    """

    architecture: ClassVar[str]
    """The name by which files and the command line know it."""
    good_for: ClassVar[str]
    """One line: when to use it."""
    registry: ClassVar[dict[str, type[SAE]]] = {}
    unit_norm_decoder: ClassVar[bool] = True
    """Whether training keeps decoder rows at norm 1."""

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "architecture" in vars(cls):
            SAE.registry[cls.architecture] = cls

    def __init__(
        self,
        d_in: int,
        n_latents: int,
        *,
        transform: TransformKind = "centre_scale",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, size in (("d_in", d_in), ("n_latents", n_latents)):
            if size < 1:
                raise ConfigError(f"{name} must be at least 1, got {size}")
        self.d_in, self.n_latents, self.d_out = d_in, n_latents, d_in
        generator = torch.Generator().manual_seed(seed)
        W_dec = torch.randn(n_latents, self.d_out, generator=generator, dtype=torch.float64)
        W_dec /= row_norms(W_dec)
        self.W_enc = nn.Parameter(W_dec.to(device=device, dtype=dtype, copy=True))
        self.b_enc = nn.Parameter(torch.zeros(n_latents, dtype=dtype, device=device))
        self.W_dec = nn.Parameter(W_dec.to(device=device, dtype=dtype, copy=True))
        self.b_dec = nn.Parameter(torch.zeros(self.d_out, dtype=dtype, device=device))
        self.transform = InputTransform(d_in, transform, dtype=dtype, device=device)
        self.metadata = SAEMetadata()
        self.probe: dict[str, Tensor] = {}
        """A small batch of inputs, stored with the SAE, on which `metadata.fingerprint` was measured."""

    @classmethod
    def parameters_of(cls) -> list[str]:
        """The names of the constructor's own parameters, those of its base classes included."""
        names: list[str] = []
        for kind in cls.__mro__:
            if issubclass(kind, SAE) and kind is not SAE and "__init__" in vars(kind):
                parameters = inspect.signature(kind.__init__).parameters.values()
                names += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in names]
        return names

    # What an architecture must say -----------------------------------------------------------------------------

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The constructor's own few parameters, as saved in files."""

    @abstractmethod
    def select(self, x: Float[Tensor, "rows d_in"]) -> tuple[Float[Tensor, " entries"], Selection]:
        """Which latents are on for transformed, b_dec-free inputs, and their pre-activations."""

    @abstractmethod
    def training_loss(
        self, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"], context: TrainingContext
    ) -> TrainingLoss:
        """The loss of one batch, all in transformed units."""

    # What all share --------------------------------------------------------------------------------------------

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> SparseCodes:
        """Raw activations to codes.

        Raises:
            DataError: the last dimension is not d_in.
        """
        if x.shape[-1] != self.d_in:
            raise DataError(f"this SAE reads activations of width {self.d_in}, got {tuple(x.shape)}")
        flat = self.transform(x.reshape(-1, self.d_in).to(self.W_enc.dtype))
        values, selection = self.activate(flat - self.b_dec)
        return SparseCodes(values, selection.indices, selection.offsets, self.n_latents, tuple(x.shape[:-1]))

    def activate(self, x: Float[Tensor, "rows d_in"]) -> tuple[Float[Tensor, " entries"], Selection]:
        """Selected latents and their activations, with gradients, for transformed, b_dec-free inputs."""
        values, selection = self.select(x.detach())
        return kernels.encode(x, self.W_enc, self.b_enc, None, selection, values).relu(), selection

    def decode(
        self, codes: SparseCodes, x: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """Codes to raw reconstructions.

        Args:
            codes: what `encode` returns, edited or not.
            x: the raw activations that they are of; only the transform "layer_norm" needs them.

        Raises:
            DataError: the codes are of another number of latents.
            ConfigError: `x` is needed.
        """
        if codes.n_latents != self.n_latents:
            raise DataError(f"this SAE has {self.n_latents} latents, the codes are of {codes.n_latents}")
        selection = Selection(codes.indices, codes.offsets, self.n_latents)
        out = kernels.decode(codes.values, self.W_dec, selection) + self.b_dec
        raw = None if x is None else x.reshape(-1, self.d_in).to(out.dtype)
        return self.transform.inverse(out, raw).reshape(*codes.batch_shape, self.d_out)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> SAEOutput:
        codes = self.encode(x)
        return SAEOutput(self.decode(codes, x), codes)

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "rows d_in"]) -> None:
        """Fit the transform on raw activations; scale the encoder so that first reconstructions have their energy."""
        self.transform.fit(x)
        self.scale_encoder(x)

    @torch.no_grad()
    def scale_encoder(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, ""]:
        """Scale the encoder so that reconstructions of raw activations have their energy; returns the factor."""
        sample = x[:1024].to(self.W_enc.dtype)
        energy = self.transform(self(sample).reconstruction, sample).pow(2).sum()
        wanted = self.transform(sample).pow(2).sum()
        factor = torch.where(energy > 0, wanted / energy, torch.ones_like(energy)).sqrt()
        self.W_enc.mul_(factor)
        return factor

    def save(self, path: str | Path) -> None:
        """Write `cfg.json` and `sae.safetensors` into a folder."""
        from monosem.sae.files import save_sae

        save_sae(self, path)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str | None = None) -> Self:
        """Read what `save` has written."""
        from monosem.sae.files import load_sae

        sae = load_sae(path, device)
        if not isinstance(sae, cls):
            raise ConfigError(f"{path} holds a {type(sae).__name__}, not a {cls.__name__}")
        return sae

    def extra_repr(self) -> str:
        settings = "".join(f", {name}={value}" for name, value in self.settings.items())
        return f"d_in={self.d_in}, n_latents={self.n_latents}{settings}"
