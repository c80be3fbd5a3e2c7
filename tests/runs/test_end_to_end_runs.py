"""`loss:` of a run.yaml: one pass for local and end-to-end dictionaries, and what cannot be said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from monosem.errors import ConfigError
from monosem.runs import Run, RunConfig
from monosem.runs.several import describe_each
from monosem.sae import load_sae

RUN = """
hook: resid_post.2
tokens: 1536
sae: {n_latents: 64, k: 8}
training: {batch_size: 512}
activations: {buffer_tokens: 1024, context_length: 64}
grid: {loss.kind: [reconstruction, end_to_end, downstream]}
"""


def test_local_and_end_to_end_from_one_pass_each_as_its_own_file_gives_it(
    tmp_path: Path, monosem: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(RUN)
    assert monosem("train", "run.yaml", "--no-evaluation", "--set=output=all").code == 0
    members = Run("all").members
    assert {name: m.sae().metadata.loss for name, m in members.items()} == {
        "reconstruction": None,
        "end_to_end": "end to end: 1 KL of the model's output",
        "downstream": "end to end: 0.5 KL of the model's output + 2.5 error at later streams",
    }
    said = monosem("info", "all/downstream")
    assert "2.5 error at later streams" in " ".join(said.out.split())
    for name in ("reconstruction", "end_to_end"):
        config = RunConfig.read(f"all/{name}/run.yaml")
        assert config.activations.by_context
        assert monosem("train", f"all/{name}/run.yaml", "--no-evaluation", f"--set=output=alone/{name}").code == 0
        alone, together = load_sae(f"alone/{name}").state_dict(), members[name].sae().state_dict()
        assert all(torch.equal(alone[key], value) for key, value in together.items()), name


def test_without_a_loss_of_its_own_nothing_is_read_by_context() -> None:
    (one,) = describe_each(RunConfig.of({})).values()
    assert not one.activations.by_context
    assert one.loss.build(None) is None  # pyright: ignore


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"loss": {"kind": "kl"}}, "loss.kind"),
        (
            {"loss": {"kind": "end_to_end", "later": ["resid_post.3"]}},
            "loss.later has no meaning with loss.kind=end_to_end",
        ),
        ({"loss": {"kl_weight": 2}}, "loss.kl_weight has no meaning with loss.kind=reconstruction"),
        ({"loss": {"kind": "end_to_end"}, "vectors": "x.npy"}, "leave vectors out"),
        ({"loss": {"kind": "end_to_end"}, "store": "acts"}, "leave store out"),
        ({"activations": {"by_context": True}, "store": "acts"}, "leave store out"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(content: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        RunConfig.of(content)
    assert "\n" not in str(caught.value)
