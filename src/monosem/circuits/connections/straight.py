"""What leads straight from one place to another: the residual stream, a norm, a head."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from monosem.errors import ConfigError
from monosem.interventions.way import Site
from monosem.models import SubjectModel
from monosem.models.blocks import NormWeights, block_module, block_norm, block_of, matrix, value_matrix

STREAM = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""What is added to the residual stream, or is it."""


def between(model: SubjectModel, source: Site, target: Site) -> tuple[str | None, NormWeights | None]:
    """Where the norm before the target reads, and what it does; none where the target reads the stream itself.

    Raises:
        ConfigError: nothing leads from one to the other straight.
    """
    order = model.hook_points
    kind, _, layer = target.read.partition(".")
    if source.write.partition(".")[0] not in STREAM or not (kind in STREAM[:4] or kind == "mlp_in"):
        raise ConfigError(
            f"connections are of the residual stream: from what is added to it ({', '.join(STREAM)}) to what reads it "
            f"({', '.join(STREAM[1:4])}, mlp_in), not from {source.write} to {target.read}"
        )
    if order.index(source.write) >= order.index(target.read):
        raise ConfigError(f"{source.write} comes after {target.read}: the source must write before the target reads")
    if kind != "mlp_in":
        return None, None
    block = block_of(model)
    name = block.attention_norm if block.parallel and block.mlp_norm is None else block.mlp_norm
    norm = block_norm(model, int(layer), name)
    return f"resid_{'pre' if block.parallel else 'mid'}.{layer}", norm


def lies_between(model: SubjectModel, source: str, target: str, layer: int) -> None:
    """Raise ConfigError where a layer's attention reads before the source writes, or adds after the target reads."""
    order = {hook: place for place, hook in enumerate(model.hook_points)}
    start, end = order.get(f"attn_z.{layer}"), order.get(f"attn_out.{layer}")
    if start is None or end is None or not (order[source] < start and end < order[target]):
        raise ConfigError(f"attention of layer {layer} does not lie between {source} and {target}")


def through(model: SubjectModel, layer: int, head: int, readers: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
    """Rows that read the stream behind attention, as rows that read it before, at the token that a head looks at.

    But for the pattern, and for the scale of the norm before attention.

    Raises:
        ConfigError: there is no such head, or a norm stands behind attention, which is another for every token.
    """
    block = block_of(model)
    if not 0 <= layer < model.n_layers:
        raise ConfigError(f"there is no layer {layer}: {model.name} has 0 to {model.n_layers - 1}")
    if block.after_attention is not None:
        raise ConfigError(f"behind attention of {model.name} stands a norm: what a head adds is another on every token")
    values, _, kv_heads = value_matrix(model, block, layer)
    output = matrix(block_module(model, layer, block.output))[0].to(readers)
    by_value = values.to(readers).unflatten(0, (kv_heads, -1))
    d_head = by_value.shape[1]
    n_heads = output.shape[1] // d_head
    if not 0 <= head < n_heads:
        raise ConfigError(f"there is no head {head}: layer {layer} has 0 to {n_heads - 1}")
    rows = readers @ output[:, head * d_head : (head + 1) * d_head] @ by_value[head // (n_heads // kv_heads)]
    return block_norm(model, layer, block.attention_norm).read_before(rows)
