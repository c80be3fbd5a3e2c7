"""Rows that a dictionary was trained without are left out, though its files give a multiple of the median alone."""

from __future__ import annotations

import torch

import monosem as ms
from monosem.activations.limits import limit_norms
from monosem.models import SubjectModel


def sae_with(ratio: float | None) -> ms.TopKSAE:
    sae = ms.TopKSAE(32, 64, k=4, transform="none")
    sae.metadata.hook, sae.metadata.max_norm_ratio = "resid_post.1", ratio
    return sae


def test_the_limit_is_the_ratio_times_the_median_norm(tiny: SubjectModel) -> None:
    sae = ms.TopKSAE(tiny.width("resid_post.1"), 64, k=4, transform="none")
    sae.metadata.max_norm_ratio = 3.0
    limit_norms(sae, tiny, ["resid_post.1"])
    assert sae.metadata.max_norm is not None
    norms = [tiny.capture(torch.randint(5, 60, (4, 20)), ["resid_post.1"])["resid_post.1"][:, 1:].norm(dim=-1)]
    median = float(torch.cat(norms).median())
    assert 0.3 * 3 * median < sae.metadata.max_norm["resid_post.1"] < 3 * 3 * median


def test_known_limits_stay_and_none_come_where_nothing_is_left_out(tiny: SubjectModel) -> None:
    sae = sae_with(None)
    limit_norms(sae, tiny, ["resid_post.1"])
    assert sae.metadata.max_norm is None
    sae = sae_with(3.0)
    sae.metadata.max_norm = {"resid_post.1": 7.0}
    limit_norms(sae, tiny, ["resid_post.1"])
    assert sae.metadata.max_norm == {"resid_post.1": 7.0}
