# pyright: standard
"""Cross-layer transcoder: the latents of one layer write to that layer and to all that come after it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from monosem import kernels
from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.files import file_with, reading, regular_file
from monosem.kernels import Selection
from monosem.sae.base import TrainingContext, TrainingLoss
from monosem.sae.batchtopk import BatchTopKSAE
from monosem.sae.files import find_sae
from monosem.sae.sources import SourceTransform
from monosem.sae.weights import grad_of, row_norms


class CrossLayerTranscoder(BatchTopKSAE):
    """Reads (batch, layer, d_in), the inputs of MLPs, and predicts (batch, layer, d_out), their outputs.

        codes_l          = the largest of ReLU(W_enc_l t_l(x_l) + b_enc_l): k * rows of all layers' in a batch
        reconstruction_m = u_m^-1(sum over l <= m of codes_l W_dec_l[:, m - l] + b_dec_m)

    In use, codes are pre-activations above `threshold`, as in BatchTopK; k counts a token's latents in all layers. The
    latents of layer l are numbers l * latents_per_layer to (l + 1) * latents_per_layer - 1. W_enc (n_latents, d_in) and
    b_enc hold them one layer after another. Decoders are one parameter per layer, `W_dec_l` (latents_per_layer,
    n_layers - l, d_out): latents first, so that what a latent writes everywhere is one row, of norm 1 in all, and can
    be read alone from a file (`read_decoder_rows`).

    With `own_thresholds` every latent has a limit of its own, as published sets have; such a one is for use, and not
    trained on. With `skip`, W_skip_l t_l(x_l) is added to what is predicted of layer l.

    A cross-layer transcoder may explain by one short path what a model does in several steps: compare with transcoders
    of single layers before trusting a circuit's depth.

    Source: Ameisen et al., Circuit Tracing: Revealing Computational Graphs in Language Models, 2025.
    """

    architecture: ClassVar[str] = "cross_layer_transcoder"
    good_for: ClassVar[str] = "circuits through all layers of a model, in which a feature need not come up in each"

    @checked
    def __init__(
        self,
        d_in: int,
        n_latents: int,
        *,
        n_layers: int,
        own_thresholds: bool = False,
        skip: bool = False,
        **settings: Any,
    ) -> None:
        """Make an untrained cross-layer transcoder.

        Args:
            d_in: width of one layer's input.
            n_latents: size of the dictionary, all layers together.
            n_layers: how many layers it reads and predicts.
            own_thresholds: every latent has a limit of its own, `own_threshold` (n_latents,), 0 to begin with.
            skip: a linear path beside the latents, `W_skip` (n_layers, d_out, d_in), from zero.
            **settings: `d_out`, the width of one layer's output (d_in if not given), and those of `BatchTopKSAE`.

        Raises:
            ConfigError: n_latents cannot be divided by n_layers, or another value is out of range.
        """
        d_out = settings.pop("d_out", None)
        d_out = d_in if d_out is None else d_out
        if n_layers < 1 or n_latents % n_layers:
            raise ConfigError(f"n_layers must divide n_latents = {n_latents}, got {n_layers}")
        super().__init__(d_in, n_latents, d_out=d_out, **settings)
        self.n_layers = n_layers
        kind = settings.get("transform", "centre_scale")
        dtype, device = self.W_enc.dtype, self.W_enc.device
        del self.W_dec
        generator = torch.Generator().manual_seed(settings.get("seed", 0) + 1)
        for layer in range(n_layers):
            rows = torch.randn(
                self.latents_per_layer, (n_layers - layer) * d_out, generator=generator, dtype=torch.float64
            )
            rows = (rows / row_norms(rows)).unflatten(1, (-1, d_out)).to(device, dtype)
            self.register_parameter(f"W_dec_{layer}", nn.Parameter(rows))
        self.b_dec = nn.Parameter(torch.zeros(n_layers * d_out, dtype=dtype, device=device))
        self.own_thresholds, self.skip = own_thresholds, skip
        if own_thresholds:
            self.own_threshold = nn.Parameter(torch.zeros_like(self.b_enc))
        if skip:
            self.W_skip = nn.Parameter(torch.zeros(n_layers, d_out, d_in, dtype=dtype, device=device))
        self.transform = SourceTransform(n_layers, d_in, kind, dtype, device)
        self.own_target_transform = SourceTransform(n_layers, d_out, kind, dtype, device)

    @property
    def settings(self) -> dict[str, Any]:
        own = {"n_layers": self.n_layers, "own_thresholds": self.own_thresholds, "skip": self.skip}
        return {**super().settings, **own}

    @property
    def latents_per_layer(self) -> int:
        return self.n_latents // self.n_layers

    @property
    def in_shape(self) -> tuple[int, ...]:
        return (self.n_layers, self.d_in)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.n_layers, self.d_out)

    @property
    def unit_rows(self) -> tuple[str, ...]:
        return tuple(f"W_dec_{layer}" for layer in range(self.n_layers))

    def encoder_of(self, layer: int) -> Float[Tensor, "latents_per_layer d_in"]:
        """A view of the encoder rows of one layer's latents."""
        return self.W_enc.unflatten(0, (self.n_layers, -1))[layer]

    def decoder_of(self, layer: int) -> nn.Parameter:
        """What one layer's latents write, (latents_per_layer, n_layers - layer, d_out): first of all to that layer."""
        return self.get_parameter(f"W_dec_{layer}")

    def encoders(self) -> list[tuple[int, slice, Tensor]]:
        return [(layer, self._latents_of(layer), self.encoder_of(layer)) for layer in range(self.n_layers)]

    def decoders(self) -> list[tuple[int, slice, Tensor]]:
        return [
            (layer + later, self._latents_of(layer), self.decoder_of(layer)[:, later])
            for layer in range(self.n_layers)
            for later in range(self.n_layers - layer)
        ]

    def other_readers(self) -> list[tuple[int, Tensor, Tensor]]:
        biases = self.b_dec.unflatten(0, self.out_shape)
        return [(layer, self.W_skip[layer], biases[layer]) for layer in range(self.n_layers if self.skip else 0)]

    def other_writers(self) -> list[tuple[int, Tensor]]:
        return [(layer, self.W_skip[layer].T) for layer in range(self.n_layers if self.skip else 0)]

    def _latents_of(self, layer: int) -> slice:
        return slice(layer * self.latents_per_layer, (layer + 1) * self.latents_per_layer)

    # Layers as groups of rows: in training, entries come layer after layer, and in each layer row after row. -------

    def by_layer(self, x: Float[Tensor, "rows layers_d_in"]) -> Float[Tensor, "layers_rows d_in"]:
        """Layers one after another."""
        return x.unflatten(1, self.in_shape).transpose(0, 1).reshape(-1, self.d_in)

    def candidates(
        self, x: Float[Tensor, "rows layers_d_in"], threshold: Tensor | float, screen: kernels.Precision | None = None
    ) -> tuple[Float[Tensor, " entries"], Selection]:
        """Pre-activations above a number, layer after layer."""

        def above(rows: Tensor, W: Tensor, bias: Tensor) -> tuple[Tensor, Selection]:
            return kernels.above(rows, W, bias, threshold, screen=screen)

        sizes = [len(x)] * self.n_layers
        return kernels.by_group(above, self.by_layer(x), self.W_enc, self.b_enc, sizes)

    def select(self, x: Float[Tensor, "rows layers_d_in"]) -> tuple[Float[Tensor, " entries"], Selection]:
        if not self.own_thresholds:
            return self.candidates(x, self.threshold.clamp_min(0))
        limits = iter(self.own_threshold.detach().clamp_min(0).unflatten(0, (self.n_layers, -1)))

        def above(rows: Tensor, W: Tensor, bias: Tensor) -> tuple[Tensor, Selection]:
            return kernels.above(rows, W, bias, next(limits))

        return kernels.by_group(above, self.by_layer(x), self.W_enc, self.b_enc, [len(x)] * self.n_layers)

    def training_loss(
        self, x: Float[Tensor, "rows layers_d_in"], target: Float[Tensor, "rows layers_d_out"], context: TrainingContext
    ) -> TrainingLoss:
        if self.own_thresholds:
            raise ConfigError(
                "thresholds of their own are not trained in a cross-layer transcoder: make one with "
                "own_thresholds=False, which BatchTopK trains"
            )
        return super().training_loss(x, target - self._skipped(x) if self.skip else target, context)

    def _skipped(self, x: Float[Tensor, "rows layers_d_in"]) -> Float[Tensor, "rows layers_d_out"]:
        """What the linear path makes of each layer's input."""
        layers = x.unflatten(1, self.in_shape).transpose(0, 1)
        return (layers @ self.W_skip.transpose(1, 2)).transpose(0, 1).flatten(1)

    def pre_activations(
        self, x: Float[Tensor, "rows layers_d_in"], values: Float[Tensor, " entries"], selection: Selection
    ) -> Float[Tensor, " entries"]:
        return super().pre_activations(self.by_layer(x), values, selection)

    def reconstruction_loss(
        self,
        activations: Float[Tensor, " entries"],
        selection: Selection,
        target: Float[Tensor, "rows layers_d_out"],
        context: TrainingContext,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "rows layers_d_out"]]:
        residual = target - self.b_dec - self._written(activations, selection)
        return context.cost_of(residual), residual.detach()

    def _written(
        self, activations: Float[Tensor, " entries"], selection: Selection
    ) -> Float[Tensor, "rows layers_d_out"]:
        """What all layers write to all."""
        rows = (selection.offsets.numel() - 1) // self.n_layers
        bounds = selection.offsets[:: max(1, rows)].tolist()
        out = activations.new_zeros(rows, self.n_layers * self.d_out)
        parts = activations.split([last - first for first, last in pairwise(bounds)])
        for layer, (part, (first, last)) in enumerate(zip(parts, pairwise(bounds), strict=True)):
            indices = selection.indices[first:last] - layer * self.latents_per_layer
            offsets = selection.offsets[layer * rows : (layer + 1) * rows + 1] - first
            decoder: Tensor = self.decoder_of(layer)
            n_latents = self.latents_per_layer
            if not decoder.is_contiguous():  # a part of what stands in a file: the rows that are needed
                numbers, indices = torch.unique(indices, return_inverse=True)
                decoder, indices, n_latents = decoder[numbers.long()], indices.int(), len(numbers)
            written = kernels.decode(part, decoder.flatten(1), Selection(indices, offsets, n_latents))
            out = out + F.pad(written, (layer * self.d_out, 0))
        return out

    # In use, entries come token after token, as in all codes. --------------------------------------------------------

    def activate(self, x: Float[Tensor, "rows layers_d_in"]) -> tuple[Float[Tensor, " entries"], Selection]:
        values, selection = self.select(x.detach())
        activations = kernels.encode(self.by_layer(x), self.W_enc, self.b_enc, None, selection, values).relu()
        counts = selection.offsets.diff()
        row = torch.arange(len(x), device=x.device).repeat(self.n_layers).repeat_interleave(counts)
        order = torch.argsort(row, stable=True)
        offsets = F.pad(counts.reshape(self.n_layers, len(x)).sum(0).cumsum(0), (1, 0))
        return activations[order], Selection(selection.indices[order], offsets, self.n_latents)

    def reconstruct(
        self,
        activations: Float[Tensor, " entries"],
        selection: Selection,
        x: Float[Tensor, "rows layers_d_in"] | None = None,
    ) -> Float[Tensor, "rows layers_d_out"]:
        rows = selection.offsets.numel() - 1
        row = torch.arange(rows, device=activations.device).repeat_interleave(selection.offsets.diff())
        place = selection.indices.long() // self.latents_per_layer * rows + row
        order = torch.argsort(place, stable=True)
        offsets = F.pad(torch.bincount(place, minlength=self.n_layers * rows).cumsum(0), (1, 0))
        out = (
            self._written(activations[order], Selection(selection.indices[order], offsets, self.n_latents)) + self.b_dec
        )
        return out + self._skipped(x) if self.skip and x is not None else out

    # Some latents as rows of the whole dictionary, in which they read one layer and write to some ---------------------

    def part(self, latents: Int[Tensor, " m"]) -> tuple[Float[Tensor, "m layers_d_in"], Tensor, Tensor]:
        encoder = self.W_enc.new_zeros(len(latents), *self.in_shape)
        decoder = self.W_enc.new_zeros(len(latents), *self.out_shape)
        for layer, which, numbers in self._by_layers(latents):
            encoder[which, layer] = self.encoder_of(layer).detach()[numbers]
            decoder[which, layer:] = self.decoder_of(layer).detach()[numbers]
        return encoder.flatten(1), self.b_enc.detach()[latents], decoder.flatten(1)

    def add_to_gradients(self, latents: Int[Tensor, " m"], *grads: Tensor | None) -> None:
        encoder, bias, decoder = grads
        for layer, which, numbers in self._by_layers(latents):
            if encoder is not None:
                rows = encoder.unflatten(1, self.in_shape)[which, layer]
                grad_of(self.W_enc).index_add_(0, latents[which], rows)
            if decoder is not None:
                rows = decoder.unflatten(1, self.out_shape)[which, layer:]
                grad_of(self.decoder_of(layer)).index_add_(0, numbers, rows)
        if bias is not None:
            grad_of(self.b_enc).index_add_(0, latents, bias)

    def _by_layers(self, latents: Int[Tensor, " m"]) -> list[tuple[int, Tensor, Tensor]]:
        """For each layer: which of the latents are its own, and their numbers in it."""
        layers = latents // self.latents_per_layer
        own = [layers.eq(layer).nonzero()[:, 0] for layer in range(self.n_layers)]
        return [(layer, which, latents[which] % self.latents_per_layer) for layer, which in enumerate(own)]


