"""monosem steer: what it prints is what the library writes and measures, and every mistake is one line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import monosem as ms
from monosem.cli.steer import marked
from monosem.models import SubjectModel

DEMO = Path(__file__).parents[1] / "data" / "demo_sae"
PROMPT = "The king and all"
Command = Callable[..., Any]


@pytest.fixture
def steer(monosem: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """On a terminal so wide that no text is broken."""
    monkeypatch.setenv("COLUMNS", "400")

    def call(*arguments: str) -> Any:
        common = ["bundled", "--sae", str(DEMO), "--prompt", PROMPT, "--tokens", "12", "--temperature", "0"]
        return monosem("steer", *common, *arguments)

    return call


def written(model: SubjectModel, *edits: Any) -> ms.Generation:
    return ms.generate(model, PROMPT, edits=list(edits), max_new_tokens=12, temperature=0, top_k=0)


def columns(out: str) -> tuple[str, str]:
    """The plain and the steered text."""
    lines = out.splitlines()
    middle = lines[0].index("steered")
    body = lines[1 : lines.index("")]
    texts = tuple(" ".join(part.split()) for part in (
        " ".join(line[:middle] for line in body), " ".join(line[middle:] for line in body)
    ))  # fmt: skip
    return texts[0], texts[1]


def words(text: str) -> list[str]:
    return text.replace("|", " ").split()


def test_both_texts_what_was_done_and_how_fluent_it_is(steer: Command, bundled: SubjectModel) -> None:
    sae = ms.load_sae(DEMO)
    plain, steered = written(bundled), written(bundled, ms.Add(sae, 109, 6.0))
    assert plain.text != steered.text
    outcome = steer("--feature", "109=+6")
    assert outcome.code == 0, outcome.err
    assert [words(text) for text in columns(outcome.out)] == [plain.text.split(), steered.text.split()]
    assert all("|" in text for text in columns(outcome.out)), "where they part is marked"
    assert steered.said()[0] in outcome.out
    said = [float(one) for one in re.findall(r"([\d.]+) (?:plain|steered) ?(?:\(by|,)", outcome.out)]
    for one, shown in zip((plain, steered), said, strict=True):
        ids = torch.tensor([one.prompt_tokens + one.tokens], device=bundled.device)
        log_p = bundled(ids)[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[len(one.prompt_tokens) - 1 :, 0]
        assert shown == pytest.approx(math.exp(-float(log_p.mean())), rel=0.01)


def test_how_far_it_moves_is_told_as_a_share_of_what_stands_there(steer: Command, bundled: SubjectModel) -> None:
    sae = ms.load_sae(DEMO)
    hook = str(sae.metadata.hook)
    text = written(bundled, ms.Add(sae, 109, 6.0))
    x = bundled.capture(torch.tensor([text.prompt_tokens + text.tokens]), [hook])[hook][0, 1:]
    share = 6 * float(sae.decoder_directions([109]).norm()) / float(x.norm(dim=-1).mean())
    shown = re.search(r"moved by (\d+)% of their length at (\S+),", steer("--feature", "109=+6").out)
    assert shown is not None
    assert shown[2] == hook
    assert int(shown[1]) == pytest.approx(100 * share, abs=1)


def test_an_amount_of_nothing_changes_no_word_and_says_so(steer: Command) -> None:
    outcome = steer("--feature", "109=+0", "--feature", "7=*1")
    one, other = columns(outcome.out)
    assert one == other
    assert "|" not in one
    assert outcome.out.count("changed nothing") == 2
    assert "The two texts are the same" in outcome.out


def test_several_features_each_in_its_way_and_at_generated_tokens_alone(steer: Command, bundled: SubjectModel) -> None:
    sae, where = ms.load_sae(DEMO), ms.Where(phase="generated")
    edits = [ms.Set(sae, 109, 5.0, where=where), ms.Ablate(sae, 187, where=where), ms.Add(sae, 3, -1.0, where=where)]
    expected = written(bundled, *edits)
    outcome = steer("--feature", "109=5", "--feature", "187=off", "--feature", "3=-1", "--where", "generated")
    assert words(columns(outcome.out)[1]) == expected.text.split()
    for line in expected.said():
        assert line in outcome.out
    assert f"changed {len(expected.tokens) - 1} positions" in outcome.out, "the last token is not read any more"


def test_a_text_ends_before_what_stops_it(steer: Command, bundled: SubjectModel) -> None:
    stop = written(bundled).text.split()[3]
    outcome = steer("--feature", "109=+0", "--stop", stop)
    assert words(columns(outcome.out)[0]) == written(bundled).text.split(stop)[0].split()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--feature", "109"], "12=+3 adds"),
        (["--feature", "109=+much"], "cannot be read"),
        (["--feature", "109=off3"], "cannot be read"),
        (["--feature", "109=+inf"], "cannot be read"),
        (["--feature", "4096=+1"], "there is no latent 4096: this SAE has latents 0 to 4095"),
        (["--feature", "109=+1", "--hook", "resid_post.99"], "resid_post.99"),
        (["--feature", "109=+1", "--chat"], "template"),
        (["--feature", "109=+1", "--tokens", "100000"], "context"),
    ],
)
def test_a_mistake_is_one_line(steer: Command, arguments: list[str], told: str) -> None:
    outcome = steer(*arguments)
    assert outcome.code == 2, outcome
    assert told in outcome.err
    assert outcome.out == ""
    assert len(outcome.err.strip().splitlines()) == 1


def test_features_are_read_before_the_model_is_looked_for(monosem: Command) -> None:
    outcome = monosem("steer", "no/such_model", "--sae", DEMO, "--prompt", "One", "--feature", "9999=+1")
    assert "there is no latent 9999" in outcome.err
    missing = monosem("steer", "bundled", "--sae", DEMO, "--prompt", "One")
    assert missing.code == 2
    assert "--feature" in missing.err


@pytest.mark.parametrize(
    ("one", "other", "alone"),
    [
        (" the same words", " the same words", ([], [])),
        (" a dog ran home", " a cat ran home", (["dog"], ["cat"])),
        (" a dog", " a dog ran", ([], ["ran"])),
        ("", " all new", ([], ["all", "new"])),
        ("\n two  spaces here", "\n two  spaces there", (["here"], ["there"])),
    ],
)
def test_what_the_other_lacks_is_bold_and_nothing_is_lost(one: str, other: str, alone: tuple[Any, Any]) -> None:
    for text, given, wanted in zip(marked(one, other), (one, other), alone, strict=True):
        assert text.plain.replace(" |", "", 1) == given or one == other == text.plain
        bold = "".join(text.plain[span.start : span.end] for span in text.spans if "bold" in str(span.style))
        assert bold.split() == wanted
