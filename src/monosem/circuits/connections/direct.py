"""ms.direct_attribution: from which tokens, and by which heads, does a feature of attention come?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.arguments import checked
from monosem.circuits.connections.expand import Source, Sources, sources_of
from monosem.circuits.sites import Dictionaries, sites_of
from monosem.errors import ConfigError, DataError
from monosem.interventions.base import joined_once
from monosem.models import SubjectModel
from monosem.sae import SAE


@dataclass(frozen=True)
class DirectAttribution:
    """A feature's pre-activation at every token of a prompt, by head and by the token that the head looks at."""

    model: SubjectModel = field(repr=False)
    sae: SAE = field(repr=False)
    hook: str
    latent: int
    tokens: Int[Tensor, " pos"]
    parts: Float[Tensor, "pos heads sources"]
    """What each head brings from each token."""
    constant: float
    """What the biases of encoder and decoder and the input transform add everywhere."""
    pre_activations: Float[Tensor, " pos"]
    """What they make together: before selection and activation function."""
    activations: Float[Tensor, " pos"]
    """The feature's codes, as the SAE encodes every token."""
    pattern: Float[Tensor, "heads pos sources"] = field(repr=False)
    readers: Float[Tensor, "heads d_head"] = field(repr=False)
    """Each head's part of the encoder row."""
    position: int
    """The token that is looked at: where the feature is strongest, if not said."""

    @property
    def layer(self) -> int:
        return int(self.hook.rpartition(".")[2])

    def sources(self, dictionaries: Dictionaries = (), position: int | None = None) -> Sources:
        """What the heads bring from each token, taken apart by what has written there: embeddings, features, the rest.

        found.sources([attention_sae_0, transcoder_1]).top()

        A value is linear in the stream behind the norm, whose scale is as it is; and the stream is a sum: the
        embedding, and what each earlier attention and MLP has added. Where a dictionary is of one of these (an SAE of
        `attn_z.L`, `attn_out.L`, `mlp_out.L`, or a transcoder that predicts it) it is taken apart into features and
        what these leave. All parts and a constant (of biases) add up to what the heads bring.

        Args:
            dictionaries: of earlier layers.
            position: of which token; `self.position` if not given.

        Raises:
            ConfigError: the family is not known, or a dictionary is not of something earlier that is added.
        """
        return sources_of(
            self.model,
            self.tokens,
            self.layer,
            self.pattern[:, self.position if position is None else position],
            self.readers,
            dictionaries,
        )

    def follow(self, source: Source, dictionaries: Dictionaries) -> DirectAttribution:
        """The same of a feature of attention that `sources` has named, at its token: on, layer by layer.

        Raises:
            ConfigError: it is no feature of an attention SAE among the dictionaries.
        """
        for site in sites_of(self.model, dictionaries):
            if site.write == source.place and source.latent >= 0 and site.read.startswith("attn_z."):
                return direct_attribution(
                    self.model, site.sae, self.tokens, source.latent, hook=site.read, position=source.token
                )
        raise ConfigError(f"{source.name} is no feature of an attention SAE among the dictionaries")

    @property
    def by_source(self) -> Float[Tensor, "pos sources"]:
        """Of all heads together."""
        return self.parts.sum(1)

    @property
    def by_head(self) -> Float[Tensor, "pos heads"]:
        """From all tokens together."""
        return self.parts.sum(2)

    def top(self, position: int | None = None, k: int = 8) -> list[tuple[int, int, float]]:
        """The largest parts at a token (the strongest, if not given): head, source token, value."""
        at = self.position if position is None else position
        values = self.parts[at].flatten()
        order = values.abs().topk(min(k, len(values))).indices.tolist()
        places = [(divmod(i, self.parts.shape[2]), float(values[i])) for i in order]
        return [(head, source, value) for (head, source), value in places if value]

    def word(self, position: int) -> str:
        """A token as text."""
        token = int(self.tokens[position])
        return str(token) if self.model.tokenizer is None else self.model.tokenizer.decode([token])

    def __str__(self) -> str:
        at = self.position
        value = float(self.pre_activations[at])
        lines = [
            f"{self.hook} latent {self.latent} at token {at} {self.word(at)!r}: {value:.4g} = {self.constant:.4g} and"
        ]
        lines += [
            f"  {value:+.4g}  head {head} from token {source} {self.word(source)!r}"
            for head, source, value in self.top(at)
        ]
        return "\n".join(lines)