def read_decoder_rows(path: str | Path, layer: int, numbers: Sequence[int]) -> Float[Tensor, "m layers d_out"]:
    """What some latents of one layer write, from a saved cross-layer transcoder of which nothing else is read.

    Args:
        path: the folder that `save` has written, or the run folder that has it.
        layer: the layer that the latents read.
        numbers: their numbers in that layer.

    Returns:
        Rows of `W_dec_layer`, in the units of the targets' transform: (m, n_layers - layer, d_out).

    Raises:
        FileError: the file is missing, damaged, or of another kind.
        ConfigError: it has no such layer or latent.
    """
    name = f"W_dec_{layer}"
    file = regular_file(file_with(find_sae(path) / "sae.safetensors", name))
    with reading(file), safe_open(file, framework="pt") as tensors:
        if name not in tensors.keys():  # noqa: SIM118
            raise ConfigError(f"{file} has no {name}: it is of no cross-layer transcoder with a layer {layer}")
        rows = tensors.get_slice(name)
        n = rows.get_shape()[0]
        wrong = [number for number in numbers if not 0 <= number < n]
        if wrong:
            raise ConfigError(f"layer {layer} of {file} has latents 0 to {n - 1}, not {wrong[0]}")
        return torch.cat([rows[0:0], *(rows[number : number + 1] for number in numbers)])
