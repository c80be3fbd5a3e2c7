"""Synthetic data with known truth."""

from monosem.synthetic.bench import Laws, SynthSAEBench
from monosem.synthetic.clusters import Clusters
from monosem.synthetic.compositions import Compositions
from monosem.synthetic.othello import OthelloGames, othello_games
from monosem.synthetic.planted import PlantedBatch, PlantedDictionary
from monosem.synthetic.superposition import ToyModel

__all__ = [
    "Clusters",
    "Compositions",
    "Laws",
    "OthelloGames",
    "PlantedBatch",
    "PlantedDictionary",
    "SynthSAEBench",
    "ToyModel",
    "othello_games",
]
