"""The frame that all architectures share: parameters, encode, decode, and what training needs of them."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from monosem import kernels
from monosem.arguments import Device, Floating, NotNegative, Positive, checked
from monosem.codes import SparseCodes
from monosem.errors import ConfigError, DataError
from monosem.kernels import Selection
from monosem.sae.metadata import SAEMetadata
from monosem.sae.transform import InputTransform, TransformKind
from monosem.sae.weights import Weights, row_norms

if TYPE_CHECKING:
    from typing import Self


class SAEOutput(NamedTuple):
    """What calling an SAE returns."""

    reconstruction: Float[Tensor, "*batch d_out"]
    codes: SparseCodes


@dataclass(frozen=True)
class TrainingContext:
    """What a loss may know of the run."""

    screen: kernels.Precision = "float32"
    """In which precision candidates may be found."""
    progress: float | None = None
    """Share of the run that is done; None where its length is not known."""
    cost: Callable[[Float[Tensor, "rows d_out"]], Float[Tensor, ""]] | None = None
    """What an error, target - reconstruction in transformed units, costs; None: the mean of its squares."""

    def cost_of(self, error: Float[Tensor, "rows d_out"]) -> Float[Tensor, ""]:
        """What an error costs."""
        return kernels.mean_square(error) if self.cost is None else self.cost(error)


@dataclass(frozen=True)
class TrainingLoss:
    """One batch's loss and what the trainer keeps books of. Nothing here forces a synchronisation."""

    loss: Float[Tensor, ""]
    residual: Float[Tensor, "rows d_out"]
    """target - reconstruction, in transformed units, without gradient."""
    fired: Int[Tensor, " n_latents"]
    """On how many rows each latent was on."""
    terms: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """The parts of the loss, for the log."""


