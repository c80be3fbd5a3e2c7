"""ms.optimise_image: images made for a feature, to check what it means, and what they come to on the real path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from monosem.activations.inputs import open_images, pixel_format
from monosem.analysis.kept_images import Facts, keep
from monosem.analysis.picture import Pictures, colours_of, jittered
from monosem.arguments import NotNegative, Positive, checked
from monosem.data.batch import kept_positions
from monosem.data.images import Images
from monosem.data.pixels import as_image
from monosem.errors import ConfigError, DataError
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.sae.identity import dictionary_hash
from monosem.sae.metadata import PixelFormat
from monosem.work import doing, job

Over = Literal["max", "mean"]
AT_ONCE = 64
"""Images through the model at a time."""
SHIFT, TURN, ZOOM = 1 / 8, 5.0, 0.1
"""How far the first step moves (share of the size), turns (degrees) and scales an image, at most; the last one not."""
FASTEST = 0.05
"""Adam's learning rate."""


@dataclass(frozen=True)
class OptimisedImages:
    """Images made for some features, and the features' activations there and on others: peaks over patches."""

    latents: list[int]
    images: np.ndarray = field(repr=False)
    """(latents, height, width, channels) of 8 bits."""
    activations: np.ndarray = field(repr=False)
    """(latents, positions) of each feature on its own image, as the SAE says it of the stored image."""
    activation: list[float]
    """The largest of these."""
    start: list[float]
    """On the image at which the optimisation began."""
    random: list[float]
    """The highest on images made in the same way for random directions of the same norm."""
    natural: list[float] | None
    """The highest on natural images; None if none were given."""
    n_natural: int
    n_random: int
    history: np.ndarray = field(repr=False)
    """(steps, latents) what was maximised: the pre-activation."""
    dictionary: str
    """The hash of the SAE's weights."""

    @property
    def times_natural(self) -> list[float] | None:
        """By how many times a feature fires more strongly on its image than on the best natural one."""
        if self.natural is None:
            return None
        pairs = zip(self.activation, self.natural, strict=True)
        return [made / best if best > 0 else float("inf" if made > 0 else "nan") for made, best in pairs]

    def image(self, latent: int) -> Image.Image:
        """The image of a feature.

        Raises:
            ConfigError: none was made for it.
        """
        if latent not in self.latents:
            raise ConfigError(f"no image was made for latent {latent}: for {', '.join(map(str, self.latents))}")
        return as_image(self.images[self.latents.index(latent)])

    def save(self, folder: str | Path) -> None:
        """Write LATENT.png of each, and images.json with the numbers, beside those of other features that are there.

        The page shows them where the folder is `optimised` beside the feature store.

        Raises:
            ConfigError: the folder has images made for another dictionary.
            FileError: what it has is damaged, or it cannot be written.
        """
        keep(
            folder,
            self.dictionary,
            {latent: (self._facts(i), self.image(latent)) for i, latent in enumerate(self.latents)},
        )

    def _facts(self, i: int) -> Facts:
        return Facts(
            latent=self.latents[i],
            activations=[float(f"{value:.5g}") for value in self.activations[i].tolist()],
            activation=self.activation[i],
            start=self.start[i],
            random=self.random[i],
            natural=None if self.natural is None else self.natural[i],
            n_natural=self.n_natural,
            n_random=self.n_random,
        )

    def __str__(self) -> str:
        natural = self.natural or [float("nan")] * len(self.latents)
        times = self.times_natural or natural
        columns = zip(self.latents, self.activation, natural, times, self.random, self.start, strict=True)
        head = f"{'latent':>8}{'made for it':>13}{'best natural':>14}{'times':>7}{'random':>9}{'at the start':>14}"
        form = "{:>8}{:>13.4g}{:>14.4g}{:>7.2f}{:>9.4g}{:>14.4g}"
        lines = [form.format(*row) for row in columns]
        said = f"Natural: {self.n_natural:,} images. Random: made for {self.n_random} directions of the same norm."
        return "\n".join([head, *lines, "", said])


