"""Replay: an edited pass that spares what comes before the edit gives the bits of a whole one, in every family."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from family_models import FAMILY_MODELS, LAYERS, family_module
from torch import Tensor, nn

from monosem.models import Replay, SubjectModel


def halved(x: Tensor, _: Any) -> Tensor:
    return x * 0.5 + 0.1


def tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else next(x for x in output.to_tuple() if isinstance(x, Tensor))


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_replayed_passes_are_whole_ones_at_every_hook_point(name: str) -> None:
    model, inputs = SubjectModel(family_module(name)), FAMILY_MODELS[name].inputs(batch=3)
    clean, fewer = tensor(model(inputs)), tensor(model(inputs[:2]))
    for hook in model.hook_points:
        with model.edit({hook: halved}):
            whole = tensor(model(inputs))
        replay = Replay(model, [hook], inputs[:1])
        with replay.of(inputs) as output:
            assert torch.equal(tensor(output), clean)
            for _ in range(2):
                with model.edit({hook: halved}):
                    assert torch.equal(tensor(model(inputs)), whole), hook
            assert torch.equal(tensor(model(inputs[:2])), fewer), "other inputs"
            assert torch.equal(tensor(model(inputs)), clean), hook
        assert torch.equal(tensor(model(inputs)), clean)
        assert not any("forward" in module.__dict__ for module in model.module.modules())


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_blocks_before_the_edit_are_not_run_again(name: str) -> None:
    model, inputs = SubjectModel(family_module(name)), FAMILY_MODELS[name].inputs()
    inside = "mlp_in" if FAMILY_MODELS[name].experts else "mlp_mid"
    blocks = [model.module.get_submodule(model.hook_point(f"{inside}.{layer}").path) for layer in range(LAYERS)]
    calls = Counter[int]()
    handles = [b.register_forward_pre_hook(lambda *_, i=i: calls.update([i])) for i, b in enumerate(blocks)]
    try:
        with Replay(model, ["resid_pre.1", "mlp_out.1"], inputs[:1]).of(inputs):
            calls.clear()
            model(inputs)
            assert calls == {1: 1}
        calls.clear()
        model(inputs)
        assert calls == {0: 1, 1: 1}
    finally:
        for handle in handles:
            handle.remove()


class Odd(nn.Module):
    """Uses a module twice, works in place, gives a dictionary on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.first, self.last = (nn.Linear(4, 4) for _ in range(3))
        self.named = Named()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(self.twice(x))
        h += 1
        h = self.named(h)["h"]
        return self.twice(self.last(h))


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"h": self.inner(x)}


def test_what_is_used_twice_or_gives_no_tensor_is_run_and_what_works_in_place_spoils_nothing() -> None:
    torch.manual_seed(0)
    model, x = SubjectModel(Odd()), torch.randn(5, 4)
    with model.edit({"last": halved}):
        whole = model(x)
    replay = Replay(model, ["last"], x[:1])
    assert replay.before == ["first", "named.inner", "last"]
    with replay.of(x):
        for _ in range(3):
            with model.edit({"last": halved}):
                assert torch.equal(model(x), whole)


def test_a_block_that_fails_leaves_the_model_as_it_was() -> None:
    model, x = SubjectModel(Odd()), torch.randn(5, 4)
    clean = model(x)
    with pytest.raises(ZeroDivisionError), Replay(model, ["last"], x).of(x):
        raise ZeroDivisionError
    assert torch.equal(model(2 * x), SubjectModel(model.module)(2 * x))
    assert torch.equal(model(x), clean)


def test_a_module_with_a_forward_of_its_own_keeps_it() -> None:
    model, x = SubjectModel(Odd()), torch.randn(5, 4)
    own = model.module.get_submodule("first")
    plain = own.forward
    own.forward = lambda x: 2 * plain(x)  # as accelerate does
    clean = model(x)
    with Replay(model, ["last"], x).of(x):
        assert torch.equal(model(x), clean)
    assert torch.equal(model(x), clean)
    assert "forward" in own.__dict__
