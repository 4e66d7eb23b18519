import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.classes import Classes, distinct_colours
from common.scoring.metrics import IoUMeter

ABC = Classes(("a", "b", "c"), distinct_colours(3), (0, 1, 2))


def meter_of(predicted, target, classes=ABC):
    meter = IoUMeter(classes)
    meter.update(torch.tensor(predicted), torch.tensor(target))
    return meter


def test_standard_iou_by_hand():
    # class 0: 1 hit, union 2; class 1: 1 hit, union 2; class 2: only where the target is ignored
    meter = meter_of([[[0, 1, 1, 2]]], [[[0, 0, 1, 255]]])
    torch.testing.assert_close(meter.iou(), torch.tensor([0.5, 0.5, torch.nan], dtype=torch.float64), equal_nan=True)
    assert meter.miou() == 0.5
    assert meter.pixel_accuracy() == pytest.approx(2 / 3)


def test_smoothed_iou_by_hand():
    # image 1: all right (4 of 4 pixels class 0); image 2: classes 0, 0 predicted as 0, 1 and 2, 2 as 2, 2
    meter = meter_of([[[0, 0, 0, 0]], [[0, 1, 2, 2]]], [[[0, 0, 0, 0]], [[0, 0, 2, 2]]])
    together, classes = meter.smoothed()
    assert together == pytest.approx(((4 + 1) / (4 + 1) + (3 + 1) / (5 + 1)) / 2)
    expected = [(5 / 5 + 2 / 3) / 2, (1 / 1 + 1 / 2) / 2, (1 / 1 + 3 / 3) / 2]
    torch.testing.assert_close(classes, torch.tensor(expected, dtype=torch.float64))


def test_a_missing_class_is_null_in_the_summary():
    summary = meter_of([[[0, 0]]], [[[0, 0]]]).summary()
    assert summary["iou"] == {"a": 1.0, "b": None, "c": None}
    assert (summary["miou"], summary["miou_smoothed"], summary["images"]) == (1.0, 1.0, 1)


def test_nothing_scored_is_an_error():
    with pytest.raises(ValueError, match="no image was scored"):
        IoUMeter(ABC).summary()


maps = st.integers(1, 5).flatmap(
    lambda count: st.lists(st.integers(0, 2), min_size=24 * count, max_size=24 * count).map(
        lambda ids: torch.tensor(ids).reshape(2, count, 3, 4)
    )
)


@settings(max_examples=50, deadline=None)
@given(maps, st.integers(1, 5))
def test_scores_do_not_depend_on_the_batching(maps, batch):
    predicted, target = maps
    whole, parts = IoUMeter(ABC), IoUMeter(ABC)
    whole.update(predicted, target)
    for start in range(0, len(target), batch):
        part = IoUMeter(ABC)
        part.update(predicted[start : start + batch], target[start : start + batch])
        parts.merge(part)
    torch.testing.assert_close(whole.iou(), parts.iou(), equal_nan=True)
    torch.testing.assert_close(whole.smoothed()[1], parts.smoothed()[1])
    assert whole.smoothed()[0] == pytest.approx(parts.smoothed()[0])


@settings(max_examples=50, deadline=None)
@given(maps)
def test_counts_equal_a_walk_over_the_pixels(maps):
    predicted, target = maps
    meter = IoUMeter(ABC)
    meter.update(predicted, target)
    pairs = list(zip(target.flatten().tolist(), predicted.flatten().tolist(), strict=True))
    for class_id in range(3):
        hits = sum(pair == (class_id, class_id) for pair in pairs)
        union = sum(class_id in pair for pair in pairs)
        if union:
            assert meter.iou()[class_id].item() == pytest.approx(hits / union)
        else:
            assert meter.iou()[class_id].isnan()


@settings(max_examples=50, deadline=None)
@given(maps, st.randoms())
def test_scores_do_not_depend_on_the_order_of_the_images(maps, random):
    order = random.sample(range(maps.shape[1]), maps.shape[1])
    first, second = IoUMeter(ABC), IoUMeter(ABC)
    first.update(*maps)
    second.update(*maps[:, order])
    assert torch.equal(first.confusion, second.confusion)
    torch.testing.assert_close(first.smoothed_sum, second.smoothed_sum)


@settings(max_examples=50, deadline=None)
@given(maps)
def test_smoothed_scores_equal_the_original_formula(maps):
    predicted, target = maps
    meter = IoUMeter(ABC)
    meter.update(predicted, target)
    one_hot = [torch.nn.functional.one_hot(ids, 3).bool() for ids in (predicted, target)]
    together, classes = [], []
    for image_predicted, image_target in zip(*one_hot, strict=True):
        hits, union = image_predicted & image_target, image_predicted | image_target
        together.append((hits.sum() + 1) / (union.sum() + 1))
        classes.append((hits.sum(dim=(0, 1)) + 1) / (union.sum(dim=(0, 1)) + 1))
    assert meter.smoothed()[0] == pytest.approx(torch.stack(together).mean().item())
    torch.testing.assert_close(meter.smoothed()[1].float(), torch.stack(classes).mean(dim=0))


