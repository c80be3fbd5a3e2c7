"""Which dictionary stands where: the sites of a circuit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from monosem.errors import ConfigError
from monosem.interventions.base import joined_once
from monosem.interventions.way import Site
from monosem.kernels import Selection
from monosem.models import SubjectModel
from monosem.sae import SAE, TrainingContext, TrainingLoss

Dictionaries = SAE | Sequence[SAE] | Mapping[str, SAE]
"""One dictionary, several that know their hook points, or several by hook point: that of what they read."""


def sites_of(model: SubjectModel, dictionaries: Dictionaries) -> list[Site]:
    """A site for each dictionary, in the order given, unseen yet.

    Raises:
        ConfigError: there is none, one does not know its place, reads several places, or two write at one.
        MismatchError: one does not fit the model.
    """
    if isinstance(dictionaries, Mapping):
        pairs = [(str(hook), sae) for hook, sae in dictionaries.items()]
    else:
        several = [dictionaries] if isinstance(dictionaries, SAE) else list(dictionaries)
        pairs = [(str(sae.metadata.hook or ""), sae) for sae in several]
    if not pairs:
        raise ConfigError("a circuit needs a dictionary: give an SAE, a transcoder, or several")
    found: list[Site] = []
    for hook, sae in pairs:
        if not hook:
            raise ConfigError(f"a {sae.architecture} does not know its hook point: give {{'resid_post.2': sae}}")
        if len(sae.in_shape) > 1 or len(sae.out_shape) > 1:
            raise ConfigError(f"a {sae.architecture} reads or writes several places: a circuit takes those of one")
        if not sae.autoencodes and sae.metadata.target_hook is None:
            raise ConfigError(
                f"the {sae.architecture} at {hook} does not know what it predicts: set sae.metadata.target_hook"
            )
        if not isinstance(sae, Neurons):
            joined_once(sae, model, hook)
        write = None if sae.autoencodes else model.hook_point(str(sae.metadata.target_hook)).name
        found.append(Site(sae, model.hook_point(hook).name, write))
    places = [site.write for site in found]
    twice = sorted({place for place in places if places.count(place) > 1})
    if twice:
        raise ConfigError(f"two dictionaries write at {', '.join(twice)}: a circuit takes one at a place")
    return found


class Neurons(SAE):
    """The basis as a dictionary: every coordinate is a feature, its code is what stands there, nothing is left over.

    The baseline of every circuit of features. Codes have both signs.
    """

    def __init__(self, width: int, hook: str, dtype: torch.dtype = torch.float32, device: object = None) -> None:
        super().__init__(width, width, transform="none", subtract_b_dec=False, dtype=dtype, device=device)  # type: ignore[arg-type]
        self.architecture = "neurons"  # type: ignore[misc]
        with torch.no_grad():
            for matrix in (self.W_enc, self.W_dec):
                matrix.copy_(torch.eye(width))
        self.metadata.hook, self.metadata.exclude_special = hook, False

    @property
    def settings(self) -> dict[str, object]:
        return {}

    def select(self, x: Tensor) -> tuple[Tensor, Selection]:
        indices = torch.arange(self.n_latents, dtype=torch.int32, device=x.device).repeat(len(x))
        offsets = torch.arange(len(x) + 1, device=x.device) * self.n_latents
        return x.reshape(-1), Selection(indices, offsets, self.n_latents)

    def activate(self, x: Tensor) -> tuple[Tensor, Selection]:
        return x.reshape(-1), self.select(x.detach())[1]

    def reconstruct(self, activations: Tensor, selection: Selection, x: Tensor | None = None) -> Tensor:
        counts = selection.offsets.diff()
        rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        nothing = activations.new_zeros(len(counts), self.n_latents)
        return nothing.index_put((rows, selection.indices.long()), activations)

    def training_loss(self, x: Tensor, target: Tensor, context: TrainingContext) -> TrainingLoss:
        raise ConfigError("neurons are the model's own: they are not trained")


def neurons_like(model: SubjectModel, sites: Sequence[Site]) -> list[SAE]:
    """The model's own basis at the same sites: for what predicts an MLP's output, the neurons of that MLP."""
    found: list[SAE] = []
    for site in sites:
        hook = site.write
        inner = hook.replace("mlp_out.", "mlp_mid.")
        if site.write != site.read and inner in model.hook_points:
            hook = inner
        assert site.x is not None
        found.append(Neurons(model.width(hook), hook, site.x.dtype, site.x.device))
    return found
