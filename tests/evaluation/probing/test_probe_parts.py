"""Parts of probes against plain loops: scores, regressions, choices, and that nothing of the test is looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import optimize, sparse

from monosem.errors import DataError, FileError
from monosem.evaluation.probing.columns import Columns, chosen, fit_columns
from monosem.evaluation.probing.labelled import read_labelled
from monosem.evaluation.probing.logistic import fit_dense, fit_logistic, side_weights
from monosem.evaluation.probing.scores import auroc, drawn_accuracy, drawn_auroc, interval_of, weights_of
from monosem.evaluation.probing.splits import drawn_split, without_source
from monosem.evaluation.probing.trial import Sides, dense_trial, principal, sparse_trials


def some_rows(n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, n) / 2  # with ties
    return scores, rng.random(n) < 0.4


def test_auroc_counts_pairs_and_half_of_ties() -> None:
    scores, positive = some_rows()
    pairs = [(p > n) + (p == n) / 2 for p in scores[positive] for n in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auroc(-scores, positive) == pytest.approx(1 - auroc(scores, positive), abs=1e-12)


def test_a_draw_is_the_same_as_rows_that_stand_there_so_often() -> None:
    scores, positive = some_rows()
    weights = weights_of(len(scores), seed=3)
    found, right = drawn_auroc(scores, positive, weights), drawn_accuracy(scores - 1, positive, weights)
    for draw in (0, 1, 17, 999):
        rows = np.repeat(np.arange(len(scores)), weights[:, draw].astype(int))
        assert found[draw] == pytest.approx(auroc(scores[rows], positive[rows]), abs=1e-6)
        told = [np.mean((scores[rows] > 1)[positive[rows] == side] == side) for side in (True, False)]
        assert right[draw] == pytest.approx(np.mean(told), abs=1e-6)


def test_a_draw_of_one_side_alone_has_no_value_and_does_not_count() -> None:
    scores, positive = np.array([1.0, 0.0, 0.0]), np.array([True, False, False])
    drawn = drawn_auroc(scores, positive, weights_of(3))
    assert np.isnan(drawn).any()
    assert interval_of(drawn) == (1.0, 1.0, 1.0)


def test_intervals_of_auroc_cover_the_truth() -> None:
    rng, covered = np.random.default_rng(1), 0
    truth = 0.7602  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    for _ in range(100):
        positive = rng.random(150) < 0.5
        found = interval_of(drawn_auroc(rng.standard_normal(150) + positive, positive, weights_of(150)))
        covered += (found.low or 0) <= truth <= (found.high or 0)
    assert 88 <= covered <= 99


def test_the_regression_is_at_the_minimum_of_its_loss() -> None:
    rng = np.random.default_rng(0)
    x, positive = rng.standard_normal((60, 3)) * [1, 10, 0.1] + 4, rng.random(60) < 0.3
    fitted = fit_logistic(x, positive, ridge=0.01)
    z = (x - x.mean(0)) / x.std(0)
    sign = np.where(positive, 1, -1)
    share = np.where(positive, 0.5 / positive.sum(), 0.5 / (~positive).sum())

    def loss(w: np.ndarray) -> float:
        return float((share * np.log1p(np.exp(-sign * (z @ w[:3] + w[3])))).sum() + 0.005 * (w[:3] ** 2).sum())

    best: Any = optimize.minimize(loss, np.zeros(4), tol=1e-12)
    assert np.allclose([*fitted.weights, fitted.bias], best.x, atol=1e-4)
    assert np.allclose(fitted(x), z @ fitted.weights + fitted.bias)
    started = fit_logistic(x, positive, ridge=0.01, start=np.array([3.0, -2, 1, 0.5]))
    assert np.allclose(started.weights, fitted.weights, atol=1e-7)


def test_constant_columns_and_sides_that_lie_apart_do_no_harm() -> None:
    positive = np.arange(20) < 8
    x = np.stack([np.full(20, 7.0), positive * 1.0], axis=1)
    fitted = fit_logistic(x, positive)
    assert np.isfinite(fitted.weights).all()
    assert fitted.weights[0] == 0
    assert ((fitted(x) > 0) == positive).all()
    assert ((fit_dense(x, positive)(x) > 0) == positive).all()


def sparse_columns(n: int, m: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random((n, m)) * (rng.random((n, m)) < 0.2)


@pytest.mark.parametrize("as_sparse", [True, False])
def test_choices_are_those_of_a_plain_loop(as_sparse: bool) -> None:
    x = sparse_columns(80, 12)
    x[:, 5] = 0
    positive = x[:, 3] + 0.3 * x[:, 7] > 0.2
    columns = Columns(sparse.csr_array(x) if as_sparse else x)
    apart = [abs(column[positive].mean() - column[~positive].mean()) for column in x.T]
    assert chosen(columns, positive, 4, "difference").tolist() == np.argsort(apart)[::-1][:4].tolist()
    found = chosen(columns, positive, 3, "greedy")
    share = side_weights(positive)
    for step in range(3):
        p = np.full(80, 0.5)
        if step:
            p = 1 / (1 + np.exp(-fit_logistic(x[:, found[:step]], positive)(x[:, found[:step]])))
        g = share * (positive - p)
        gains = [
            -1 if column.std() == 0 or j in found[:step] else abs((g * (column - column.mean())).sum()) / column.std()
            for j, column in enumerate(x.T)
        ]
        assert found[step] == int(np.argmax(gains))
    assert 5 not in chosen(columns, positive, 12, "greedy")
    assert len(chosen(columns, positive, 12, "greedy")) == 11
    mean, scale = columns.moments
    assert np.allclose(mean, x.mean(0))
    assert np.allclose(scale, x.std(0))


def sides(positive: np.ndarray, train: np.ndarray, test: np.ndarray) -> Sides:
    return Sides(positive[train], positive[test], weights_of(len(test)))


def test_a_planted_latent_is_found_and_reaches_an_auroc_of_1_alone() -> None:
    x, positive = sparse_columns(300, 50), np.arange(300) % 3 == 0
    x[:, 31] = positive * 0.5
    train, test = np.arange(200), np.arange(200, 300)
    columns = Columns(sparse.csr_array(x))
    (trial,) = sparse_trials(columns.rows(train), columns.rows(test), sides(positive, train, test), [1], "greedy")
    assert trial.columns == [31]
    assert trial.auroc[0] == 1
    assert trial.accuracy[0] == 1


def test_nothing_is_chosen_on_the_test_texts() -> None:
    """On labels that nothing knows: 0.5 on average. Chosen with the test texts in view it is far above, as shown."""
    rng = np.random.default_rng(0)
    train, test = np.arange(60), np.arange(60, 120)
    found, cheated = [], []
    for _ in range(25):
        columns, positive = Columns(rng.standard_normal((120, 400))), rng.random(120) < 0.5
        parts = columns.rows(train), columns.rows(test)
        (trial,) = sparse_trials(*parts, sides(positive, train, test), [5], "greedy")
        found.append(trial.auroc[0])
        picked = chosen(columns, positive, 5, "greedy")
        cheated.append(auroc(fit_columns(parts[0], positive[train], picked)(parts[1].read(picked)), positive[test]))
    spread = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - 0.5) < 3 * spread
    assert np.mean(cheated) > 0.6


@pytest.mark.parametrize("how", ["greedy", "difference"])
def test_other_test_texts_change_neither_choice_nor_fit(how: Any) -> None:
    x, positive = sparse_columns(150, 30), np.arange(150) % 2 == 0
    train, test = np.arange(100), np.arange(100, 150)
    other = x.copy()
    other[test] = positive[test][:, None] * 9.0
    trials = []
    for values, labels in ((x, positive), (other, positive), (x, np.where(np.arange(150) < 100, positive, ~positive))):
        columns = Columns(values)
        parts = columns.rows(train), columns.rows(test)
        trials.append([*sparse_trials(*parts, sides(labels, train, test), [1, 4], how)])
        trials[-1].append(dense_trial(*parts, sides(labels, train, test)))
    for one, two, three in zip(*trials, strict=True):
        assert one.columns == two.columns == three.columns
        assert one.weights == two.weights == three.weights
        assert three.auroc[0] == pytest.approx(1 - one.auroc[0])  # the same scores, of the other side
    turned = [principal(Columns(values[train]), Columns(values)).read(np.arange(30))[train] for values in (x, other)]
    assert np.array_equal(*turned)


def texts(n: int) -> list[str]:
    return [f"text number {i}" for i in range(n)]


def test_texts_come_in_an_order_of_their_own_once_and_no_text_is_on_both_sides() -> None:
    rows = [{"text": text, "label": i % 2, "source": "ab"[i % 3 == 0]} for i, text in enumerate(texts(90))]
    twice = [*rows, {"text": " TEXT  number 3", "label": 1, "source": "a"}]
    one, other = (read_labelled(data, source="source") for data in (rows, twice[::-1]))
    assert sorted(one.texts) != one.texts
    assert len(other) == 90
    assert other.dropped == {"the same text again": 1}
    assert one.keys == other.keys
    assert one.labels.tolist() == other.labels.tolist()
    split = drawn_split(one, 0.25)
    assert not set(split.train) & set(split.test)
    assert sorted([*split.train, *split.test]) == list(range(90))
    assert abs(len(split.test) - 22) <= 2
    found = without_source(one, split, "a")
    assert not isinstance(found, str)
    left, whole = found
    assert "a" not in one.sources[left.train]
    assert set(one.sources[left.test]) == {"a"}
    assert left.test.tolist() == whole.test.tolist()
    assert set(left.test) <= set(split.test)
    assert read_labelled(rows, seed=1).texts != read_labelled(rows).texts


def test_a_source_of_one_label_is_tried_beside_the_test_texts_of_the_others() -> None:
    rows = [{"text": f"bad {i}", "label": "bad", "source": f"s{i % 2}"} for i in range(60)]
    rows += [{"text": f"good {i}", "label": "good", "source": "plain"} for i in range(60)]
    data = read_labelled(rows, source="source")
    split = drawn_split(data, 0.5)
    found = without_source(data, split, "s1")
    assert not isinstance(found, str)
    assert set(data.sources[found[0].test]) == {"s1", "plain"}
    assert set(data.sources[found[0].train]) == {"s0", "plain"}
    assert "of label 'good' there are 0 texts to learn from" in str(without_source(data, split, "plain"))


def test_files_are_read_with_their_columns(tmp_path: Any) -> None:
    import gzip

    lines = tmp_path / "a.jsonl.gz"
    with gzip.open(lines, "wt", encoding="utf-8") as file:
        file.write('{"text": "ünë", "label": 1.0}\n\n{"text": "two", "label": 0}\n{"text": "  ", "label": 0}\n')
    found = read_labelled(lines)
    assert dict(zip(found.texts, found.labels.tolist(), strict=True)) == {"ünë": "1", "two": "0"}
    assert found.dropped == {"without words": 1}
    table = tmp_path / "b.csv"
    table.write_text('statement,truth\n"one, two",yes\nthree,no\n')
    assert sorted(read_labelled(table, text="statement", label="truth").texts) == ["one, two", "three"]
    by_label = {"x": ["one", "two"], "y": ["three", "one"]}
    assert read_labelled(by_label).dropped == {"one text with two labels": 1}
    assert len(read_labelled("bundled:held_out", label="source")) == 636


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([{"text": "a", "label": 1}, {"text": "b", "label": 1}], "all 2 texts have the label '1'.*at least two labels"),
        ([], "there are no texts"),
        ([{"text": "a", "label": float("nan")}], "row 0: 'label' is nan, no label"),
        ([{"text": "a", "label": 0.5}], "is 0.5, no label"),
        ([{"text": "a", "label": None}], "is None, no label"),
        ([{"text": 3, "label": 1}], "'text' is 3, not a text"),
        ([{"words": "a", "label": 1}], r"row 0 has no column 'text': name the columns \(text_column.*it has words"),
        (["a", "b"], "row 0 is a str: give rows as"),
        ({"a": "one string", "b": ["x"]}, "the texts of label 'a' are one string"),
        ([{"text": f"t{i}", "label": i} for i in range(30)], "30 different values .*more than the 20 labels"),
    ],
)
def test_what_is_no_labelled_text_is_refused(data: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_labelled(data)


def test_files_that_cannot_be_read_are_refused(tmp_path: Any) -> None:
    for name, content, words in (
        ("a.jsonl", "{]\n", "cannot be read"),
        ("b.jsonl", "[1, 2]\n", "line 1, is no JSON object"),
        ("c.txt", "words", "of no kind that can be read with labels"),
        ("d.csv", 'text,label\n"' + "x" * 200_000 + '",1\n', "field larger than field limit"),
    ):
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(FileError, match=words):
            read_labelled(path)
    with pytest.raises(FileError, match="does not exist"):
        read_labelled(tmp_path / "none.csv")


def test_too_few_texts_of_a_label_are_refused() -> None:
    with pytest.raises(DataError, match="of label 'b' there are 3 texts to learn from, fewer than 5: give more"):
        drawn_split(read_labelled({"a": texts(60), "b": ["x", "y", "z", "w"]}), 0.2)