@checked
def optimise_image(
    model: SubjectModel,
    sae: SAE,
    latents: int | Sequence[int],
    *,
    images: Any = None,
    over: Over = "max",
    steps: Positive = 256,
    n_random: NotNegative = 8,
    jitter: bool = True,
    hook: str | None = None,
    seed: NotNegative = 0,
    progress: bool = True,
) -> OptimisedImages:
    """Make the image on which a feature fires most, to see what it is for; and measure it as one measures any image.

    made = ms.optimise_image(model, sae, [60, 351], images="cifar10_test.npz")
    print(made); made.image(60).save("60.png"); made.save("run/optimised")  # where the page finds them

    What rises is the pre-activation <w, t(x) - b> + b', which has a gradient where the feature is off too, at one patch
    or all; by Adam, on Fourier coefficients of decorrelated colours, each time moved, turned and scaled, less and less.
    What is told is the activation: the finished image, rounded to 8 bits, goes through model and SAE like any other.
    An image says little unless it lies far above the best natural one, and above those that were made for random
    directions, which find whatever excites everything.

    Source: Olah, Mordvintsev & Schubert, Feature Visualization, 2017.

    Args:
        model: a model of images.
        sae: an SAE of one of its hook points.
        latents: one feature or several; their images are made side by side.
        images: natural images, what `Images` takes: their colours are used, and their best is compared with. All of
            them are read.
        over: maximise the strongest patch, or the mean over patches.
        steps: of the optimisation.
        n_random: how many random directions to make images for.
        jitter: move, turn and scale the image at every step, less and less; without it the result is mostly noise.
        hook: the SAE's hook point, if it does not know it.
        seed: of the start, of the jitter and of random directions.
        progress: say how far it is.

    Raises:
        ConfigError: there is no such latent or setting, or the SAE reads several places.
        DataError: the model reads no images.
    """
    chosen = [latents] if isinstance(latents, int) else list(latents)
    name = hook or sae.metadata.hook
    wanted = _checked(model, sae, chosen, name)
    assert name is not None

    def opened(source: Any) -> Images:
        return open_images(model, source, name, pixels=sae.metadata.pixels)[0]

    def measured(stored: np.ndarray) -> np.ndarray:
        return np.concatenate(list(activations_on(model, sae, chosen, name, opened(list(stored)))))

    with job(progress):
        natural = None if images is None else opened(images)
        colours = colours_of(natural, wanted, next(model.module.parameters()))
        pictures = Pictures(len(chosen) + n_random, wanted, colours, seed)
        before = pictures.bytes()
        kept = kept_positions(opened(list(before[:1])).read(0, 1), exclude_special=_leaves_out_special(sae))[0]
        history = _ascend(model, sae, name, pictures, _aims(sae, chosen, n_random, seed), kept, over, steps, jitter)
        made, own, first = pictures.bytes(), measured(pictures.bytes()), measured(before[: len(chosen)])
        best = None
        if natural is not None:
            parts = activations_on(model, sae, chosen, name, natural)
            best = np.maximum.reduce([part.max((0, 1)) for part in parts]).tolist()
    n, each = len(chosen), np.arange(len(chosen))
    return OptimisedImages(
        latents=chosen,
        images=made[:n],
        activations=own[each, :, each],
        activation=own[each, :, each].max(1).tolist(),
        start=first[each, :, each].max(1).tolist(),
        random=own[n:].max((0, 1)).tolist() if n_random else [0.0] * n,
        natural=best,
        n_natural=0 if natural is None else len(natural),
        n_random=n_random,
        history=history[:, :n],
        dictionary=dictionary_hash(sae),
    )


