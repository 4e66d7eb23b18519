import math

import pytest
import torch

from common.runtimes.agreement import OutputMeter, merged


def test_independent_logits_agree_where_the_same_is_there():
    meter = OutputMeter("logits")
    meter.update(torch.tensor([[1.0, -2.0, 3.0, 0.5]]), torch.tensor([[0.5, 1.0, 3.0, -0.5]]))
    found = meter.agreement()
    assert found.equal_pixels == 0.5
    assert found.largest_difference == 3
    assert found.sqnr_db == pytest.approx(10 * math.log10((1 + 4 + 9 + 0.25) / (0.25 + 9 + 1)))


@pytest.mark.parametrize("kind", ["classes", "logits", "values"])
def test_meters_of_parts_are_that_of_the_whole(kind):
    generator = torch.Generator().manual_seed(0)
    expected = torch.randn(6, 3, 4, 5, generator=generator)
    actual = expected + torch.randn(6, 3, 4, 5, generator=generator)
    whole = OutputMeter(kind)
    whole.update(expected, actual)
    parts = [OutputMeter(kind) for _ in range(3)]
    for part, one, other in zip(parts, expected.split(2), actual.split(2), strict=True):
        part.update(one, other)
    assert vars(merged(parts).agreement()) == pytest.approx(vars(whole.agreement()))
    assert (whole.agreement().equal_pixels is None) == (kind == "values")
    assert parts[0].signal < whole.signal  # merging leaves the parts alone


def test_no_difference_and_no_number():
    same, broken = OutputMeter("values"), OutputMeter("values")
    same.update(torch.ones(1, 2), torch.ones(1, 2))
    assert same.agreement().sqnr_db == math.inf
    broken.update(torch.ones(1, 2), torch.tensor([[1.0, math.nan]]))
    assert math.isnan(broken.agreement().sqnr_db)
    assert math.isnan(broken.agreement().largest_difference)
