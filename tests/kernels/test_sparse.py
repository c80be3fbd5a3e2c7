"""The sparse engine equals the dense reference: selections, values, gradients; on every backend, both evaluations."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import monosem
from monosem import kernels
from monosem.kernels import Selection, reference, sparse

NEVER, ALWAYS = 2.0, -1.0


@pytest.fixture(params=["cpu", "plain"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels.use_backend(request.param):
        yield request.param


@pytest.fixture(params=["sparse", "dense"])
def evaluation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether active latents are evaluated one by one, or by dense matmuls."""
    monkeypatch.setattr(sparse, "DENSE_ABOVE", NEVER if request.param == "sparse" else ALWAYS)
    return request.param


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def integers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Small whole numbers: sums of products are exact, and ties are many."""
    return random(*shape, seed=seed).round().to(dtype)


# Selections ------------------------------------------------------------------------------------------------------

SHAPES = {
    "one of one": (1, 1, 1),
    "all": (5, 7, 7),
    "the largest": (3, 16, 1),
    "batch of one": (1, 50, 4),
    "few latents": (4, 33, 5),
    "several tiles": (1100, 40, 3),
    "grouped": (3, 1000, 7),
    "grouped at the limit": (3, 1023, 32),
    "almost grouped": (3, 1023, 33),
    "grouped, k = 1": (2, 17, 1),
    "no rows": (0, 9, 2),
}


def check_top_k(x: Tensor, W: Tensor, bias: Tensor, k: int) -> None:
    """Each row has k different latents, their true pre-activations, and the same multiset as the reference."""
    values, selection = kernels.top_k(x, W, bias, k)
    pre = reference.pre_activations(x, W, bias)
    indices = selection.indices.reshape(len(x), k).long()
    assert selection.indices.dtype == torch.int32
    assert selection.offsets.tolist() == list(range(0, len(x) * k + 1, k))
    assert (indices.sort(-1).values.diff(dim=-1) > 0).all()
    assert torch.equal(pre.gather(1, indices), values.reshape(len(x), k))
    kept = values.reshape(len(x), k).sort(-1, descending=True).values
    assert torch.equal(kept, pre.sort(-1, descending=True).values[:, :k])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "n", "k"), SHAPES.values(), ids=SHAPES.keys())
def test_top_k_equals_dense_where_sums_are_exact(backend: str, rows: int, n: int, k: int, dtype: torch.dtype) -> None:
    x, W, bias = integers(rows, 6, dtype=dtype), integers(n, 6, seed=1, dtype=dtype), integers(n, seed=2, dtype=dtype)
    check_top_k(x, W, bias, k)
    check_top_k(x, W, bias - 1000, k)  # all negative
    check_top_k(torch.zeros_like(x), W, bias, k)  # zero rows
    check_top_k(x, torch.zeros_like(W), torch.zeros_like(bias), k)  # nothing but ties


@given(n=st.integers(1, 400), share=st.floats(0, 1), spread=st.sampled_from([0.3, 1, 30]), seed=st.integers(0, 10**6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_top_k_equals_dense_on_any_pre_activations(
    backend: str, n: int, share: float, spread: float, seed: int
) -> None:
    """With x the identity, a column of W is a row of pre-activations."""
    k = max(1, round(share**3 * n))
    pre = (spread * random(3, n, seed=seed)).round()
    pre[0] = pre[0].sort().values  # the largest lie side by side
    pre[1, :: -(-n // 16)] += 50  # the largest lie in one group
    check_top_k(torch.eye(3, dtype=torch.float64), pre.T.contiguous(), torch.zeros(n, dtype=torch.float64), k)


@pytest.mark.parametrize("per_latent", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 37, 1100])
def test_above_equals_dense(backend: str, rows: int, per_latent: bool) -> None:
    x, W, bias = integers(rows, 6), integers(45, 6, seed=1), integers(45, seed=2)
    x[: rows // 3] = 0
    threshold = integers(45, seed=3) + 1 if per_latent else torch.tensor(2.0, dtype=torch.float64)
    values, selection = kernels.above(x, W, bias, threshold)
    pre = reference.pre_activations(x, W, bias)
    assert torch.equal(selection.offsets.diff(), (pre > threshold).sum(1))
    assert torch.equal(dense_of(values, selection), torch.where(pre > threshold, pre, 0))
    nothing, none = kernels.above(x, W, bias, torch.tensor(1e9))
    assert nothing.numel() == none.indices.numel() == 0
    assert none.offsets.tolist() == [0] * (rows + 1)


@pytest.mark.parametrize("guess", [-100.0, 0.0, 3.0, 1e4])
@pytest.mark.parametrize("total", [1, 50, 200, 31 * 45])
def test_batch_top_k_equals_dense_whatever_the_guess(backend: str, total: int, guess: float) -> None:
    x, W, bias = integers(31, 6), integers(45, 6, seed=1), integers(45, seed=2)
    values, selection, smallest = kernels.batch_top_k(x, W, bias, total, guess)
    pre = reference.pre_activations(x, W, bias)
    kept = reference.keep_batch_top_k(pre, total)
    expected = pre.flatten().topk(total).values
    assert torch.equal(values.sort(descending=True).values, expected)
    assert smallest == expected[-1]
    assert torch.equal(dense_of(values, selection).flatten().sort().values, kept.flatten().sort().values)
    rows = torch.repeat_interleave(torch.arange(31), selection.offsets.diff())
    assert torch.equal(pre[rows, selection.indices.long()], values)


def dense_of(values: Tensor, selection: Selection) -> Tensor:
    rows = torch.repeat_interleave(torch.arange(len(selection.offsets) - 1), selection.offsets.diff())
    dense = values.new_zeros(len(selection.offsets) - 1, selection.n_latents)
    return dense.index_put((rows, selection.indices.long()), values)


# Values and gradients, given the selection ------------------------------------------------------------------------


@dataclass
class Problem:
    """Leaves of a graph: raw inputs, parameters, and weights of the outcomes that make one number of them."""

    x: Tensor
    W_enc: Tensor
    b_enc: Tensor
    b_dec: Tensor
    W_dec: Tensor
    selection: Selection

    @staticmethod
    def make(rows: int, n: int, select: str, dtype: torch.dtype) -> Problem:
        shapes = ((rows, 6), (n, 6), (n,), (6,), (n, 5))
        x, W_enc, b_enc, b_dec, W_dec = (random(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes))
        if select == "top_k":
            _, selection = kernels.top_k(x - b_dec, W_enc, b_enc, min(4, n))
        else:  # rows of different lengths, some of them empty
            _, selection = kernels.above(x - b_dec, W_enc, b_enc, torch.tensor(3.5))
        return Problem(x, W_enc, b_enc, b_dec, W_dec, selection)

    def leaves(self) -> list[Tensor]:
        tensors = (self.x, self.W_enc, self.b_enc, self.b_dec, self.W_dec)
        return [t.detach().clone().requires_grad_() for t in tensors]

    def outcome(self, values: Tensor, out: Tensor) -> Tensor:
        on_values = random(values.numel(), seed=8, dtype=values.dtype)
        on_out = random(*out.shape, seed=9, dtype=values.dtype)
        return (values * on_values).sum() + (out * on_out).sum()


Result = tuple[Tensor, Tensor, list[Tensor]]


def by_engine(problem: Problem) -> Result:
    leaves = x, W_enc, b_enc, b_dec, W_dec = problem.leaves()
    values = kernels.encode(x - b_dec.detach(), W_enc, b_enc, b_dec, problem.selection)
    out = kernels.decode(values.relu(), W_dec, problem.selection)
    return values, out, list(torch.autograd.grad(problem.outcome(values, out), leaves))


def by_reference(problem: Problem) -> Result:
    leaves = x, W_enc, b_enc, b_dec, W_dec = problem.leaves()
    selection = problem.selection
    rows = torch.repeat_interleave(torch.arange(len(x)), selection.offsets.diff())
    values = reference.pre_activations(x, W_enc, b_enc, b_dec)[rows, selection.indices.long()]
    out = reference.decode(dense_of(values.relu(), selection), W_dec)
    return values, out, list(torch.autograd.grad(problem.outcome(values, out), leaves))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("select", ["top_k", "above"])
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (1, 30), (40, 3), (90, 30), (600, 300)])
def test_values_and_all_gradients_equal_dense_autograd(
    backend: str,
    evaluation: str,
    rows: int,
    n: int,
    select: str,
    dtype: torch.dtype,
    assert_near: Callable[[Tensor, Tensor], None],
) -> None:
    problem = Problem.make(rows, n, select, dtype)
    values, out, grads = by_engine(problem)
    expected_values, expected_out, expected_grads = by_reference(problem)
    assert_near(values, expected_values)
    assert_near(out, expected_out)
    for found, expected in zip(grads, expected_grads, strict=True):
        assert_near(found, expected)


def test_an_empty_selection_gives_zeros(backend: str, evaluation: str) -> None:
    problem = Problem.make(4, 9, "above", torch.float64)
    problem.selection = kernels.above(problem.x, problem.W_enc, problem.b_enc, torch.tensor(1e9))[1]
    values, out, grads = by_engine(problem)
    assert values.numel() == 0
    assert torch.equal(out, torch.zeros(4, 5, dtype=torch.float64))
    assert all(not grad.any() for grad in grads)


def test_gradients_equal_finite_differences(backend: str, evaluation: str) -> None:
    problem = Problem.make(5, 8, "above", torch.float64)
    leaves = problem.leaves()
    values = torch.nn.Parameter(random(problem.selection.indices.numel(), seed=7))

    def encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
        # The kernel is told of b_dec beside x, which has it subtracted: here both ways of the gradient come apart.
        return kernels.encode(x - b_dec.detach(), W_enc, b_enc, b_dec, problem.selection)

    assert torch.autograd.gradcheck(encode, leaves[:4])
    assert torch.autograd.gradcheck(lambda v, W: kernels.decode(v, W, problem.selection), (values, leaves[4]))


def test_values_from_the_selection_are_taken_as_they_are(backend: str) -> None:
    problem = Problem.make(30, 20, "top_k", torch.float64)
    x, W_enc, b_enc = problem.x, problem.W_enc, problem.b_enc
    values, selection = kernels.top_k(x, W_enc, b_enc, 5)
    assert torch.equal(kernels.encode(x, W_enc, b_enc, None, selection, values), values)
    assert torch.allclose(kernels.encode(x, W_enc, b_enc, None, selection), values, rtol=0, atol=1e-13)


def test_frozen_parameters_get_no_gradient(backend: str, evaluation: str) -> None:
    problem = Problem.make(30, 20, "top_k", torch.float64)
    expected = by_reference(problem)[2]
    for wanted in range(5):
        leaves = x, W_enc, b_enc, b_dec, W_dec = problem.leaves()
        for i, leaf in enumerate(leaves):
            leaf.requires_grad_(i == wanted)
        values = kernels.encode(x - b_dec.detach(), W_enc, b_enc, b_dec, problem.selection)
        problem.outcome(values, kernels.decode(values.relu(), W_dec, problem.selection)).backward()
        assert [leaf.grad is not None for leaf in leaves] == [i == wanted for i in range(5)]
        assert torch.allclose(leaves[wanted].grad, expected[wanted], rtol=1e-10, atol=1e-10)  # pyright: ignore


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_runs_on_the_plain_backend(dtype: torch.dtype) -> None:
    problem = Problem.make(20, 30, "top_k", dtype)
    values, out, grads = by_engine(problem)
    assert values.dtype == out.dtype == dtype
    for found, expected in zip(grads, by_reference(problem)[2], strict=True):
        assert torch.allclose(found.float(), expected.float(), rtol=0.1, atol=0.1 * expected.abs().max().item())


# Bits -------------------------------------------------------------------------------------------------------------

THREADS = """
import torch
from monosem import kernels
from monosem.kernels import sparse

