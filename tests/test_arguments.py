"""Arguments of public functions are what their annotations say, or are refused by name before any work starts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

import monosem as ms
from monosem.arguments import AboveZero, Device, NotNegative, Positive, Share, ZeroOrMore, checked, hints_of
from monosem.models import SubjectModel

ROWS = torch.ones(3, 4)


@checked
def function(
    x: Float[Tensor, "rows d"],
    y: Float[Tensor, "rows e"] | None = None,
    *more: int,
    steps: Positive = 1,
    left: NotNegative = 0,
    rate: AboveZero = 1.0,
    penalty: ZeroOrMore = 0.0,
    share: Share = 0.5,
    names: Sequence[str] = (),
    latents: int | Sequence[int] = 0,
    pair: tuple[int, int] | None = None,
    method: Literal["gradient", "exact"] = "exact",
    labels: Mapping[int, str] | None = None,
    sae: ms.SAE | None = None,
    call: Callable[[int], int] = abs,
    path: str | Path = "",
    device: Device | None = None,
    known: bool = False,
    stream: Iterable[int] = (),
    **rest: float,
) -> str:
    """What was given is passed on as it is."""
    return "called"


FITS = [
    {"steps": 1},
    {"steps": np.int64(3)},
    {"steps": torch.tensor(3)},
    {"rate": 1},
    {"rate": float("inf")},
    {"rate": np.float32(0.1)},
    {"penalty": 0},
    {"share": 1},
    {"names": ["a", "b"]},
    {"names": ()},
    {"latents": 3},
    {"latents": range(3)},
    {"latents": {1, 2}},
    {"latents": torch.tensor([1, 2])},
    {"latents": np.arange(4)},
    {"latents": torch.arange(5_000)},
    {"pair": (0, 1)},
    {"pair": [0, 1]},
    {"method": "gradient"},
    {"labels": {1: "one"}},
    {"call": len},
    {"path": Path("x")},
    {"device": "cpu"},
    {"device": torch.device("cpu")},
    {"known": np.True_},
    {"stream": iter([1, 2])},
    {"y": torch.ones(3, 1)},
    {"y": torch.ones(3, 2, dtype=torch.float16)},
    {"other": 0.5},
]
REFUSED = [
    ({"steps": 0}, "steps must be a whole number of at least 1, not 0$"),
    ({"steps": 1.5}, "steps must be a whole number of at least 1, not 1.5$"),
    ({"steps": True}, "steps must be a whole number of at least 1, not True$"),
    ({"steps": float("nan")}, "not nan$"),
    ({"steps": "3"}, "not '3'$"),
    ({"left": -1}, "left must be a whole number of at least 0, not -1$"),
    ({"rate": 0}, "rate must be a number above 0, not 0$"),
    ({"rate": float("nan")}, "rate must be a number above 0, not nan$"),
    ({"penalty": -0.1}, "penalty must be a number of at least 0"),
    ({"share": 1.5}, "share must be a number between 0 and 1"),
    ({"names": "abc"}, "names must be a list of strings, not 'abc'$"),
    ({"names": [5]}, r"names must be a list of strings, not \[5\]$"),
    ({"latents": [1.5]}, "latents must be a whole number or a list of whole numbers"),
    ({"latents": torch.ones(2)}, r"not a Tensor of float32s \(2,\)$"),
    ({"latents": {1: 2}}, "latents must be"),
    ({"pair": (1,)}, "pair must be a tuple of a whole number, a whole number or None"),
    ({"method": "gradeint"}, "method must be one of 'gradient', 'exact', not 'gradeint'. Did you mean gradient?"),
    ({"labels": {1: 2}}, "labels must be a mapping of whole numbers to strings or None"),
    ({"labels": ["a"]}, "labels must be a mapping"),
    ({"sae": "runs/demo"}, r"sae must be an SAE or None, not 'runs/demo': ms.load_sae\(path\) opens one$"),
    ({"call": 5}, "call must be a function"),
    ({"path": 5}, "path must be a string or a path, not 5$"),
    ({"device": "cuad"}, "device must be .*one that is there, as 'cpu' or 'cuda'.*, not 'cuad'"),
    ({"known": 1}, "known must be True or False"),
    ({"y": torch.ones(2, 5)}, r"y must be a Tensor of floats \(rows e\) or None, .*\(2, 5\): rows is 3 in x$"),
    ({"y": torch.ones(3)}, "y must be a Tensor of floats"),
    ({"y": torch.ones(3, 1, dtype=torch.int64)}, "not a Tensor of int64s"),
    ({"y": [[1.0]] * 3}, "y must be a Tensor of floats"),
    ({"other": "a"}, "rest must be a number, not 'a'"),
]


def named(value: Any) -> str:
    return ", ".join(f"{k} {type(v).__name__}" for k, v in value.items()) if isinstance(value, dict) else ""


@pytest.mark.parametrize("given", FITS, ids=named)
def test_what_fits_is_passed_on(given: dict[str, Any]) -> None:
    assert function(ROWS, **given) == "called"


@pytest.mark.parametrize(("given", "said"), REFUSED, ids=named)
def test_what_does_not_is_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ms.MonosemError, match=f"^function: .*{said}"):
        function(ROWS, **given)


def test_a_whole_number_may_be_written_as_a_float() -> None:
    @checked
    def whole(tokens: Positive, lengths: Sequence[int] = (), k: float = 4, either: int | None = None) -> list[Any]:
        return [tokens, *lengths, k, either]

    found = whole(1e6, [2.0, 3], 4.0, 5.0)  # type: ignore[arg-type]
    assert found == [1_000_000, 2, 3, 4.0, 5]
    assert [type(each) for each in found] == [int, int, int, float, int]


def test_an_array_of_numpy_becomes_a_tensor_where_one_is_wanted() -> None:
    @checked
    def taken(x: Float[Tensor, "rows d"], y: Float[Tensor, " d"] | np.ndarray | None = None) -> list[Any]:
        return [x, y]

    found = taken(np.ones((3, 4)), np.ones(4))  # type: ignore[arg-type]
    assert isinstance(found[0], Tensor)
    assert found[0].dtype == torch.float64
    assert isinstance(found[1], np.ndarray)
    with pytest.raises(
        ms.MonosemError, match=r"x must be a Tensor of floats \(rows d\), not a Tensor of int64s \(3,\)"
    ):
        taken(np.arange(3))  # type: ignore[arg-type]


def test_each_of_several_is_looked_at() -> None:
    assert function(ROWS, None, 1, 2, 3) == "called"
    with pytest.raises(ms.MonosemError, match=r"more must be a whole number, not 1.5"):
        function(ROWS, None, 1, 1.5)  # type: ignore[arg-type]


def test_an_argument_that_is_missing_is_said_by_python_and_an_unknown_one_by_name() -> None:
    @checked
    def known(tokens: int, *, path: str = "") -> int:
        return tokens

    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'tokens'"):
        known()  # type: ignore[call-arg]
    with pytest.raises(ms.MonosemError, match=r"known has no argument 'token'. Did you mean tokens?"):
        known(token=5)  # type: ignore[call-arg]
    with pytest.raises(ms.MonosemError, match=r"known has no argument 'xyz'; it has tokens, path"):
        known(3, xyz=5)  # type: ignore[call-arg]


def test_sizes_of_one_call_are_not_kept_for_the_next() -> None:
    @checked
    def both(a: Int[Tensor, " n"], b: Int[Tensor, " n"]) -> int:
        return len(a)

    for n in (3, 5, 2):
        assert both(torch.arange(n), torch.arange(n)) == n
    with pytest.raises(ms.MonosemError, match=r"b must be .*: n is 4 in a"):
        both(torch.arange(4), torch.arange(5))


RESULTS = {"Generation", "Graph", "MetaSAE", "ModelDiff", "ScalingLaw", "SparseCodes", "Stitching"}
"""Made by functions, not by users; codes also a thousand times a second."""
CHECKED_BY_PYDANTIC = {"RunConfig", "TrainingConfig"}


def test_every_public_function_looks_at_its_arguments() -> None:
    seen = 0
    for name in sorted(set(ms.__all__) - RESULTS - CHECKED_BY_PYDANTIC - {"MonosemError"}):
        value = getattr(ms, name)
        makers = [value] if not inspect.isclass(value) else [value.__init__]
        for each in makers:
            assert hasattr(each, "__wrapped__"), f"{name} is not @checked"
            for argument, hint in hints_of(each).items():  # raises where a name is not known
                assert not isinstance(hint, str), f"{name}: {argument}"
                seen += hint is not Any
    assert seen > 400


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda m, s: ms.evaluate("runs/demo", m), "evaluate: sae must be .*: ms.load_sae"),
        (lambda m, s: ms.evaluate(s, m, suite="ful"), "suite must be one of 'core', 'full'.*Did you mean full"),
        (lambda m, s: ms.evaluate(s, m, tokens=1.5), "tokens must be a whole number"),
        (lambda m, s: ms.TopKSAE(8, 16, k=4, dtype=torch.int64), "SAE: dtype must be a dtype of floats"),
        (lambda m, s: ms.RunConfig(tokens=-1), "tokens"),
        (lambda m, s: ms.train_together({"a": s}, {}, tokens=5), "source is given by name, but for 'a' there is none"),
        (lambda m, s: ms.trace("bundled", [s], "a"), r"trace: model must be a SubjectModel.*: ms.load_model\(name\)"),
        (lambda m, s: ms.attribute(m, s, "a b", steps=0), "attribute: steps must be"),
        (lambda m, s: ms.attribute(m, s, "a b", of=10**9), "has no token 1000000000"),
        (lambda m, s: ms.activations(m, "resid_post.0", buffer_tokens=0), "LiveActivations: buffer_tokens must be"),
        (
            lambda m, s: ms.activations(m, "resid_post.0", bufer_tokens=5),
            "no argument 'bufer_tokens'. Did you mean buf",
        ),
        (lambda m, s: ms.activations(m, "resid_post.0", max_norm_ratio="a"), "max_norm_ratio must be"),
        (lambda m, s: ms.activations(m, "attn_pattern.0"), "a number for every pair of tokens"),
        (lambda m, s: ms.TopKSAE(8, 0), "n_latents must be|n_latents"),
        (lambda m, s: ms.TopKSAE(8, 16, k=4, device="cuad"), "SAE: device must be"),
        (lambda m, s: ms.load_model("bundled", device="cuad"), "load_model: device must be"),
        (lambda m, s: ms.load_model("bundled", dtype="float16"), "dtype must be a dtype of floats.*, not 'float16'"),
        (lambda m, s: ms.generate(m, "a", edits=[5]), "generate: edits must be a list of"),
        (lambda m, s: ms.generate(m, torch.zeros(1, 0, dtype=torch.long)), "reads tokens, got"),
        (lambda m, s: ms.generate(m, torch.rand(1, 3)), "reads tokens, got floats"),
        (lambda m, s: ms.effects(m, s, torch.zeros(1, 0, dtype=torch.long), 0), "reads tokens, got"),
        (lambda m, s: ms.decompose(torch.ones(16), s, penalty=-1.0), "penalty must be"),
        (lambda m, s: ms.fix_suppression(s, torch.ones(4, 16), torch.ones(3, 16)), "target must be .*rows is 4 in x"),
        (lambda m, s: ms.dense("x"), "dense: sae must be an SAE"),
        (lambda m, s: ms.logit_lens(s, m, [0], n_tokens=-1), "n_tokens must be"),
        (lambda m, s: ms.recovery(s, torch.full((2, 32), float("nan"))), "finite"),
        (lambda m, s: ms.train(s, m, tokens=5), "source must be an ActivationSource"),
        (lambda m, s: ms.fit(s, torch.ones(4, 16), tokens=-1), "tokens"),
        (lambda m, s: ms.Ablate(s, "ab"), "latents must be"),
        (lambda m, s: ms.steering_vector(s, torch.tensor([])), "latents to steer with|what must be"),
        (lambda m, s: ms.steering_vector(m, positive=["a"], negative=["b"], hook="attn_pattern.0"), "every pair"),
        (lambda m, s: ms.othello_games(2, seed=-1), "seed must be"),
        (lambda m, s: ms.heads(m, ["a b"], seed=-1), "seed must be"),
        (lambda m, s: m.capture(torch.zeros(1, 2), [5]), "hooks must be a string or a list of strings"),
        (lambda m, s: m.generate("a", max_new_tokens=1.5), "max_new_tokens"),
        (lambda m, s: m.edit([s]), "edits must be"),
        (lambda m, s: m.tokens(5), "text must be a string or a list of strings, not 5"),
        (lambda m, s: s.decode(torch.ones(2, 16)), r"codes must be a SparseCodes.*: sae.encode\(x\) gives them"),
        (lambda m, s: s.encode(torch.ones(2, 32)).top(1.5), "k must be a whole number"),
        (lambda m, s: s.decoder_directions([0.5]), "latents must be"),
        (lambda m, s: s.save(5), "path must be a string or a path, not 5"),
    ],
    ids=lambda value: "" if callable(value) else str(value)[:40],
)
def test_a_mistake_is_told_in_a_line(
    mistake: Callable[[SubjectModel, ms.SAE], object], said: str, tiny: SubjectModel
) -> None:
    sae = ms.TopKSAE(tiny.d_model, 16, k=4)
    sae.metadata.hook = "resid_post.0"
    with pytest.raises(ms.MonosemError, match=said):
        mistake(tiny, sae)


def test_numpy_s_and_torch_s_kinds_of_numbers_are_numbers() -> None:
    assert get_args(Positive)[0] is int
    assert ms.TopKSAE(np.int64(8), np.int32(16), k=np.int64(4)).k == 4
