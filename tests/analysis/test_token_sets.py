"""Token sets against features: what was planted is found with its sign, a random dictionary has nothing."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

import monosem as ms
from monosem.analysis import token_sets, word_sets
from monosem.analysis.kinds import lists
from monosem.analysis.token_sets import CLASSES
from monosem.errors import ConfigError, FileError
from monosem.models import SubjectModel
from monosem.sae import TopKSAE

SETS = {"months": "January March April May June July August October", "digits": "/^ ?[0-9]+$/", "begins": "/^ s/"}


@pytest.fixture
def sae() -> TopKSAE:
    return TopKSAE(32, 400, k=4, seed=2)


def test_planted_features_are_found_with_their_sign_and_no_others(sae: TopKSAE, tiny: SubjectModel) -> None:
    with torch.no_grad():
        rows, gain = (
            tiny.module.get_parameter("transformer.wte.weight"),
            tiny.module.get_parameter("transformer.ln_f.weight"),
        )
        ids = token_sets(sae, tiny, SETS, progress=False).tokens
        up, down = (rows[torch.from_numpy(ids[name])].mean(0) - rows.mean(0) for name in ("months", "digits"))
        sae.W_dec[7], sae.W_dec[9] = up / gain, -down / gain
    found = token_sets(sae, tiny, SETS, progress=False)
    assert {each.name: each.score > 0 for each in found.of(7)} == {"months": True}
    assert {each.name: each.score > 0 for each in found.of(9)} == {"digits": False}
    assert [latent for latent, _ in found.top("months")] == [7]
    assert [latent for latent, _ in found.top("digits", suppressed=True)] == [9]
    assert found.top("digits") == []
    assert np.count_nonzero(found.enriched) == 2
    alone = token_sets(sae, tiny, SETS, latents=[9, 7], progress=False)
    np.testing.assert_array_equal(alone.scores, found.scores[[9, 7]])
    np.testing.assert_allclose(alone.z, found.z[[9, 7]], rtol=1e-5)
    assert alone.of(9)[0].name == "digits"


def test_a_random_dictionary_has_no_set_but_tokens_alike_pass_the_null_of_random_sets(tiny: SubjectModel) -> None:
    """Where the tokens of a set share an output direction, most features tell it from random sets; z calls none."""
    with torch.no_grad():
        rows = tiny.module.get_parameter("transformer.wte.weight")
        ids = token_sets(TopKSAE(32, 8, k=2), tiny, SETS, progress=False).tokens["begins"]
        rows[torch.from_numpy(ids)] += (
            2 * torch.nn.functional.normalize(torch.ones(32), dim=0) * torch.arange(-1, 1, 2 / 32)[:32].sign()
        )
    found = token_sets(TopKSAE(32, 600, k=4, seed=5), tiny, SETS, progress=False)
    column = found.names.index("begins")
    assert (found.q[:, column] <= 0.05).mean() > 0.3
    assert np.count_nonzero(found.enriched) <= 1
    assert abs(found.z[:, column].std() - 1) < 0.02


def test_a_set_of_the_first_tokens_scores_one_and_of_the_last_minus_one(sae: TopKSAE, tiny: SubjectModel) -> None:
    ids = token_sets(sae, tiny, SETS, latents=[0], progress=False).tokens
    with torch.no_grad():
        rows = tiny.module.get_parameter("transformer.wte.weight")
        rows[torch.from_numpy(ids["months"]), 5] += 1000
        rows[torch.from_numpy(ids["digits"]), 5] -= 1000
        sae.W_dec[11] = torch.eye(32)[5]
    found = token_sets(sae, tiny, SETS, latents=[11], progress=False)
    np.testing.assert_array_equal(found.scores[0, :2], [1, -1])
    assert found.n_tokens == 4096 - len(tiny.tokenizer.all_special_ids)


def test_chunks_do_not_matter(sae: TopKSAE, tiny: SubjectModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = token_sets(sae, tiny, SETS, progress=False)
    monkeypatch.setattr(importlib.import_module("monosem.analysis.token_sets"), "TILE_ENTRIES", 3 * 4096)
    tiled = token_sets(sae, tiny, SETS, progress=False)
    np.testing.assert_allclose(tiled.scores, whole.scores, atol=1e-6)
    np.testing.assert_allclose(tiled.moments, whole.moments, rtol=1e-4, atol=1e-6)


def test_classes_are_what_is_rare_among_random_directions(sae: TopKSAE, tiny: SubjectModel) -> None:
    with torch.no_grad():
        rows = tiny.module.get_parameter("transformer.wte.weight")
        rows[1000:1010] += 4 * torch.eye(32)[3]
        gain = tiny.module.get_parameter("transformer.ln_f.weight")
        sae.W_dec[1], sae.W_dec[2] = torch.eye(32)[3] / gain, -torch.eye(32)[3] / gain
    found = token_sets(sae, tiny, SETS, progress=False)
    assert found.classes[1:3] == ["prediction", "suppression"]
    by_chance = found.classes_by_chance
    assert sum(by_chance.values()) == pytest.approx(1)
    assert all(by_chance[name] <= 0.01 for name in CLASSES[:3])


def test_words_with_a_capital_stand_for_themselves_and_others_for_any_case() -> None:
    texts = [" may", " May", "MAY", " Will", "will", "ly", " x1"]
    found = word_sets.tokens_of({"a": "may", "b": ["May", "Will"], "c": "/[0-9]$/", "d": lambda t: len(t) == 2}, texts)
    assert {name: places.tolist() for name, places in found.items()} == {
        "a": [0, 1, 2],
        "b": [1, 3],
        "c": [6],
        "d": [5],
    }


def test_what_is_shipped_is_words_and_expressions_that_can_be_read() -> None:
    sets = word_sets.shipped()
    texts = [" May", " may", " london", " London", " 42", "ing", " Monday"]
    found = word_sets.tokens_of(sets, texts)
    assert len(sets) > 200
    assert found["months"].tolist() == [0]
    assert found["capitals"].tolist() == [3]
    assert found["days"].tolist() == found["weekdays"].tolist() == [6]
    assert found["digits"].tolist() == found["numbers in digits"].tolist() == [4]
    assert set(word_sets.PROPER) <= set(lists())


def test_sets_of_one_s_own_come_from_a_file(sae: TopKSAE, tiny: SubjectModel, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("letters: /^[a-z]$/\nnumbers: [one, two, three, four, five, six]\nfew: king\n")
    (tmp_path / "verbs.txt").write_text("go\nmake\n\nsee\nsaid\nwas\n")
    found = token_sets(sae, tiny, tmp_path / "mine.yaml", latents=[1], progress=False)
    assert set(found.names) == {"letters", "numbers"}
    assert found.left_out == {"few": 3}
    assert ms.token_sets(sae, tiny, str(tmp_path / "verbs.txt"), latents=[1], progress=False).names == ["verbs"]
    found.save(tmp_path / "found.csv")
    assert (tmp_path / "found.csv").read_text().startswith("latent,class,set,score,p,q,z,q_directions\n")


def test_what_cannot_be_tested_is_refused_in_a_line(sae: TopKSAE, tiny: SubjectModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no token set has at least 5 tokens of this vocabulary of .* \(kings 3\)"):
        token_sets(sae, tiny, {"kings": "king"})
    with pytest.raises(ConfigError, match=r"token set 'x': /\(/ is no regular expression"):
        token_sets(sae, tiny, {"x": "/(/"})
    with pytest.raises(ConfigError, match="permutations=0"):
        token_sets(sae, tiny, SETS, permutations=0)
    with pytest.raises(ConfigError, match="names no feature"):
        token_sets(sae, tiny, SETS, latents=[])
    with pytest.raises(FileError, match="does not exist: give a file of token sets"):
        token_sets(sae, tiny, tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: {b: 1}\n")
    with pytest.raises(FileError, match="name: words"):
        token_sets(sae, tiny, tmp_path / "bad.yaml")
    with pytest.raises(ConfigError, match="no tokenizer"):
        token_sets(sae, SubjectModel(tiny.module), SETS)
    found = token_sets(sae, tiny, SETS | {"few": "king"}, latents=[1], progress=False)
    with pytest.raises(ConfigError, match="no token set 'few' was tested: it has 3 tokens"):
        found.top("few")
    with pytest.raises(ConfigError, match="feature 3 was not tested"):
        found.of(3)
