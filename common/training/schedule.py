"""The learning rate of every step."""

import math

from common.training.settings import TrainingSettings


def learning_rate(settings: TrainingSettings, step: int, total_steps: int) -> float:
    """The learning rate of a step, from 0: a linear rise over `warmup_steps`, then constant or half a cosine down to 0.

    The last step of the cosine is one before the end, so that it still learns.
    """
    highest, warmup = settings.learning_rate, settings.warmup_steps
    if step < warmup:
        return highest * (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return highest
    passed = (step - warmup) / max(total_steps - warmup, 1)
    return highest * 0.5 * (1 + math.cos(math.pi * min(passed, 1.0)))
