"""What a dictionary's directions mean to the model."""

from monosem.analysis.logit_lens import TokenEffects, logit_lens, logit_weights

__all__ = ["TokenEffects", "logit_lens", "logit_weights"]
