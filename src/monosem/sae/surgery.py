"""What can be changed in a trained SAE without training: its units (fold, unfold) and its latents (prune)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from monosem.errors import ConfigError
from monosem.sae.base import SAE, row_norms
from monosem.sae.topk import TopKSAE
from monosem.sae.transform import InputTransform

IN_UNITS_OF_CODES = ("b_enc", "threshold", "b_mag", "running_threshold")
"""Parameters and buffers that grow with a latent's activations."""
KNOWN = {"W_enc", "W_dec", "W_skip", "b_enc", "b_dec", "threshold", "b_mag", "r_mag"}


@torch.no_grad()
def fold(sae: SAE, *, norms: bool = True) -> SAE:
    """The same SAE with its transforms moved into the weights, so that it reads and writes raw activations as they are.

    Reconstructions of raw activations are the same. Codes too, but for one factor a latent: with `norms` decoder rows
    have norm 1 in raw units, so that a code says how long a latent's part of the activation is.

    Args:
        sae: left as it is.
        norms: fold decoder norms into codes.

    Raises:
        ConfigError: parameters that it does not know, or latents of different norms that compete by size (TopK).
    """
    nothing = InputTransform(sae.d_in, "none"), InputTransform(sae.d_out, "none")
    return _moved(sae, nothing[0], nothing[1], norms)


@torch.no_grad()
def unfold(
    sae: SAE, transform: InputTransform, target_transform: InputTransform | None = None, *, norms: bool = True
) -> SAE:
    """The reverse of `fold`: the same SAE behind an input transform, as training wants it.

    Args:
        sae: left as it is.
        transform: fitted; `unfold(fold(sae), sae.transform)` is `sae`.
        target_transform: in transcoders, the transform of what is predicted.
        norms: give decoder rows norm 1 in transformed units.

    Raises:
        ConfigError: the transform is not fitted, or as in `fold`.
    """
    target_transform = transform if target_transform is None else target_transform
    if not (transform.fitted and target_transform.fitted):
        raise ConfigError("the transform is not fitted: call transform.fit(x) on raw activations first")
    return _moved(sae, transform, target_transform, norms)


def _moved(sae: SAE, transform: InputTransform, target_transform: InputTransform, norms: bool) -> SAE:
    """A copy of the SAE that does the same behind other transforms.

    Between transforms t(x) = factor * t'(x) + shift, so that with W' = factor W the pre-activations stay as they are.
    """
    unknown = {name for name, _ in sae.named_parameters()} - KNOWN
    if unknown or sae.in_shape != (sae.d_in,) or sae.W_enc is sae.W_dec:
        what = "a tied encoder" if sae.W_enc is sae.W_dec else ", ".join(sorted(unknown)) or "several sources"
        raise ConfigError(f"fold and unfold cannot handle {what} of {sae.architecture}")
    new = copy.deepcopy(sae)
    factor, shift = _between(sae.transform, transform)
    factor_out, shift_out = _between(sae.target_transform, target_transform)
    new.W_enc.mul_(factor)
    if not sae.subtract_b_dec:
        new.b_enc.add_(sae.W_enc @ shift)
    new.W_dec.div_(factor_out)
    if "W_skip" in dict(new.named_parameters()):
        W_skip = new.get_parameter("W_skip")
        new.b_dec.add_(W_skip @ shift)
        W_skip.mul_(factor / factor_out)
    new.b_dec.sub_(shift_out).div_(factor_out)
    new.transform = _like(transform, sae)
    if not sae.subtract_b_dec:
        new.own_target_transform = _like(target_transform, sae)
    if norms:
        _unit_decoder(new)
    return new


def _between(old: InputTransform, new: InputTransform) -> tuple[Float[Tensor, ""], Float[Tensor, " d"]]:
    """Factor and shift of old(x) = factor * new(x) + shift."""
    return old.scale / new.scale.to(old.scale), (new.mean.to(old.mean) - old.mean) * old.scale


