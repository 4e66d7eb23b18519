"""What the report says of an accuracy: kept is a claim, and needs the images for it."""

import pytest

from common.benchmark.verdict import verdict
from common.scoring.statistics import Interval

SPEED = Interval(2.0, 1.9, 2.1)


@pytest.mark.parametrize(
    ("difference", "tag", "words"),
    [
        (Interval(0.0, 0.0, 0.0), "kept", "no difference"),
        (Interval(-0.001, -0.004, 0.002), "kept", "a loss above 0.0040 is unlikely"),
        (Interval(-0.02, -0.095, 0.011), "unknown", "a loss of 0.0950 is not ruled out"),
        (Interval(-0.02, -0.03, -0.01), "lost", "accuracy is lost"),
        (Interval(0.02, 0.01, 0.03), "gained", "in its favour"),
        (Interval(-0.02, None, None), "unknown", "too few images"),
    ],
)
def test_the_accuracy_in_a_word_and_in_a_sentence(difference, tag, words):
    found, text = verdict("FP32", "INT8", 0.75, 0.75 + difference.value, difference, SPEED, 0.26)
    assert found == tag
    assert words in text
