"""How near a dictionary's latents are to single neurons: what reads like one, and what writes like one."""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monosem.errors import HookError
from monosem.evaluation.directions import max_cosines, mean_of, sampled, unit_rows
from monosem.intervals import Interval
from monosem.models import SubjectModel
from monosem.sae import SAE

Side = Literal["reads", "writes"]
BEFORE, AFTER = ("resid_pre", "resid_mid", "mlp_in"), ("mlp_out", "resid_post")
"""Hook points of a layer before and after its neurons, whose width is the model's."""


@torch.no_grad()
def neuron_metrics(sae: SAE, model: SubjectModel, hook: str, target_hook: str | None = None) -> dict[str, Interval]:
    """Means over all latents of the largest |cosine| with any neuron of the layer; none where a layer has no neurons.

    neuron_encoder_cosine: of what a latent reads; neuron_decoder_cosine: of what it writes. Before the MLP these are
    compared with what neurons read (behind the norm's gain), after it with what they write, at `mlp_mid` with the axes.
    By chance the largest of many cosines is far above 0: compare with the random dictionary's.

    Args:
        sae: the dictionary.
        model: its model.
        hook: what it reads.
        target_hook: what it predicts, if that is another.
    """
    found: dict[str, Interval] = {}
    for side, name, rows in (
        ("encoder", hook, sae.encoder_directions()),
        ("decoder", target_hook or hook, sae.decoder_directions()),
    ):
        if rows.ndim == 2:
            chosen = sampled(len(rows))
            largest = _largest(unit_rows(rows if chosen is None else rows[chosen]), model, name)
            if largest is not None:
                found[f"neuron_{side}_cosine"] = mean_of(largest, chosen)
    return found


def _largest(rows: Float[Tensor, "n d"], model: SubjectModel, hook: str) -> Float[Tensor, " n"] | None:
    """Of each row the largest |cosine| with a neuron; None where the hook point has no neurons beside it."""
    match = re.fullmatch(r"(\w+)\.(\d+)", model.hook_point(hook).name)
    if match is None:
        return None
    site, layer = match[1], int(match[2])
    if site == "mlp_mid":
        return rows.abs().amax(1)
    if site not in (*BEFORE, *AFTER):
        return None
    neurons = neuron_directions(model, layer, "reads" if site in BEFORE else "writes", normed=site == "mlp_in")
    return None if neurons is None else max_cosines(rows, unit_rows(neurons).to(rows), sign=False)


def neuron_directions(
    model: SubjectModel, layer: int, side: Side, *, normed: bool = False
) -> Float[Tensor, "neurons d"] | None:
    """What the neurons of a layer read or write, a row each; None where the model has no such layer of neurons.

    Gated neurons read two directions: the rows of both matrices, one after the other.

    Args:
        model: any model with `mlp_mid`.
        layer: its number.
        side: what they read, or what they write.
        normed: whether what is read is behind the norm already.
    """
    try:
        output = model.module.get_submodule(model.hook_point(f"mlp_mid.{layer}").path)
    except HookError:
        return None
    written = _matrix(output)  # (d, neurons)
    if written is None:
        return None
    if side == "writes":
        return written.T
    parent = model.module.get_submodule(model.hook_point(f"mlp_mid.{layer}").path.rpartition(".")[0])
    readers = [matrix for module in parent.modules() if module is not output for matrix in [_matrix(module)]]
    fitting = [m for m in readers if m is not None and m.shape[0] == written.shape[1] and m.shape[1] == model.d_model]
    if not fitting:
        return None
    rows = torch.cat(fitting)
    return rows if normed else _before_the_norm(model, layer, rows)


def _before_the_norm(model: SubjectModel, layer: int, rows: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
    """Rows that read what a norm gives, as rows that read what it takes, but for its scale."""
    for site in ("resid_mid", "resid_pre"):
        if f"{site}.{layer}" not in model.hook_points:
            continue
        norm: Any = model.module.get_submodule(model.hook_point(f"{site}.{layer}").path)
        gain = getattr(norm, "weight", None)
        if isinstance(gain, Tensor) and gain.shape == rows.shape[1:]:
            rows = rows * gain.detach().to(rows)
            return rows - rows.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else rows
    return rows


def _matrix(module: nn.Module) -> Float[Tensor, "d_out d_in"] | None:
    """A linear module's weight, whichever way it stores it."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or isinstance(module, nn.Embedding):
        return None
    weight = weight.detach().float()
    return weight.T if type(module).__name__ == "Conv1D" else weight
