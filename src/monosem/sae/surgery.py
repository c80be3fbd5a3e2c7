"""What can be changed in a trained SAE without training: its units (fold, unfold) and its latents (prune)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.sae.base import SAE
from monosem.sae.pursuit import MatchingPursuitSAE
from monosem.sae.sources import SourceTransform
from monosem.sae.transform import InputTransform

KNOWN = {
    *("W_enc", "W_dec", "W_skip", "W_router"),
    *("b_enc", "b_dec", "b_router", "b_mag", "r_mag", "threshold", "own_threshold"),
}
ALIKE = 1.001
"""Norms that differ by no more are one norm, and rounding."""


@checked
@torch.no_grad()
def fold(sae: SAE, *, norms: bool | None = None) -> SAE:
    """The same SAE with its transforms moved into the weights, so that it reads and writes raw activations as they are.

    Reconstructions of raw activations are the same, and so is which latents are on. Codes too, but for one factor a
    latent, where norms are folded: decoder rows then have norm 1 in raw units, and a code says how long a latent's part
    of the activation is. Matching pursuit's codes are such lengths, and become raw ones in any case.

    Args:
        sae: left as it is.
        norms: fold decoder norms into codes; if not said, where that changes no selection. Latents that compete by the
            size of their codes (TopK, BatchTopK and all that is made of them) have to have one norm for it, which
            whitening takes from them.

    Raises:
        ConfigError: there is no such SAE of this architecture: the transform is "layer_norm", a tied encoder would not
            stay so, latents compete by norms of sources that change unlike, ...; the message says what serves instead.
    """
    nothing = [InputTransform(len(own.mean), "none") for own in sae.transform.sources]
    beyond = [InputTransform(len(own.mean), "none") for own in sae.target_transform.sources]
    return _moved(sae, _like(sae.transform, nothing), _like(sae.target_transform, beyond), norms)


@checked
@torch.no_grad()
def unfold(
    sae: SAE, transform: InputTransform, target_transform: InputTransform | None = None, *, norms: bool | None = None
) -> SAE:
    """The reverse of `fold`: the same SAE behind an input transform, as training wants it.

    Args:
        sae: left as it is.
        transform: fitted; `unfold(fold(sae), sae.transform)` is `sae`. Of several sources a `SourceTransform`.
        target_transform: in transcoders, the transform of what is predicted; `transform` if not given.
        norms: give decoder rows norm 1 in transformed units; as in `fold`.

    Raises:
        ConfigError: the transform is not fitted or of another width, or as in `fold`.
    """
    target_transform = transform if target_transform is None else target_transform
    for side, given, own in (("", transform, sae.transform), ("target_", target_transform, sae.target_transform)):
        if not given.fitted:
            raise ConfigError(f"the {side}transform is not fitted: call transform.fit(x) on raw activations first")
        given.require_affine()
        if given.mean.shape != own.mean.shape:
            wanted, got = (" x ".join(map(str, size)) for size in (own.mean.shape, given.mean.shape))
            raise ConfigError(f"the {side}transform is of width {got}, the SAE wants {wanted}: fit one for it")
    if not sae.autoencodes and transform.kind != target_transform.kind:
        raise ConfigError(
            f"the transforms of inputs and targets are of different kinds, {transform.kind} and "
            f"{target_transform.kind}: an SAE has one kind for both sides"
        )
    return _moved(sae, transform, target_transform, norms)


def _like(transform: InputTransform, parts: list[InputTransform]) -> InputTransform:
    """Transforms of several sources as one, if that is what the SAE has."""
    if not isinstance(transform, SourceTransform):
        return parts[0]
    return SourceTransform(len(parts), len(parts[0].mean), parts[0].kind)


class _Change(NamedTuple):
    """From one transform t to another t', of one source: t(x) = A t'(x) + shift. In float64."""

    A: Tensor
    """(d, d), or one number."""
    back: Tensor
    """The inverse of A."""
    shift: Float[Tensor, " d"]
    old: InputTransform
    new: InputTransform

    @staticmethod
    def between(old: InputTransform, new: InputTransform) -> _Change:
        old, new = (copy.deepcopy(t).to(old.mean.device).double() for t in (old, new))
        A, back = _product(old.linear, new.inverse_linear), _product(new.linear, old.inverse_linear)
        return _Change(A, back, old(new.inverse(torch.zeros_like(old.mean))), old, new)

    def readers(self, rows: Float[Tensor, "*m d"]) -> Tensor:
        """Rows that multiply t(x), as rows that multiply t'(x)."""
        return _product(rows.double(), self.A)

    def directions(self, rows: Float[Tensor, "*m d"]) -> Tensor:
        """Rows that are added to t(x), as rows that are added to t'(x)."""
        return _product(rows.double(), self.back.T if self.back.ndim else self.back)

    def point(self, row: Float[Tensor, " d"]) -> Tensor:
        """T(x) as t'(x)."""
        return self.new(self.old.inverse(row.double()))


def _product(a: Tensor, b: Tensor) -> Tensor:
    return a @ b if a.ndim and b.ndim else a * b


