"""Pictures to optimise: Fourier coefficients of decorrelated colours, which every step moves and turns a little."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from monosem.data.images import Images
from monosem.sae.metadata import PixelFormat

SAMPLE = 256
"""Natural images from which colours are known."""
DEVIATION = 0.01
"""Of the coefficients at the beginning: an almost grey image."""


class Pictures:
    """Images from 0 to 1 whose coefficients, not pixels, are optimised.

        image = sigmoid(colours . irfft2(spectrum / frequency))

    Low frequencies and the colours that vary together in natural images then move as fast as they are strong in these;
    steps along single pixels would end in noise.

    Source: Olah, Mordvintsev & Schubert, Feature Visualization, 2017.
    """

    def __init__(self, n: int, wanted: PixelFormat, colours: Float[Tensor, "c c"], seed: int) -> None:
        """Of `n` images at random, nearly grey; the same ones for a seed, whatever `n`."""
        self.wanted, self.seed = wanted, seed
        shape = (wanted.channels, wanted.height, wanted.width // 2 + 1, 2)
        draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(n)]
        self.spectrum = (torch.stack(draws).to(colours) * DEVIATION).requires_grad_()
        down = np.fft.fftfreq(wanted.height)[:, None]
        across = np.fft.rfftfreq(wanted.width)[None]
        frequency = np.maximum(np.hypot(down, across), 1 / max(wanted.height, wanted.width))
        self.scale = torch.from_numpy(math.sqrt(wanted.height * wanted.width) / frequency).to(colours)
        self.colours = colours

    def images(self) -> Float[Tensor, "n c height width"]:
        """From 0 to 1, with gradients to the spectrum."""
        size = (self.wanted.height, self.wanted.width)
        planes = torch.fft.irfft2(torch.view_as_complex(self.spectrum) * self.scale, s=size)
        return torch.einsum("cd,ndhw->nchw", self.colours, planes).sigmoid()

    def bytes(self) -> np.ndarray:
        """(n, height, width, channels) as they are kept in files: 8 bits a channel."""
        return (self.images().detach() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def normalised(self, images: Float[Tensor, "n c height width"]) -> Float[Tensor, "n c height width"]:
        """What the model reads, of images from 0 to 1."""
        mean, std = (
            images.new_tensor(values[: self.wanted.channels])[:, None, None]
            for values in (self.wanted.mean, self.wanted.std)
        )
        return (images - mean) / std


def colours_of(images: Images | None, wanted: PixelFormat, like: Tensor) -> Float[Tensor, "c c"]:
    """The square root of the covariance of colours, its longest row of norm 1: what turns independent colours natural.

    The unit matrix without images, and of images of one channel.
    """
    plain = torch.eye(wanted.channels, dtype=torch.float64)
    if images is None or wanted.channels == 1:
        return plain.to(like)
    pixels = images.read(0, SAMPLE).pixels.double() * torch.tensor(wanted.std[: wanted.channels])[:, None, None]
    values, vectors = torch.linalg.eigh(torch.cov(pixels.permute(1, 0, 2, 3).flatten(1)))
    root = vectors * values.clamp(min=0).sqrt()
    longest = root.norm(dim=1).max()
    return (root / longest if longest > 0 else plain).to(like)


def jittered(
    images: Float[Tensor, "n c height width"], random: torch.Generator, shift: float, turn: float, zoom: float
) -> Float[Tensor, "n c height width"]:
    """Each image moved, turned and scaled at random; what comes in from outside is mirrored.

    Args:
        images: the images.
        random: of the draws.
        shift: at most, as a share of the size.
        turn: at most, in degrees.
        zoom: at most, as a share.
    """
    n = len(images)
    across, down, angle, size = (2 * torch.rand(4, n, generator=random, dtype=torch.float64) - 1).to(images)
    angle, size = angle * math.radians(turn), 1 + size * zoom
    cosine, sine = angle.cos() * size, angle.sin() * size
    first = torch.stack([cosine, -sine, 2 * shift * across], 1)
    second = torch.stack([sine, cosine, 2 * shift * down], 1)
    grid = F.affine_grid(torch.stack([first, second], 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
