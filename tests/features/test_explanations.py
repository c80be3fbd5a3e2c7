"""Explanations: what was written is read; of several explainers the best counts; damage is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_store import Made

from monosem.errors import ConfigError, FileError
from monosem.features import Clause, Explanation, Explanations, FeatureStore, Rule, Score

RULE = Rule(clauses=(Clause(words=("first", "second"), after=("the",), share=0.75), Clause(positions=(0, 1))))


def explanation(latent: int, explainer: str, value: float | None = None, text: str = "a line") -> Explanation:
    scores = {} if value is None else {"rule": Score(value=value, low=value - 0.1, high=value + 0.1, n=40)}
    return Explanation(latents=[latent], text=text, explainer=explainer, scores=scores)


@pytest.fixture
def store(made: Made, tmp_path: Path) -> FeatureStore:
    return FeatureStore(shutil.copytree(made.store.path, tmp_path / "features"))


def test_a_store_without_explanations_has_none(store: FeatureStore) -> None:
    assert len(store.explanations()) == 0
    assert store.explanations("rules").get(3) is None
    with pytest.raises(ConfigError, match="no table 'explanations'"):
        store.sql("select * from explanations")


def test_what_is_written_is_read(store: FeatureStore, tmp_path: Path) -> None:
    score = Score(value=0.8, low=0.7, high=0.9, n=50, judge="a/b", details={"recall": 0.5, "level 1": 0.2})
    said = [
        Explanation(
            latents=[3], text="an «ordinal»\N{RIGHTWARDS ARROW}", explainer="rules", sure=0.5, rule=RULE,
            scores={"rule": score}, seen=[4, 9], failure="misses firings",
        ),
        Explanation(latents=[3], text="promotes time", explainer="rules", side="output"),
        Explanation(latents=[5, 7], text="both", explainer="rules"),
    ]  # fmt: skip
    made = Explanations(store.path, "rules", said)
    made.save()
    for found in (store.explanations("rules"), store.explanations(), FeatureStore(store.path).explanations()):
        assert list(found) == said
        assert found[3] == said[0]
        assert found.of(3) == said[:2]
        assert found.groups() == said[2:]
    with pytest.raises(KeyError):
        made[4]
    made.to_json(tmp_path / "said.json")
    assert list(Explanations.from_json(tmp_path / "said.json", store.path)) == said
    Explanations(store.path, "rules", said[2:]).save()
    assert list(store.explanations("rules")) == said[2:]


def test_a_persons_word_counts_most_then_the_score(store: FeatureStore) -> None:
    Explanations(store.path, "rules", [explanation(n, "rules", 0.6) for n in range(4)]).save()
    judged = [explanation(1, "Judge: a/b", 0.9), explanation(2, "Judge: a/b", 0.3), explanation(9, "Judge: a/b")]
    Explanations(store.path, "Judge: a/b", judged).save()
    Explanations(store.path, "person", [explanation(0, "person")]).save()
    best = {item.latents[0]: item.explainer for item in store.explanations()}
    assert best == {0: "person", 1: "Judge: a/b", 2: "rules", 3: "rules", 9: "Judge: a/b"}
    assert len(store.explanations("judge: a/b")) == 0
    with pytest.raises(ConfigError, match="several explainers"):
        store.explanations().save()


def test_sql_sees_explanations_as_they_are_now(store: FeatureStore) -> None:
    Explanations(store.path, "rules", [explanation(1, "rules", 0.5, "old")]).save()
    asked = "select latent, text, value from explanations order by latent"
    assert store.sql(asked).to_pylist() == [{"latent": 1, "text": "old", "value": 0.5}]
    Explanations(store.path, "rules", [explanation(1, "rules", 0.75, "new")]).save()
    assert store.sql(asked).to_pylist() == [{"latent": 1, "text": "new", "value": 0.75}]
    Explanations(store.path, "person", [explanation(2, "person")]).save()
    joined = "select f.latent, e.explainer from features f join explanations e using (latent) order by 1"
    assert [tuple(row.values()) for row in store.sql(joined).to_pylist()] == [(1, "rules"), (2, "person")]


def test_a_damaged_file_is_named(store: FeatureStore) -> None:
    path = Explanations(store.path, "rules", [explanation(1, "rules")]).save()
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileError, match=r"rules\.parquet cannot be read .*explain the features again"):
        store.explanations("rules")
    shutil.copy(next((store.path / "words").iterdir()), path)
    with pytest.raises(FileError, match="holds no explanations"):
        store.explanations("rules")
