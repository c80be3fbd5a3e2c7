"""Features: what makes each latent fire."""

from monosem.features.examples import Example, ExampleCollector, Examples, top_examples
from monosem.features.show import peaks_on_a_word, print_features, token_text

__all__ = ["Example", "ExampleCollector", "Examples", "peaks_on_a_word", "print_features", "token_text", "top_examples"]
