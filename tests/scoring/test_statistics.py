from statistics import NormalDist

import numpy as np
import pytest
import torch

from common.scoring.metrics import IoUMeter, iou, iou_of_targets, mean_of_known
from common.scoring.statistics import (
    Interval,
    bootstrap_counts,
    difference_intervals,
    expanded_tail,
    iou_intervals,
    resampled_iou,
    speedup_interval,
)
from tests.family import CLASSES


def matrices(images, seed=0, error=0.1):
    """Confusion matrices of images whose share of wrong pixels varies about `error`."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(images):
        wrong = np.clip(rng.normal(error, 0.03), 0, 1)
        rows = np.full((3, 3), wrong / 2)
        np.fill_diagonal(rows, 1 - wrong)
        result.append([rng.multinomial(rng.integers(500, 2000), row) for row in rows])
    return np.array(result)


def one_set(images):
    """The dataset of each image: the same for all."""
    return ["Town"] * len(images)


def intervals_of(confusions, seed=0):
    return iou_intervals(confusions, one_set(confusions), seed)


def test_iou_by_hand():
    confusion = np.array([[2, 1, 0], [0, 3, 0], [0, 0, 0]])
    np.testing.assert_array_equal(iou(confusion), [2 / 3, 3 / 4, np.nan])
    assert mean_of_known(iou(confusion)) == (2 / 3 + 3 / 4) / 2


def pooled_iou(confusions):
    return resampled_iou(confusions, np.ones((1, len(confusions))))[0]


def test_pooled_iou_equals_the_meter_and_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(3, (6, 20, 30), generator=generator)
    noise = torch.rand(target.shape, generator=generator) < 0.3
    predicted = torch.where(noise, torch.randint(3, target.shape, generator=generator), target)
    meters = [IoUMeter(CLASSES) for _ in target]
    for meter, ids, truth in zip(meters, predicted, target, strict=True):
        meter.update(ids[None], truth[None])
    ours = pooled_iou(np.stack([meter.confusion.numpy() for meter in meters]))
    scores = sklearn.jaccard_score(target.flatten(), predicted.flatten(), average=None)
    np.testing.assert_allclose(ours, [scores.mean(), *scores], rtol=0, atol=1e-9)


def test_every_resample_draws_as_many_images_as_there_are():
    counts = bootstrap_counts(["Town"] * 7, seed=0)
    assert counts.shape == (1000, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert (bootstrap_counts(["Town"] * 7, seed=0) == counts).all()
    assert (bootstrap_counts(["Town"] * 7, seed=1) != counts).any()


def test_images_are_drawn_within_their_dataset():
    strata = ["Town"] * 6 + ["Country"] * 14
    counts = bootstrap_counts(strata, seed=0)
    assert (counts[:, :6].sum(axis=1) == 6).all()
    assert (counts[:, 6:].sum(axis=1) == 14).all()
    assert (counts.std(axis=0) > 0.5).all()


def test_datasets_of_very_few_images_are_drawn_from_together():
    counts = bootstrap_counts(["Town"] * 4 + ["Country"] * 16, seed=0)
    assert (counts.sum(axis=1) == 20).all()
    assert counts[:, :4].sum(axis=1).std() > 1


def test_datasets_that_differ_widen_no_interval():
    """Which dataset an image is of is no chance: two that differ have an interval as narrow as two that do not."""
    easy, hard = matrices(20, seed=1, error=0.02), matrices(20, seed=2, error=0.3)
    both = np.concatenate([easy, hard])
    together = iou_intervals(both, ["Easy"] * 20 + ["Hard"] * 20, seed=0)[0]
    mixed = intervals_of(both)[0]
    assert together.high - together.low < (mixed.high - mixed.low) / 2


@pytest.mark.parametrize(
    ("count", "student"), [(5, 2.776), (10, 2.262), (20, 2.093), (60, 2.001)]
)  # of a table of Student's distribution, 97.5 %
def test_the_tail_of_few_images_is_smaller(count, student):
    expected = NormalDist().cdf(-student * (count / (count - 1)) ** 0.5)
    assert expanded_tail(count) == pytest.approx(expected, rel=3e-3)
    assert expanded_tail(count) < 0.025


def test_the_tail_of_many_images_is_the_confidence():
    assert expanded_tail(100_000) == pytest.approx(0.025, rel=1e-3)


def test_a_class_that_one_model_alone_sees_is_in_no_difference():
    truth = np.zeros((20, 3, 3), int)
    truth[:, 0, 0], truth[:, 1, 1] = 80, 20
    worse = truth.copy()
    worse[3, 0] = [79, 0, 1]  # one pixel of a class that no mask holds
    assert mean_of_known(iou(worse.sum(axis=0))) < 0.67
    assert np.isnan(iou_of_targets(worse.sum(axis=0))[2])
    mean, _, _, absent = difference_intervals(truth, worse, one_set(truth), seed=0)
    assert mean.value == pytest.approx(-1 / 1600 / 2)
    assert np.isnan(absent.value)


def test_a_resample_equals_scoring_the_drawn_images_one_by_one():
    confusions, counts = matrices(8), bootstrap_counts(["Town"] * 8, seed=3, resamples=20)
    fast = resampled_iou(confusions, counts)
    for row, drawn in zip(fast, counts, strict=True):
        pool = np.zeros((3, 3))
        for image, times in zip(confusions, drawn, strict=True):
            for _ in range(times):
                pool += image
        classes = [pool[c, c] / (pool[c].sum() + pool[:, c].sum() - pool[c, c]) for c in range(3)]
        np.testing.assert_allclose(row, [np.mean(classes), *classes], rtol=0, atol=1e-12)


def test_an_interval_holds_its_value_and_narrows_with_more_images():
    few, many = (intervals_of(matrices(images))[0] for images in (10, 400))
    for interval in (few, many):
        assert interval.low < interval.value < interval.high
    assert many.high - many.low < (few.high - few.low) / 3


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    truth = pooled_iou(matrices(20000, seed=99))[0]
    intervals = [intervals_of(matrices(40, seed))[0] for seed in range(100)]
    assert 86 <= sum(interval.low <= truth <= interval.high for interval in intervals) <= 100


def test_two_equal_models_differ_by_nothing():
    confusions = matrices(20)
    for interval in difference_intervals(confusions, confusions.copy(), one_set(confusions), seed=0):
        assert interval == Interval(0.0, 0.0, 0.0)
        assert not interval.excludes_zero


def test_a_paired_difference_is_found_that_the_separate_intervals_hide():
    better = matrices(30)
    worse = better.copy()
    moved = better[:, 0, 0] // 100  # one pixel in a hundred of class 0 now counts as class 1
    worse[:, 0, 0] -= moved
    worse[:, 0, 1] += moved
    separate = [intervals_of(confusions)[0] for confusions in (better, worse)]
    assert separate[1].high > separate[0].low
    difference = difference_intervals(better, worse, one_set(better), seed=0)[0]
    assert difference.high < 0
    assert difference.excludes_zero


def test_too_few_images_have_no_interval():
    assert intervals_of(matrices(4))[0].low is None
    assert not difference_intervals(matrices(4), matrices(4, error=0.5), one_set(range(4)), seed=0)[0].excludes_zero


def test_a_class_that_does_not_occur_has_no_interval():
    confusions = np.zeros((6, 3, 3), int)
    confusions[:, 0, 0] = 10
    mean, first, second, _ = intervals_of(confusions)
    assert (mean, first) == (Interval(1.0, 1.0, 1.0), Interval(1.0, 1.0, 1.0))
    assert np.isnan(second.value)
    assert second.low is None


def test_a_class_in_too_few_images_has_no_interval():
    """All resamples that hold the class hold the same image: a range of no width would be no statement."""
    confusions = np.zeros((20, 2, 2), int)
    confusions[:, 0, 0] = 10
    confusions[:4, 1, 1] = 10
    mean, common, rare = intervals_of(confusions)
    assert (rare.value, rare.low) == (1.0, None)
    assert None not in (mean.low, common.low)
    worse = confusions.copy()
    worse[0, 1] = [4, 6]
    assert not difference_intervals(confusions, worse, one_set(confusions), seed=0)[2].excludes_zero


def test_only_pairs_can_be_compared():
    with pytest.raises(ValueError, match="8 and 9 images cannot be paired"):
        difference_intervals(matrices(8), matrices(9), one_set(range(8)), seed=0)


def test_speed_survives_a_drift_that_hits_both():
    rng = np.random.default_rng(0)
    drift = np.linspace(1, 3, 10)
    slow = [list(0.2 * factor * rng.normal(1, 0.01, 4)) for factor in drift]
    fast = [list(0.1 * factor * rng.normal(1, 0.01, 4)) for factor in drift]
    speed = speedup_interval(slow, fast, seed=0)
    assert speed.value == pytest.approx(2, rel=0.02)
    assert 1.9 < speed.low < speed.high < 2.1
