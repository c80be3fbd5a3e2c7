"""Interventions on latents of an SAE: their codes are set, scaled, added to, clamped or taken from elsewhere."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosem.arguments import NotNegative, checked
from monosem.errors import ConfigError
from monosem.interventions.amounts import Amount, Places
from monosem.interventions.base import Intervention, joined_once, reads
from monosem.interventions.elsewhere import Pass, Sites, changed_elsewhere
from monosem.interventions.source import Source, Values
from monosem.interventions.where import Condition
from monosem.models import EditContext, SubjectModel
from monosem.sae import SAE

By = Literal["zero", "mean", "resample"]


class FeatureEdit(Intervention):
    """The codes of some latents are others: x + sum over latents of (new - old) decoder row.

    With the error term, which is what the SAE leaves unexplained, everything else in x stays as it is; without it, x is
    first replaced by its reconstruction. Only where the SAE reads, by its rules.

    Of a dictionary that writes elsewhere than it reads, x is what stands where it writes: a transcoder's latents change
    the output of its MLP, those of a cross-layer transcoder the outputs of their layer's and of all later ones, and
    those of a crosscoder of several layers the last of these, at which its codes are first known.
    """

    needs_codes = True
    """Whether the present codes must be known."""

    @checked
    def __init__(
        self,
        sae: SAE,
        latents: int | Sequence[int] | Tensor,
        *,
        hook: str | None = None,
        where: Condition = None,
        keep_error: bool = True,
    ) -> None:
        self.sites = Sites.of(sae, hook, type(self).__name__)
        super().__init__(self.sites.hooks, where)
        self.sae, self.keep_error = sae, keep_error
        self.latents = _latents(latents, sae)
        if type(self).unchanged is Intervention.unchanged:
            self.unchanged = f"{self.named} {'was' if len(self.latents) == 1 else 'were'} never on there"

    @property
    def reader(self) -> SAE:
        return self.sae

    @abstractmethod
    def setting(self, codes: Float[Tensor, "chosen m"], places: Places) -> Float[Tensor, "chosen m"]:
        """The new codes of the latents."""

    def join(self, model: SubjectModel) -> None:
        """Ask once whether the SAE fits a model.

        Raises:
            MismatchError: it does not.
        """
        joined_once(self.sae, model, list(self.sites.read))
        self.sites = self.sites.named(model)

    def allowed(self, x: Float[Tensor, "batch pos d"], context: EditContext) -> Bool[Tensor, "batch pos"]:
        allowed = reads(self.sae.metadata, x, context)
        return allowed & self._pass(context).kept if self.sites.elsewhere else allowed

    def read(self, x: Float[Tensor, "batch pos d"], context: EditContext) -> Float[Tensor, "batch pos *source d"]:
        return self._pass(context).rows() if self.sites.elsewhere else x

    def apply(self, x: Float[Tensor, "batch pos d"], context: EditContext) -> Float[Tensor, "batch pos d"]:
        if self.sites.elsewhere:
            if x.ndim == 2:
                return self.apply(x[:, None], context)[:, 0]
            self._pass(context).note(x, context)
            if context.hook not in self.sites.written:
                return x
        return super().apply(x, context)

    def replace(self, rows: Float[Tensor, "chosen d"], places: Places) -> Float[Tensor, "chosen d"]:
        if self.sites.elsewhere:
            return changed_elsewhere(self, self._pass(places.context), rows, places)
        if self.needs_codes or not self.keep_error:
            old, base = self._read(rows)
        else:
            old, base = torch.zeros(1, len(self.latents), dtype=self.sae.W_dec.dtype, device=self._chosen.device), rows
        return self._changed(rows, base, self.setting(old, places) - old)

    def _pass(self, context: EditContext) -> Pass:
        return Pass.at(self.sae, self.sites, context)

    @property
    def _chosen(self) -> Int[Tensor, " m"]:
        return torch.tensor(self.latents, device=self.sae.W_enc.device)

    def _read(self, rows: Float[Tensor, "chosen d"]) -> tuple[Float[Tensor, "chosen m"], Float[Tensor, "chosen d"]]:
        """The codes of the latents, and what remains where they do not change."""
        codes = self.sae.encode(rows)
        base = rows if self.keep_error else self.sae.decode(codes, rows)
        return codes.select(self._chosen).to_dense(), base

    def _changed(
        self, rows: Float[Tensor, "chosen d"], base: Float[Tensor, "chosen d"], change: Float[Tensor, "chosen m"]
    ) -> Float[Tensor, "chosen d"]:
        """`base` where the codes of `rows` change by so much."""
        written = change @ self.sae.part(self._chosen)[2]
        return base + self.sae.target_transform.raw_changes(written, rows.to(written.dtype))

    def __repr__(self) -> str:
        first, *more = self.sites.written
        return f"{type(self).__name__}({self.named}{self.detail()}, {first!r}{', ...' if more else ''})"

    @property
    def named(self) -> str:
        """Its latents, in words."""
        shown = ", ".join(map(str, self.latents[:4])) + (", ..." if len(self.latents) > 4 else "")
        return f"latent {shown}" if len(self.latents) == 1 else f"{len(self.latents)} latents {shown}"

    def detail(self) -> str:
        """Its setting, in words."""
        return ""


class Ablate(FeatureEdit):
    """Latents are taken away: their codes are 0, their mean, or those of other contexts."""

    fields = ("sae", "latents", "by", "source", "seed", "hook", "where", "keep_error")
    required = ("latents",)

    @checked
    def __init__(
        self,
        sae: SAE,
        latents: int | Sequence[int] | Tensor,
        *,
        by: By = "zero",
        source: Source | None = None,
        seed: NotNegative = 0,
        hook: str | None = None,
        where: Condition = None,
        keep_error: bool = True,
    ) -> None:
        """Make the edit.

        Args:
            sae: the SAE; it encodes what stands at its hook point when the edit's turn comes.
            latents: numbers of latents.
            by: 0 ("zero"), the mean of each over `source` ("mean"), or the codes that they have together at a position
                of `source`, drawn for each position and token ("resample").
            source: other contexts: texts, token ids (contexts, pos), or codes; what the SAE was probed on, if it knows.
            seed: of the draws.
            hook: its hook point, if the SAE does not know it or is to be used at another (what a transcoder reads).
            where: at which positions; see `ms.Where`.
            keep_error: leave what the SAE does not explain as it is.

        Raises:
            ConfigError: there is no such latent or setting.
        """
        super().__init__(sae, latents, hook=hook, where=where, keep_error=keep_error)
        if by == "zero" and source is not None:
            raise ConfigError('a source is for by="mean" and by="resample"')
        self.by, self.source, self.seed = by, source, seed
        self.values = None if by == "zero" else Values(sae, self.latents, source, self.sites)

    def join(self, model: SubjectModel) -> None:
        super().join(model)
        if self.values is not None:
            self.values.read(model)

    def setting(self, codes: Float[Tensor, "chosen m"], places: Places) -> Float[Tensor, "chosen m"]:
        if self.values is None:
            return torch.zeros_like(codes)
        if self.by == "mean":
            return self.values.mean().to(codes).expand_as(codes)
        return self.values.drawn(places, self.seed).to(codes)

    def without(self, rows: Float[Tensor, "chosen d"]) -> tuple[Float[Tensor, " chosen"], Float[Tensor, "chosen d"]]:
        """The code of the only latent in some rows, and the rows where it is 0."""
        old, base = self._read(rows)
        return old[:, 0], self._changed(rows, base, -old)

    def detail(self) -> str:
        return "" if self.by == "zero" else f" by {self.by}"


class Set(FeatureEdit):
    """Codes of latents are set, whether they were on or not."""

    unchanged = "the codes were these already"

    fields = ("sae", "latents", "to", "hook", "where", "keep_error")
    required = ("latents", "to")

    @checked
    def __init__(self, sae: SAE, latents: int | Sequence[int] | Tensor, to: Any, **options: Any) -> None:
        """Make the edit.

        Args:
            sae: the SAE.
            latents: numbers of latents.
            to: a number, one for each latent, or one (or one for each latent) for each row of the batch.
            **options: `hook`, `where` and `keep_error`, as in `Ablate`.
        """
        super().__init__(sae, latents, **options)
        self.to = Amount(to, len(self.latents), "to")

    def setting(self, codes: Float[Tensor, "chosen m"], places: Places) -> Float[Tensor, "chosen m"]:
        return self.to.at(places, codes).expand_as(codes)

    def detail(self) -> str:
        return f" to {self.to}"


class Scale(FeatureEdit):
    """Codes of latents are multiplied; 0 takes them away, 1 changes nothing."""

    fields = ("sae", "latents", "by", "hook", "where", "keep_error")
    required = ("latents", "by")

    @checked
    def __init__(self, sae: SAE, latents: int | Sequence[int] | Tensor, by: Any, **options: Any) -> None:
        """Make the edit.

        Args:
            sae: the SAE.
            latents: numbers of latents.
            by: a number, one for each latent, or one (or one for each latent) for each row of the batch.
            **options: `hook`, `where` and `keep_error`, as in `Ablate`.
        """
        super().__init__(sae, latents, **options)
        self.by = Amount(by, len(self.latents), "by")
        if bool((self.by.numbers == 1).all()):
            self.unchanged = "the factor is 1"

    def setting(self, codes: Float[Tensor, "chosen m"], places: Places) -> Float[Tensor, "chosen m"]:
        return codes * self.by.at(places, codes)

    def detail(self) -> str:
        return f" by {self.by}"


class Add(FeatureEdit):
    """Codes of latents are raised or, by a negative amount, lowered, below 0 too: steering with features.

    With the error term nothing is encoded: x + sum over latents of amount times decoder row.
    """

    needs_codes = False
    unchanged = "the amount is 0"

    fields = ("sae", "latents", "amount", "hook", "where", "keep_error")
    required = ("latents", "amount")

    @checked
    def __init__(self, sae: SAE, latents: int | Sequence[int] | Tensor, amount: Any, **options: Any) -> None:
        """Make the edit.

        Args:
            sae: the SAE.
            latents: numbers of latents.
            amount: a number, one for each latent, or one (or one for each latent) for each row of the batch.
            **options: `hook`, `where` and `keep_error`, as in `Ablate`.
        """
        super().__init__(sae, latents, **options)
        self.amount = Amount(amount, len(self.latents), "amount")

    def setting(self, codes: Float[Tensor, "chosen m"], places: Places) -> Float[Tensor, "chosen m"]:
        return codes + self.amount.at(places, codes)

    def detail(self) -> str:
        return f" by {self.amount}"


class Clamp(FeatureEdit):
    """Codes of latents are at least `min` and at most `max`."""

    unchanged = "all codes were within the limits"

    fields = ("sae", "latents", "min", "max", "hook", "where", "keep_error")
    required = ("latents",)

    @checked
    def __init__(
        self,
        sae: SAE,
        latents: int | Sequence[int] | Tensor,
        min: Any = None,
        max: Any = None,
        **options: Any,
    ) -> None:
        """Make the edit.

        Args:
            sae: the SAE.
            latents: numbers of latents.
            min: a number, one for each latent, or one (or one for each latent) for each row of the batch.
            max: the same; one of the two must be given.
            **options: `hook`, `where` and `keep_error`, as in `Ablate`.
        """
        super().__init__(sae, latents, **options)
        if min is None and max is None:
            raise ConfigError("Clamp needs min, max or both")
        n = len(self.latents)
        self.min = None if min is None else Amount(min, n, "min")
        self.max = None if max is None else Amount(max, n, "max")

    def setting(self, codes: Float[Tensor, "chosen m"], places: Places) -> Float[Tensor, "chosen m"]:
        if self.min is not None:
            codes = torch.maximum(codes, self.min.at(places, codes))
        return codes if self.max is None else torch.minimum(codes, self.max.at(places, codes))

    def detail(self) -> str:
        least = "" if self.min is None else f" at least {self.min}"
        return least + ("" if self.max is None else f" at most {self.max}")


class Swap(FeatureEdit):
    """Codes of latents are those that they have in another text: feature patching.

    Position for position, or all those of one position; where the other text has none, nothing is changed.
    """

    unchanged = "the codes were these already, or the other text has no such position"

    fields = ("sae", "latents", "source", "position", "hook", "where", "keep_error")
    required = ("latents", "source")

    @checked
    def __init__(
        self,
        sae: SAE,
        latents: int | Sequence[int] | Tensor,
        source: Source,
        *,
        position: int | None = None,
        **options: Any,
    ) -> None:
        """Make the edit.

        Args:
            sae: the SAE.
            latents: numbers of latents.
            source: the other text: a string, token ids (1, pos) or (batch, pos), one for each row of the batch, or
                codes of these shapes.
            position: take the codes of this position of the source at every place of the edit; negative: from its end.
            **options: `hook`, `where` and `keep_error`, as in `Ablate`.
        """
        super().__init__(sae, latents, **options)
        self.source, self.position = source, position
        self.values = Values(sae, self.latents, source, self.sites)

    def join(self, model: SubjectModel) -> None:
        super().join(model)
        self.values.read(model)

    def setting(self, codes: Float[Tensor, "chosen m"], places: Places) -> Float[Tensor, "chosen m"]:
        return self.values.aligned(places, codes, self.position)


def _latents(latents: Any, sae: SAE) -> tuple[int, ...]:
    """Numbers of latents, each once."""
    given = latents.tolist() if isinstance(latents, Tensor) else latents
    given = [given] if isinstance(given, int) else list(given) if isinstance(given, Sequence | range) else given
    if not isinstance(given, list) or not given or not all(type(latent) is int for latent in given):
        raise ConfigError(f"latents are whole numbers, got {latents!r}")
    wrong = [latent for latent in given if not 0 <= latent < sae.n_latents]
    if wrong:
        raise ConfigError(f"there is no latent {wrong[0]}: this SAE has latents 0 to {sae.n_latents - 1}")
    if len(set(given)) < len(given):
        raise ConfigError("a latent is named twice in one edit")
    return tuple(given)