def pre_activations(
    model: SubjectModel, sae: SAE, hook: str, pixels: Tensor, rows: Float[Tensor, "n d"], biases: Float[Tensor, " n"]
) -> Float[Tensor, "n pos"]:
    """The pre-activation of encoder row i at every position of image i, with gradients to the pixels."""
    x = model.reach(pixels, [hook])[hook].to(rows.dtype)
    flat = sae.centred(sae.transform(x.flatten(0, 1))).unflatten(0, x.shape[:2])
    return torch.einsum("npd,nd->np", flat, rows) + biases[:, None]


def activations_on(
    model: SubjectModel, sae: SAE, latents: Sequence[int], hook: str, images: Images
) -> Iterator[Float[np.ndarray, "some pos latents"]]:
    """Activations of some latents on images, in their order, 0 where the SAE does not read."""
    wanted = torch.tensor(list(latents), device=sae.W_enc.device)
    with torch.no_grad(), doing("reading images", total=len(images), unit="images") as stage:
        for batch in images.in_batches(AT_ONCE):
            x = model.capture(batch.inputs, [hook])[hook]
            codes = sae.encode(x.to(sae.W_enc)).select(wanted).to_dense()
            kept = kept_positions(batch, exclude_special=_leaves_out_special(sae))
            yield (codes * kept[..., None].to(codes)).float().cpu().numpy()
            stage.advance(len(batch))


def _checked(model: SubjectModel, sae: SAE, latents: list[int], hook: str | None) -> PixelFormat:
    """The images that the model reads."""
    wanted = sae.metadata.pixels or pixel_format(model)
    if wanted is None:
        raise DataError(f"{model.name} reads no images: images can be optimised for image models alone")
    if hook is None:
        raise ConfigError("this SAE does not know its hook point: optimise_image(..., hook='resid_post.2')")
    if len(sae.in_shape) > 1:
        raise ConfigError(f"a {sae.architecture} reads several places at once: optimise_image takes an SAE of one")
    wrong = [latent for latent in latents if not 0 <= latent < sae.n_latents]
    if wrong or not latents:
        what = f"there is no latent {wrong[0]}" if wrong else "no latent is given"
        raise ConfigError(f"{what}: there are latents 0 to {sae.n_latents - 1}")
    return wanted


def _leaves_out_special(sae: SAE) -> bool:
    return sae.metadata.exclude_special is not False


def _aims(sae: SAE, latents: list[int], n_random: int, seed: int) -> tuple[Tensor, Tensor]:
    """Encoder rows and biases of the latents, and random rows of the same norm without biases."""
    rows, biases, _ = sae.part(torch.tensor(latents, device=sae.W_enc.device))
    drawn = torch.randn(n_random, rows.shape[1], generator=torch.Generator().manual_seed(seed)).to(rows)
    drawn = drawn / drawn.norm(dim=1, keepdim=True) * rows.norm(dim=1).mean()
    return torch.cat([rows, drawn]), torch.cat([biases, biases.new_zeros(n_random)])


def _ascend(
    model: SubjectModel,
    sae: SAE,
    hook: str,
    pictures: Pictures,
    aim: tuple[Tensor, Tensor],
    kept: Tensor,
    over: Over,
    steps: int,
    jitter: bool,
) -> np.ndarray:
    """Raise each picture's own pre-activation; returns (steps, pictures) what it was."""
    optimizer = torch.optim.Adam([pictures.spectrum], lr=FASTEST)
    random = torch.Generator().manual_seed(pictures.seed)
    history: list[np.ndarray] = []
    with doing("optimising", total=steps, unit="steps") as stage:
        for step in range(steps):
            images, left = pictures.images(), 1 - step / steps
            seen = jittered(images, random, SHIFT * left, TURN * left, ZOOM * left) if jitter else images
            values = pre_activations(model, sae, hook, pictures.normalised(seen), *aim)[:, kept.to(seen.device)]
            height = values.amax(1) if over == "max" else values.mean(1)
            (pictures.spectrum.grad,) = torch.autograd.grad(-height.sum(), [pictures.spectrum])
            optimizer.step()
            history.append(height.detach().float().cpu().numpy())
            stage.advance(1)
    return np.stack(history)
