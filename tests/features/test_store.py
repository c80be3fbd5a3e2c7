"""The feature store: what it says is what a plain pass over the text finds; damage is named; it reads nothing else."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from small_store import HOOK, LATENTS, SETTINGS, TOKENS, Made

import monosem as ms
from monosem.analysis import logit_lens
from monosem.errors import ConfigError, FileError
from monosem.features import FeatureStore

ALIVE = 7


def busiest(made: Made) -> int:
    return int((made.dense > 0).sum((0, 1)).argmax())


def test_figures_are_those_of_a_plain_pass(made: Made) -> None:
    rows = made.dense[made.kept].double()
    assert made.store.n_tokens == len(rows)
    for feature in made.store.features(range(LATENTS)):
        x = rows[:, feature.latent]
        on = x[x > 0]
        assert feature.count == len(on)
        assert feature.rate == pytest.approx(len(on) / len(rows))
        assert feature.histogram.counts.sum() == len(on)
        if len(on):
            assert feature.mean == pytest.approx(on.mean().item(), rel=1e-4)
            assert feature.deviation == pytest.approx(on.std(correction=0).item(), rel=1e-3, abs=1e-4)
            assert feature.max == pytest.approx(on.max().item(), rel=1e-4)
            assert feature.histogram.edges[-2] <= feature.max <= feature.histogram.edges[-1]
        else:
            assert (feature.mean, feature.max, feature.top, feature.samples) == (None, None, [], [])


def test_a_feature_that_never_fired_says_so(made: Made) -> None:
    feature = made.store[0]
    assert feature.count == 0
    assert feature.intervals() == []
    assert feature.silent
    assert "never fired" in repr(feature)
    assert "never fired" in feature._repr_html_()


@pytest.mark.parametrize("kind", ["top", "samples", "near_misses", "silent"])
def test_passages_show_the_tokens_and_activations_of_their_place(made: Made, kind: str) -> None:
    n = 0
    for feature in made.store.features(range(LATENTS)):
        for example in getattr(feature, kind):
            n += 1
            context = example.context
            end = int((~made.padding[context]).sum())
            at = (made.document[context] == example.document).nonzero()[:, 0]
            matches = [
                o
                for o in at.tolist()
                if made.tokens[context, max(0, o - 20) : min(end, o + 12)].tolist() == example.tokens.tolist()
                and min(o, 20) == example.peak
            ]
            assert matches, "the window stands where it says"
            offset = matches[0]
            truth = made.dense[context, max(0, offset - 20) : min(end, offset + 12), feature.latent].numpy()
            np.testing.assert_allclose(example.activations, truth, atol=truth.max() / 255 + 1e-6)
            assert "".join(example.texts) == made.model.tokenizer.decode(example.tokens)
            if kind in ("top", "samples"):
                assert example.activation == pytest.approx(truth[example.peak], rel=1e-4)
            elif kind == "silent":
                assert truth.max() == 0
            else:
                assert truth[example.peak] == 0
    assert n > 50


def test_passages_hold_the_text_as_it_was_and_each_place_once(made: Made) -> None:
    rows = made.store.sql("from passages").to_pylist()
    seen: set[tuple[int, int]] = set()
    for row in rows:
        first, stop = row["offset"], row["offset"] + len(row["tokens"])
        assert row["tokens"] == made.tokens[row["context"], first:stop].tolist()
        places = {(row["context"], i) for i in range(first, stop)}
        assert not places & seen
        seen |= places
    examples = [e for f in made.store.features(range(LATENTS)) for e in f.top]
    example = max(examples, key=lambda e: len(e.before) + len(e.after))
    assert example.before or example.after
    around = "".join([*example.before, *example.texts, *example.after])
    assert around in made.model.tokenizer.decode(made.tokens[example.context])


def test_a_rare_latent_has_all_its_silent_windows(made: Made) -> None:
    rare = [f for f in made.store.features(range(LATENTS)) if f.rate < 0.005]
    assert rare
    assert all(len(f.silent) == SETTINGS.silent for f in rare)
    assert all(len({(e.context, e.position) for e in f.silent}) == SETTINGS.silent for f in rare)
    dense = max(made.store.features(range(LATENTS)), key=lambda f: f.rate)
    assert len(dense.silent) <= SETTINGS.silent


def test_top_is_one_per_document_strongest_first(made: Made) -> None:
    for feature in made.store.features(range(LATENTS)):
        documents = [example.document for example in feature.top]
        assert len(set(documents)) == len(documents)
        strength = [example.activation for example in feature.top]
        assert strength == sorted(strength, reverse=True)
        assert len(documents) == min(12, len(made.document[made.dense[..., feature.latent] > 0].unique()))


def test_weights_of_samples_stand_for_all_firings(made: Made) -> None:
    """And a weighted mean of samples estimates the mean activation."""
    ratios: list[float] = []
    for feature in made.store.features(range(LATENTS)):
        assert sum(e.weight for e in feature.samples) == pytest.approx(feature.count)
        if feature.count > 200:
            mean = sum(e.weight * e.activation for e in feature.samples) / feature.count
            ratios.append(mean / (feature.mean or 1))
    assert ratios
    assert np.mean(ratios) == pytest.approx(1, abs=0.03)


def test_intervals_cover_all_firings_and_their_examples_lie_in_them(made: Made) -> None:
    rows = made.dense[made.kept]
    for feature in made.store.features(range(1, LATENTS)):
        intervals = feature.intervals()
        if not intervals:
            continue
        assert abs(sum(i.count for i in intervals) - feature.count) <= len(intervals)
        assert intervals[0].high == pytest.approx(feature.max)
        assert intervals[-1].low == pytest.approx(0, abs=1e-9)
        for interval in intervals:
            assert all(interval.low <= e.activation <= interval.high * (1 + 1e-6) for e in interval.examples)
            x = rows[:, feature.latent]
            truth = int(((x > interval.low) & (x <= interval.high)).sum())
            assert abs(interval.count - truth) <= 0.12 * feature.count + 2


def test_tokens_it_fires_on_are_counted(made: Made) -> None:
    occurring = Counter(made.tokens[made.kept].tolist())
    for feature in made.store.features([latent for latent in range(LATENTS) if (made.dense[..., latent] > 0).any()]):
        on = made.dense[..., feature.latent] > 0
        firing, found = Counter(made.tokens[on].tolist()), feature.firing_tokens
        assert feature.counted_tokens == made.store.n_tokens == int(made.kept.sum())
        for token in found:
            assert token.share == token.low == token.high == pytest.approx(firing[token.token] / int(on.sum()))
            assert token.recall == pytest.approx(firing[token.token] / occurring[token.token])
        assert [firing[t.token] for t in found] == sorted(firing.values(), reverse=True)[:8]


def test_where_not_all_firings_fit_the_log_tokens_have_intervals(made: Made, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"log_firings": 8000})
    store = ms.harvest(made.sae, tmp_path, made.model, tokens=TOKENS, settings=settings, progress=False)
    assert 0 < store.counted_tokens < store.n_tokens / 2
    inside = tried = 0
    for feature in store.features(range(1, LATENTS)):
        on = made.dense[..., feature.latent] > 0
        firing = Counter(made.tokens[on].tolist())
        for token in feature.firing_tokens:
            assert token.low <= token.share <= token.high
        if on.sum() >= 30:  # of a handful of firings, the first is the one that happens to look commonest
            first = feature.firing_tokens[0]
            truth = firing[first.token] / int(on.sum())
            tried, inside = tried + 1, inside + (first.low <= truth <= first.high)
    assert tried >= 20
    assert inside >= 0.9 * tried


def test_cofiring_is_exact_while_all_tokens_are_in_the_sample(made: Made, tmp_path: Path) -> None:
    store = ms.harvest(
        made.sae, tmp_path, made.model, tokens=3000, settings=SETTINGS.model_copy(update={"cofiring_rows": 4000})
    )
    read = store.index["texts"][0]["stop_context"]
    rows = (made.dense[:read][made.kept[:read]] > 0).double()
    together = rows.T @ rows
    n = 0
    for feature in store.features(range(LATENTS)):
        us = feature.latent
        scores = (together[us] / together.diagonal().clamp_min(1).sqrt()).masked_fill(together[us] < 3, 0)
        scores[us] = 0
        assert len(feature.cofiring) == min(8, int((scores > 0).sum()))
        found = [scores[other.latent].item() for other in feature.cofiring]
        np.testing.assert_allclose(found, scores.topk(len(found)).values)
        for other in feature.cofiring:
            n += 1
            both, ours = together[feature.latent, other.latent], together[feature.latent, feature.latent]
            assert other.share == pytest.approx((both / ours).item(), rel=1e-4)
            rate = together[other.latent, other.latent] / len(rows)
            assert other.lift == pytest.approx((both / ours / rate).item(), rel=1e-4)
    assert n > LATENTS


def test_neighbours_and_logits_are_those_of_the_weights(made: Made) -> None:
    W = made.sae.W_dec.detach()
    cosines = torch.nn.functional.normalize(W, dim=1) @ torch.nn.functional.normalize(W, dim=1).T
    cosines.fill_diagonal_(-2)
    effects = logit_lens(made.sae, made.model, list(range(LATENTS)))
    for feature, effect in zip(made.store.features(range(LATENTS)), effects, strict=True):
        expected = cosines[feature.latent].topk(8)
        assert [n.latent for n in feature.neighbours] == expected.indices.tolist()
        np.testing.assert_allclose([n.cosine for n in feature.neighbours], expected.values, atol=1e-5)
        assert feature.encoder_cosine == pytest.approx(1, abs=1e-4)
        for ours, theirs in ((feature.promoted, effect.promoted), (feature.suppressed, effect.suppressed)):
            np.testing.assert_allclose([t.weight for t in ours], [w for _, w in theirs], rtol=1e-3, atol=1e-5)
        assert feature.logits is not None
        assert feature.logits.kurtosis > 1
        assert feature.logits.deviation > 0


def test_tables_are_filtered_sorted_and_paged(made: Made) -> None:
    store = made.store
    everything = store.table(limit=None)
    assert everything.column("latent").to_pylist() == list(range(LATENTS))
    rates = everything.column("rate").to_numpy()
    page = store.table("rate > 0.01", sort="-max", limit=5, offset=2, columns=["latent", "max"])
    assert page.column_names == ["latent", "max"]
    maxima = everything.column("max").to_pylist()
    order = sorted((i for i in range(LATENTS) if rates[i] > 0.01), key=lambda i: -maxima[i])
    assert page.column("latent").to_pylist() == order[2:7]
    assert store.count("rate > 0.01") == len(order)
    never = [latent for latent in range(LATENTS) if maxima[latent] is None]
    assert 0 in never
    for sort in ("max", "-max"):
        assert store.table(sort=sort, limit=None).column("latent").to_pylist()[-len(never) :] == never
    assert len(store.table("rate > 2")) == 0
    with pytest.raises(ConfigError, match="no column 'nonsense'"):
        store.table(sort="nonsense")
    with pytest.raises(ConfigError, match="cannot be run"):
        store.table("rate >")


def test_search_by_token_finds_what_fires_on_it_and_promotes_it(made: Made) -> None:
    feature = made.store[busiest(made)]
    token = feature.firing_tokens[0]
    found = made.store.search(token=token.text, limit=500).to_pylist()
    assert {"latent": feature.latent, "score": pytest.approx(token.share), "how": "fires on token"} in found
    promoted = feature.promoted[0].text
    assert any(
        row["latent"] == feature.latent and row["how"] == "promotes"
        for row in made.store.search(token=promoted, limit=500).to_pylist()
    )
    with pytest.raises(ConfigError, match="no token of the vocabulary"):
        made.store.search(token="xyzzyx")
    with pytest.raises(ConfigError, match="for words or for a meaning"):
        made.store.search()


def test_search_by_words_finds_features_whose_passages_have_them_whole(made: Made) -> None:
    latent = busiest(made)
    words = re.findall(r"[^\W\d_]{4,}", "".join(made.store[latent].top[0].texts).lower())[1:-1]

    def holding(pattern: str) -> set[int]:
        features = made.store.features(range(LATENTS))
        return {f.latent for f in features if any(re.search(pattern, "".join(e.texts).lower()) for e in f.top)}

    for word in words[:4]:
        whole = holding(rf"(?<![^\W_]){word}(?![^\W_])")
        assert latent in whole
        assert set(made.store.search(words=word, limit=500)["latent"].to_pylist()) == whole
    part = words[0][:-1] + "\u0131"  # no word ends so
    assert len(made.store.search(words=part)) == 0
    assert len(made.store.search(words="xyzzyx")) == 0


def test_sql_reads_the_tables_and_nothing_else(made: Made, tmp_path: Path) -> None:
    store = made.store
    n = store.sql("select count(*) as n from examples join passages using (passage) where latent = ?", [ALIVE])
    feature = store[ALIVE]
    assert n.column("n")[0].as_py() == len(feature.top + feature.samples + feature.near_misses + feature.silent)
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    for query in (
        f"select * from read_csv('{secret}')",
        f"select * from '{secret}'",
        f"select * from read_text('{store.path}/../../../../../../../..{secret}')",
        f"copy features to '{tmp_path}/out.csv'",
        f"copy features to '{store.path}/out.csv'",
        f"attach '{tmp_path}/x.db'",
        "create table t as select 1",
        "select 1; drop view features",
        "insert into features select * from features",
        "set threads = 1",
        "install httpfs",
        "select nonsense from features",
        "selec",
        "",
    ):
        with pytest.raises(ConfigError):
            store.sql(query)
    assert not list(tmp_path.glob("out*")) + list(store.path.glob("out*"))
    assert len(store.sql("from features")) == LATENTS


def test_a_condition_cannot_reach_the_files_of_the_store(made: Made) -> None:
    own = next((made.store.path / "features").glob("*.parquet"))
    before = own.read_bytes()
    for where in (
        f"1=1); copy (select 1) to '{own}' (format parquet); --",
        "true; select 1",
        "true) or (true",
        "true, true",
    ):
        for ask in (made.store.count, made.store.table):
            with pytest.raises(ConfigError):
                ask(where=where)
    assert own.read_bytes() == before
    assert made.store.count("true -- all of them") == LATENTS


def test_the_tables_are_those_that_are_documented(made: Made) -> None:
    """Names and order of columns, and where a direct reader finds them."""
    text = (Path(__file__).parents[2] / "docs" / "feature_store.md").read_text()
    for table in ("features", "details", "examples", "passages", "vocabulary", "contexts", "words", "word_features"):
        section = re.split(rf"\n## `{table}`[^\n]*\n", text)[1].split("\n## ")[0]
        rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
        documented = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
        files = sorted((made.store.path / table).glob("*.parquet"))
        assert len(files) == 1
        assert pq.read_schema(files[0]).names == documented


def test_every_file_is_in_the_index_and_an_older_store_is_gone(made: Made, tmp_path: Path) -> None:
    before = ms.harvest(made.sae, tmp_path / "f", made.model, tokens=600, progress=False)
    after = ms.harvest(made.sae, tmp_path / "f", made.model, tokens=1200, progress=False)
    assert before.index["generation"] != after.index["generation"]
    listed = {part["file"] for table in after.index["tables"].values() for part in table["parts"]}
    there = {str(p.relative_to(tmp_path / "f")) for p in (tmp_path / "f").rglob("*") if p.is_file()}
    assert there == listed | {"index.json"}


@pytest.mark.parametrize(
    "damage", ["missing", "cut short", "scribbled", "index", "version", "another index", "outside"]
)
def test_damage_is_named(made: Made, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "features"
    shutil.copytree(made.store.path, folder)
    index = json.loads((folder / "index.json").read_text())
    part = index["tables"]["examples"]["parts"][0]
    file = folder / part["file"]
    if damage == "missing":
        file.unlink()
    elif damage == "cut short":
        file.write_bytes(file.read_bytes()[:500])
    elif damage == "scribbled":
        content = bytearray(file.read_bytes())
        content[4:-8] = bytes(len(content) - 12)
        file.write_bytes(content)
    elif damage == "index":
        (folder / "index.json").write_text((folder / "index.json").read_text()[:300])
    elif damage == "version":
        (folder / "index.json").write_text(json.dumps(index | {"format_version": 99}))
    elif damage == "another index":
        (folder / "index.json").write_text("[1, 2]")
    else:
        part["file"] = "../../elsewhere.parquet"
        (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(FileError, match=r"harvest|outside") as error:
        FeatureStore(folder)[ALIVE]
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_no_store_says_how_to_make_one(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileError, match="monosem harvest"):
            FeatureStore(path)


def test_a_latent_that_does_not_exist_is_an_error(made: Made) -> None:
    for latent in (-1, LATENTS):
        with pytest.raises(IndexError, match="0 to 59"):
            made.store[latent]


def test_several_features_come_in_the_order_asked_for_with_their_own_facts(made: Made) -> None:
    wanted = [41, 3, 59, 3, 17, 0]
    for latent, feature in zip(wanted, made.store.features(wanted), strict=True):
        assert feature.latent == latent
        assert feature.to_dict() == made.store[latent].to_dict()
    assert json.loads(json.dumps(made.store[41].to_dict()))["latent"] == 41


def test_several_saes_share_a_pass_and_come_out_as_if_alone(made: Made, tmp_path: Path) -> None:
    other = ms.ReLUSAE(32, 20, seed=4)
    other.metadata = made.sae.metadata.model_copy(update={"hook": "resid_post.0"})
    stores = ms.harvest([made.sae, other], [tmp_path / "a", tmp_path / "b"], made.model, tokens=1500, progress=False)
    alone = ms.harvest(other, tmp_path / "c", made.model, tokens=1500, progress=False)
    assert [s.n_latents for s in stores] == [LATENTS, 20]
    assert stores[1].index["hook"] == "resid_post.0" != HOOK
    assert [f.to_dict() for f in stores[1].features(range(20))] == [f.to_dict() for f in alone.features(range(20))]
    with pytest.raises(ConfigError, match="folder of its own"):
        ms.harvest([made.sae, other], [tmp_path / "a"], made.model)


def test_a_card_escapes_text_and_runs_nothing(made: Made) -> None:
    import dataclasses

    feature = made.store[busiest(made)]
    evil = "<script>alert(1)</script>&\x07"
    example = dataclasses.replace(feature.top[0], texts=[evil] * len(feature.top[0].texts))
    promoted = [feature.promoted[0]._replace(text=evil)]
    card = dataclasses.replace(feature, top=[example], promoted=promoted, name=evil)._repr_html_()
    assert "<script" not in card
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;&lt;07&gt;" in card
    assert "http" not in card
    assert card.count("<div") == card.count("</div>")
    assert card.count("<span") == card.count("</span>")
    assert "rgba(var(--on),1.00)" in feature._repr_html_(), "the strongest token is fully shaded"
