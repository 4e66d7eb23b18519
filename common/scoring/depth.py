"""Relative depth against measured depth, after the scale and shift of each image that fit best in least squares.

As Ranftl et al., Towards Robust Monocular Depth Estimation (MiDaS), 2020, judge what knows no scale; the figures are
those of Eigen et al., Depth Map Prediction from a Single Image, 2014, of each image, averaged over the images.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor

from common.data.shots import ShotFormat
from common.scoring.figures import Evidence, Figure, column, means

RATIO = 1.25  # to the truth, or of the truth to it, below which a depth is right


class Depth:
    """Absolute relative error, root mean square error in the label's unit, and the share within a factor of 1.25."""

    figures: tuple[Figure, ...] = (
        Figure("abs_rel", "absolute relative error", higher_is_better=False),
        Figure("rmse", "RMSE", higher_is_better=False),
        Figure("delta_1_25", "share within a factor of 1.25", higher_is_better=True),
    )

    def __init__(self, task: str, names: Sequence[str]):
        self.task, self.names = task, tuple(names)

    def evidence(self, outputs: Sequence[Tensor], label: np.ndarray, _: ShotFormat) -> Evidence:
        """Outputs: (1, 1, h, w); label: float32 (1, H, W), nan where not known, resized to the output's h, w."""
        output = outputs[0]
        if output.dim() != 4 or tuple(output.shape[:2]) != (1, 1):
            raise ValueError(f"output {tuple(output.shape)}, wanted (1, 1, H, W), a map of depths")
        said = output[0, 0].double().numpy()
        if not np.isfinite(said).all():
            raise ValueError("its depths hold infinity; are its weights, or its FP16 ranges, damaged?")
        truth = cv2.resize(label[0], said.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(np.float64)
        known = np.isfinite(truth)
        if not known.any():  # the resize may pass all of few points over
            return {"figures": [math.nan] * len(self.figures)}
        return {"figures": depth_figures(fitted(said[known], truth[known]), truth[known])}

    def values(self, evidence: Sequence[Evidence], counts: np.ndarray) -> np.ndarray:
        """Means over the images, (R, 3)."""
        return means(column(evidence, "figures"), counts)

    def images_with(self, evidence: Sequence[Evidence]) -> np.ndarray:
        """Those of which a depth is known."""
        return (~np.isnan(column(evidence, "figures"))).sum(axis=0)


def fitted(said: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """scale * said + shift with the least sum of squared differences from the truth, (n,) both."""
    deviation = said - said.mean()
    variance = (deviation**2).sum()
    scale = (deviation * truth).sum() / variance if variance else 0.0
    return truth.mean() + scale * deviation


def depth_figures(depth: np.ndarray, truth: np.ndarray) -> list[float]:
    """Absolute relative error, root mean square error, and the share within RATIO; (n,) both, the truth above 0."""
    difference = depth - truth
    low, high = np.minimum(depth, truth), np.maximum(depth, truth)
    return [
        float((np.abs(difference) / truth).mean()),
        float(np.sqrt((difference**2).mean())),
        float((high < RATIO * low).mean()),  # a depth below 0 is never within
    ]
