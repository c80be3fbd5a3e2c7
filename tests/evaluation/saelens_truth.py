"""SAELens's scores against a known truth, of tensors that anyone can make again.

python tests/evaluation/saelens_truth.py     (in an environment that has sae-lens) prints THEIRS
"""

from __future__ import annotations

import numpy as np

N_FEATURES, N_LATENTS, D, ROWS = 40, 30, 16, 2000


def tensors() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features, decoder rows, what is on, and what the latents say; each float32."""
    rng = np.random.default_rng(7)
    features = rng.standard_normal((N_FEATURES, D))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    directions = 2 * features[:N_LATENTS] + 0.35 * rng.standard_normal((N_LATENTS, D))
    directions[0] = features[1] + 0.1 * features[2]  # two latents for one feature, and one of no feature
    directions[3] = rng.standard_normal(D)
    rates = np.linspace(0.3, 0.02, N_FEATURES)
    on = np.where(rng.random((ROWS, N_FEATURES)) < rates, rng.random((ROWS, N_FEATURES)) + 0.5, 0)
    seen = (features @ features.T)[:, :N_LATENTS]
    fired = np.maximum(on @ seen - 0.4 + 0.1 * rng.standard_normal((ROWS, N_LATENTS)), 0)
    fired[:, 5] = 0  # a dead one
    return tuple(part.astype(np.float32) for part in (features, directions, on, fired))  # pyright: ignore


THEIRS: dict[str, float] = {
    "f1": 0.4909782111644745,
    "precision": 0.3920670747756958,
    "recall": 0.7917688488960266,
    "matched_cosine": 0.8050552606582642,
    "uniqueness": 0.9,
}
"""Of sae-lens 6.54.12."""

if __name__ == "__main__":
    import torch
    from sae_lens.synthetic import evals  # pyright: ignore

    features, directions, on, fired = (torch.from_numpy(part) for part in tensors())
    found = evals.compute_classification_metrics(fired, on, directions, features)
    print(
        {
            "f1": found.f1_score,
            "precision": found.precision,
            "recall": found.recall,
            "matched_cosine": evals.mean_correlation_coefficient(directions, features),
            "uniqueness": evals.feature_uniqueness(directions, features),
        }
    )
