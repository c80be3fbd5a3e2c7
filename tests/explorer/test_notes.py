"""Notes are kept, found, exchanged, and never lost."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from monosem.explorer.notes import Notes
from monosem.explorer.shapes import NoteChange

EMPTY = {"latent": 9, "label": None, "comment": None, "starred": False, "lists": [], "changed": None}


@pytest.fixture
def own_run(run_folder: Path, tmp_path: Path) -> Path:
    """A copy without notes."""
    shutil.copytree(run_folder, tmp_path / "own")
    (tmp_path / "own/features.notes.sqlite").unlink(missing_ok=True)
    return tmp_path / "own"


def test_notes_survive_a_restart_and_another_harvest(serve: Any, own_run: Path) -> None:
    with serve(own_run) as client:
        assert client.get("/api/d/own/notes/9") == EMPTY
        client.send("PUT", "/api/d/own/notes/9", {"label": " rivers ", "starred": True})
        note = client.send("PUT", "/api/d/own/notes/9", {"comment": "قال «نهر»", "lists": ["places", "places", "b"]})
        assert (note["label"], note["comment"], note["starred"]) == ("rivers", "قال «نهر»", True)
        assert note["lists"] == ["b", "places"]
    kept = (own_run / "features").rename(own_run / "old")
    shutil.copytree(kept, own_run / "features")
    with serve(own_run) as client:
        assert client.get("/api/d/own/notes/9") == note
        assert client.get("/api/d/own/f/9")["note"] == note
        assert client.get("/api/d/own")["lists"] == [{"name": "b", "count": 1}, {"name": "places", "count": 1}]
        assert client.send("DELETE", "/api/d/own/notes/9", {}) == EMPTY
    with serve(own_run) as client:
        assert client.get("/api/d/own/notes")["notes"] == []


def test_the_table_and_the_search_know_labels(serve: Any, own_run: Path) -> None:
    with serve(own_run) as client:
        for latent, label in ((200, "b words"), (9, "A words"), (40, "c")):
            client.send("PUT", f"/api/d/own/notes/{latent}", {"label": label, "lists": ["mine"] if latent < 50 else []})
        client.send("PUT", "/api/d/own/notes/77", {"starred": True, "comment": "strange words"})

        def latents(**query: Any) -> list[int]:
            return [row["latent"] for row in client.get("/api/d/own/features", **query)["rows"]]

        assert latents(labelled="true", sort="label") == [9, 200, 40]
        assert latents(labelled="true", sort="-label") == [40, 200, 9]
        assert latents(sort="label", limit=4) == [9, 200, 40, 0]
        assert latents(list="mine") == [9, 40]
        assert latents(starred="true") == [77]
        assert latents(sort="-starred", limit=2) == [77, 0]
        assert {9, 200} <= set(latents(contains="WORDS", limit=500))
        found = client.get("/api/d/own/search", q="words", kind="notes")["results"]
        assert [(row["latent"], row["how"]) for row in found] == [(9, "label"), (200, "label"), (77, "comment")]
        assert client.get("/api/d/own/search", q="A words")["results"][0]["label"] == "A words"


def test_notes_go_from_one_machine_to_another(serve: Any, own_run: Path) -> None:
    with serve(own_run) as client:
        client.send("PUT", "/api/d/own/notes/9", {"label": "one", "lists": ["x"]})
        client.send("PUT", "/api/d/own/notes/10", {"comment": "two", "starred": True})
        exported = client.get("/api/d/own/notes")
        (own_run / "features.notes.sqlite").unlink()
        client.send("PUT", "/api/d/own/notes/9", {"label": "other"})
        client.send("PUT", "/api/d/own/notes/11", {"label": "stays"})
        assert client.send("POST", "/api/d/own/notes", exported) == {"imported": 2}
        after = {note["latent"]: note for note in client.get("/api/d/own/notes")["notes"]}
        assert after[9] == exported["notes"][0]
        assert after[10] == exported["notes"][1]
        assert after[11]["label"] == "stays"


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"dictionary": "0" * 16}, 409, "another dictionary"),
        ({"format": "others"}, 422, "format"),
        ({"format_version": 2}, 422, "format_version"),
        ({"notes": [{"latent": 256}]}, 400, "latent 256"),
        ({"notes": [{"latent": 1, "label": 7}]}, 400, "note of latent 1"),
        ({"notes": [{"latent": 2, "label": "kept out"}, {"latent": "1; drop table notes"}]}, 400, "drop table"),
    ],
)
def test_a_wrong_file_of_notes_is_refused_whole(client: Any, change: dict[str, Any], status: int, says: str) -> None:
    exported = client.get("/api/d/small/notes")
    reply = client.ask("/api/d/small/notes", "POST", {**exported, **change})
    assert (reply.status, says in reply.json["error"]) == (status, True), reply
    assert client.get("/api/d/small/notes") == exported


def test_a_wrong_note_is_refused(client: Any) -> None:
    for body, status in (({"label": 7}, 422), ({"colour": "red"}, 422), ({"label": "x" * 501}, 422), (b"{", 422)):
        assert client.ask("/api/d/small/notes/3", "PUT", body).status == status
    assert client.ask("/api/d/small/notes/256", "PUT", {"label": "x"}).status == 404


def test_notes_of_another_dictionary_in_the_same_place_stay_apart(tmp_path: Path) -> None:
    first, second = (Notes(tmp_path / "n.sqlite", name, 10) for name in ("a" * 16, "b" * 16))
    first.change(3, NoteChange(label="first"))
    assert second[3]["label"] is None
    second.change(3, NoteChange(label="second"))
    assert (first[3]["label"], second[3]["label"]) == ("first", "second")


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    stores = [Notes(tmp_path / "n.sqlite", "a" * 16, 1000) for _ in range(2)]
    with ThreadPoolExecutor(8) as writers:
        list(writers.map(lambda i: stores[i % 2].change(i, NoteChange(label=str(i))), range(60)))
    assert stores[0].labels() == {i: str(i) for i in range(60)}


def test_a_place_that_cannot_be_written_is_said(own_run: Path, serve: Any) -> None:
    (own_run / "features.notes.sqlite").write_bytes(b"no database, but some other file" * 10)
    with serve(own_run) as client:
        reply = client.ask("/api/d/own/notes/3", "PUT", {"label": "x"})
        assert reply.status == 500
        assert "features.notes.sqlite cannot be used" in reply.json["error"]
