"""The catalogue: complete, searchable, and honest about what it does not know."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import monosem as ms
from monosem.cli.main import app
from monosem.interop.catalogue import SHOWN, everything, published


def test_it_knows_what_the_registry_knows_and_what_that_lacks() -> None:
    releases = everything().releases
    assert len(releases) > 200
    assert len(everything()) > 14_000
    assert len(releases["gemma-scope-2b-pt-res"]) == 316
    assert len(releases["gemma-scope-2-1b-pt-crosscoders"]) == 8
    assert "SAELens" in everything().taken_from
    assert everything().to_add


def test_it_finds_by_model_layer_site_width_and_words() -> None:
    found = ms.catalogue(model="gemma-2-2b", layer=12, site="resid_post", width=16384, architecture="jumprelu")
    assert {entry.name for entry in found} == {
        f"google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_{l0}" for l0 in (22, 41, 82, 176, 445)
    }
    assert all(entry.licence == "cc-by-4.0" and entry.width == 16384 and entry.layer == 12 for entry in found)
    assert {entry.l0 for entry in found} == {22, 41, 82, 176, 445}
    assert list(ms.catalogue("GEMMA-scope-2b-pt-res/layer_12/width_16k jumprelu")) == list(found)
    assert len(ms.catalogue(model="google/gemma-2-2b")) == len(ms.catalogue(model="gemma-2-2b")) > len(found)
    assert len(ms.catalogue(model="no such model")) == 0


def test_what_reads_several_layers_is_found_by_each_of_them() -> None:
    (big, medium) = ms.catalogue("crosscoder", model="gemma-3-1b-pt", layer=13, width=65536)
    assert medium.layer == big.layer == (7, 13, 17, 22)
    assert {big.l0, medium.l0} == {50, 150}
    assert ms.catalogue("crosscoder", model="gemma-3-1b-pt", layer=14, width=65536)[:] is not None
    assert len(ms.catalogue("crosscoder", model="gemma-3-1b-pt", layer=14)) == 0


def test_a_name_of_saelens_leads_to_the_files() -> None:
    canonical = published("gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical")
    assert canonical is not None
    assert canonical.name == "google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
    assert published(canonical.name) == ms.catalogue(canonical.name)[0]
    assert published("somebody/else") is None


def test_every_dictionary_is_listed_once_and_named() -> None:
    every = ms.catalogue()
    assert len({entry.name for entry in every}) == len(every)
    assert all(entry.name.count("/") >= 1 and entry.model and entry.source for entry in every)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["gemma-scope-2", "1b-pt"], "gemma-scope-2-1b-pt-res-all"),
        (["--model", "gemma-2-2b", "--layer", "12", "--width", "65536", "gemma-scope", "res"], "average_l0_72"),
        (["--model", "gemma2-2b"], "Did you mean gemma-2-2b?"),
    ],
)
def test_the_command_lists_them(arguments: list[str], shown: str) -> None:
    outcome = CliRunner().invoke(app, ["saes", *arguments])
    assert outcome.exit_code == 0, outcome.output
    assert shown in outcome.output
    assert len(outcome.output.splitlines()) <= SHOWN + 3
