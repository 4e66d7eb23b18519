import pytest
import torch

from common.parity import compare, example_inputs, require_agreement, require_equal_pixels


def logits(images):
    return torch.cat([images, -images], dim=1)


def test_agreement_by_hand():
    images = torch.tensor([[[[1.0, -1.0, 2.0, 0.1]]]])  # classes 0, 1, 0, 0
    shifted = compare(logits, lambda x: logits(x - 0.5), [images])  # the last one changes its class
    assert shifted.largest_difference == pytest.approx(0.5)
    assert shifted.output_range == 4
    assert shifted.relative == pytest.approx(0.125)
    assert shifted.equal_pixels == 0.75


def test_too_far_apart_is_an_error():
    images = [torch.randn(2, 1, 4, 4)]
    assert require_agreement(compare(logits, logits, images)).largest_difference == 0
    for broken in (lambda x: logits(x) * 1.01, lambda x: logits(x) * torch.nan):
        with pytest.raises(ValueError, match="does not compute what PyTorch does"):
            require_agreement(compare(logits, broken, images))
    with pytest.raises(ValueError, match="differ in shape"):
        compare(logits, lambda x: logits(x)[:1], images)


def test_too_few_equal_pixels_is_an_error():
    images = [torch.randn(1, 1, 10, 10)]
    agreement = compare(logits, lambda x: -logits(x), images)
    with pytest.raises(ValueError, match=r"wanted at least 99.5 % of pixels equal"):
        require_equal_pixels(agreement, 0.995)
    assert require_equal_pixels(agreement, 0.0) is agreement


def test_example_inputs_are_the_same_for_a_seed():
    first, second = example_inputs((3, 8, 16), 1), example_inputs((3, 8, 16), 1)
    assert [len(batch) for batch in first] == [1, 1, 2]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
