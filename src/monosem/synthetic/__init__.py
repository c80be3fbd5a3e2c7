"""Synthetic data with known truth."""

from monosem.synthetic.bench import Laws, SynthSAEBench
from monosem.synthetic.othello import OthelloGames, othello_games
from monosem.synthetic.planted import PlantedBatch, PlantedDictionary

__all__ = ["Laws", "OthelloGames", "PlantedBatch", "PlantedDictionary", "SynthSAEBench", "othello_games"]
