"""How sure a score is: bootstrap over images of any figure, of its paired difference between two models, and of speed.

The images are drawn with replacement, and both models of a difference see the same draws: what one image does to both
cancels. Percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993), expanded for small samples
(Hesterberg, What Teachers Should Know about the Bootstrap, 2015). scipy.stats.bootstrap has neither these nor strata.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.special import ndtr, stdtrit

from common.scoring.metrics import iou, iou_of_targets, mean_of_known

RESAMPLES = 1000
CONFIDENCE = 0.95
FEWEST_IMAGES = 5  # below, resampling has nothing to say

Figures = Callable[[np.ndarray], np.ndarray]  # how often each image counts (R, N) -> the figures (R, F)
ClassScores = Callable[[np.ndarray], np.ndarray]  # confusion matrices (..., C, C) -> score of each class (..., C)


@dataclass(frozen=True)
class Interval:
    """A figure and the range that holds it with 95 % confidence; None where there are too few images to say."""

    value: float
    low: float | None
    high: float | None

    @property
    def ends(self) -> tuple[float, float] | None:
        """Both ends, or None where there are none."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is more than chance."""
        return self.ends is not None and (self.ends[0] > 0 or self.ends[1] < 0)


def bootstrap_counts(strata: Sequence[str], seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each resample draws each image, (resamples, images).

    Args:
        strata: the dataset of each image. Images are drawn within their dataset, because how many it has is no
            accident; where one has fewer than FEWEST_IMAGES, all are drawn from together.
    """
    _, members = np.unique(strata, return_inverse=True)
    if np.bincount(members).min() < FEWEST_IMAGES:
        members = np.zeros_like(members)
    random = np.random.default_rng(seed)
    counts = np.empty((resamples, len(members)), int)
    for stratum in range(members.max() + 1):
        mine = np.flatnonzero(members == stratum)
        counts[:, mine] = random.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), size=resamples)
    return counts


def resampled_iou(confusions: np.ndarray, counts: np.ndarray, score: ClassScores = iou) -> np.ndarray:
    """IoU of every resample: matrices by image (N, C, C) and counts (R, N) -> mean and classes, (R, 1 + C)."""
    flat = confusions.reshape(len(confusions), -1).astype(np.float64)  # float: the product then runs in BLAS
    classes = score((counts @ flat).reshape(len(counts), *confusions.shape[1:]))
    return np.concatenate([mean_of_known(classes)[:, None], classes], axis=1)


def figure_intervals(figures: Figures, images: np.ndarray, strata: Sequence[str], seed: int) -> list[Interval]:
    """The interval of each of F figures.

    Args:
        figures: what they come to for any draw of the images.
        images: how many of them each figure rests on, (F,).
        strata: the dataset of each image.
    """
    once = np.ones((1, len(strata)))
    return _intervals(figures(once)[0], figures(bootstrap_counts(strata, seed)), images)


def paired_intervals(
    reference: Figures, candidate: Figures, images: np.ndarray, strata: Sequence[str], seed: int
) -> list[Interval]:
    """`figure_intervals` of candidate minus reference, both for the same draws."""

    def change(counts: np.ndarray) -> np.ndarray:
        return candidate(counts) - reference(counts)

    return figure_intervals(change, images, strata, seed)


def iou_intervals(confusions: np.ndarray, strata: Sequence[str], seed: int) -> list[Interval]:
    """The intervals of the mean IoU and of each class, from the matrices of the images (N, C, C) and their datasets."""
    return figure_intervals(partial(resampled_iou, confusions), _images_with(confusions), strata, seed)


def difference_intervals(
    reference: np.ndarray, candidate: np.ndarray, strata: Sequence[str], seed: int
) -> list[Interval]:
    """Candidate minus reference, paired by image: of the mean IoU and of each class; (N, C, C) both.

    Of the classes that the masks hold: a class that one model alone sees would have no counterpart.

    Raises:
        ValueError: the two were not scored on the same number of images.
    """
    if len(reference) != len(candidate):
        raise ValueError(f"{len(reference)} and {len(candidate)} images cannot be paired; score both on the same ones")
    before, after = (partial(resampled_iou, one, score=iou_of_targets) for one in (reference, candidate))
    return paired_intervals(before, after, _images_with(reference), strata, seed)


def speedup_interval(reference: Sequence[Sequence[float]], candidate: Sequence[Sequence[float]], seed: int) -> Interval:
    """Reference median / candidate median of seconds in blocks that were timed side by side.

    Whole blocks are drawn, because calls of one block share the machine's mood of that moment.
    """
    value = float(np.median(np.concatenate(reference)) / np.median(np.concatenate(candidate)))
    draws = np.random.default_rng(seed).integers(len(reference), size=(RESAMPLES, len(reference)))
    ratios = [
        np.median(np.concatenate([reference[i] for i in draw]))
        / np.median(np.concatenate([candidate[i] for i in draw]))
        for draw in draws
    ]
    return _intervals(np.array([value]), np.array(ratios)[:, None], np.array([len(reference)]))[0]


def _images_with(confusions: np.ndarray) -> np.ndarray:
    """How many images there are, and how many have each class in their masks: (N, C, C) -> (1 + C)."""
    return np.concatenate([[len(confusions)], np.count_nonzero(confusions.sum(axis=2), axis=0)])


def _intervals(values: np.ndarray, resampled: np.ndarray, counts: np.ndarray) -> list[Interval]:
    """An interval for each value that rests on at least FEWEST_IMAGES images (blocks), of `counts`."""
    return [
        _interval(float(value), draws[~np.isnan(draws)], int(count))
        for value, draws, count in zip(values, resampled.T, counts, strict=True)
    ]


def _interval(value: float, draws: np.ndarray, count: int) -> Interval:
    if count < FEWEST_IMAGES or np.isnan(value):
        return Interval(value, None, None)
    tail = 100 * expanded_tail(count)
    low, high = np.percentile(draws, (tail, 100 - tail))
    return Interval(value, float(low), float(high))


def expanded_tail(count: int) -> float:
    """The share of resamples beyond each end of an interval from `count` images.

    Resamples of few images scatter too little, by the square root of (n - 1) / n, and their quantiles are the normal
    distribution's where Student's would be right; a smaller tail makes up for both (Hesterberg 2015).
    """
    quantile = stdtrit(count - 1, 1 - (1 - CONFIDENCE) / 2)  # of Student's distribution
    return float(ndtr(-quantile * (count / (count - 1)) ** 0.5))
