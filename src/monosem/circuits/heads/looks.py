"""Why a head looks where it looks: its score for one query and one key, split exactly into pairs of features.

    score = (W_Q n(x_q) + b_Q) . R (W_K n(x_k) + b_K) * scale

where n is the norm before attention and R the rotary turn. With the scales of norms held, both sides are sums over what
stands in the stream: features, the dictionary's bias, its error, and the model's own biases. The score is the sum over
all pairs. Queries and keys of each part are made by the model's own code, so that every family is right.

Source: Anthropic, Tracing Attention Computation Through Feature Interactions, 2025.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from monosem.activations.check import same_place
from monosem.circuits.heads.weights import attention_of, n_heads
from monosem.errors import ConfigError, DataError
from monosem.interventions.base import joined_once, reads
from monosem.models import EditContext, SubjectModel
from monosem.models.attention import scale_of, watch
from monosem.models.blocks import NormWeights, block_norm, block_of, norm_weights
from monosem.sae import SAE

Kind = Literal["feature", "error", "dictionary", "model"]


@dataclass(frozen=True)
class Part:
    """What stands at one position."""

    kind: Kind
    """A feature; the dictionary's error or its bias; the model's own biases (of norm, query and key matrices)."""
    latent: int = -1
    activation: float = 0.0


@dataclass(frozen=True, eq=False)
class Look:
    """One score of one head, split into pairs of parts."""

    model: SubjectModel = field(repr=False)
    sae: SAE = field(repr=False)
    layer: int
    head: int
    query: int
    key: int
    tokens: Int[Tensor, " pos"]
    score: float
    """Before softmax and soft cap, as the model has it; without what ALiBi adds for the distance."""
    attention: float
    """After them."""
    queries: list[Part]
    keys: list[Part]
    pairs: Float[Tensor, "queries keys"]
    """What each pair brings: they add up to the score."""
    against: Float[Tensor, " queries"]
    """What each part of the query brings for this key over the mean of all keys, each as it is attended to: softmax
    does not see what is the same for all keys. They add up to the score less the mean score."""

    def top(self, n: int = 8) -> list[tuple[Part, Part, float]]:
        """The pairs that bring most, either way."""
        flat = self.pairs.flatten()
        order = flat.abs().topk(min(n, len(flat))).indices.tolist()
        width = self.pairs.shape[1]
        return [(self.queries[i // width], self.keys[i % width], float(flat[i])) for i in order]

    def __str__(self) -> str:
        def word(position: int) -> str:
            token = int(self.tokens[position])
            return repr(self.model.tokenizer.decode([token])) if self.model.tokenizer else str(token)

        def said(part: Part) -> str:
            return f"feature {part.latent}" if part.kind == "feature" else f"({part.kind})"

        lines = [
            f"head {self.layer}.{self.head} at token {self.query} {word(self.query)} looks at token {self.key} "
            f"{word(self.key)} with {self.attention:.2f}: score {self.score:.3g}, of which"
        ]
        lines += [f"  {value:+.3g}  {said(one)} looks for {said(other)}" for one, other, value in self.top()]
        return "\n".join(lines)


@torch.no_grad()
def look(
    model: SubjectModel,
    sae: SAE,
    inputs: Any,
    layer: int,
    head: int,
    query: int,
    key: int | None = None,
    *,
    hook: str | None = None,
) -> Look:
    """Split a head's score for one query and one key into pairs of features, exactly.

    print(look(model, sae, "When Mary and John went out, John gave it to", 3, 1, -1))

    Args:
        model: a causal model of a known family.
        sae: an SAE of the stream that the layer reads: `resid_pre.L`, or `resid_post.L-1`.
        inputs: one text, or its token ids.
        layer: of the head.
        head: its number.
        query: position of the query; -1 is the last.
        key: position of the key; where the head looks most, apart from the first position, if not given.
        hook: the SAE's hook point, if it does not know it.

    Raises:
        ConfigError: the SAE is of another place, or there is no such head.
        DataError: more than one text, or no such position.
        MismatchError: the SAE does not fit the model.
    """
    attention, heads = attention_of(model, layer), n_heads(model)
    place = hook or sae.metadata.hook
    if place is None or not sae.autoencodes or not same_place(model, place, f"resid_pre.{layer}"):
        raise ConfigError(f"what head {layer}.{head} reads is resid_pre.{layer}: the SAE is of {place}")
    if not 0 <= head < heads:
        raise ConfigError(f"layer {layer} has heads 0 to {heads - 1}, not {head}")
    sae.transform.require_affine()
    joined_once(sae, model, place)
    tokens = model.tokens(inputs) if isinstance(inputs, str) else torch.as_tensor(inputs, device=model.device)
    tokens = tokens if tokens.ndim == 2 else tokens[None]
    if tokens.shape[0] != 1:
        raise DataError(f"a look is of one text, got {tokens.shape[0]}")
    seen = _Pass(model, sae, tokens, attention, layer)
    length = tokens.shape[1]
    at = query % length if -length <= query < length else length
    row = seen.pattern[head, at] if at < length else seen.pattern[0, 0]
    to = (int(row[1 : at + 1].argmax()) + 1 if at else 0) if key is None else key % length
    if at >= length or to > at or (key is not None and not -length <= key < length):
        raise DataError(f"the text has positions 0 to {length - 1}, keys up to the query: not {query} and {key}")
    with seen.held(at) as made:
        queries, q = seen.parts(at, made, "query", head)
    every = seen.keys[: at + 1, head]
    with seen.held(to) as made:
        keys, k = seen.parts(to, made, "key", head)
    scale = scale_of(attention)
    mean = row[: at + 1] @ every
    return Look(
        model=model,
        sae=sae,
        layer=layer,
        head=head,
        query=at,
        key=to,
        tokens=tokens[0],
        score=float(seen.queries[at, head] @ seen.keys[to, head] * scale),
        attention=float(row[to]),
        queries=queries,
        keys=keys,
        pairs=q @ k.T * scale,
        against=q @ (every[to] - mean) * scale,
    )


class _Pass:
    """One text through the model, and the parts of its stream where a layer reads it."""

    def __init__(self, model: SubjectModel, sae: SAE, tokens: Tensor, attention: Any, layer: int) -> None:
        self.sae, self.attention, self.layer = sae, attention, layer
        block = block_of(model)
        self.norm: NormWeights = block_norm(model, layer, block.attention_norm)
        kept: dict[str, Any] = {}

        def keep(x: Tensor, context: EditContext) -> Tensor:
            kept["x"], kept["read"] = x[0].clone(), reads(sae.metadata, x, context)[0]
            return x

        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept["rest"] = args[1:]
            kept["kwargs"] = {name: value for name, value in kwargs.items() if name != "hidden_states"}

        names = [f"attn_{kind}.{layer}" for kind in ("q", "k", "pattern")]
        handle = attention.register_forward_pre_hook(note, with_kwargs=True)
        try:
            with model.edit({f"resid_pre.{layer}": keep}):
                q, k, pattern = (x[0] for x in model.capture(tokens, names).values())
        finally:
            handle.remove()
        self.model, self.x, self.read, self.pattern = model, kept["x"], kept["read"], pattern
        self.kwargs, self.rest = kept["kwargs"], kept["rest"]
        heads = pattern.shape[0]
        self.width = q.shape[-1] // heads
        self.queries = q.unflatten(-1, (heads, self.width))
        keys = k.unflatten(-1, (-1, self.width))
        self.keys = keys.repeat_interleave(heads // keys.shape[1], dim=1)

    def stream(self, position: int) -> tuple[list[Part], Float[Tensor, "parts d"]]:
        """What stands in the stream at a position; rows add up to it."""
        x, rows, parts = self.x[position], list[Tensor](), list[Part]()
        if bool(self.read[position]):
            codes = self.sae.encode(x[None].to(self.sae.W_enc.dtype))
            on = codes.values != 0
            latents = codes.indices[on].long()
            features = codes.values[on, None] * self.sae.decoder_directions(latents)
            whole = self.sae.decode(codes)[0]
            parts += [
                Part("feature", latent, value)
                for latent, value in zip(latents.tolist(), codes.values[on].tolist(), strict=True)
            ]
            rows += [*features.to(x), (whole - features.sum(0)).to(x)]
            parts.append(Part("dictionary"))
            x = x - whole.to(x)
        return [*parts, Part("error")], torch.stack([*rows, x])

    def parts(
        self, position: int, made: _Made, side: Literal["query", "key"], head: int
    ) -> tuple[list[Part], Float[Tensor, "parts d_head"]]:
        """Each part's query or key, and that of the model's biases."""
        parts, rows = self.stream(position)
        scale = self.norm.scale(self.x[position][None])
        rows = rows - rows.mean(-1, keepdim=True) if self.norm.centred else rows
        rows = rows * self.norm.weight / scale
        bias = torch.zeros_like(rows[0]) if self.norm.bias is None else self.norm.bias
        zero = torch.zeros_like(rows[0])
        found = made(torch.stack([*rows, bias, zero]), side)
        found = found.repeat_interleave(len(self.pattern) // found.shape[1], dim=1)[:, head]
        return [*parts, Part("model")], torch.cat([found[:-2] - found[-1], found[-2:-1]])

    @contextmanager
    def held(self, position: int) -> Iterator[_Made]:
        """The attention module at one position, with the scales of its query and key norms held as they are there."""
        named = self.attention.named_children()
        inner = {each: norm_weights(each) for name, each in named if name.endswith(("_norm", "_layernorm"))}
        made = _Made(self, position)
        normed = self.x[position][None]
        normed = normed - normed.mean(-1, keepdim=True) if self.norm.centred else normed
        normed = normed * self.norm.weight / self.norm.scale(self.x[position][None])
        normed = normed if self.norm.bias is None else normed + self.norm.bias
        scales: dict[nn.Module, Tensor] = {}

        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            scales[module] = inner[module].scale(args[0])

        handles = [each.register_forward_pre_hook(note) for each in inner]
        made(normed, "query")
        for handle in handles:
            handle.remove()

        def hold(module: nn.Module, args: tuple[Any, ...], _: Any) -> Tensor:
            own, x = inner[module], args[0]
            x = x - x.mean(-1, keepdim=True) if own.centred else x
            out = x * own.weight / scales[module]
            return out if own.bias is None else out + own.bias

        handles = [each.register_forward_hook(hold) for each in inner]
        try:
            yield made
        finally:
            for handle in handles:
                handle.remove()


class _Seen(Exception):
    """Queries or keys are made: what follows is not asked for."""


class _Made:
    """Makes queries and keys of rows, as the attention module makes them at one position."""

    def __init__(self, seen: _Pass, position: int) -> None:
        self.seen, self.position = seen, position

    def __call__(self, rows: Float[Tensor, "n d"], side: Literal["query", "key"]) -> Float[Tensor, "n heads d_head"]:
        kwargs = dict(self.seen.kwargs)
        for name in ("past_key_values", "layer_past", "attention_mask"):
            if name in kwargs:
                kwargs[name] = None
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = kwargs["position_ids"][:, self.position : self.position + 1]
        turn = kwargs.get("position_embeddings")
        if turn is not None:
            kwargs["position_embeddings"] = tuple(x[:, self.position : self.position + 1] for x in turn)
        found: list[Tensor] = []

        def see(x: Tensor) -> None:
            found.append(x)
            raise _Seen

        handle = watch(self.seen.attention, side, see, "a look")
        try:
            self.seen.attention(rows[:, None].to(self.seen.x), *self.seen.rest, **kwargs)
        except _Seen:
            pass
        finally:
            handle.remove()
        return found[0][:, 0].unflatten(-1, (-1, self.seen.width))