def _unit_rows(n: int, d: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return rows if rows.is_meta else rows / row_norms(rows)  # see blank.py


class SAE(Weights, ABC):
    """A dictionary of `n_latents` directions and the encoder that says which of them an activation is made of.

        codes          = select(W_enc (t(x) - b_dec) + b_enc)
        reconstruction = t^-1(codes W_dec + b_dec)

    with t the input transform. Parameters are latent-major: W_enc (n_latents, d_in), b_enc (n_latents,),
    W_dec (n_latents, d_out), b_dec (d_out,). Decoder rows start as random unit vectors, and encoder rows equal to them.

    With `d_out` it is a transcoder: it predicts another site's activations, transformed by a transform of their own;
    b_dec is not subtracted from the input, and encoder rows start as unit vectors of their own. Nor is it with
    `subtract_b_dec=False` in an autoencoder, as some libraries have it.
    """

    architecture: ClassVar[str]
    """The name by which files and the command line know it."""
    good_for: ClassVar[str]
    """One line: when to use it."""
    registry: ClassVar[dict[str, type[SAE]]] = {}
    unit_norm_decoder: bool = True
    """Whether training keeps decoder rows at norm 1."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "architecture" in vars(cls):
            SAE.registry[cls.architecture] = cls

    @checked
    def __init__(
        self,
        d_in: Positive,
        n_latents: Positive,
        *,
        d_out: Positive | None = None,
        subtract_b_dec: bool | None = None,
        transform: TransformKind = "centre_scale",
        dtype: Floating = torch.float32,
        device: Device | None = None,
        seed: NotNegative = 0,
    ) -> None:
        super().__init__()
        self.d_in, self.n_latents = d_in, n_latents
        self.d_out = d_in if d_out is None else d_out
        self.autoencodes = d_out is None
        self.subtract_b_dec = self.autoencodes if subtract_b_dec is None else subtract_b_dec
        if self.subtract_b_dec and not self.autoencodes:
            raise ConfigError("b_dec, which is of what is predicted, cannot be subtracted from what is read")
        generator = torch.Generator().manual_seed(seed)
        W_dec = _unit_rows(self.n_latents, self.d_out, generator)
        W_enc = W_dec if self.autoencodes else _unit_rows(self.n_latents, self.d_in, generator)
        self.W_enc = nn.Parameter(W_enc.to(device=device, dtype=dtype, copy=True))
        self.b_enc = nn.Parameter(torch.zeros(self.n_latents, dtype=dtype, device=device))
        self.W_dec = nn.Parameter(W_dec.to(device=device, dtype=dtype, copy=True))
        self.b_dec = nn.Parameter(torch.zeros(self.d_out, dtype=dtype, device=device))
        self.transform = InputTransform(self.d_in, transform, dtype=dtype, device=device)
        if not self.autoencodes:
            kind = "centre_scale" if self.transform.per_row else transform  # a target's own rows are not known in use
            self.own_target_transform = InputTransform(self.d_out, kind, dtype=dtype, device=device)
        self.metadata = SAEMetadata()
        self.probe: dict[str, Tensor] = {}
        """A small batch of inputs, stored with the SAE, on which `metadata.fingerprint` was measured."""

    @classmethod
    def parameters_of(cls) -> dict[str, Any]:
        """The constructor's own parameters, those of its base classes included, with their defaults.

        Of one that must be given the default is `inspect.Parameter.empty`.
        """
        found: dict[str, Any] = {}
        for kind in cls.__mro__:
            if issubclass(kind, SAE) and kind is not SAE and "__init__" in vars(kind):
                parameters = inspect.signature(kind.__init__).parameters.values()
                for parameter in parameters:
                    if parameter.kind is parameter.KEYWORD_ONLY:
                        found.setdefault(parameter.name, parameter.default)
        return found

    @property
    def one_matrix(self) -> bool:
        """Whether encoder and decoder are one parameter."""
        return getattr(self, "W_dec", None) is self.W_enc

    @property
    def unit_rows(self) -> tuple[str, ...]:
        """The names of the parameters whose rows training keeps at norm 1."""
        return ("W_dec",) if self.unit_norm_decoder else ()

    # What an architecture must say -----------------------------------------------------------------------------

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The constructor's own few parameters, as saved in files."""

    @property
    def common(self) -> dict[str, Any]:
        """What every constructor takes, but for the seed, as this SAE has it."""
        return {
            "d_out": None if self.autoencodes else self.d_out,
            "subtract_b_dec": self.subtract_b_dec,
            "transform": self.transform.kind,
            "dtype": self.W_enc.dtype,
            "device": self.W_enc.device,
        }

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
        batch_shape, rows = self.rows_of(x)
        values, selection = self.activate(self.centred(self.transform(rows)))
        return SparseCodes(values, selection.indices, selection.offsets, self.n_latents, batch_shape)

    def rows_of(self, x: Float[Tensor, "*batch d_in"]) -> tuple[tuple[int, ...], Float[Tensor, "rows d_in"]]:
        """The batch's shape, and its activations as rows in the SAE's own precision, where the SAE is.

        Raises:
            DataError: the last dimensions are not `in_shape`, or it is no tensor of real numbers.
        """
        if not isinstance(x, Tensor) or x.dtype.is_complex:  # pyright: ignore[reportUnnecessaryIsInstance]
            found = getattr(x, "dtype", type(x).__name__)
            raise DataError(f"this SAE reads a tensor of real numbers, got {found}: give torch.as_tensor(...) of them")
        split = x.ndim - len(self.in_shape)
        if split < 0 or tuple(x.shape[split:]) != self.in_shape:
            width = " x ".join(str(size) for size in self.in_shape)
            raise DataError(f"this SAE reads activations of width {width}, got {tuple(x.shape)}")
        rows = math.prod(x.shape[:split])
        return tuple(x.shape[:split]), x.reshape(rows, math.prod(self.in_shape)).to(self.W_enc)

    def centred(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """What the encoder reads: transformed inputs, less b_dec in an autoencoder."""
        return x - kernels.read_by_all(self.b_dec) if self.subtract_b_dec else x

    def activate(self, x: Float[Tensor, "rows d_in"]) -> tuple[Float[Tensor, " entries"], Selection]:
        """Selected latents and their activations, with gradients, for what `centred` returns."""
        values, selection = self.select(x.detach())
        return kernels.encode(x, self.W_enc, self.b_enc, None, selection, values).relu(), selection

    def pre_activations(
        self, x: Float[Tensor, "rows d_in"], values: Float[Tensor, " entries"], selection: Selection
    ) -> Float[Tensor, " entries"]:
        """Give selected pre-activations of the detached, centred input their gradients, b_dec's included."""
        b_dec = self.b_dec if self.subtract_b_dec else None
        return kernels.encode(x, self.W_enc, self.b_enc, b_dec, selection, values)

    def count_fired(self, activations: Float[Tensor, " entries"], selection: Selection) -> Int[Tensor, " n_latents"]:
        """On how many rows each latent is on."""
        fired = torch.zeros(self.n_latents, dtype=torch.int64, device=activations.device)
        fired.index_add_(0, selection.indices, (activations.detach() > 0).long())
        return kernels.over_rows(fired)

    @checked
    def decode(
        self, codes: SparseCodes, x: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """Codes to raw reconstructions.

        Args:
            codes: what `encode` returns, edited or not.
            x: the raw activations that they are of; for what a reconstruction takes from them past the codes (a skip
                transcoder's skip, the scale of the transform "layer_norm").

        Raises:
            DataError: the codes are of another number of latents.
            ConfigError: `x` is needed.
        """
        if codes.n_latents != self.n_latents:
            raise DataError(f"this SAE has {self.n_latents} latents, the codes are of {codes.n_latents}")
        selection = Selection(codes.indices, codes.offsets, self.n_latents)
        raw = None if x is None else self.rows_of(x)[1]
        out = self.reconstruct(codes.values, selection, None if raw is None else self.transform(raw))
        return self.target_transform.inverse(out, raw).reshape(*codes.batch_shape, *self.out_shape)

    def reconstruct(
        self, activations: Float[Tensor, " entries"], selection: Selection, x: Float[Tensor, "rows d_in"] | None = None
    ) -> Float[Tensor, "rows d_out"]:
        """As `decode`, all in transformed units."""
        return kernels.decode(activations, self.W_dec, selection) + self.b_dec

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> SAEOutput:
        codes = self.encode(x)
        return SAEOutput(self.decode(codes, x), codes)

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"] | None = None) -> None:
        """Fit the transforms on raw activations; scale the encoder so that first reconstructions have their energy."""
        self.fit_transforms(x, target)
        self.scale_encoder(x, target)

    def fit_transforms(self, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"] | None) -> None:
        """Fit the transform of inputs and, in a transcoder, that of targets."""
        self.transform.fit(x)
        if not self.autoencodes:
            self.target_transform.fit(x if target is None else target)

    @torch.no_grad()
    def scale_encoder(
        self, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"] | None = None
    ) -> Float[Tensor, ""]:
        """Scale the encoder so that reconstructions have the energy of raw activations; returns the factor."""
        sample = x[:1024].to(self.W_enc)
        wanted = sample if target is None else target[:1024].to(self.W_enc)
        energy = self.target_transform(self(sample).reconstruction, sample).pow(2).sum()
        energy_wanted = self.target_transform(wanted, sample).pow(2).sum()
        factor = torch.where(energy > 0, energy_wanted / energy, torch.ones_like(energy)).sqrt()
        self.W_enc.mul_(factor)
        return factor

    def not_finite(self, unseen: Collection[str] = ()) -> str:
        """Which parameters and buffers are not finite, in words; nothing if all are.

        A limit may be infinite: that of a latent which is never on; a bias, below zero. Those named in `unseen` are
        not looked at.
        """
        found: list[str] = []
        for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
            if name.startswith("controller.") or name in unseen:
                continue
            if tensor.sum().isfinite():  # which one number that is not finite keeps it from being
                continue
            limit = tensor.shape == (self.n_latents,) and name != "b_dec"
            wrong = ~tensor.isfinite() & ~(tensor.isneginf() if name.startswith("b_") else tensor.isinf())
            bad = int((wrong if limit else ~tensor.isfinite()).sum())
            if bad:
                found.append(f"{bad:,} of the {tensor.numel():,} numbers of {name} are not finite")
        return ", ".join(found)

    def remarks(self) -> list[str]:
        """What the user should know of the training that has ended, in words."""
        return []

    def has_moved(self, before: SAE) -> None:
        """Called on the copy whose weights have been moved behind other transforms: whatever else must follow.

        Raises:
            ConfigError: there is no such SAE.
        """

    # Files: files.py, which knows this class, says how ---------------------------------------------------------------

    writer: ClassVar[Callable[[SAE, str | Path], None]]
    reader: ClassVar[Callable[[str | Path, torch.device | str | None], SAE]]

    @checked
    def save(self, path: str | Path) -> None:
        """Write `cfg.json` and `sae.safetensors` into a folder."""
        SAE.writer(self, path)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str | None = None) -> Self:
        """Read what `save` has written."""
        sae = SAE.reader(path, device)
        if not isinstance(sae, cls):
            raise ConfigError(f"{path} holds a {type(sae).__name__}, not a {cls.__name__}")
        return sae

    def extra_repr(self) -> str:
        settings = "".join(f", {name}={value}" for name, value in self.settings.items())
        return f"d_in={self.d_in}, n_latents={self.n_latents}{settings}"
