"""Steering angles: the mean absolute error in degrees."""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from common.data.shots import ShotFormat
from common.scoring.figures import Evidence, Figure, column, means

TOLERATED = 0.1  # degrees


class Steering:
    """Of each output the mean of |angle - label|; of several, one for each image, that of the last image counts."""

    def __init__(self, task: str, names: Sequence[str]):
        self.task, self.names = task, tuple(names)
        *earlier, _ = names
        others = (
            Figure(f"mae_degrees_of_{name}", f"mean error of {name}, degrees", False, TOLERATED) for name in earlier
        )
        self.figures = (Figure("mae_degrees", "mean error, degrees", False, TOLERATED), *others)

    def evidence(self, outputs: Sequence[Tensor], label: np.ndarray, _: ShotFormat) -> Evidence:
        """Outputs: for each image that has one (1, bins) or (1, 1); label: degrees (images,), nan where not known."""
        said = np.array([degrees_of(output) for output in outputs[: len(self.names)]])
        *earlier, last = np.abs(said - label[-len(self.names) :]).tolist()
        return {"error": [last, *earlier]}

    def values(self, evidence: Sequence[Evidence], counts: np.ndarray) -> np.ndarray:
        """Means over the images, (R, F)."""
        return means(column(evidence, "error"), counts)

    def images_with(self, evidence: Sequence[Evidence]) -> np.ndarray:
        """Those with a known angle."""
        return (~np.isnan(column(evidence, "error"))).sum(axis=0)


def degrees_of(output: Tensor) -> float:
    """The angle that an output (1, n) says: the number itself, or of logits of n bins of one degree, the middle one
    being 0, the bin of the largest.

    Raises:
        ValueError: it is of another shape, or infinite.
    """
    if output.dim() != 2 or output.shape[0] != 1:
        raise ValueError(f"output {tuple(output.shape)}, wanted (1, bins of a degree) or (1, 1), an angle")
    bins = output.shape[1]
    if bins > 1:
        return output.argmax().item() - (bins - 1) / 2
    if not math.isfinite(degrees := output.item()):
        raise ValueError("its angle is infinite; are its weights, or its FP16 ranges, damaged?")
    return degrees
