"""Features: what makes each latent fire. Harvested in one pass, kept as tables, shown."""

from monosem.features.card import feature_card
from monosem.features.explanations import Explanation, Explanations, Score
from monosem.features.feature import Example, Feature, Interval
from monosem.features.files import write_store
from monosem.features.harvest import HarvestObserver, harvest, new_harvest
from monosem.features.merged import merge_at_first
from monosem.features.near import near_misses
from monosem.features.rule import Clause, Rule
from monosem.features.show import print_features
from monosem.features.state import Harvest, HarvestSettings
from monosem.features.store import FeatureStore
from monosem.models.vocabulary import Vocabulary

__all__ = [
    "Clause",
    "Example",
    "Explanation",
    "Explanations",
    "Feature",
    "FeatureStore",
    "Harvest",
    "HarvestObserver",
    "HarvestSettings",
    "Interval",
    "Rule",
    "Score",
    "Vocabulary",
    "feature_card",
    "harvest",
    "merge_at_first",
    "near_misses",
    "new_harvest",
    "print_features",
    "write_store",
]