def test_rows_of_the_confusion_are_targets():
    assert meter_of([[[1, 1, 2]]], [[[0, 0, 2]]]).confusion.tolist() == [[0, 2, 0], [0, 0, 0], [0, 0, 1]]


def test_class_ids_of_any_integer_type_count_the_same():
    predicted, target = torch.randint(3, (2, 2, 8, 9), generator=torch.Generator().manual_seed(0))
    expected = IoUMeter(ABC)
    expected.update(predicted, target)
    for dtype in (torch.uint8, torch.int32):
        meter = IoUMeter(ABC)
        meter.update(predicted.to(dtype), target.to(dtype))
        assert torch.equal(meter.confusion, expected.confusion)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_ids_on_a_cuda_device_count_the_same():
    predicted, target = torch.randint(3, (2, 2, 8, 9), generator=torch.Generator().manual_seed(0))
    host, device = IoUMeter(ABC), IoUMeter(ABC)
    host.update(predicted, target)
    device.update(predicted.cuda(), target)
    assert torch.equal(host.confusion, device.confusion)


def test_what_cannot_be_counted_is_an_error():
    with pytest.raises(ValueError, match=r"\(1, 1, 2\) and target ids \(1, 2, 1\) differ"):
        meter_of([[[0, 1]]], [[[0], [1]]])
    for predicted in (-1, 3):
        with pytest.raises(ValueError, match=r"predicted ids .*, wanted class ids 0\.\.2"):
            meter_of([[[0, predicted]]], [[[0, 0]]])
    with pytest.raises(ValueError, match="none whose target holds a class id"):
        meter_of([[[0, 1]]], [[[255, 255]]]).summary()


# ---- more channels than classes that labels name ---------------------------------------------------------------------

# of four channels, labels name b and d alone
SPARSE = Classes(("a", "b", "c", "d"), distinct_colours(4), (1, 3))


def test_a_prediction_of_a_class_that_no_label_names_is_wrong_and_has_no_iou_by_hand():
    # counted are the pixels of the target b, b and d: b is right once and taken for a once, d is right
    predicted, target = [[[1, 0, 3, 3, 1, 2]]], [[[1, 1, 3, 255, 0, 2]]]
    meter = meter_of(predicted, target, SPARSE)
    assert meter.confusion.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert meter.iou().tolist() == [0.5, 1.0]
    assert meter.miou() == 0.75
    assert meter.pixel_accuracy() == pytest.approx(2 / 3)
    summary = meter.summary()
    assert summary["iou"] == {"b": 0.5, "d": 1.0}
    assert summary["iou_smoothed"] == {"b": pytest.approx(2 / 3), "d": 1.0}  # (1 + 1) / (2 + 1) and (1 + 1) / (1 + 1)
    assert summary["miou_smoothed"] == pytest.approx(3 / 4)  # (2 + 1) / (3 + 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2, 3, 255])), min_size=12, max_size=12))
def test_sparse_counts_equal_a_walk_over_the_pixels(pairs):
    predicted, target = torch.tensor(pairs).T.reshape(2, 3, 2, 2)  # of three images
    meter = IoUMeter(SPARSE)
    meter.update(predicted, target)
    known = [pair for pair in pairs if pair[1] in SPARSE.scored]
    for row, class_id in enumerate(SPARSE.scored):
        hits = sum(pair == (class_id, class_id) for pair in known)
        union = sum(class_id in pair for pair in known)
        assert meter.iou()[row].item() == pytest.approx(hits / union if union else torch.nan, nan_ok=True)


def test_predictions_of_all_channels_are_taken_and_no_others():
    meter_of([[[0, 1, 2, 3]]], [[[1, 1, 1, 1]]], SPARSE)
    with pytest.raises(ValueError, match=r"predicted ids 0\.\.4, wanted class ids 0\.\.3"):
        meter_of([[[0, 4]]], [[[1, 1]]], SPARSE)
    with pytest.raises(ValueError, match="none whose target holds a class id"):
        meter_of([[[0, 1]]], [[[0, 2]]], SPARSE).summary()


def test_sparse_meters_are_added_up():
    parts = [meter_of([[[1, 0, 3]]], [[[1, 1, 3]]], SPARSE), meter_of([[[3, 3, 0]]], [[[1, 3, 255]]], SPARSE)]
    parts[0].merge(parts[1])
    whole = meter_of([[[1, 0, 3]], [[3, 3, 0]]], [[[1, 1, 3]], [[1, 3, 255]]], SPARSE)
    assert parts[0].summary() == whole.summary()
