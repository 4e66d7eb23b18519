"""How sure a score is: bootstrap over images of IoU, of its paired difference between two models, and of speed.

The images are drawn with replacement, and both models of a difference see the same draws: what one image does to both
cancels. Efron and Tibshirani, An Introduction to the Bootstrap, 1993 (percentile intervals).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
CONFIDENCE = 0.95
FEWEST_IMAGES = 5  # below, resampling has nothing to say


@dataclass(frozen=True)
class Interval:
    """A figure and the range that holds it with 95 % confidence; None where there are too few images to say."""

    value: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is more than chance."""
        return self.low is not None and (self.low > 0 or self.high < 0)


def iou(confusion: np.ndarray) -> np.ndarray:
    """IoU of each class, (..., C, C) [target, predicted] -> (..., C); nan for a class that does not occur."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    union = confusion.sum(axis=-1) + confusion.sum(axis=-2) - hits
    return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)


def miou(confusion: np.ndarray) -> np.ndarray:
    """The mean IoU of the classes that occur, (..., C, C) -> (...); nan where nothing was counted."""
    return _mean_of_known(iou(confusion))


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a row of nan alone is nan, as wanted
        return np.nanmean(values, axis=-1)


def bootstrap_counts(images: int, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each resample draws each image, (resamples, images); every row sums to `images`."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)


def resampled_iou(confusions: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """IoU of every resample: matrices by image (N, C, C) and counts (R, N) -> mean and classes, (R, 1 + C)."""
    flat = confusions.reshape(len(confusions), -1).astype(np.float64)  # float: the product then runs in BLAS
    classes = iou((counts @ flat).reshape(len(counts), *confusions.shape[1:]))
    return np.concatenate([_mean_of_known(classes)[:, None], classes], axis=1)


def pooled_iou(confusions: np.ndarray) -> np.ndarray:
    """Mean IoU and the IoU of each class over all images: (N, C, C) -> (1 + C)."""
    pooled = confusions.sum(axis=0)
    return np.concatenate([miou(pooled)[None], iou(pooled)])


def iou_intervals(confusions: np.ndarray, seed: int) -> list[Interval]:
    """The intervals of the mean IoU and of each class, from the matrices of the images (N, C, C)."""
    counts = bootstrap_counts(len(confusions), seed)
    return _intervals(pooled_iou(confusions), resampled_iou(confusions, counts), _images_with(confusions))


def difference_intervals(reference: np.ndarray, candidate: np.ndarray, seed: int) -> list[Interval]:
    """Candidate minus reference, paired by image: of the mean IoU and of each class; (N, C, C) both.

    Raises:
        ValueError: the two were not scored on the same number of images.
    """
    if len(reference) != len(candidate):
        raise ValueError(f"{len(reference)} and {len(candidate)} images cannot be paired; score both on the same ones")
    counts = bootstrap_counts(len(reference), seed)
    resampled = resampled_iou(candidate, counts) - resampled_iou(reference, counts)
    return _intervals(pooled_iou(candidate) - pooled_iou(reference), resampled, _images_with(reference))


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
    tail = 100 * (1 - CONFIDENCE) / 2
    known = np.where(np.isnan(resampled).all(axis=0), 0.0, resampled)  # a class that never occurs has no range
    lows, highs = np.nanpercentile(known, (tail, 100 - tail), axis=0)
    return [
        Interval(float(value), float(low), float(high))
        if count >= FEWEST_IMAGES and not np.isnan(value)
        else Interval(float(value), None, None)
        for value, low, high, count in zip(values, lows, highs, counts, strict=True)
    ]
