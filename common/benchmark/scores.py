"""Scores against labels in the results document of models whose outputs are compared: figures by name, with intervals.

docs/results.md describes the keys.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from common.benchmark.outputs import OutputMeasurement
from common.benchmark.verdict import accuracy_words
from common.scoring.figures import Evidence, Score, by_image, score_differences, score_intervals
from common.scoring.statistics import Interval
from common.scoring.tasks import SCORES

WORST_IMAGES = 6  # listed by what they lose of the first figure

Ranges = dict[str, dict[str, float | None]]  # key of a figure -> value, low, high


def score_document(score: Score) -> dict[str, Any]:
    """What is scored, and what the figures are called."""
    figures = {each.key: {"title": each.title, "higher_is_better": each.higher_is_better} for each in score.figures}
    return {"task": score.task, "names": list(score.names), "figures": figures}


def score_from(document: Mapping[str, Any]) -> Score:
    """The score that `score_document` describes."""
    return SCORES[document["task"]](document["task"], document["names"])


def model_scores(score: Score, label: str, measurement: OutputMeasurement, seed: int) -> Ranges:
    """The figures of a model over all images."""
    found = score_intervals(score, measurement.recordings[label].evidence, measurement.strata, seed)
    return _named(score, found)


def dataset_scores(score: Score, label: str, measurement: OutputMeasurement, dataset: str, seed: int) -> Ranges:
    """Those of the images of one dataset."""
    evidence = _of(measurement.recordings[label].evidence, measurement.datasets[dataset])
    return _named(score, score_intervals(score, evidence, [dataset] * len(evidence), seed))


def scores_by_image(score: Score, label: str, measurement: OutputMeasurement) -> dict[str, Any]:
    """The figures of each image alone, and what any draw of the images can be scored by."""
    evidence = measurement.recordings[label].evidence
    alone = by_image(score, evidence)
    return {
        "scores": {each.key: values for each, values in zip(score.figures, alone, strict=True)},
        "evidence": list(evidence),
    }


def difference_scores(
    score: Score, reference: str, label: str, measurement: OutputMeasurement, seed: int
) -> dict[str, Any]:
    """A model minus the reference, paired by image, over all and in each dataset; what that means for the first figure,
    in a word and a sentence; and the images that lose most of it."""
    first, second = (measurement.recordings[name].evidence for name in (reference, label))
    changes = score_differences(score, first, second, measurement.strata, seed)
    main = score.figures[0]
    tag, words = accuracy_words(changes[0], main.higher_is_better, main.tolerated)

    def within(dataset: str, mine: Sequence[int]) -> Ranges:
        one, other = _of(first, mine), _of(second, mine)
        return _named(score, score_differences(score, one, other, [dataset] * len(mine), seed))

    values = (score.values(one, np.ones((1, len(one))))[0, 0] for one in (second, first))
    told = " against ".join("unknown" if math.isnan(value) else f"{value:.4f}" for value in values)
    return {
        "tag": tag,
        "told": f"{main.title} {told}, {words}",
        "scores": _named(score, changes),
        "datasets": {name: {"scores": within(name, mine)} for name, mine in measurement.datasets.items()},
        "worst_scores": _worst(score, first, second),
    }


def _worst(score: Score, first: Sequence[Evidence], second: Sequence[Evidence]) -> list[dict[str, Any]]:
    """The images that lose of the first figure, the largest loss first."""
    before, after = (by_image(score, one)[0] for one in (first, second))
    losses = [score.figures[0].loss(new - old) for old, new in zip(before, after, strict=True)]
    order = sorted((index for index, loss in enumerate(losses) if loss > 0), key=lambda index: -losses[index])
    return [
        {"index": index, "loss": losses[index], "reference": before[index], "value": after[index]}
        for index in order[:WORST_IMAGES]
    ]


def _of(evidence: Sequence[Evidence], indices: Sequence[int]) -> list[Evidence]:
    return [evidence[index] for index in indices]


def _named(score: Score, found: Sequence[Interval]) -> Ranges:
    return {figure.key: asdict(interval) for figure, interval in zip(score.figures, found, strict=True)}
