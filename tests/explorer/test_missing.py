"""Dictionaries that cannot be opened do not stop the others; those of several sources and of vectors are shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from monosem.errors import FileError
from monosem.explorer import open_dictionaries
from monosem.features import harvest
from monosem.sae import Crosscoder, TopKSAE


@pytest.fixture
def stores(tmp_path: Path) -> list[Path]:
    """A dictionary of vectors, a crosscoder of vectors side by side, and a run without features."""
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    one, two = TopKSAE(6, 12, k=2, transform="none"), Crosscoder(3, 12, n_sources=2, k=2, transform="none")
    with torch.no_grad():
        two.threshold.fill_(0.1)
    for name, sae, rows in (("one", one, x), ("two", two, x.reshape(300, 2, 3))):
        sae.save(tmp_path / name / "sae")
        harvest(sae, tmp_path / name / "features", vectors=rows, progress=False)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "run.yaml").write_text("{}\n")
    return [tmp_path / name for name in ("one", "bare", "two")]


def test_one_without_features_is_listed_with_what_to_do(stores: list[Path], serve: Callable[..., Any]) -> None:
    with serve(*stores) as client:
        site = client.get("/api/dictionaries")
        assert [each["name"] for each in site["dictionaries"]] == ["one", "two"]
        (missing,) = site["missing"]
        assert missing["path"] == str(stores[1])
        assert f"monosem harvest {stores[1]}" in missing["words"]
    with pytest.raises(FileError, match="monosem harvest"):
        open_dictionaries([stores[1]])


def test_rows_and_sources_are_on_the_page_of_a_feature(stores: list[Path], serve: Callable[..., Any]) -> None:
    with serve(*stores) as client:
        one, two = client.get("/api/d/one"), client.get("/api/d/two")
        assert (one["things"], one["sources"], one["model"]) == ("rows", None, None)
        assert two["sources"]["predicts"] == ["source 0", "source 1"]
        assert "ready vectors" in one["can"]["prompt"]
        assert one["can"]["map"] is None
        best = max(client.get("/api/d/one/features")["rows"], key=lambda row: row["count"])["latent"]
        feature = client.get(f"/api/d/one/f/{best}")
        assert feature["top"][0]["texts"] == [f"row {feature['top'][0]['document']}"]
        assert (feature["parts"], feature["firing_tokens"]) == ([], [])
        parts = client.get(f"/api/d/two/f/{best}")["parts"]
        assert [part["source"] for part in parts] == ["source 0", "source 1"]
        assert sum(part["share"] for part in parts) == pytest.approx(1)
        assert client.get("/api/d/two/features", where="share_0 > 0.1")["total"] == 12
        assert client.get("/api/compare", a="one", b="two")["by"] == "decoder"