@checked
@torch.no_grad()
def direct_attribution(
    model: SubjectModel,
    sae: SAE,
    inputs: str | Sequence[int] | Tensor,
    latent: int,
    *,
    hook: str | None = None,
    position: int | None = None,
) -> DirectAttribution:
    """Take a feature of attention apart, by head and by the token that is looked at, exactly.

    found = ms.direct_attribution(model, sae, "When Mary and John went out, John gave it to", 12)
    print(found); found.by_source[-1]

    The SAE reads the heads side by side, before the output matrix (`attn_z.L`), and there

        z = sum over heads and tokens of pattern * value

    so that, each head's value meeting its own part of the encoder row, the parts and a constant add up to the
    pre-activation. Direct: the pattern counts as given (what makes it is another question), and so do the values.

    Source: Kissane et al., Interpreting Attention Layer Outputs with Sparse Autoencoders, 2024.

    Args:
        model: a causal model.
        sae: an SAE of `attn_z.L`.
        inputs: one text, or its token ids.
        latent: which feature.
        hook: the SAE's hook point, if it does not know it.
        position: which token is looked at first; the one where the feature is strongest, if not given.

    Raises:
        ConfigError: the SAE is of another place, its transform is another for every row, or there is no such latent.
        DataError: more than one text.
        MismatchError: the SAE does not fit the model.
    """
    place = hook or sae.metadata.hook
    name = model.hook_point(place).name if place is not None else ""
    if not name.startswith("attn_z.") or not sae.autoencodes:
        raise ConfigError(f"direct attribution is of an SAE that reads the heads side by side, attn_z.L, not {place}")
    sae.transform.require_affine()
    joined_once(sae, model, name)
    reader = sae.encoder_directions([latent])[0]
    layer = name.rpartition(".")[2]
    hooks = [name, f"attn_v.{layer}", f"attn_pattern.{layer}"]
    tokens = model.tokens(inputs) if isinstance(inputs, str) else torch.as_tensor(inputs, device=model.device)
    tokens = tokens if tokens.ndim == 2 else tokens[None]
    if tokens.shape[0] != 1:
        raise DataError(f"direct attribution is of one text, got {tokens.shape[0]}")
    z, values, pattern = (x[0].to(reader) for x in model.capture(tokens, hooks).values())
    heads = pattern.shape[0]
    readers = reader.unflatten(0, (heads, -1))
    values = values.unflatten(1, (-1, readers.shape[1]))
    values = values.repeat_interleave(heads // values.shape[1], dim=1)
    brought = (values * readers).sum(-1)  # sources, heads: all that is needed of values
    parts = pattern.transpose(0, 1) * brought.T
    W_enc, b_enc, _ = sae.part(torch.tensor([latent], device=reader.device))
    pre = (sae.centred(sae.transform(z)) @ W_enc.T + b_enc)[:, 0]
    constant = float((pre - z @ reader)[0])
    codes = sae.encode(z).select([latent]).to_dense()[:, 0]
    if position is None:
        position = int((codes if bool(codes.any()) else pre).argmax())
    if not -len(z) <= position < len(z):
        raise DataError(f"position {position} is outside the text, which has {len(z)} tokens")
    position %= len(z)
    return DirectAttribution(
        model, sae, name, latent, tokens[0], parts, constant, pre, codes, pattern, readers, position
    )


@torch.no_grad()
def head_shares(sae: SAE, n_heads: int, side: str = "decoder", latents: Any = None) -> Float[Tensor, "latents heads"]:
    """Which heads a feature of attention is of, by weights: the norm of its row's part of each head, as shares.

    Args:
        sae: an SAE of the heads side by side.
        n_heads: how many these are.
        side: "decoder" (what it writes) or "encoder" (what it reads).
        latents: which; all if not given.

    Raises:
        ConfigError: the width is not that of so many heads, or there is no such side.
    """
    if side not in ("decoder", "encoder") or n_heads < 1 or sae.d_in % n_heads:
        raise ConfigError(
            f'side is "decoder" or "encoder", and {sae.d_in} must be that of {n_heads} heads side by side'
        )
    rows = sae.decoder_directions(latents) if side == "decoder" else sae.encoder_directions(latents)
    norms = rows.unflatten(1, (n_heads, -1)).norm(dim=-1)
    return norms / norms.sum(-1, keepdim=True).clamp(min=1e-30)
