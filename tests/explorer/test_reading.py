"""The API says what the store holds."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from monosem.evaluation import EvaluationReport
from monosem.explorer import shapes
from monosem.features import FeatureStore

SHAPES = {
    "/api/dictionaries": shapes.Site,
    "/api/d/small": shapes.Dictionary,
    "/api/d/second": shapes.Dictionary,
    "/api/d/small/features": shapes.Page,
    "/api/d/small/histogram": shapes.ColumnHistogram,
    "/api/d/small/map": shapes.Map,
    "/api/d/small/f/3": shapes.Feature,
    "/api/d/small/f/3/matches": list[shapes.Match],
    "/api/d/small/f/3/python": shapes.Code,
    "/api/d/small/previews?latents=1,2": list[shapes.Preview],
    "/api/d/small/search?q=the": shapes.Found,
    "/api/d/small/model": shapes.ModelState,
    "/api/d/small/notes": shapes.Notes,
    "/api/d/small/notes/3": shapes.Note,
    "/api/compare?a=small&b=second": shapes.Comparison,
}


@pytest.fixture(scope="module")
def store(run_folder: Path) -> FeatureStore:
    return FeatureStore(run_folder)


@pytest.mark.parametrize("path", SHAPES)
def test_an_answer_has_the_documented_shape(client: Any, path: str) -> None:
    TypeAdapter(SHAPES[path]).validate_python(client.get(path))


def test_openapi_names_every_endpoint_that_is_documented(client: Any) -> None:
    described = client.get("/api/openapi.json")["paths"]
    documented = (Path(__file__).parents[2] / "docs/explorer_api.md").read_text()
    for path in described:
        short = (
            path.replace("{name}", "NAME")
            .replace("{number}", "NUMBER")
            .replace("/f/{latent}", "/f/N")
            .replace("/notes/{latent}", "/notes/N")
            .replace("{graph}", "ID")
        )
        assert re.search(rf"`([A-Z]+ )?{re.escape(short)}(?!\w)", documented), short
    assert len(described) >= 15


def test_a_dictionary_is_what_its_store_and_its_evaluation_say(
    client: Any, store: FeatureStore, run_folder: Path
) -> None:
    about = client.get("/api/d/small")
    assert (about["n_latents"], about["tokens"]) == (store.n_latents, store.n_tokens)
    assert about["alive"] == store.count("count > 0")
    assert about["alive"] + about["dead"] == store.n_latents
    assert about["hook"] == "resid_post.2"
    assert about["settings"]["k"] == 16
    assert sum(about["rate_histogram"]["counts"]) == about["alive"]
    assert about["rate_histogram"]["left_out"] == about["dead"]
    report = EvaluationReport.load(run_folder / "evaluation.json")
    metrics = {metric["key"]: {c["name"]: c for c in metric["columns"]} for metric in about["evaluation"]["metrics"]}
    assert metrics["fvu"]["SAE"]["value"] == pytest.approx(report["fvu"].value, rel=1e-6)
    assert metrics["fvu"]["SAE"]["low"] == pytest.approx(report["fvu"].low, rel=1e-6)
    assert metrics["fvu"]["mean"]["value"] == pytest.approx(report.columns["mean"]["fvu"].value, rel=1e-6)
    assert all(0 <= latent < store.n_latents for latent in about["notable"])


def test_a_feature_is_what_the_store_says(client: Any, store: FeatureStore) -> None:
    latent = int(store.table(sort="-count", limit=1).column("latent")[0].as_py())
    found, feature = client.get(f"/api/d/small/f/{latent}"), store[latent]
    assert (found["count"], found["name"]) == (feature.count, feature.name)
    assert sum(found["histogram"]["counts"]) == feature.count
    assert [e["activation"] for e in found["top"]] == pytest.approx([e.activation for e in feature.top], rel=1e-6)
    assert ["".join(e["texts"]) for e in found["top"]] == ["".join(e.texts) for e in feature.top]
    for example, truth in zip(found["top"], feature.top, strict=True):
        assert example["activations"] == pytest.approx(truth.activations.tolist(), rel=1e-3)
    assert [o["latent"] for o in found["neighbours"]] == [n.latent for n in feature.neighbours]
    assert [o["name"] for o in found["neighbours"]] == [store[n.latent].name for n in feature.neighbours]
    assert [o["share"] for o in found["cofiring"]] == pytest.approx([c.share for c in feature.cofiring], rel=1e-6)


def test_the_examples_of_an_interval_are_its_own_random_sample(client: Any, store: FeatureStore) -> None:
    for latent in store.table(where="count > 50", limit=10).column("latent").to_pylist():
        found = client.get(f"/api/d/small/f/{latent}")
        for interval, truth in zip(found["intervals"], store[latent].intervals(), strict=True):
            chosen = [found["samples"][i]["activation"] for i in interval["examples"]]
            assert chosen == pytest.approx([e.activation for e in truth.examples], rel=1e-6)
            assert interval["count"] == truth.count


def test_a_feature_that_never_fired_says_so(client: Any) -> None:
    found = client.get("/api/d/second/f/255")
    assert (found["count"], found["max"], found["name"]) == (0, None, "never fired")
    assert (found["top"], found["samples"], found["intervals"], found["histogram"]["counts"]) == ([], [], [], [])
    assert len(found["silent"]) > 0


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/api/d/none", 404, "no dictionary 'none': there are small, second"),
        ("/api/d/small/f/256", 404, "there are 0 to 255"),
        ("/api/d/small/f/-1", 404, "there are 0 to 255"),
        ("/api/d/small/f/x", 422, "latent"),
        ("/api/nothing", 404, "/api/openapi.json"),
        ("/api/d/small/features?sort=colour", 400, "no column 'colour'"),
        ("/api/d/small/features?range=rate,x,", 400, "'x' is no number"),
        ("/api/d/small/features?range=top_token_text,1,2", 400, "COLUMN,LOW,HIGH"),
        ("/api/d/small/features?where=colour%20%3E%201", 400, "cannot be run"),
        ("/api/d/small/features?where=1)%20union%20select%201%20--", 400, "cannot be run"),
        ("/api/d/small/features?limit=501", 422, "limit"),
        ("/api/d/small/histogram?column=top_token_text", 400, "choose one of"),
        ("/api/d/small/search?q=", 400, "empty"),
        ("/api/d/small/search?q=x&kind=magic", 400, "search by"),
        ("/api/d/small/search?q=x&kind=similar", 400, "number of a feature"),
        ("/api/compare?a=small&b=small", 400, "two different"),
        ("/api/d/small/context?text=none&context=0&latent=1", 400, "none that small was harvested on"),
    ],
)
def test_a_wrong_question_gets_a_status_and_a_clear_word(client: Any, path: str, status: int, says: str) -> None:
    reply = client.ask(path)
    assert (reply.status, says in reply.json["error"]) == (status, True), reply


@pytest.mark.parametrize("file", ["/etc/passwd", "RUN/run.yaml", "RUN/sae/cfg.json"])
def test_a_condition_reaches_no_other_file(client: Any, run_folder: Path, file: str) -> None:
    path = file.replace("RUN", str(run_folder))
    condition = f"(select count(*) from read_text('{path}')) > 0"
    reply = client.ask("/api/d/small/features", where=condition)
    assert reply.status == 400
    assert "cannot be read from here" in reply.json["error"], reply


# The table ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(client: Any) -> list[dict[str, Any]]:
    return client.get("/api/d/small/features", limit=500)["rows"]


Filter = Callable[[dict[str, Any]], bool]


@pytest.mark.parametrize(
    ("query", "holds"),
    [
        ({"range": "rate,0.01,0.05"}, lambda row: 0.01 <= row["rate"] <= 0.05),
        ({"range": ["rate,0.01,", "max,,3"]}, lambda row: row["rate"] >= 0.01 and row["max"] and row["max"] <= 3),
        ({"dead": "false"}, lambda row: row["count"] > 0),
        ({"latents": "3,1,9"}, lambda row: row["latent"] in (1, 3, 9)),
        ({"where": "latent % 7 = 0 -- every seventh"}, lambda row: row["latent"] % 7 == 0),
        ({"contains": "Th"}, lambda row: any("th" in words for words in words_of(row))),
        ({"contains": "%"}, lambda row: any("%" in words for words in words_of(row))),
        ({"starred": "true"}, lambda row: False),
    ],
)
def test_filters_leave_exactly_the_rows_that_hold(
    client: Any, rows: list[dict[str, Any]], query: dict[str, Any], holds: Filter
) -> None:
    wanted = [row["latent"] for row in rows if holds(row)]
    found = client.get("/api/d/small/features", limit=500, **query)
    assert [row["latent"] for row in found["rows"]] == wanted
    assert found["total"] == len(wanted)


def words_of(row: dict[str, Any]) -> list[str]:
    """In small letters: what "contains" looks in."""
    explained = (row["explanation"] or {}).get("text")
    return [(words or "").lower() for words in (row["name"], row["top_token_text"], row["promoted_text"], explained)]


@pytest.mark.parametrize("sort", ["-max", "rate", "nearest_cosine", "-clarity", "-latent", "name"])
def test_pages_of_a_sorted_table_are_the_whole_in_order(client: Any, rows: list[dict[str, Any]], sort: str) -> None:
    pages = [client.get("/api/d/small/features", limit=100, offset=offset, sort=sort) for offset in (0, 100, 200)]
    found = [row for one in pages for row in one["rows"]]
    assert sorted(row["latent"] for row in found) == [row["latent"] for row in rows]
    column = sort.removeprefix("-")
    if column != "name":
        values = [row[column] for row in found if row[column] is not None]
        assert values == sorted(values, reverse=sort.startswith("-"))


@pytest.mark.parametrize(
    ("column", "log"), [("rate", True), ("max", False), ("nearest_cosine", False), ("count", True)]
)
def test_brushing_a_histogram_leaves_what_its_bins_count(client: Any, column: str, log: bool) -> None:
    found = client.get("/api/d/small/histogram", column=column, bins=12, log=str(log).lower())
    assert sum(found["counts"]) + found["left_out"] == found["total"] == 256
    whole = client.get("/api/d/small/features", range=f"{column},{found['edges'][0]},{found['edges'][-1]}")
    assert whole["total"] == sum(found["counts"])
    part = client.get("/api/d/small/features", range=f"{column},{found['edges'][2]},{found['edges'][9]}")
    assert part["total"] == pytest.approx(sum(found["counts"][2:9]), abs=1)


def test_a_histogram_keeps_to_the_filters(client: Any) -> None:
    found = client.get("/api/d/small/histogram", column="latent", bins=4, where="latent < 100")
    assert (found["total"], sum(found["counts"])) == (100, 100)
    assert found["edges"][-1] == pytest.approx(99, abs=0.1)


# Map, search ----------------------------------------------------------------------------------------------------------


def test_the_map_holds_the_features_that_fire_and_is_always_the_same(client: Any, store: FeatureStore) -> None:
    found = client.get("/api/d/small/map")
    assert found["latents"] == store.table("count > 0", limit=None).column("latent").to_pylist()
    assert len(found["x"]) == len(found["names"]) == found["points"] == found["total"]
    assert max(map(abs, found["x"] + found["y"])) == pytest.approx(1)
    assert found == client.get("/api/d/small/map")


def test_search_finds_words_tokens_numbers_and_passages(client: Any, store: FeatureStore) -> None:
    def ask(**query: Any) -> Any:
        return client.get("/api/d/small/search", **query)

    by_token = ask(q="the", kind="token", limit=200)["results"]
    firing = [row for row in by_token if row["how"] == "fires on token"]
    assert firing
    for row in firing[:3]:
        assert "the" in [t.text.strip().lower() for t in store[row["latent"]].firing_tokens]
    assert ask(q=" 17 ")["results"][0]["latent"] == 17
    word = max("".join(store[by_token[0]["latent"]].top[0].texts[1:-1]).split(), key=len)
    word = max(re.findall(r"[^\W_]+", word), key=len)
    assert by_token[0]["latent"] in [row["latent"] for row in ask(q=word, kind="words", limit=200)["results"]]
    # Of everything, a part of each kind: what fires on a common word does not hide the passages.
    everything = ask(q="the", limit=20)
    hows = [row["how"] for row in everything["results"]]
    assert {how: hows.count(how) for how in ("fires on", "passages")} == {"fires on": 5, "passages": 5}
    for group in everything["groups"]:
        assert hows.count(group["how"]) <= group["total"]
        if group["kind"] in ("word", "promotes", "suppresses", "words"):  # also of those that stand under another head
            assert ask(q="the", kind=group["kind"])["groups"] == [group]
    assert {"promotes", "suppresses"} <= {group["how"] for group in everything["groups"]}


def test_a_word_shows_its_evidence_and_where_it_stands(client: Any, store: FeatureStore) -> None:
    found = client.get("/api/d/small/search", q=" The", kind="word")
    assert found["groups"] == [{"how": "fires on", "total": len(found["results"]), "kind": "word"}]
    assert store.words is not None
    truth = store.words.find("the")
    assert [row["latent"] for row in found["results"]] == [firing.latent for firing in truth]
    for row, firing in zip(found["results"], truth, strict=True):
        evidence = firing.evidence._asdict()
        assert row["word"].pop("text") == evidence.pop("text") == "the"
        assert row["word"] == pytest.approx(evidence, rel=1e-6)
        passage = row["passage"]
        assert passage["texts"][passage["peak"]].strip().lower() in "the"
        assert passage["activations"][passage["peak"]] > 0


def test_a_group_is_listed_in_pages(client: Any) -> None:
    whole = client.get("/api/d/small/search", q="the", kind="promotes", limit=200)
    total = whole["groups"][0]["total"]
    assert total == len(whole["results"]) > 3
    pages = [client.get("/api/d/small/search", q="the", kind="promotes", limit=2, offset=i) for i in range(0, total, 2)]
    assert [row for page in pages for row in page["results"]] == whole["results"]


def test_what_is_found_nowhere_is_read_by_the_model(client: Any) -> None:
    found = client.get("/api/d/small/search", q="qqqzzz")
    assert {row["how"] for row in found["results"]} == {"activating text"}
    assert "no word, token or passage" in found["words"]
    for row in found["results"][:5]:
        assert row["passage"]["activations"][row["passage"]["peak"]] > 0
        assert "".join(row["passage"]["texts"]).replace("<|endoftext|>", "") == "qqqzzz"


def test_all_dictionaries_are_searched_at_once(client: Any) -> None:
    found = client.get("/api/search", q="the", kind="word")
    assert [each["name"] for each in found["dictionaries"]] == ["small", "second"]
    for each in found["dictionaries"]:
        alone = client.get(f"/api/d/{each['name']}/search", q="the", kind="word", limit=12)
        assert (each["found"], each["error"]) == (alone, None)
    wrong = client.get("/api/search", q="xyzzyx", kind="similar")
    assert all("takes the number of a feature" in each["error"] for each in wrong["dictionaries"])
    assert client.ask("/api/search", q=" ").status == 400


def test_search_by_similarity_is_the_order_of_decoder_cosines(client: Any, run_folder: Path) -> None:
    from monosem.sae import load_sae

    rows = load_sae(run_folder).W_dec.detach()
    cosines = (rows / rows.norm(dim=1, keepdim=True)) @ (rows[5] / rows[5].norm())
    cosines[5] = -2
    found = client.get("/api/d/small/search", q="5", kind="similar", limit=10)["results"]
    assert [row["score"] for row in found] == pytest.approx(cosines.topk(10).values.tolist(), abs=1e-5)


def test_previews_come_in_the_order_asked_for(client: Any) -> None:
    found = client.get("/api/d/small/previews", latents="9,2,30")
    assert [one["latent"] for one in found] == [9, 2, 30]
    assert all(len(one["passages"]) <= 3 for one in found)


def test_previews_show_the_passages_that_hold_the_words(client: Any) -> None:
    """Those that a search for words has found, where they are not among the strongest three."""
    rows = client.get("/api/d/small/search", q="water", kind="words")["results"]
    assert rows
    latents = ",".join(str(row["latent"]) for row in rows[:20])
    shown = client.get("/api/d/small/previews", latents=latents, words="Water")
    assert all("water" in "".join(one["passages"][0]["texts"]).lower() for one in shown)
    assert shown != client.get("/api/d/small/previews", latents=latents)


# Many readers, damaged stores -----------------------------------------------------------------------------------------


def test_fifty_readers_at_once_get_no_error(client: Any) -> None:
    paths = [
        "/api/d/small",
        "/api/d/small/features?limit=20&sort=-rate",
        "/api/d/small/map",
        "/api/d/small/search?q=the",
        *[f"/api/d/small/f/{latent}" for latent in range(0, 200, 9)],
    ]
    stop = time.monotonic() + 3

    def read(reader: int) -> list[int]:
        statuses: list[int] = []
        while time.monotonic() < stop:
            statuses.append(client.ask(paths[(reader + len(statuses)) % len(paths)]).status)
        return statuses

    with ThreadPoolExecutor(50) as readers:
        found = [status for statuses in readers.map(read, range(50)) for status in statuses]
    assert set(found) == {200}
    assert len(found) >= 50


def one_line(outcome: Any) -> str:
    """The one line of an expected error."""
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    return outcome.err


@pytest.mark.parametrize("damage", ["cut", "same size", "missing", "version", "torn index"])
def test_a_store_that_cannot_be_read_is_named_before_the_server_starts(
    monosem: Callable[..., Any], run_folder: Path, tmp_path: Path, damage: str
) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    features = tmp_path / "run/features"
    (part,) = (features / "details").iterdir()
    index, says = features / "index.json", part.name
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:-100])
    elif damage == "same size":
        part.write_bytes(b"\x07" * part.stat().st_size)
    elif damage == "missing":
        part.unlink()
    elif damage == "version":
        index.write_text(re.sub(r'"format_version": \d+', '"format_version": 99', index.read_text()))
        says = "version 99"
    else:
        index.write_text(index.read_text()[:200])
        says = "index.json cannot be read"
    assert says in one_line(monosem("explore", tmp_path / "run", "--no-open", "--port", 0))


def test_a_file_damaged_later_is_an_error_and_not_a_crash(serve: Any, run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    with serve(tmp_path / "run") as client:
        assert client.ask("/api/d/run/f/3").status == 200
        for table in ("details", "examples"):
            (part,) = (tmp_path / "run/features" / table).iterdir()
            part.write_bytes(b"PAR1" + b"\x00" * (part.stat().st_size - 8) + b"PAR1")
        reply = client.ask("/api/d/run/f/200")
        assert reply.status == 500
        assert "harvest the run again" in reply.json["error"]
        assert client.ask("/api/dictionaries").status == 200