def outcome(n_threads):
    torch.set_num_threads(n_threads)
    g = torch.Generator().manual_seed(0)
    x, W_enc, b_enc, b_dec, W_dec = (
        torch.randn(*shape, generator=g).requires_grad_()
        for shape in ((700, 24), (900, 24), (900,), (24,), (900, 24))
    )
    results = []
    for pick in (lambda *a: kernels.top_k(*a, 9), lambda *a: kernels.above(*a, torch.tensor(9.0)),
                 lambda *a: kernels.batch_top_k(*a, 5000, 8.0)[:2]):
        centred = x - b_dec.detach()
        values, selection = pick(centred, W_enc, b_enc)
        pre = kernels.encode(centred, W_enc, b_enc, b_dec, selection, values)
        out = kernels.decode(pre.relu(), W_dec, selection)
        results += [values, selection.indices, selection.offsets, out]
        results += torch.autograd.grad(out.pow(2).sum(), (x, W_enc, b_enc, b_dec, W_dec))
    return results

for share in (2.0, -1.0):
    sparse.DENSE_ABOVE = share
    for backend in ("cpu", "plain"):
        with kernels.use_backend(backend):
            one, two = outcome(1), outcome(2)
            print(share, backend, [torch.equal(a, b) for a, b in zip(one, two, strict=True)])
