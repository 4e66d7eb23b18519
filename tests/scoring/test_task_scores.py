"""Scores of lanes, a foreground, depths, angles and objects: by hand, by slow oracles, and for any draw of images."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from common.data.label_files import Objects
from common.data.labels import IGNORED
from common.data.shots import ShotFormat
from common.data.transforms import ImageFormat
from common.scoring.depth import depth_figures, fitted
from common.scoring.detection import average_precision, found_objects, in_input
from common.scoring.figures import by_image, score_differences, score_intervals
from common.scoring.steering import degrees_of
from common.scoring.tasks import SCORES, score_of
from models import Network
from models.family import NETWORKS

SHOTS = ShotFormat(ImageFormat((64, 64), (0.0,) * 3, (1.0,) * 3))
LETTERBOXED = replace(SHOTS, letterboxed=True)
LANES = SCORES["lanes"]("lanes", ("left", "ego right"))
DEPTH = SCORES["depth"]("depth", ())
STEERING = SCORES["steering"]("steering", ("previous", "current"))
OBJECTS = SCORES["detection"]("detection", ("car", "bike"))


def values(score, evidence, counts=None):
    counts = np.ones((1, len(evidence))) if counts is None else np.asarray(counts)
    keys = [figure.key for figure in score.figures]
    return dict(zip(keys, score.values(evidence, counts)[0].tolist(), strict=True))


# ---- lanes and a foreground ------------------------------------------------------------------------------------------


def lanes_of(logits, label):
    return LANES.evidence([torch.tensor(np.array([logits])).float()], np.array(label, np.uint8), SHOTS)


def test_lanes_are_counted_each_by_itself():
    said = [[[1, 1, -1, 0]], [[-1, 5, 5, -1]]]  # 0 is not above 0
    first = lanes_of(said, [[[1, 0, 1, 0]], [[0, 1, 1, 0]]])
    # left: 1 in both of 3; right: 2 in both of 2
    assert values(LANES, [first]) == pytest.approx({"miou": 2 / 3, "iou_of_left": 1 / 3, "iou_of_ego_right": 1})
    second = lanes_of(said, [[[1, 1, 0, 0]], [[0, 0, 0, 0]]])
    # together left: 3 of 5, right: 2 of 4
    together = values(LANES, [first, second])
    assert together == pytest.approx({"miou": 0.55, "iou_of_left": 0.6, "iou_of_ego_right": 0.5})
    alone = values(LANES, [second])  # no label shows the right lane: it has no score, and is not in the mean
    assert alone == pytest.approx({"miou": 1, "iou_of_left": 1, "iou_of_ego_right": math.nan}, nan_ok=True)
    assert LANES.images_with([first, second]).tolist() == [2, 2, 1]


def test_a_foreground_has_one_score_and_ignores_what_is_not_known():
    score = score_of("DomainSeg", NETWORKS["DomainSeg"])
    logits = torch.tensor([[[[1.0, 1, 1, -1], [-1, -1, 1, 1]]]])
    label = np.array([[[1, 0, IGNORED, 1], [0, IGNORED, 1, 1]]], np.uint8)
    # there in both: 3; in one of them: 5
    evidence = score.evidence([logits], label, SHOTS)
    assert values(score, [evidence]) == {"iou": 0.6}
    assert score.images_with([evidence]).tolist() == [1]


def test_labels_become_as_large_as_the_output():
    large = np.zeros((2, 16, 32), np.uint8)
    large[0, :8, :16] = 1
    large[1] = np.arange(32) % 8 == 4  # the column whose centre is nearest to that of a pixel of the output
    logits = torch.full((1, 2, 2, 4), -1.0)
    logits[0, 0, 0, :2] = 1
    logits[0, 1] = 1
    evidence = LANES.evidence([logits], large, SHOTS)
    assert values(LANES, [evidence]) == {"miou": 1, "iou_of_left": 1, "iou_of_ego_right": 1}


# ---- depth -----------------------------------------------------------------------------------------------------------


def test_depth_is_judged_after_the_best_scale_and_shift():
    truth = np.array([[[1, 2], [4, math.nan]]], np.float32)
    exact = torch.tensor([[[[3.0, 5], [9, 1e6]]]])  # 2 truth + 1 where that is known
    assert values(DEPTH, [DEPTH.evidence([exact], truth, SHOTS)]) == pytest.approx(
        {"abs_rel": 0, "rmse": 0, "delta_1_25": 1}, abs=1e-12
    )


def test_depth_figures_by_hand():
    found = depth_figures(np.array([1.0, 2.0, 6.0, -1.0]), np.array([1.0, 1.6, 4.0, 1.0]))
    # |difference| 0, 0.4, 2, 2; a factor of exactly 1.25 is not below it
    assert found == pytest.approx([(0 + 0.25 + 0.5 + 2) / 4, math.sqrt((0.16 + 4 + 4) / 4), 0.25])


def test_the_fit_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    said, truth = rng.normal(size=500), rng.uniform(1, 50, 500)
    design = np.stack([said, np.ones(500)], axis=1)
    expected = design @ np.linalg.lstsq(design, truth, rcond=None)[0]
    np.testing.assert_allclose(fitted(said, truth), expected, rtol=1e-10)
    np.testing.assert_allclose(fitted(np.full(500, 3.0), truth), truth.mean())


def test_an_image_counts_as_one_however_many_depths_are_known():
    dense = DEPTH.evidence([torch.tensor([[[[1.0, 2, 3, 5]]]])], np.array([[[1, 2, 3, 4]]], np.float32), SHOTS)
    sparse = DEPTH.evidence([torch.zeros(1, 1, 1, 4)], np.array([[[1, 3, *[math.nan] * 2]]], np.float32), SHOTS)
    unknown = DEPTH.evidence([torch.zeros(1, 1, 1, 4)], np.full((1, 1, 4), math.nan, np.float32), SHOTS)
    each = [values(DEPTH, [one])["abs_rel"] for one in (dense, sparse)]
    assert each[1] == pytest.approx((1 + 1 / 3) / 2)  # the mean, 2, for 1 and 3
    assert values(DEPTH, [dense, sparse, unknown])["abs_rel"] == pytest.approx(sum(each) / 2)
    assert DEPTH.images_with([dense, sparse, unknown]).tolist() == [2, 2, 2]


# ---- steering --------------------------------------------------------------------------------------------------------


def bins(index, count=61):
    return torch.nn.functional.one_hot(torch.tensor([index]), count).float()


def test_an_angle_is_the_largest_bin_less_the_middle_one():
    assert degrees_of(bins(0)) == -30
    assert degrees_of(bins(30)) == 0
    assert degrees_of(bins(60)) == 30
    assert degrees_of(torch.tensor([[-3.25]])) == -3.25


def test_the_error_of_the_current_frame_comes_first():
    first = STEERING.evidence([bins(30), bins(35)], np.array([1.5, 4.0]), SHOTS)
    second = STEERING.evidence([bins(20), bins(30)], np.array([math.nan, -3.0]), SHOTS)
    assert values(STEERING, [first, second]) == {"mae_degrees": 2.0, "mae_degrees_of_previous": 1.5}
    assert STEERING.images_with([first, second]).tolist() == [2, 1]
    single = SCORES["steering"]("steering", ("angle",))
    assert values(single, [single.evidence([torch.tensor([[2.0]])], np.array([9.0, 5.0]), SHOTS)]) == {"mae_degrees": 3}


# ---- objects ---------------------------------------------------------------------------------------------------------


def output_of(*found, classes=2):
    """(class, score, left, top, right, bottom) as a detector says it: (1, 4 + classes, cells)."""
    cells = torch.zeros(4 + classes, len(found) + 1)
    for cell, (kind, score, left, top, right, bottom) in enumerate(found):
        cells[:4, cell] = torch.tensor([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top])
        cells[4 + kind, cell] = score
    return cells[None]


def test_average_precision_by_hand():
    """Right, wrong, right, wrong, right of four objects: precision 1, 1/2, 2/3, 2/4, 3/5."""
    scores, right = np.array([0.5, 0.9, 0.8, 0.7, 0.6]), np.array([1.0, 1, 0, 1, 0])
    found = average_precision(scores, right, np.zeros(5, int), np.ones((1, 1)), np.array([4.0]))
    assert found.tolist() == pytest.approx([(1 + 2 / 3 + 3 / 5) / 4])


def test_precision_that_a_higher_recall_reaches_counts_at_a_lower_one():
    scores, right = np.array([0.9, 0.8, 0.7]), np.array([0.0, 1, 1])
    found = average_precision(scores, right, np.zeros(3, int), np.ones((1, 1)), np.array([2.0]))
    assert found.tolist() == pytest.approx([2 / 3])


def test_equal_scores_are_found_at_once():
    for right in ([1.0, 0], [0.0, 1]):
        found = average_precision(np.array([0.5, 0.5]), np.array(right), np.zeros(2, int), np.ones((1, 1)), np.ones(1))
        assert found.tolist() == [0.5]


def slow_average_precision(scores, right, objects):
    """At each number of hits the best precision with as many or more, by the definition."""
    points = []
    for threshold in sorted(set(scores), reverse=True):
        hits, found = right[scores >= threshold].sum(), (scores >= threshold).sum()
        points.append((hits, hits / found))
    area = sum(max([p for h, p in points if h >= hits], default=0) for hits in range(1, objects + 1))
    return area / objects


def test_average_precision_equals_a_slow_walk():
    rng = np.random.default_rng(3)
    for size in (1, 7, 60):
        scores, right = rng.integers(0, 20, size) / 20, rng.integers(0, 2, size).astype(float)
        objects = int(right.sum()) + 3
        fast = average_precision(scores, right, np.zeros(size, int), np.ones((2, 1)), np.full(2, objects))
        # hits that share a score lie on a straight line of recall, so that the walk is by whole steps
        assert fast == pytest.approx([slow_average_precision(scores, right, objects)] * 2)


def test_objects_by_hand():
    """Two cars of which one is found twice, a car where none is, and a bike that is taken for a car."""
    truth = Objects((64, 64), np.array([[0, 0, 0, 10, 10], [0, 30, 30, 50, 50], [1, 5, 40, 25, 60.0]]))
    cars = [(0, 0.9, 0, 0, 10, 10), (0, 0.8, 0, 0, 10, 9), (0, 0.7, 50, 0, 60, 10), (0, 0.6, 30, 30, 50, 46)]
    output = output_of(*cars, (0, 0.5, 5, 40, 25, 60), (1, 0.0005, 5, 40, 25, 60))
    evidence = OBJECTS.evidence([output], truth, SHOTS)
    # the second car of the output is suppressed; right, wrong, right, wrong of two: 1/2 (1 + 2/3)
    assert [each[2] for each in evidence["found"]] == [1, 0, 1, 0]
    assert values(OBJECTS, [evidence]) == pytest.approx({"map_50": 5 / 12, "ap_50_of_car": 5 / 6, "ap_50_of_bike": 0})
    nothing = OBJECTS.evidence([output_of()], Objects((64, 64), np.zeros((0, 5))), SHOTS)
    assert math.isnan(values(OBJECTS, [nothing])["map_50"])
    assert values(OBJECTS, [evidence, nothing])["map_50"] == pytest.approx(5 / 12)
    empty = OBJECTS.evidence([output], Objects((64, 64), np.zeros((0, 5))), SHOTS)
    # four more that are wrong, at the same scores: 1/2, then 2/6
    assert values(OBJECTS, [evidence, empty])["ap_50_of_car"] == pytest.approx((1 / 2 + 2 / 6) / 2)
    assert OBJECTS.images_with([evidence, empty]).tolist() == [2, 1, 1]


def test_an_object_is_found_once_from_half_an_iou_on():
    truth = Objects((64, 64), np.array([[0, 0, 0, 10, 10.0]]))
    for bottom, right in ((5, 1), (4.9, 0)):
        evidence = OBJECTS.evidence([output_of((0, 0.9, 0, 0, 10, bottom))], truth, SHOTS)
        assert evidence["found"][0][2] == right
    twice = output_of((0, 0.9, 0, 0, 10, 6.5), (0, 0.8, 0, 3.5, 10, 10))  # IoU 0.3 with each other
    assert [each[2] for each in OBJECTS.evidence([twice], truth, SHOTS)["found"]] == [1, 0]


def test_suppression_is_within_a_class_and_best_first():
    output = output_of((0, 0.5, 0, 0, 10, 10), (1, 0.6, 0, 0, 10, 10), (0, 0.9, 0, 0, 10, 9), (0, 0.7, 40, 0, 50, 10))
    kinds, scores, boxes = found_objects(output[0].double())
    assert kinds.tolist() == [0, 0, 1]
    assert scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    np.testing.assert_allclose(boxes[0], [0, 0, 10, 9], atol=1e-6)


def test_boxes_follow_their_image_into_the_letterbox():
    label = Objects((10, 20), np.array([[1, 0, 0, 20, 10], [0, 5, 5, 10, 10.0]]))
    assert in_input(label, LETTERBOXED).tolist() == [[1, 0, 16, 64, 48], [0, 16, 32, 32, 48]]
    assert in_input(label, SHOTS).tolist() == [[1, 0, 0, 64, 64], [0, 16, 32, 32, 64]]


# ---- all of them -----------------------------------------------------------------------------------------------------


def random_evidence(score, rng):
    if score is LANES:
        return lanes_of(rng.normal(size=(2, 3, 4)), rng.integers(0, 2, (2, 3, 4)) * rng.integers(0, 2, (2, 1, 1)))
    if score is DEPTH:
        truth = np.where(rng.random((1, 3, 4)) < 0.3, math.nan, rng.uniform(1, 9, (1, 3, 4))).astype(np.float32)
        return DEPTH.evidence([torch.from_numpy(rng.normal(size=(1, 1, 3, 4)))], truth, SHOTS)
    if score is STEERING:
        angles = rng.normal(0, 5, 2) * [rng.choice([1, math.nan]), 1]
        return STEERING.evidence([bins(int(rng.integers(61))), bins(int(rng.integers(61)))], angles, SHOTS)
    corners = rng.integers(0, 40, (4, 2))
    sides = rng.integers(8, 20, (4, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1)
    kinds = rng.integers(0, 2, 4)
    moved = boxes + rng.integers(-2, 3, boxes.shape)
    said = [(int(kind), rng.integers(1, 9) / 10, *box) for kind, box in zip(kinds, moved.tolist(), strict=True)]
    return OBJECTS.evidence(
        [output_of(*said)], Objects((64, 64), np.column_stack([kinds, boxes])[:3].astype(float)), SHOTS
    )


@pytest.mark.parametrize("score", [LANES, DEPTH, STEERING, OBJECTS], ids=lambda score: score.task)
def test_an_image_that_is_drawn_twice_counts_twice(score):
    rng = np.random.default_rng(1)
    evidence = [random_evidence(score, rng) for _ in range(6)]
    counts = rng.multinomial(6, [1 / 6] * 6, size=5)
    drawn = score.values(evidence, counts)
    for row, each in zip(drawn, counts, strict=True):
        repeated = [one for one, times in zip(evidence, each, strict=True) for _ in range(times)]
        np.testing.assert_allclose(row, score.values(repeated, np.ones((1, 6)))[0], rtol=1e-12)
    np.testing.assert_allclose(
        by_image(score, evidence), np.transpose([score.values([e], np.ones((1, 1)))[0] for e in evidence])
    )


@pytest.mark.parametrize("score", [LANES, DEPTH, STEERING, OBJECTS], ids=lambda score: score.task)
def test_scores_survive_json_and_have_intervals(score):
    rng = np.random.default_rng(2)
    evidence = [random_evidence(score, rng) for _ in range(30)]
    other = [random_evidence(score, rng) for _ in range(30)]
    again = json.loads(json.dumps(evidence).replace("NaN", "null"))
    strata = ["Town"] * 20 + ["Country"] * 10
    found, stored = (score_intervals(score, each, strata, seed=0) for each in (evidence, again))
    assert found == stored
    assert len(found) == len(score.figures)
    for interval in found:
        assert interval.low < interval.value < interval.high
    changes = score_differences(score, evidence, other, strata, seed=0)
    before, after = (score.values(each, np.ones((1, 30)))[0] for each in (evidence, other))
    assert [each.value for each in changes] == pytest.approx((after - before).tolist())
    assert all(
        each.value == each.low == each.high == 0 for each in score_differences(score, evidence, evidence, strata, 0)
    )
    assert all(each.low is None for each in score_intervals(score, evidence[:4], strata[:4], 0))
    with pytest.raises(ValueError, match="30 and 29 images cannot be paired"):
        score_differences(score, evidence, other[1:], strata, 0)


REFUSED = {
    "lanes of another number": (LANES, torch.zeros(1, 3, 4, 4), r"output \(1, 3, 4, 4\), wanted \(1, 2, H, W\)"),
    "depths of two channels": (DEPTH, torch.zeros(1, 2, 4, 4), r"output \(1, 2, 4, 4\), wanted \(1, 1, H, W\)"),
    "endless depths": (DEPTH, torch.full((1, 1, 4, 4), math.inf), "its depths hold infinity"),
    "a map for an angle": (STEERING, torch.zeros(1, 1, 4, 4), r"output \(1, 1, 4, 4\), wanted \(1, bins"),
    "an endless angle": (STEERING, torch.full((1, 1), math.inf), "its angle is infinite"),
    "objects of another class": (OBJECTS, torch.zeros(1, 7, 9), r"output \(1, 7, 9\), wanted \(1, 6, cells\)"),
    "endless boxes": (OBJECTS, torch.full((1, 6, 9), math.inf), "its boxes or scores hold infinity"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_outputs_of_another_task_are_refused(case):
    score, output, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        score.evidence([output, output], np.zeros((2, 4, 4)), SHOTS)


def test_each_network_of_the_family_has_the_score_of_its_task():
    scores = {name: score_of(name, row) for name, row in NETWORKS.items() if not row.maps_classes}
    assert {name: [figure.key for figure in score.figures] for name, score in scores.items()} == {
        "Scene3D": ["abs_rel", "rmse", "delta_1_25"],
        "DomainSeg": ["iou"],
        "EgoLanes": ["miou", "iou_of_ego_left_lane", "iou_of_ego_right_lane", "iou_of_other_lanes"],
        "Scene3DLite": ["abs_rel", "rmse", "delta_1_25"],
        "EgoLanesLite": ["miou", "iou_of_leftmost_lane", "iou_of_rightmost_lane", "iou_of_other_lanes"],
        "AutoSteer": ["mae_degrees", "mae_degrees_of_previous"],
        "AutoSpeed": ["map_50", *(f"ap_50_of_class_{index}" for index in range(4))],
    }
    for name in ("SceneSeg", "SceneSegLite"):
        with pytest.raises(ValueError, match=f"{name}: there is no score for its task"):
            score_of(name, NETWORKS[name])
    twins = Network(torch.nn.Identity, (3, 8, 8), task="lanes", classes=("a b", "a_b"))
    with pytest.raises(ValueError, match="own: two of its classes are called iou_of_a_b in results"):
        score_of("own", twins)
