"""Rules asked for wrongly: one line each, before anything is done, and nothing kept is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ruled import Ruled

import monosem as ms
from monosem.errors import ConfigError, MonosemError
from monosem.explain import explain_group
from monosem.features import FeatureStore


@pytest.mark.parametrize("latents", [[-1], [0, 99], [10**12]])
def test_latents_that_are_not_there(ruled: Ruled, tmp_path: Path, latents: list[int]) -> None:
    store = FeatureStore(shutil.copytree(ruled.store.path, tmp_path / "features"))
    kept = [item.text for item in ms.explain(store, [0, 1], progress=False)]
    with pytest.raises(ConfigError, match="no latent") as refused:
        ms.explain(store, latents, progress=False)
    assert "\n" not in str(refused.value)
    assert [item.text for item in FeatureStore(store.path).explanations("rules")] == kept


def test_no_latents_are_no_explanations(ruled: Ruled, tmp_path: Path) -> None:
    store = FeatureStore(shutil.copytree(ruled.store.path, tmp_path / "features"))
    ms.explain(store, [0, 1], progress=False)
    assert not list(ms.explain(store, [], progress=False))
    assert len(list(FeatureStore(store.path).explanations("rules"))) == 2


@pytest.mark.parametrize("latents", [[], [3, 3], [-1, 2]])
def test_groups_that_are_none(ruled: Ruled, latents: list[int]) -> None:
    with pytest.raises(MonosemError):
        explain_group(ruled.store, latents)
