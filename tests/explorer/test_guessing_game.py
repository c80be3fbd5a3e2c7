"""The game: rounds are the same for a seed and true to the store, nothing tells the answer; played by keys alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_vit import CLASSES, HOOK

import monosem as ms
from monosem.activations import reopened
from monosem.explorer import open_dictionaries
from monosem.explorer.guess import SHOWN, STRONG, Game
from monosem.explorer.page import Page
from monosem.features import harvest
from monosem.models import SubjectModel
from monosem.sae import SAE

N = 60


@pytest.fixture(scope="module")
def many_photos() -> np.ndarray:
    """(60, 8, 8, 3): each of one colour, and noise."""
    draw = np.random.default_rng(3)
    colours = draw.integers(0, 200, (N, 1, 1, 3))
    return (colours + draw.integers(0, 56, (N, 8, 8, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def sparse_sae(vit: SubjectModel, many_photos: np.ndarray) -> SAE:
    sae = ms.BatchTopKSAE(16, 64, k=1, seed=0)
    source = ms.activations(vit, HOOK, images=many_photos, buffer_tokens=320)
    ms.train(sae, source, tokens=6400, config=ms.TrainingConfig(batch_size=64, lr=3e-3), progress=False)
    return sae


@pytest.fixture(scope="module")
def picture_run(
    vit: SubjectModel, sparse_sae: SAE, many_photos: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("guess") / "pictures"
    archive = folder.with_name("photos.npz")
    np.savez(archive, x=many_photos, y=np.arange(N) % 3, classes=np.array(CLASSES))
    sparse_sae.save(folder / "sae")
    harvest(sparse_sae, folder / "features", vit, images=archive, progress=False)
    return folder


@pytest.fixture
def client(picture_run: Path, run_folder: Path, serve: Callable[..., Any]) -> Iterator[Any]:
    with serve(picture_run, run_folder) as found:
        yield found


def test_rounds_are_true_to_the_model(
    picture_run: Path, vit: SubjectModel, sparse_sae: SAE, many_photos: np.ndarray
) -> None:
    """The feature fires on the right image, half as strongly as anywhere or more, and on no patch of the others."""
    reader: Any = reopened(sparse_sae.metadata, vit, HOOK, images=many_photos)[0]
    x = vit.capture(reader.read(0, N).inputs, [HOOK])[HOOK][:, 1:]
    most = sparse_sae.encode(x).to_dense().detach().amax(1).numpy()
    dictionary = next(iter(open_dictionaries([picture_run]).values()))
    rounds = [one for seed in range(3) for one in Game(dictionary, seed).rounds]
    assert len(rounds) >= 6
    for one in rounds:
        strengths = [most[option["document"], one.latent] for option in one.options]
        assert strengths[one.right] >= STRONG * most[:, one.latent].max() * 0.999
        assert [i for i, strength in enumerate(strengths) if strength > 0] == [one.right]
        assert all(most[shown["document"], one.latent] > 0 for shown in one.shown)
        documents = [example["document"] for example in (*one.shown, *one.options)]
        assert len(set(documents)) == len(documents) == SHOWN + 4


@pytest.mark.parametrize("name", ["pictures", "small"])
def test_a_seed_is_a_game_and_nothing_tells_the_answer(client: Any, name: str) -> None:
    first, again = (client.get(f"/api/d/{name}/guess", seed=7, round=0) for _ in range(2))
    assert first == again
    assert first != client.get(f"/api/d/{name}/guess", seed=8, round=0)
    assert first["chance"] == 0.25
    for option in first["options"]:
        assert (option["activation"], option["activations"], option["label"]) == (0, [], None)
    assert {key: len({json.dumps(option[key]) for option in first["options"]}) for key in ("weight", "label")} == {
        "weight": 1,
        "label": 1,
    }
    assert "latent" not in first


def test_right_answers_stand_anywhere(run_folder: Path) -> None:
    dictionary = next(iter(open_dictionaries([run_folder]).values()))
    counts = Counter(one.right for seed in range(8) for one in Game(dictionary, seed).rounds)
    assert sorted(counts) == [0, 1, 2, 3]
    assert max(counts.values()) < 0.5 * sum(counts.values())


@pytest.mark.parametrize("name", ["pictures", "small"])
def test_the_score_counts_right_guesses_beside_the_machine_and_chance(client: Any, name: str) -> None:
    rounds = min(4, client.get(f"/api/d/{name}/guess", seed=2)["rounds"])
    right: list[int] = []
    machine: list[int] = []
    for number in range(rounds):
        solved = client.send("POST", f"/api/d/{name}/guess", {"seed": 2, "choices": [0] * (number + 1)})
        right.append(solved["right"])
        machine.append(solved["machine"])
        assert [bool(option["activations"]) for option in solved["options"]] == [i == right[-1] for i in range(4)]
    all_right = client.send("POST", f"/api/d/{name}/guess", {"seed": 2, "choices": right})
    assert (all_right["you"]["hits"], all_right["you"]["n"]) == (rounds, rounds)
    assert all_right["p"] == pytest.approx(0.25**rounds)
    assert all_right["by_machine"]["hits"] == sum(a == b for a, b in zip(machine, right, strict=True))
    wrong = client.send("POST", f"/api/d/{name}/guess", {"seed": 2, "choices": [(one + 1) % 4 for one in right]})
    assert (wrong["you"]["hits"], wrong["p"]) == (0, 1)


def test_bad_input_is_refused(client: Any) -> None:
    for query, status in (({"seed": -1}, 422), ({"round": 10}, 422), ({"seed": 2**40}, 422)):
        assert client.ask("/api/d/pictures/guess", **query).status == status
    for given in ({"seed": 1, "choices": []}, {"seed": 1, "choices": [0] * 11}, {"seed": 1}):
        assert client.ask("/api/d/pictures/guess", "POST", given).status == 422
    reply = client.ask("/api/d/pictures/guess", "POST", {"seed": 1, "choices": [4]})
    assert reply.status == 400
    assert "an option is 0 to 3" in reply.json["error"]
    assert client.ask("/api/d/nobody/guess").status == 404


def test_ready_vectors_are_not_played_with(tmp_path: Path, serve: Callable[..., Any]) -> None:
    sae = ms.TopKSAE(8, 16, k=2, seed=0)
    x = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    sae.save(tmp_path / "vectors/sae")
    harvest(sae, tmp_path / "vectors/features", vectors=x, progress=False)
    with serve(tmp_path / "vectors") as client:
        reply = client.ask("/api/d/vectors/guess")
    assert reply.status == 409
    assert "ready vectors" in reply.json["error"]


@pytest.mark.parametrize("name", ["pictures", "small"])
def test_a_game_is_played_by_keys_alone(
    picture_run: Path, run_folder: Path, look: Callable[..., Any], start: Callable[..., Any], name: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    thing = "image" if name == "pictures" else "passage"
    with start([picture_run, run_folder], Page()) as client, look(client.base) as visit:
        page = visit.page
        rounds = client.get(f"/api/d/{name}/guess", seed=5)["rounds"]
        visit.open(f"/d/{name}/guess?seed=5")
        visit.sees("h1", f"Guess the {thing}")
        chosen: list[int] = []
        played = rounds if name == "pictures" else 2
        for number in range(played):
            visit.sees("[role=status]", f"round {number + 1} of {rounds}")
            page.keyboard.press("Enter")  # nothing is chosen yet
            solved = client.send("POST", f"/api/d/{name}/guess", {"seed": 5, "choices": [*chosen, 0]})
            chosen.append((solved["right"] + (number == 1)) % 4)  # one is wrong
            page.locator(".option").nth(3).wait_for()
            page.keyboard.press(str(chosen[-1] + 1))
            visit.sees(".after", "No, it was" if number == 1 else "Right.")
            assert page.locator(".option.right").count() == 1
            if number == 0:
                assert Axe().run(page).response["violations"] == []
                visit.shoot(f"guess_{name}")
            if number == 1:
                page.reload()
                visit.sees(".after", "No, it was")
            if number + 1 < rounds:
                page.keyboard.press("Enter")
        if played < rounds:
            return
        visit.sees("table.result", f"{rounds - 1} of {rounds}")
        visit.shoot(f"guessed_{name}")
        page.keyboard.press("Enter")
        visit.stands_at(r"seed=6$")
        visit.sees("[role=status]", "round 1 of")
