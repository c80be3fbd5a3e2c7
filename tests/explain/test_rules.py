"""Rules: what was planted is found, said and foretold; nothing is made from what it is tested on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ruled import LENGTH, NEVER, NOISE, TRUTH, Ruled

import monosem as ms
from monosem.errors import ConfigError, MismatchError
from monosem.explain import (
    Foretelling,
    Rules,
    Text,
    estimated,
    explain_difference,
    explain_direction,
    explain_group,
    held_out,
    measured,
    rule_of_name,
)
from monosem.explain.evidence import Evidence
from monosem.explain.find import _atoms
from monosem.features import Clause, Explanation, Explanations, FeatureStore, Rule
from monosem.sae import SAEMetadata

CLAUSES: dict[str, tuple[Clause, Any]] = {
    "words": (Clause(words=("time", "house")), lambda p: p.word in ("time", "house")),
    "kind": (Clause(kinds=("negation",)), lambda p: p.word in ms_kind("negation")),
    "token": (Clause(tokens=(" the", "The")), lambda p: p.text in (" the", "The")),
    "begins": (Clause(begins="con"), lambda p: p.word.startswith("con") and len(p.word) > 3),
    "ends": (Clause(ends="ly", piece="later"), lambda p: p.word.endswith("ly") and len(p.word) > 2 and p.piece > 0),
    "after": (Clause(after=("the", "a"), piece="first"), lambda p: p.before in ("the", "a") and p.piece == 0),
    "both": (Clause(words=("same",), after=("the",)), lambda p: p.word == "same" and p.before == "the"),
}


def ms_kind(name: str) -> frozenset[str]:
    from monosem.analysis.kinds import lists

    return lists()[name]


@pytest.fixture(scope="module")
def said(ruled: Ruled) -> dict[int, Explanation]:
    return {item.latents[0]: item for item in Rules().explain(ruled.store, range(len(TRUTH) + 2))}


@pytest.mark.parametrize("name", CLAUSES)
def test_a_clause_holds_where_a_plain_loop_finds_it(ruled: Ruled, name: str) -> None:
    clause, holds = CLAUSES[name]
    text = ruled.held_out.text
    wanted = [i for i, place in enumerate(ruled.places) if text.read[i] and holds(place)]
    assert wanted
    assert text.where_clause(clause).tolist() == wanted
    assert text.holding(clause, np.arange(len(text.tokens))).tolist() == wanted


def test_capitals_lines_and_places_in_the_text(ruled: Ruled) -> None:
    vocabulary = ruled.store.vocabulary
    tokens = [vocabulary.find(text)[0] for text in ("The", "\n", "a")]
    by_text = {vocabulary.text(token): token for token in range(len(vocabulary))}
    tokens = np.array([by_text[text] for text in ("The", "\n", "a", " I", "I")])
    text = Text(tokens, np.array([5]), vocabulary)
    assert text.where_clause(Clause(line_start=True)).tolist() == [2]
    assert text.where_clause(Clause(capitals="first")).tolist() == [0]
    assert text.where_clause(Clause(capitals="all")).tolist() == [3, 4]
    assert text.where_clause(Clause(positions=(1, 3))).tolist() == [1, 2]
    assert text.where_clause(Clause(following=("the",), words=("a",))).tolist() == [2]
    assert text.where_clause(Clause(behind=(" I",))).tolist() == [4]


@pytest.mark.parametrize("latent", TRUTH)
def test_planted_rules_are_foretold_on_new_text(ruled: Ruled, said: dict[int, Explanation], latent: int) -> None:
    rule = said[latent].rule
    assert rule is not None
    score = measured(rule, latent, 5.0, ruled.held_out)
    assert score is not None
    assert score.value >= (0.6 if latent == 0 else 0.8), said[latent].text
    assert score.low < score.value <= score.high <= 1


def test_what_was_planted_is_said(said: dict[int, Explanation]) -> None:
    words = {0: "*first*", 1: "countries", 2: "ing", 3: "*with*", 4: "modal verbs", 6: "after *of*", 7: "line ends"}
    words[8] = "among the first 5"
    for latent, word in words.items():
        assert word in said[latent].text, said[latent].text
    assert NEVER not in said


def test_noise_and_shuffled_rules_are_near_chance(ruled: Ruled, said: dict[int, Explanation]) -> None:
    noise = said[NOISE].rule
    score = None if noise is None else measured(noise, NOISE, 5.0, ruled.held_out)
    assert score is None or score.value < 0.1
    for latent in TRUTH:
        other = said[(latent + 1) % len(TRUTH)].rule
        assert other is not None
        shuffled = measured(other, latent, 5.0, ruled.held_out)
        assert shuffled is not None
        assert shuffled.value < 0.25


def test_the_estimate_from_the_store_is_that_on_new_text(ruled: Ruled, said: dict[int, Explanation]) -> None:
    for latent in TRUTH:
        rule = said[latent].rule
        assert rule is not None
        new = measured(rule, latent, 5.0, ruled.held_out)
        assert new is not None
        own = said[latent].scores["rule"]
        assert own.value == pytest.approx(new.value, abs=0.2)
        assert own.details["own text"] == 1


def test_the_f1_is_that_of_a_plain_count(ruled: Ruled) -> None:
    rule = Rule(clauses=(Clause(words=("the",)), Clause(tokens=(" with",))))
    hits = {
        i for i, p in enumerate(ruled.places) if ruled.held_out.text.read[i] and (p.word == "the" or p.text == " with")
    }
    fires = {i for i, p in enumerate(ruled.places) if ruled.held_out.text.read[i] and TRUTH[3](p)}
    score = measured(rule, 3, 5.0, ruled.held_out)
    assert score is not None
    assert score.value == pytest.approx(2 * len(hits & fires) / (len(hits) + len(fires)))
    assert score.details["precision"] == pytest.approx(len(hits & fires) / len(hits))
    assert score.details["recall"] == pytest.approx(len(hits & fires) / len(fires))


def test_no_rule_is_made_from_what_it_is_tested_on(ruled: Ruled, said: dict[int, Explanation], tmp_path: Path) -> None:
    """What is said of the firings left to tests changes no rule, and counts of words are without them."""
    evidence = Evidence(ruled.store, 0)
    test = evidence.samples.test
    rows = evidence.samples.row[test]
    assert 0.2 < test.mean() < 0.5
    assert not {row for item in said.values() for row in item.seen} & set(rows.tolist())
    for latent in TRUTH:
        samples = evidence.samples.of(latent)
        left_out = int((samples.test & (samples.kind == 1)).sum())
        assert left_out
        known = _atoms(evidence, latent).mass.sum()
        assert 0.5 * evidence.logged[latent] < known <= evidence.logged[latent] - left_out + 1e-6

    def changed(table: pa.Table) -> pa.Table:
        weight = table.column("weight").to_numpy().copy()
        weight[rows] *= 50
        return table.set_column(table.column_names.index("weight"), "weight", pa.array(weight))

    again = {item.latents[0]: item for item in Rules().explain(_with_examples(ruled, tmp_path, changed), range(NEVER))}
    for latent in TRUTH:
        assert (again[latent].text, again[latent].rule) == (said[latent].text, said[latent].rule)


def _with_examples(ruled: Ruled, folder: Path, change: Callable[[pa.Table], pa.Table]) -> FeatureStore:
    """The store with other examples."""
    copy = shutil.copytree(ruled.store.path, folder / "features")
    path = next((copy / "examples").iterdir())
    size = path.stat().st_size
    pq.write_table(change(pq.read_table(path)), path)
    index = (copy / "index.json").read_text()
    (copy / "index.json").write_text(index.replace(f'"bytes": {size}', f'"bytes": {path.stat().st_size}'))
    return FeatureStore(copy)


def test_the_order_of_examples_does_not_matter(ruled: Ruled, said: dict[int, Explanation], tmp_path: Path) -> None:
    def shuffled(table: pa.Table) -> pa.Table:
        random = np.random.default_rng(1).random(len(table))
        return table.take(pa.array(np.lexsort((random, table.column("latent").to_numpy()))))

    again = {item.latents[0]: item for item in Rules().explain(_with_examples(ruled, tmp_path, shuffled), range(NEVER))}
    assert {k: (item.text, item.rule) for k, item in again.items()} == {k: (v.text, v.rule) for k, v in said.items()}


def test_explain_keeps_what_others_and_it_have_said(ruled: Ruled, tmp_path: Path) -> None:
    store = FeatureStore(shutil.copytree(ruled.store.path, tmp_path / "features"))
    made = ms.explain(store, [0, 1], progress=False)
    assert [item.latents for item in made] == [[0], [1]]
    ms.explain(store, [3], progress=False)
    assert [item.latents for item in store.explanations("rules")] == [[0], [1], [3]]
    assert store.explanations()[3].text == store.explanations("rules")[3].text
    with pytest.raises(ConfigError, match="no latent 99"):
        ms.explain(store, [99], progress=False)
    with pytest.raises(ConfigError, match="rules"):
        ms.explain(store, [0], "rule", progress=False)


def test_names_are_rules(ruled: Ruled) -> None:
    feature = ruled.store[3]
    assert feature.name is not None
    score = measured(rule_of_name(feature), 3, 5.0, ruled.held_out)
    assert score is not None
    assert 0.4 < score.value < 1
    assert rule_of_name(ruled.store[NEVER]) == Rule(clauses=())


def test_few_firings_have_no_score(ruled: Ruled) -> None:
    rule = Rule(clauses=(Clause(words=("the",)),))
    assert measured(rule, NEVER, 5.0, ruled.held_out) is None
    assert estimated(rule, NEVER, Evidence(ruled.store, 0)) is None


def test_rules_are_scored_beside_judges_and_floors(ruled: Ruled, said: dict[int, Explanation]) -> None:
    known = Explanations(
        ruled.store.path, "rules", [said[latent].model_copy(update={"scores": {}}) for latent in TRUTH]
    )
    table = ms.score(ruled.store, known, [Foretelling(ruled.held_out)], progress=False)
    assert table.row("rule").value.value > 0.8
    assert table.row("rule", "shuffled among features").value.value < 0.15
    assert table.explanations[3].scores["rule"].value == 1


def test_a_group_is_foretold_by_what_its_latents_share(ruled: Ruled) -> None:
    said = explain_group(ruled.store, [3, 4])
    assert said.latents == [3, 4]
    assert "*with*" in said.text
    assert "modal verbs" in said.text
    assert said.rule is not None
    both = [i for i, place in enumerate(ruled.places) if TRUTH[3](place) or TRUTH[4](place)]
    assert set(ruled.held_out.text.where(said.rule).tolist()) == set(both)
    with pytest.raises(ConfigError, match="two latents"):
        explain_group(ruled.store, [3])


def test_a_direction_is_made_of_the_features_nearest_to_it(ruled: Ruled) -> None:
    sae = ms.TopKSAE(32, NEVER + 1, k=2, seed=0)
    row = sae.W_dec[3].detach()
    said = explain_direction(ruled.store, sae, 2 * row, n=2)
    assert said.latents[0] == 3
    assert said.text.startswith("1.00 of 3 (")
    assert {"*with*", "*for*"} <= {*said.text.partition(")")[0].removeprefix("1.00 of 3 (").split(", ")}
    assert said.sure == pytest.approx(1)
    with pytest.raises(MismatchError, match="33"):
        explain_direction(ruled.store, sae, torch.ones(33))


def test_what_another_dictionary_lacks_is_explained(ruled: Ruled) -> None:
    sae = ms.TopKSAE(32, NEVER + 1, k=2, seed=0)
    other = ms.TopKSAE(32, NEVER, k=2, seed=0)
    with torch.no_grad():
        other.W_dec.copy_(sae.W_dec[torch.tensor([i for i in range(NEVER + 1) if i != 3])])
    (lacking,) = explain_difference(ruled.store, sae, other, counterpart=0.999)
    assert lacking.latents == [3]
    assert "*with*" in lacking.text


def test_without_more_text_rules_are_estimated_from_the_store(
    ruled: Ruled, tmp_path: Path, make_gpt2: Callable[..., torch.nn.Module], tokenizer: Any
) -> None:
    """The text of the harvest is gone, and there is no other."""
    copy = shutil.copytree(ruled.store.path, tmp_path / "features")
    index = (copy / "index.json").read_text()
    (copy / "index.json").write_text(index.replace('"bundled:held_out"', '"gone.txt"'))
    sae = ms.TopKSAE(32, NEVER + 1, k=2, seed=0)
    model = ms.SubjectModel(make_gpt2(width=32, layers=1), tokenizer, "tiny")
    (said,) = ms.explain(FeatureStore(copy), [3], sae=sae, model=model, hook="resid_post.0", progress=False)
    assert said.scores["rule"].details["own text"] == 1


def test_rules_are_measured_by_a_pass_over_the_text_that_follows(
    ruled: Ruled, tmp_path: Path, make_gpt2: Callable[..., torch.nn.Module], tokenizer: Any
) -> None:
    """The model and the SAE are random: nothing that the rules foretell fires, and the tokens are those that follow."""
    store = FeatureStore(shutil.copytree(ruled.store.path, tmp_path / "features"))
    sae = ms.TopKSAE(32, NEVER + 1, k=2, seed=0)
    sae.metadata = SAEMetadata(hook="resid_post.0", context_length=LENGTH)
    model = ms.SubjectModel(make_gpt2(width=32, layers=1), tokenizer, "tiny")
    new = held_out(store, sae, model, tokens=4000, progress=False)
    assert new is not None
    assert new.text.tokens.tolist() == ruled.held_out.text.tokens[: len(new.text.tokens)].tolist()
    x = model.capture(torch.from_numpy(new.text.tokens[:LENGTH])[None], ["resid_post.0"])["resid_post.0"][0]
    codes = (sae.encode(x).to_dense().detach().numpy() > 0) & new.text.read[:LENGTH, None]
    for latent in range(NEVER + 1):
        at, _ = new.of(latent)
        assert at[at < LENGTH].tolist() == np.flatnonzero(codes[:, latent]).tolist()
