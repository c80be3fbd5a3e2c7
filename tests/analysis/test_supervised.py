"""Supervised dictionaries: planted attributes are recovered, edits exact, edits by features lead to their target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import monosem as ms
from monosem.analysis import rows_at
from monosem.errors import ConfigError, DataError
from monosem.models import SubjectModel

HOOK = "resid_post.1"
NAMES = ("Mary", "John", "Tom")


def planted(balanced: bool) -> tuple[torch.Tensor, dict[str, list[Any]], dict[str, torch.Tensor], torch.Tensor]:
    """Rows that are a mean and a centred direction for the value of each of two attributes, and these."""
    draw = torch.Generator().manual_seed(0)
    names, places = np.array(list(np.repeat(NAMES, 4))), np.array([0, 1, 2, 3] * 3)
    if not balanced:  # they then go together, and come unequally often
        kept = np.array([0, 1, 2, 4, 6, 7, 8, 9, 10, 10, 11, 0, 0])
        names, places = names[kept], places[kept]
    mean = torch.randn(6, generator=draw, dtype=torch.float64)
    rows: dict[str, torch.Tensor] = {}
    x = mean.expand(len(names), -1)
    for name, values in (("name", names), ("place", places)):
        known, which = np.unique(values, return_inverse=True)
        one_hot = torch.eye(len(known), dtype=torch.float64)[torch.from_numpy(which)]
        raw = torch.randn(len(known), 6, generator=draw, dtype=torch.float64)
        rows[name] = raw - one_hot.mean(0) @ raw
        x = x + one_hot @ rows[name]
    return x, {"name": names.tolist(), "place": places.tolist()}, rows, mean


@pytest.mark.parametrize(("method", "balanced"), [("means", True), ("least_squares", True), ("least_squares", False)])
def test_planted_attributes_are_recovered(method: Any, balanced: bool) -> None:
    x, attributes, rows, mean = planted(balanced)
    found = ms.supervised_dictionary(None, x, attributes, method=method)
    torch.testing.assert_close(found.mean, mean.float())
    for name, values in attributes.items():
        known = sorted(set(values), key=repr)
        order = [np.unique(values).tolist().index(value) for value in known]
        torch.testing.assert_close(found.directions[name], rows[name][order].float(), atol=1e-5, rtol=1e-5)
        assert found.values[name] == known
    assert found.fvu < 1e-12
    torch.testing.assert_close(found.reconstruct(attributes), x.float(), atol=1e-5, rtol=1e-5)


def test_means_are_not_exact_where_attributes_go_together() -> None:
    x, attributes, _, _ = planted(balanced=False)
    means, squares = (
        ms.supervised_dictionary(None, x, attributes, method=method) for method in ("means", "least_squares")
    )
    assert means.fvu > 0.001 > squares.fvu


@pytest.mark.parametrize("method", ["means", "least_squares"])
def test_directions_add_up_to_zero_weighted_by_how_often_they_came(method: Any) -> None:
    draw = np.random.default_rng(1)
    attributes = {"a": draw.integers(0, 5, 60).tolist(), "b": draw.integers(0, 3, 60).tolist()}
    x = torch.from_numpy(draw.normal(size=(60, 7)))
    found = ms.supervised_dictionary(None, x, attributes, method=method)
    for name, values in attributes.items():
        total = found.of(name, values).sum(0)
        assert float(total.abs().max()) < 1e-4
    assert 0 < found.fvu < 1


def test_a_mean_is_a_plain_mean() -> None:
    draw = np.random.default_rng(2)
    values = draw.integers(0, 4, 50).tolist()
    x = torch.from_numpy(draw.normal(size=(50, 3))).float()
    found = ms.supervised_dictionary(None, x, {"a": values})
    for value in range(4):
        chosen = torch.tensor([v == value for v in values])
        torch.testing.assert_close(found.of("a", [value])[0], x[chosen].mean(0) - x.mean(0), atol=1e-5, rtol=1e-5)


def test_the_nearest_value_is_read() -> None:
    x, attributes, _, _ = planted(balanced=True)
    found = ms.supervised_dictionary(None, x, {"name": attributes["name"]})
    alone = found.mean + found.of("name", attributes["name"])
    assert found.read(alone, "name") == attributes["name"]


PROMPTS = [f"When {a} met the other, {b} said" for a in NAMES for b in ("he", "she", "they all")]
WHO = [a for a in NAMES for _ in range(3)]
SAID = [b for _ in NAMES for b in ("he", "she", "they all")]


def test_an_edit_to_its_own_value_changes_nothing_and_to_another_moves_by_the_difference(bundled: SubjectModel) -> None:
    found = ms.supervised_dictionary(bundled, PROMPTS, {"who": WHO, "said": SAID}, hook=HOOK)
    batch = bundled.padded(PROMPTS)
    clean = bundled(batch)
    with bundled.edit([found.edit({"who": WHO}, {"who": WHO})]) as reports:
        assert torch.equal(bundled(batch), clean)
    assert "changed nothing" in str(reports[0])
    others = WHO[3:] + WHO[:3]
    rows = rows_at(bundled, HOOK, PROMPTS)
    seen: list[torch.Tensor] = []
    with bundled.edit([found.edit({"who": WHO}, {"who": others})]) as reports:
        bundled(batch)
        seen.append(rows_at(bundled, "resid_pre.2", PROMPTS))
    moved = found.of("who", others) - found.of("who", WHO)
    torch.testing.assert_close(seen[0], rows + moved, atol=1e-4, rtol=1e-4)
    assert reports[0].changed() == 2 * len(PROMPTS) == reports[0].calls * len(PROMPTS)


def test_what_is_removed_and_what_is_reconstructed_make_up_the_activation(bundled: SubjectModel) -> None:
    values = {"who": WHO, "said": SAID}
    found = ms.supervised_dictionary(bundled, PROMPTS, values, hook=HOOK)
    rows = rows_at(bundled, HOOK, PROMPTS)
    with bundled.edit([found.removed(values)]):
        left = rows_at(bundled, "resid_pre.2", PROMPTS)
    torch.testing.assert_close(left - found.mean + found.reconstruct(values), rows, atol=1e-4, rtol=1e-4)
    assert found.read(left, "who") != WHO
    with pytest.raises(ConfigError, match="rows alone"):
        ms.supervised_dictionary(None, rows, values).removed(values)
    with pytest.raises(ConfigError, match="was never"):
        found.removed({"who": ["Nobody"]})


def test_rows_are_those_of_each_text_alone(bundled: SubjectModel) -> None:
    texts = ["one", "one two three", "a longer text with words"]
    for position in (-1, 1):
        alone = [bundled.capture(text, [HOOK])[HOOK][0, position] for text in texts]
        torch.testing.assert_close(rows_at(bundled, HOOK, texts, position), torch.stack(alone), atol=1e-4, rtol=1e-4)
    with pytest.raises(DataError, match="has no token 30"):
        rows_at(bundled, HOOK, texts, 30)


def sparse_sae() -> tuple[ms.ReLUSAE, torch.Tensor]:
    sae = ms.ReLUSAE(8, 12, dtype=torch.float64, seed=3)
    sae.b_dec.data.normal_(generator=torch.Generator().manual_seed(1))
    return sae, torch.randn(20, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_all_features_that_differ_lead_to_the_targets_reconstruction_and_own_error() -> None:
    sae, x = sparse_sae()
    target = x.flip(0)
    rebuilt = sae(target).reconstruction - sae(x).reconstruction
    difference = sae.encode(target).to_dense() - sae.encode(x).to_dense()
    torch.testing.assert_close(difference @ sae.decoder_directions(), rebuilt)
    found = ms.sparse_edit(sae, x, target, 12)
    assert bool((found.distance.diff(dim=1) <= 1e-12).all())
    for row in range(len(x)):
        used = found.latents[row][found.latents[row] >= 0]
        assert len(set(used.tolist())) == len(used)
        expected = difference[row, used] @ sae.decoder_directions()[used]
        torch.testing.assert_close(found.change[row], expected)
        left = (target[row] - x[row] - expected).norm() / (target[row] - x[row]).norm()
        torch.testing.assert_close(found.distance[row, -1], left)


def test_the_first_feature_is_the_best_single_one() -> None:
    sae, x = sparse_sae()
    target = x.flip(0)
    found = ms.sparse_edit(sae, x, target, 1)
    difference = (sae.encode(target).to_dense() - sae.encode(x).to_dense()).detach()
    moves = difference[..., None] * sae.decoder_directions()
    left = (target[:, None] - x[:, None] - moves).norm(dim=-1)
    best = torch.minimum(left.min(1).values, (target - x).norm(dim=1))
    torch.testing.assert_close(found.distance[:, 1], best / (target - x).norm(dim=1))


def test_an_edit_to_itself_takes_no_feature() -> None:
    sae, x = sparse_sae()
    found = ms.sparse_edit(sae, x, x, 3)
    assert bool((found.latents == -1).all())
    assert not found.change.any()


def test_a_dictionary_that_holds_the_planted_directions_edits_by_one_feature_each() -> None:
    sae = ms.ReLUSAE(8, 8, transform="none", dtype=torch.float64)
    sae.W_enc.data, sae.W_dec.data = torch.eye(8, dtype=torch.float64), torch.eye(8, dtype=torch.float64)
    x, target = torch.eye(8, dtype=torch.float64)[:4], torch.eye(8, dtype=torch.float64)[4:]
    found = ms.sparse_edit(sae, x, target, 2)
    torch.testing.assert_close(x + found.change, target)
    assert [sorted(row) for row in found.latents.tolist()] == [[i, i + 4] for i in range(4)]


def test_bad_input_is_refused(bundled: SubjectModel) -> None:
    x = torch.randn(4, 3)
    with pytest.raises(ConfigError, match="same value everywhere"):
        ms.supervised_dictionary(None, x, {"a": [1, 1, 1, 1]})
    with pytest.raises(ConfigError, match="one value for each input"):
        ms.supervised_dictionary(None, x, {"a": [1, 2, 1, 1], "b": [1, 2]})
    with pytest.raises(ConfigError, match="one row an input"):
        ms.supervised_dictionary(None, x, {"a": [1, 2]})
    with pytest.raises(ConfigError, match="say where"):
        ms.supervised_dictionary(bundled, ["a", "b"], {"a": [1, 2]})
    with pytest.raises(ConfigError, match="method"):
        ms.supervised_dictionary(None, x, {"a": [1, 2, 1, 2]}, method="median")  # type: ignore[arg-type]
    found = ms.supervised_dictionary(None, x, {"a": [1, 2, 1, 2]})
    with pytest.raises(ConfigError, match="never 3"):
        found.change({"a": [1]}, {"a": [3]})
    with pytest.raises(ConfigError, match="no attribute 'b'"):
        found.of("b", [1])
    with pytest.raises(ConfigError, match="same attributes"):
        found.change({"a": [1]}, {})
    with pytest.raises(ConfigError, match="hook"):
        found.edit({"a": [1]}, {"a": [2]})
    sae = ms.ReLUSAE(3, 4)
    with pytest.raises(ConfigError, match="k of 1 or more"):
        ms.sparse_edit(sae, x, x, 0)
    with pytest.raises(ConfigError, match="feature by feature"):
        ms.sparse_edit(ms.Transcoder(3, 4, k=2), x, x, 2)