def _like(transform: InputTransform, sae: SAE) -> InputTransform:
    return copy.deepcopy(transform).to(sae.W_enc.device, sae.W_enc.dtype)


def _unit_decoder(sae: SAE) -> None:
    """Decoder rows of norm 1; their norms go into the codes. Rows of zeros stay."""
    norms = row_norms(sae.W_dec)[:, 0]
    norms = torch.where(norms > 0, norms, torch.ones_like(norms))
    if isinstance(sae, TopKSAE):
        if norms.max() > 1.001 * norms.min():
            raise ConfigError(
                f"the decoder rows of this {sae.architecture} SAE have different norms, and its latents compete by the "
                "size of their codes: fold with norms=False, or convert it to jumprelu first"
            )
        norms = norms.mean().expand_as(norms)
    sae.W_enc.mul_(norms[:, None])
    sae.W_dec.div_(norms[:, None])
    for name in IN_UNITS_OF_CODES:
        tensor = getattr(sae, name, None)
        if isinstance(tensor, nn.Parameter) or name in dict(sae.named_buffers()):
            tensor.mul_(norms if tensor.ndim else norms[0])  # pyright: ignore[reportOptionalMemberAccess]


@torch.no_grad()
def prune(sae: SAE, keep: Bool[Tensor, " n_latents"] | Int[Tensor, " kept"] | Sequence[int]) -> SAE:
    """A smaller SAE of some of the latents, in their order: `prune(sae, firing_rates > 1e-5)`.

    With a fixed k others take the places of those that go; where those never fired, nothing changes.

    Args:
        sae: left as it is.
        keep: a mask of all latents, or the numbers of those to keep, each once.

    Raises:
        ConfigError: no latent or an unknown one is kept, or latents belong to experts.
    """
    if "n_experts" in sae.settings:
        raise ConfigError(f"latents of {sae.architecture} cannot be pruned: they belong to experts of equal size")
    given = torch.as_tensor(keep, device=sae.W_enc.device)
    if given.dtype == torch.bool:
        if tuple(given.shape) != (sae.n_latents,):
            raise ConfigError(f"the mask of latents to keep must have {sae.n_latents} entries, got {len(given)}")
        given = given.nonzero()[:, 0]
    given = given.long()
    if not len(given) or given.min() < 0 or given.max() >= sae.n_latents:
        raise ConfigError(f"keep at least one latent, of 0 to {sae.n_latents - 1}; got {len(given)}")
    kept = torch.zeros(sae.n_latents, dtype=torch.bool, device=given.device)
    kept[given] = True
    chosen = kept.nonzero()[:, 0]
    small = type(sae)(
        sae.d_in,
        len(chosen),
        **_settings(sae, chosen),
        d_out=None if sae.subtract_b_dec else sae.d_out,
        transform=sae.transform.kind,
        dtype=sae.W_enc.dtype,
        device=sae.W_enc.device,
    )
    old = sae.state_dict()
    for name, tensor in small.state_dict().items():
        whole = old[name]
        axes = [axis for axis in range(whole.ndim) if whole.shape[axis] != tensor.shape[axis]]
        tensor.copy_(whole.index_select(axes[0], chosen) if axes else whole)
    small.transform.fitted = small.target_transform.fitted = sae.transform.fitted
    small.metadata, small.probe = sae.metadata.model_copy(update={"fingerprint": None}), dict(sae.probe)
    return small.train(sae.training)


def _settings(sae: SAE, kept: Int[Tensor, " kept"]) -> dict[str, Any]:
    settings = dict(sae.settings)
    if "k" in settings:
        settings["k"] = min(settings["k"], len(kept))
    if "widths" in settings:  # how many of each nested dictionary are left
        settings["widths"] = sorted({int((kept < width).sum()) for width in settings["widths"]} - {0})
    return settings
