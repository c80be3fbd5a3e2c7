"""What a dictionary reads and what it must predict, of the models that it is of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosem.activations.reading import Found, Wanted, read_rows
from monosem.data import Batch
from monosem.errors import ConfigError, MismatchError
from monosem.models import ModelSet, SubjectModel
from monosem.sae import SAE


def is_mapping(sae: SAE) -> bool:
    """Whether an SAE is anything but a dictionary of one place in one model."""
    known = sae.metadata
    return bool(known.hooks or known.models or known.target_hook or known.target_hooks) or len(sae.in_shape) > 1


class Mapping:
    """The hook points of a dictionary, and its rows of what is captured there."""

    def __init__(self, sae: SAE, model: SubjectModel | ModelSet, hook: str | Sequence[str] | None = None) -> None:
        """Find the hook points that an SAE remembers, or those given.

        Raises:
            HookError: the model lacks one.
            ConfigError: the SAE remembers none, and none is given.
        """
        known = sae.metadata
        given = [hook] if isinstance(hook, str) else hook
        hooks = given or known.hooks or ([known.hook] if known.hook else [])
        if not hooks:
            raise ConfigError("an SAE does not know its hook point: name it, such as 'resid_post.2'")
        targets = [known.target_hook] if known.target_hook else known.target_hooks or hooks
        self.sae, self.model = sae, model
        self.hooks, self.targets = ([model.hook_point(name).name for name in names] for names in (hooks, targets))

    @property
    def places(self) -> list[str]:
        """All hook points."""
        return list(dict.fromkeys([*self.hooks, *self.targets]))

    @property
    def places_read(self) -> list[str]:
        """The hook points that say what the dictionary reads: targets only where their norms have a limit."""
        limited = bool(self.sae.metadata.max_norm)
        return self.places if limited else list(dict.fromkeys(self.hooks))

    @property
    def alone(self) -> bool:
        """Whether it is a dictionary of one place in one model."""
        return not is_mapping(self.sae) and len(self.hooks) == 1

    @property
    def wanted(self) -> Wanted:
        """What is to be read of it: what it reads and what it predicts."""
        return Wanted(self.sae.metadata, self.places)

    @property
    def wanted_inputs(self) -> Wanted:
        """What is to be read of what it reads."""
        return Wanted(self.sae.metadata, self.places_read)

    def inputs(self, found: Found) -> Float[Tensor, "rows ..."]:
        """What the dictionary reads.

        Raises:
            MismatchError: the activations are not of the dictionary's shape.
        """
        return self._side([found.rows[hook].to(self.sae.W_enc) for hook in self.hooks], self.sae.in_shape, self.hooks)

    def sides(self, found: Found) -> tuple[Float[Tensor, "rows ..."], Float[Tensor, "rows ..."]]:
        """What the dictionary reads and what it predicts.

        Raises:
            MismatchError: the activations are not of the dictionary's shape.
        """
        target = [found.rows[hook].to(self.sae.W_enc) for hook in self.targets]
        return self.inputs(found), self._side(target, self.sae.out_shape, self.targets)

    def read(self, batch: Batch) -> tuple[Tensor, Tensor, Bool[Tensor, "contexts pos"]]:
        """What the dictionary reads and predicts of some contexts, and at which positions; raises as `sides`."""
        (found,) = read_rows(self.model, batch, [self.wanted])
        return *self.sides(found), found.kept

    @property
    def read_from(self) -> dict[str, tuple[SubjectModel, str]]:
        """The model and hook point of each source that is read, by name, in their order."""
        return self._sources(self.hooks)

    @property
    def predicted(self) -> dict[str, tuple[SubjectModel, str]]:
        """The model and hook point of each source that is predicted, by name, in their order."""
        return self._sources(self.targets)

    def _sources(self, hooks: Sequence[str]) -> dict[str, tuple[SubjectModel, str]]:
        if isinstance(self.model, SubjectModel):
            return {hook: (self.model, hook) for hook in hooks}
        models = list(enumerate(self.model.models))
        names = [model.name for _, model in models]
        twice = len(set(names)) < len(names)
        own = [f"{name} ({number})" if twice else name for number, name in enumerate(names, 1)]
        return {f"{hook} of {own[number]}": (model, hook) for hook in hooks for number, model in models}

    def _side(self, parts: list[Tensor], shape: tuple[int, ...], hooks: list[str]) -> Float[Tensor, "rows ..."]:
        if len(shape) > 1:  # hook points, or models at each, side by side
            parts = [part if part.ndim == 3 else part[:, None] for part in parts]
        side = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        if tuple(side.shape[1:]) != shape:
            wanted, got = (" x ".join(map(str, size)) for size in (shape, side.shape[1:]))
            raise MismatchError(
                f"the SAE has width {wanted}, {', '.join(hooks)} of {self.model.name} has width {got}: "
                "choose another hook"
            )
        return side
