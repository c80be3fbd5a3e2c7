"""dense: an SAE as plain operations of PyTorch on whole tensors, for `torch.export`, compilers and other devices."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.sae.base import SAE
from monosem.sae.batchtopk import BatchTopKSAE
from monosem.sae.crosscoder import Crosscoder
from monosem.sae.crosslayer import CrossLayerTranscoder
from monosem.sae.gated import GatedSAE
from monosem.sae.prolu import ProLUSAE
from monosem.sae.pursuit import MatchingPursuitSAE
from monosem.sae.switch import SwitchSAE
from monosem.sae.threshold import ThresholdSAE
from monosem.sae.topk import TopKSAE


class DenseSAE(nn.Module):
    """The dense formula of an SAE: `forward(x)` gives its reconstruction and its codes, (rows, n_latents).

    It holds the SAE's own parameters and evaluates all latents: for small batches, and where the sparse engine's
    kernels cannot go. Equal to the SAE up to rounding; equal values at the edge of a TopK may fall either way.
    """

    def __init__(self, sae: SAE) -> None:
        super().__init__()
        if isinstance(sae, SwitchSAE | MatchingPursuitSAE | CrossLayerTranscoder):
            raise ConfigError(
                f"a {sae.architecture} has no formula of one matrix: use it as it is, or train another architecture"
            )
        self.sae = sae

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raw activations (rows, *d_in) to raw reconstructions (rows, *d_out), and codes (rows, n_latents)."""
        sae = self.sae
        raw = x.reshape(x.shape[0], -1).to(sae.W_enc.dtype)
        read = sae.transform(raw)
        codes = self.codes(sae.centred(read))
        out = codes @ sae.W_dec + sae.b_dec
        skip = dict(sae.named_parameters()).get("W_skip")
        out = out if skip is None else out + read @ skip.T
        return sae.target_transform.inverse(out, raw).reshape(x.shape[0], *sae.out_shape), codes

    def codes(self, centred: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows n_latents"]:
        """Codes of what the encoder reads."""
        sae = self.sae
        m = centred @ sae.W_enc.T
        if isinstance(sae, GatedSAE):
            magnitude = m * sae.r_mag.exp() + sae.b_mag
            return torch.where(m + sae.b_enc > 0, magnitude, 0.0).relu()
        if isinstance(sae, ProLUSAE):
            return torch.where((m > 0) & (m + sae.b_enc > 0), m, 0.0)
        pre = m + sae.b_enc
        if isinstance(sae, Crosscoder):
            limit = torch.zeros(()) if sae.sparsity == "l1" else sae.threshold.clamp_min(0) / sae.sizes()
            return torch.where(pre > limit, pre, 0.0).relu()
        if isinstance(sae, BatchTopKSAE):
            return torch.where(pre > sae.threshold.clamp_min(0), pre, 0.0)
        if isinstance(sae, TopKSAE):
            values, indices = pre.topk(sae.k, dim=-1)
            return torch.zeros_like(pre).scatter(-1, indices, values.relu())
        assert isinstance(sae, ThresholdSAE)
        return torch.where(pre > sae.limits, pre, 0.0).relu()


@checked
def dense(sae: SAE) -> DenseSAE:
    """An SAE as a module of plain PyTorch operations, which `torch.export` takes.

    program = torch.export.export(ms.dense(sae), (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))

    Raises:
        ConfigError: its architecture is no formula of one matrix (switch, matching pursuit, cross-layer transcoder).
    """
    return DenseSAE(sae)
