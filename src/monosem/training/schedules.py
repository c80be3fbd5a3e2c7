"""Learning rate over a run."""

UNKNOWN_LENGTH_WARMUP = 1000  # steps


def lr_factor(step: int, n_steps: int | None, warmup: float, decay: float) -> float:
    """Share of the peak rate at a step: up over `warmup`, level, down to zero over the last `decay` of the run.

    Without a length: up over 1,000 steps, then level.
    """
    if n_steps is None:
        return min(1.0, (step + 1) / UNKNOWN_LENGTH_WARMUP)
    rising = (step + 1) / max(1.0, warmup * n_steps)
    falling = (n_steps - step) / max(1.0, decay * n_steps)
    return max(0.0, min(1.0, rising, falling))
