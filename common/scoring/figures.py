"""Scores of outputs that are no map of classes: what they are made of, and how sure they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from common.data.shots import ShotFormat
from common.scoring.statistics import Figures, Interval, figure_intervals, paired_intervals

Evidence = dict[str, list]  # what one model says of one image against its label, as JSON takes it


@dataclass(frozen=True)
class Figure:
    """One of the figures of a score."""

    key: str  # in results.json, and of the gate
    title: str
    higher_is_better: bool
    tolerated: float = 0.01  # a loss up to it is called kept

    def loss(self, change: float) -> float:
        """Candidate minus reference as a loss: above 0 where the candidate is worse."""
        return 0 - change if self.higher_is_better else change


class Score(Protocol):
    """How one task is judged; the evidence of images is added up, so that any draw of them has its figures."""

    task: str
    names: tuple[str, ...]  # of what is told apart
    figures: tuple[Figure, ...]  # the first is the one that a model is judged by

    def evidence(self, outputs: Sequence[Tensor], label: Any, shots: ShotFormat) -> Evidence:
        """Of the outputs (1, ...) for one image, what `read_label` gave for it, and how it became the input.

        Raises:
            ValueError: outputs that are not of the task.
        """

    def values(self, evidence: Sequence[Evidence], counts: np.ndarray) -> np.ndarray:
        """The figures of draws of images, (R, F), where each image counts `counts` (R, N) times; nan: not defined."""

    def images_with(self, evidence: Sequence[Evidence]) -> np.ndarray:
        """On how many of the images each figure rests, (F,)."""


def column(evidence: Sequence[Evidence], key: str) -> np.ndarray:
    """One part of the evidence as float64 (N, ...); nan where it is not known."""
    return np.array([each[key] for each in evidence], np.float64)


def means(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means over images, (N, F) and (R, N) -> (R, F), of those that are known."""
    known = ~np.isnan(values)
    return share(counts @ np.where(known, values, 0), counts @ known)


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; nan where the whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def figures_of(score: Score, evidence: Sequence[Evidence]) -> Figures:
    """The figures for any draw of these images."""
    return partial(score.values, evidence)


def score_intervals(score: Score, evidence: Sequence[Evidence], strata: Sequence[str], seed: int) -> list[Interval]:
    """Each figure over the images, whose datasets are `strata`, with its interval."""
    return figure_intervals(figures_of(score, evidence), score.images_with(evidence), strata, seed)


def score_differences(
    score: Score, reference: Sequence[Evidence], candidate: Sequence[Evidence], strata: Sequence[str], seed: int
) -> list[Interval]:
    """Candidate minus reference of each figure, paired by image.

    Raises:
        ValueError: the two were not scored on the same number of images.
    """
    if len(reference) != len(candidate):
        raise ValueError(f"{len(reference)} and {len(candidate)} images cannot be paired; score both on the same ones")
    before, after = figures_of(score, reference), figures_of(score, candidate)
    return paired_intervals(before, after, score.images_with(reference), strata, seed)


def by_image(score: Score, evidence: Sequence[Evidence]) -> list[list[float]]:
    """The figures of each image alone, [figure][image]; nan where it has none."""
    alone = np.array([score.values([each], np.ones((1, 1)))[0] for each in evidence])
    return alone.T.tolist()
