"""Synthetic data with known truth."""

from monosem.synthetic.bench import Laws, SynthSAEBench
from monosem.synthetic.clusters import Clusters
from monosem.synthetic.compositions import Compositions
from monosem.synthetic.known import KnownFeatures, PlantedBatch
from monosem.synthetic.othello import OthelloGames, othello_games
from monosem.synthetic.planted import PlantedDictionary
from monosem.synthetic.superposition import ToyModel
from monosem.synthetic.worlds import World, is_world, world, world_width

__all__ = [
    "Clusters",
    "Compositions",
    "KnownFeatures",
    "Laws",
    "OthelloGames",
    "PlantedBatch",
    "PlantedDictionary",
    "SynthSAEBench",
    "ToyModel",
    "World",
    "is_world",
    "othello_games",
    "world",
    "world_width",
]
