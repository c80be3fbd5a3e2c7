"""Interventions as JSON: what was written does the same when it is read; what is wrong is said in one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

import monosem as ms
from monosem.errors import ConfigError
from monosem.interventions import Replace
from monosem.models import SubjectModel
from monosem.sae import TopKSAE

HOOK = "resid_post.1"


@pytest.fixture(scope="module")
def sae() -> TopKSAE:
    made = TopKSAE(32, 64, k=9, transform="none", seed=3)
    made.metadata.hook, made.metadata.exclude_special = HOOK, False
    return made


def test_what_is_read_does_what_was_written(tiny: SubjectModel, sae: TopKSAE) -> None:
    tokens = torch.randint(1, 4096, (2, 9), generator=torch.Generator().manual_seed(0))
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    codes = sae.encode(tiny.capture(tokens, [HOOK])[HOOK])
    on = int(codes.firing_counts().argmax())
    where = ms.Where(positions=slice(1, None), phase="prompt", above=(on, 0.01), schedule=[(0, 0.5)])
    latents = list(range(40))
    edits = [
        ms.Ablate(sae, latents),
        ms.Ablate(sae, latents, by="mean", source=tokens),
        ms.Ablate(sae, latents, by="resample", source=["One day", "the cat"], seed=5, keep_error=False),
        ms.Set(sae, [1, 2], [[1.0, 2.0], [3.0, 0.1]], where=ms.Where(positions=[2, -1], rows=1)),
        ms.Scale(sae, latents, 1 / 3, where=where),
        ms.Add(sae, [5], 0.1, hook="resid_pre.2", where=ms.Where(tokens=[int(tokens[0, 1])])),
        ms.Clamp(sae, latents, max=0.2, where=tokens % 2 == 0),
        ms.Swap(sae, latents, "another text", position=-1),
        ms.Redirect(sae, [1, 2], torch.stack([vector, -vector])),
        ms.Standing(sae, never=latents, always={41: 2.0, 50: 0.5}, where=ms.Where(phase="prompt")),
        ms.AddVector(HOOK, vector, strength=[[0.3], [2.0]]),
        ms.AddVector(HOOK, vector, where=ms.Where(above=(on, 0.0), sae=sae)),
        ms.Project("mlp_out.0", vector, scale=0.1),
        ms.CapProjection("resid_post.0", vector, most=0.01),
        ms.Splice(sae, keep_tokens=[int(tokens[0, 0])]),
    ]
    for edit in edits:
        data = json.loads(json.dumps(edit.to_json()))
        read = ms.edit_from_json(data, [sae])
        assert type(read) is type(edit)
        assert read.to_json() == edit.to_json()
        with tiny.edit([edit]) as reports:
            expected = tiny(tokens)
        with tiny.edit([read]):
            assert torch.equal(tiny(tokens), expected), data
        assert reports[0].did_something()


def test_an_sae_is_found_by_its_hash_by_a_name_or_as_the_only_one(sae: TopKSAE) -> None:
    data = ms.Ablate(sae, 1).to_json()
    same = TopKSAE(32, 64, k=9, transform="none", seed=3)
    other = TopKSAE(32, 64, k=9, transform="none", seed=4)
    for given in (same, [other, same], {"a": other, "b": same}):
        assert ms.edit_from_json(data, given).sae is same
    assert ms.edit_from_json({**data, "sae": "b"}, {"a": other, "b": same}).sae is same
    del data["sae"]
    assert ms.edit_from_json(data, {"a": sae}).sae is sae
    with pytest.raises(ConfigError, match="say which SAE"):
        ms.edit_from_json(data, [other, same])
    with torch.no_grad():
        same.b_enc[0] += 1
    with pytest.raises(ConfigError, match="there is no SAE"):
        ms.edit_from_json(ms.Ablate(sae, 1).to_json(), same)


def test_code_is_no_data(sae: TopKSAE) -> None:
    for edit in (
        Replace(HOOK, torch.zeros_like),
        ms.Ablate(sae, 1, where=lambda context: context.tokens > 3),
        ms.Swap(sae, 1, sae.encode(torch.randn(4, 32))),
    ):
        with pytest.raises(ConfigError, match="no data"):
            edit.to_json()


WRONG: list[tuple[Any, str]] = [
    (3, "an edit is an object"),
    ({"latents": [1]}, "an edit is an object"),
    ({"edit": "Abalte", "latents": [1]}, "Did you mean Ablate"),
    ({"edit": "Ablate"}, "Ablate needs latents"),
    ({"edit": "Ablate", "latents": [64]}, "there is no latent 64"),
    ({"edit": "Ablate", "latents": ["1"]}, "whole numbers"),
    ({"edit": "Ablate", "latents": {"1": 2}}, "whole numbers"),
    ({"edit": "Ablate", "latents": [1], "wher": {}}, "no 'wher'"),
    ({"edit": "Ablate", "latents": [1], "by": ["zero"]}, "by must be"),
    ({"edit": "Ablate", "latents": [1], "by": "mean", "source": {"a": 1}}, "source must be numbers"),
    ({"edit": "Ablate", "latents": [1], "by": "mean", "source": [[0.5]]}, "source is a text"),
    ({"edit": "Ablate", "latents": [1], "keep_error": 1}, "keep_error of Ablate"),
    ({"edit": "Ablate", "latents": [1], "hook": 3}, "hook of Ablate"),
    ({"edit": "Ablate", "latents": [1], "seed": True}, "seed of Ablate"),
    ({"edit": "Ablate", "sae": "x", "latents": [1]}, "there is no SAE 'x'"),
    ({"edit": "Ablate", "sae": ["x"], "latents": [1]}, "there is no SAE"),
    ({"edit": "Add", "latents": [1]}, "Add needs amount"),
    ({"edit": "Add", "latents": [1], "amount": float("nan")}, "finite"),
    ({"edit": "Add", "latents": [1], "amount": True}, "finite"),
    ({"edit": "Add", "latents": [1], "amount": [[1], [2, 3]]}, "must be numbers"),
    ({"edit": "Add", "latents": [1], "amount": 1, "where": "all"}, "where is conditions"),
    ({"edit": "Add", "latents": [1], "amount": 1, "where": [["x"]]}, "where is conditions"),
    ({"edit": "Add", "latents": [1], "amount": 1, "where": {"phase": 1}}, "phase"),
    ({"edit": "Add", "latents": [1], "amount": 1, "where": {"code": "x"}}, "where has no 'code'"),
    ({"edit": "Add", "latents": [1], "amount": 1, "where": {"positions": {"from": 1}}}, "positions has no 'from'"),
    ({"edit": "Add", "latents": [1], "amount": 1, "where": {"positions": {"start": "1"}}}, "whole numbers"),
    ({"edit": "Add", "latents": [1], "amount": 1, "where": {"schedule": 3}}, "schedule"),
    ({"edit": "Add", "latents": [1], "amount": 1, "where": {"tokens": [-1]}}, "tokens"),
    ({"edit": "Standing"}, "both lists are empty"),
    ({"edit": "Standing", "never": "12"}, "never must be"),
    ({"edit": "Standing", "never": [1.5]}, "whole numbers"),
    ({"edit": "Standing", "never": [64]}, "there is no latent 64"),
    ({"edit": "Standing", "always": [3]}, "always must be"),
    ({"edit": "Standing", "always": {"x": 1.0}}, "whole numbers"),
    ({"edit": "Standing", "always": {"9" * 5000: 1.0}}, "whole numbers"),
    ({"edit": "Standing", "always": {"3": "much"}}, "always must be"),
    ({"edit": "Standing", "always": {"3": True}}, "always must be"),
    ({"edit": "Standing", "never": [3], "always": {"3": 1.0}}, "never to fire and always"),
    ({"edit": "AddVector", "hook": HOOK, "vector": ["a"]}, "vector must be numbers"),
    ({"edit": "AddVector", "hook": HOOK, "vector": []}, "vector"),
    ({"edit": "AddVector", "hook": HOOK}, "AddVector needs vector"),
    ({"edit": "Splice", "keep_tokens": ["a"]}, "keep_tokens"),
    ({"edit": "Replace", "hook": HOOK, "function": "print"}, "there is no edit 'Replace'"),
]


@pytest.mark.parametrize(("data", "words"), WRONG)
def test_what_is_wrong_is_said_in_one_line(sae: TopKSAE, data: Any, words: str) -> None:
    with pytest.raises(ms.MonosemError, match=words) as error:
        ms.edit_from_json(data, sae)
    assert "\n" not in str(error.value)


def test_a_condition_of_bools_is_data_too(sae: TopKSAE) -> None:
    where = torch.tensor([[True, False, True]])
    read = ms.edit_from_json(ms.Add(sae, 1, 1.0, where=where).to_json(), sae)
    assert isinstance(read.where, Tensor)
    assert torch.equal(read.where, where)
