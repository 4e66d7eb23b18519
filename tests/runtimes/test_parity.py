import math

import pytest
import torch

from common.runtimes.parity import compare, example_inputs, require_agreement, require_equal_pixels


class Network:
    """A predictor with two classes: `scale` * (x + `shift`) and its negative."""

    provider = "test"

    def __init__(self, scale=1.0, shift=0.0):
        self.scale, self.shift = scale, shift

    def outputs(self, images):
        x = self.scale * (images + self.shift)
        return [torch.cat([x, -x], dim=1)]


class OneRow(Network):
    def outputs(self, images):
        return [output[:1] for output in super().outputs(images)]


def test_agreement_by_hand():
    images = torch.tensor([[[[1.0, -1.0, 2.0, 0.1]]]])  # classes 0, 1, 0, 0
    (shifted,) = compare(Network(), Network(shift=-0.5), [images])  # the last one changes its class
    assert shifted.largest_difference == pytest.approx(0.5)
    assert shifted.output_range == 4
    assert shifted.relative == pytest.approx(0.125)
    assert shifted.equal_pixels == 0.75
    signal, noise = 2 * (1 + 1 + 4 + 0.01), 8 * 0.25
    assert shifted.sqnr_db == pytest.approx(10 * math.log10(signal / noise))


def test_a_single_map_has_no_classes_to_compare():
    class Depth(Network):
        def outputs(self, images):
            return [images]

    (agreement,) = compare(Depth(), Depth(), [torch.randn(1, 1, 4, 4)])
    assert (agreement.equal_pixels, agreement.sqnr_db) == (None, math.inf)
    assert "pixels" not in str(agreement)


def test_too_far_apart_is_an_error():
    images = [torch.randn(2, 1, 4, 4)]
    require_agreement(compare(Network(), Network(), images))
    for broken in (Network(scale=1.01), Network(scale=torch.nan)):
        with pytest.raises(ValueError, match="does not compute what PyTorch does"):
            require_agreement(compare(Network(), broken, images))
    with pytest.raises(ValueError, match="differ in shape"):
        compare(Network(), OneRow(), images)


def test_too_few_equal_pixels_is_an_error():
    images = [torch.randn(1, 1, 10, 10)]
    agreements = compare(Network(), Network(scale=-1), images)
    with pytest.raises(ValueError, match=r"wanted at least 99.5 % of pixels equal"):
        require_equal_pixels(agreements, 0.995)
    require_equal_pixels(agreements, 0.0)


def test_example_inputs_are_the_same_for_a_seed():
    first, second = example_inputs((3, 8, 16), 1), example_inputs((3, 8, 16), 1)
    assert [len(batch) for batch in first] == [1, 1, 2]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