"""


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    """In a process of its own, because the largest number of threads is fixed when numba starts."""
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2"}
    command = [sys.executable, "-c", THREADS]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == 4
    assert "False" not in ran.stdout, ran.stdout


ONE_THREAD = """
import torch, numba
from monosem import kernels

torch.set_num_threads(1)
with kernels.use_backend("cpu"):
    for _ in range(2):
        kernels.top_k(torch.randn(40, 8), torch.randn(30, 8), torch.zeros(30), 3)
        print(torch.get_num_threads(), numba.get_num_threads())
"""


ONE_THREAD_ELSEWHERE = """
import torch, numba
import monosem as ms

torch.set_num_threads(1)
for seed in range(2):
    ms.SynthSAEBench("small").sample(64, seed)
    print(torch.get_num_threads(), numba.get_num_threads())
"""


@pytest.mark.parametrize("code", [ONE_THREAD, ONE_THREAD_ELSEWHERE], ids=["kernels", "elsewhere"])
def test_compiled_loops_use_as_many_threads_as_torch_and_leave_torch_its_number(code: str) -> None:
    """The first call of numba sets OpenMP's number, which is torch's too: ten times slower on a busy machine."""
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2"}
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["1 1", "1 1"]


def test_every_parallel_loop_is_compiled_by_that_one_decorator() -> None:
    """Whichever is called first gives the process its threads."""
    source = Path(monosem.__file__).parent
    texts = {str(path.relative_to(source)): path.read_text() for path in source.rglob("*.py")}
    assert [name for name, text in texts.items() if re.search(r"njit\([^)]*parallel=", text)] == ["kernels/parallel.py"]
