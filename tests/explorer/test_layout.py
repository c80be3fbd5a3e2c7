"""The map keeps neighbours together, and says how many."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from monosem.explorer.layout import NEIGHBOURS, SEEN, neighbourhoods, share_kept


def groups(n_groups: int, size: int, d: int) -> Tensor:
    """Unit rows around orthogonal directions: no two of all dimensions tell the groups apart."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(d)[:n_groups].repeat_interleave(size, 0)
    rows = centres + 0.05 * torch.randn(n_groups * size, d, generator=generator)
    return rows / rows.norm(dim=1, keepdim=True)


def test_groups_that_no_plane_separates_lie_apart() -> None:
    rows, of = groups(20, 30, 24), np.arange(600) // 30
    layout = neighbourhoods(rows)
    places = torch.from_numpy(layout.places).double()
    nearest = torch.cdist(places, places).fill_diagonal_(torch.inf).argmin(1).numpy()
    assert (of[nearest] == of).mean() > 0.95
    assert layout.kept > 0.9
    assert np.abs(layout.places).max() == 1
    assert np.array_equal(neighbourhoods(rows).places, layout.places), "the same rows, the same map"


def test_the_share_of_neighbours_kept_is_a_plain_count() -> None:
    rng = np.random.default_rng(0)
    places = rng.normal(size=(200, 2))
    nearest = np.array([rng.choice(np.delete(np.arange(200), i), NEIGHBOURS, replace=False) for i in range(200)])
    kept = 0
    for i in range(200):
        distances = np.linalg.norm(places - places[i], axis=1)
        seen = set(np.argsort(distances)[1 : SEEN + 1].tolist())
        kept += len(seen & set(nearest[i].tolist()))
    assert share_kept(places, nearest) == kept / (200 * NEIGHBOURS)
    assert 0.15 < share_kept(places, nearest) < 0.35, "random neighbours are kept by chance: 50 of 199"


def test_few_points_need_no_layout() -> None:
    for n in (0, 1, 2, 40):
        layout = neighbourhoods(groups(1, n, 8))
        assert layout.places.shape == (n, 2)
        assert layout.kept == 1