def _moved(sae: SAE, transform: InputTransform, target_transform: InputTransform, norms: bool | None) -> SAE:
    """A copy of the SAE that does the same behind other transforms.

    What reads t(x) is multiplied by A, what writes by its inverse, and points (b_dec) go through both transforms, so
    that pre-activations stay as they are; see `_Change`. Where the encoder has no b_dec to subtract, as in a
    transcoder, the shift goes into biases.
    """
    unknown = {name for name, _ in sae.named_parameters() if not name.startswith("W_dec_")} - KNOWN
    if unknown:
        raise ConfigError(f"fold and unfold do not know what {', '.join(sorted(unknown))} of {sae.architecture} does")
    inputs = [_Change.between(*pair) for pair in zip(sae.transform.sources, transform.sources, strict=True)]
    outputs = inputs
    if not sae.autoencodes:
        pairs = zip(sae.target_transform.sources, target_transform.sources, strict=True)
        outputs = [_Change.between(*pair) for pair in pairs]
    tied = sae.one_matrix
    if tied:
        _check_tied(sae, inputs[0])
    new = copy.deepcopy(sae)
    shifts = torch.zeros(sae.n_latents, dtype=torch.float64, device=sae.W_enc.device)
    for source, latents, rows in () if tied else new.encoders():
        shifts[latents] += rows.double() @ inputs[source].shift
        rows.copy_(inputs[source].readers(rows))
    for source, weight, bias in new.other_readers():
        if not sae.subtract_b_dec:
            bias.add_((weight.double() @ inputs[source].shift).to(bias.dtype))
        weight.copy_(inputs[source].readers(weight))
    if not sae.subtract_b_dec:
        new.add_to_pre_activations(shifts.to(sae.b_enc.dtype))
    for source, _, rows in () if tied else new.decoders():
        rows.copy_(outputs[source].directions(rows))
    for source, rows in new.other_writers():
        rows.copy_(outputs[source].directions(rows))
    for change, point in zip(outputs, new.b_dec.view(len(outputs), -1), strict=True):
        point.copy_(change.point(point))
    new.transform = _placed(transform, sae)
    if not sae.autoencodes:
        new.own_target_transform = _placed(target_transform, sae)
    new.has_moved(sae)
    if norms is not False:
        _unit_decoder(new, wanted=norms is True)
    return new


def _check_tied(sae: SAE, change: _Change) -> None:
    """Rows that read and write at once are multiplied and divided by the same: that has to be nothing."""
    if isinstance(sae, MatchingPursuitSAE):
        if change.A.ndim:
            raise ConfigError(
                "matching pursuit searches by angles, which whitening changes: it cannot leave that space or enter it. "
                "Keep the SAE as it is (sae.decoder_directions() gives its rows in raw units)"
            )
    elif change.A.ndim or change.A != 1:
        raise ConfigError(
            f"the tied encoder of this {sae.architecture} SAE would no longer be its decoder: make it two matrices "
            "first, ms.convert(sae, 'jumprelu')"
        )


def _placed(transform: InputTransform, sae: SAE) -> InputTransform:
    return copy.deepcopy(transform).to(sae.W_enc.device, sae.W_enc.dtype)


def _unit_decoder(sae: SAE, wanted: bool) -> None:
    """Decoder rows of norm 1, their norms in the codes, unless that changes what is on. Rows of zeros stay.

    Raises:
        ConfigError: it does, although it was wanted.
    """
    squares = torch.zeros_like(sae.b_enc, dtype=torch.float64)
    for _, latents, rows in sae.decoders():
        squares[latents] += rows.double().pow(2).sum(-1)
    norms, some = squares.sqrt(), squares > 0
    if not some.any():
        return
    tied, low, high = sae.one_matrix, norms[some].min(), norms[some].max()
    if (sae.latents_compete or tied) and (high > ALIKE * low or (tied and not 1 / ALIKE < low <= high < ALIKE)):
        if wanted:
            raise ConfigError(
                f"the decoder rows of this {sae.architecture} SAE have different norms, and its latents compete by the "
                "size of their codes: fold with norms=False, or convert it to jumprelu first"
            )
        return
    if not tied:
        norms = norms[some].mean().expand_as(norms) if sae.latents_compete else torch.where(some, norms, 1.0)
        sae.rescale_codes(norms.to(sae.W_enc.dtype))


@checked
@torch.no_grad()
def prune(sae: SAE, keep: Bool[Tensor, " n_latents"] | Int[Tensor, " kept"] | Sequence[int]) -> SAE:
    """A smaller SAE of some of the latents, in their order: `prune(sae, firing_rates > 1e-5)`.

    With a fixed k others take the places of those that go; where those never fired, nothing changes.

    Args:
        sae: left as it is.
        keep: a mask of all latents, or the numbers of those to keep, each once.

    Raises:
        ConfigError: no latent or an unknown one is kept, or latents belong to experts or layers.
    """
    for setting, what in (("n_experts", "experts"), ("n_layers", "layers")):
        if setting in sae.settings:
            raise ConfigError(
                f"latents of {sae.architecture} cannot be pruned: they belong to {what} of equal size. Keep it whole, "
                "and leave latents out of its codes"
            )
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
        **sae.common,
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
    if settings.get("target_l0") is not None:  # of which training on would have to have fewer than latents
        settings["target_l0"] = min(settings["target_l0"], len(kept) / 2)
    if "widths" in settings:  # how many of each nested dictionary are left
        settings["widths"] = sorted({int((kept < width).sum()) for width in settings["widths"]} - {0})
    return settings
