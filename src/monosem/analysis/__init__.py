"""What a dictionary's directions mean to the model."""

from monosem.analysis.logit_lens import TokenEffects, direction_logits, logit_lens, logit_weights

__all__ = ["TokenEffects", "direction_logits", "logit_lens", "logit_weights"]
