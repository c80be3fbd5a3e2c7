"""A dictionary's weights: what of them reads and what writes, and which directions of the model they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.sae.transform import InputTransform


def row_norms(W: Float[Tensor, "n d"]) -> Float[Tensor, "n 1"]:
    """The L2 norm of every row."""
    return W.pow(2).sum(-1, keepdim=True).sqrt()


def grad_of(parameter: nn.Parameter) -> Tensor:
    """Its gradient, made if need be."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


class Weights(nn.Module):
    """Parameters and transforms of a dictionary, whatever it does with them."""

    latents_compete: ClassVar[bool] = False
    """Whether latents are on by the size of their codes beside those of others, in one unit."""
    in_units_of_codes: ClassVar[tuple[str, ...]] = ("b_enc", "threshold", "own_threshold", "b_mag", "running_threshold")
    """Parameters and buffers that grow with a latent's codes."""

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    d_in: int
    d_out: int
    n_latents: int
    autoencodes: bool
    """Whether it predicts what it reads."""
    subtract_b_dec: bool
    """Whether the encoder reads activations less b_dec."""
    transform: InputTransform
    own_target_transform: InputTransform
    """Of what predicts something else than it reads."""

    @property
    def in_shape(self) -> tuple[int, ...]:
        """The shape of one token's input."""
        return (self.d_in,)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The shape of one token's reconstruction."""
        return (self.d_out,)

    @property
    def target_transform(self) -> InputTransform:
        """The transform of what is to be predicted: the input's own, but for transcoders."""
        return self.transform if self.autoencodes else self.own_target_transform

    def part(self, latents: Int[Tensor, " m"]) -> tuple[Float[Tensor, "m d_in"], Tensor, Float[Tensor, "m d_out"]]:
        """Copies of some latents' encoder rows, biases and decoder rows."""
        return self.W_enc.detach()[latents], self.b_enc.detach()[latents], self.W_dec.detach()[latents]

    def add_to_gradients(self, latents: Int[Tensor, " m"], *grads: Tensor | None) -> None:
        """Add gradients of what `part` returns to those of the parameters."""
        for parameter, grad in zip((self.W_enc, self.b_enc, self.W_dec), grads, strict=True):
            if grad is not None:
                grad_of(parameter).index_add_(0, latents, grad)

    # Directions in the model's own space ------------------------------------------------------------------------

    @checked
    @torch.no_grad()
    def decoder_directions(self, latents: Sequence[int] | Int[Tensor, " m"] | None = None) -> Float[Tensor, "m ..."]:
        """What one unit of each latent's code adds to the raw reconstruction, (m, *out_shape): its decoder row.

        In the model's own units, and not of norm 1: as the model's weights meet them, for the logit lens, cosines
        between latents and between dictionaries, steering. `W_dec` is behind the transform, where angles are others
        under whitening. Of several sources or layers each has its part, zeros where a latent writes nothing.
        With transform "layer_norm" what it adds is that times the deviation of the row at hand.

        Args:
            latents: which; all if not given.
        """
        rows = self.target_transform.raw_directions(self.part(self._numbers(latents))[2])
        return rows.reshape(len(rows), *self.out_shape)

    @checked
    @torch.no_grad()
    def encoder_directions(self, latents: Sequence[int] | Int[Tensor, " m"] | None = None) -> Float[Tensor, "m ..."]:
        """By what each latent's pre-activation grows with the raw activation, (m, *in_shape): its encoder row.

        As `decoder_directions`, of what the dictionary reads.
        """
        rows = self.transform.raw_readers(self.part(self._numbers(latents))[0])
        return rows.reshape(len(rows), *self.in_shape)

    def _numbers(self, latents: Sequence[int] | Tensor | None) -> Int[Tensor, " m"]:
        every = torch.arange(self.n_latents, device=self.W_enc.device)
        if latents is None:
            return every
        chosen = torch.as_tensor(latents, device=every.device)
        if chosen.dtype == torch.bool:
            chosen = chosen.nonzero()[:, 0]
        chosen = chosen.long()
        if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < self.n_latents:
            raise ConfigError(f"there are latents 0 to {self.n_latents - 1}: not all of those asked for")
        return chosen

    # What `fold` and `unfold` change: see surgery.py ---------------------------------------------------------------

    def encoders(self) -> list[tuple[int, slice, Tensor]]:
        """Views of encoder rows: which source each reads, of which latents it is, and its rows (m, d_in)."""
        return [(0, slice(None), self.W_enc)]

    def decoders(self) -> list[tuple[int, slice, Tensor]]:
        """Views of decoder rows: to which source each writes, of which latents it is, and its rows (m, d_out)."""
        return [(0, slice(None), self.W_dec)]

    def other_readers(self) -> list[tuple[int, Tensor, Tensor]]:
        """What else reads transformed activations: which source, weights (m, d_in), and the biases (m,) beside them."""
        return []

    def other_writers(self) -> list[tuple[int, Tensor]]:
        """What else writes transformed activations: to which source, and rows (m, d_out)."""
        return []

    def add_to_pre_activations(self, by: Float[Tensor, " n_latents"]) -> None:
        """Constants added to every latent's W_enc x, in its parameters: what comes of a shift of x.

        Raises:
            ConfigError: the architecture has no bias that does that.
        """
        self.b_enc.add_(by)

    def rescale_codes(self, factors: Float[Tensor, " n_latents"]) -> None:
        """Codes times factors, decoder rows divided by them: another unit for every latent, the same reconstructions.

        Where latents compete by the size of their codes, the factors must be one.
        """
        for _, latents, rows in self.encoders():
            rows.mul_(factors[latents, None])
        for _, latents, rows in self.decoders():
            rows.div_(factors[latents, None])
        known = dict([*self.named_parameters(), *self.named_buffers()])
        for name in self.in_units_of_codes:
            if name in known:
                known[name].mul_(factors if known[name].ndim else factors[0])
