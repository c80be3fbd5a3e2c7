"""Worlds by name: as their constructors make them, and refused in words where there is none such."""

import pytest
import torch

import monosem as ms
from monosem.activations.planted import PlantedActivations
from monosem.errors import ConfigError
from monosem.synthetic import PlantedDictionary, SynthSAEBench, is_world, world, world_width

SMALL = "synthetic:small,n_features=24,d=8,roots=2,spread_steps=2,rates=[0.3, 0.01],scaled=false,correlation=0,seed=3"


def test_a_name_says_all_that_a_constructor_is_told() -> None:
    own = world(SMALL)
    changes = {"roots": 2, "spread_steps": 2, "rates": (0.3, 0.01), "scaled": False, "correlation": 0.0}
    same = SynthSAEBench("small", 3, n_features=24, d=8, **changes)
    assert isinstance(own, SynthSAEBench)
    assert own.laws == same.laws
    assert own.sample(50, 5).x.equal(same.sample(50, 5).x)
    planted = world("synthetic:planted, n_features=12, d=8, l0=2, magnitudes=constant")
    assert planted.sample(9).x.equal(PlantedDictionary(12, 8, l0=2, magnitudes="constant").sample(9).x)


@pytest.mark.parametrize(
    ("name", "width"),
    [("synthetic:16k", 768), ("synthetic:small", 96), (SMALL, 8), ("synthetic:planted,n_features=2,d=5,l0=1", 5)],
)
def test_the_width_is_known_before_anything_is_planted(name: str, width: int) -> None:
    assert world_width(name) == width


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("synthetic:smal", "no synthetic world 'smal'.*did you mean 'small'|no synthetic world 'smal'"),
        ("synthetic:", "no synthetic world ''"),
        ("synthetic:small,root=0", "unknown setting 'root'"),
        ("synthetic:small,roots", "settings are key=value after a comma, got 'roots'"),
        ("synthetic:small,roots=many", "roots is a whole number, got 'many'"),
        ("synthetic:small,roots=1.5", "roots is a whole number"),
        ("synthetic:small,scaled=1", "scaled is true or false"),
        ("synthetic:small,rates=0.4", "rates is a pair"),
        ("synthetic:small,rates=[0.4, x]", "rates is a pair"),
        ("synthetic:small,rates=[0.4", "write synthetic:small"),
        ("synthetic:small,roots=99999", "no forest of 99999 roots"),
        ("synthetic:planted,n_features=12", "say d too"),
        ("synthetic:planted,n_features=12,d=8,l0=99", "must be above 0 and below 1"),
    ],
)
def test_what_is_no_world_is_refused_in_words(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        world(name)


def test_pools_are_functions_of_seed_and_number_and_are_not_what_evaluations_draw() -> None:
    assert is_world(SMALL)
    assert not is_world(None)
    source, again = (ms.activations(SMALL, seed=1) for _ in range(2))
    assert isinstance(source, PlantedActivations)
    assert again.make_pool(2).equal(source.make_pool(2))
    assert again.identity() == source.identity() != ms.activations(SMALL, seed=2).identity()
    rows = [source.make_pool(0)[:64], source.make_pool(1)[:64], ms.activations(SMALL, seed=2).make_pool(0)[:64]]
    rows += [world(SMALL).sample(64, seed).x for seed in (0, 1, 1_000_003, 3_000_017)]
    together = torch.cat(rows)
    together = together[(together != together.mode(0).values).any(-1)]  # rows of which nothing is on are alike
    assert len(together.unique(dim=0)) == len(together)
    of_object = ms.activations(world(SMALL), seed=1)
    assert of_object.make_pool(0).equal(source.make_pool(0))
