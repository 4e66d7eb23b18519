"""Ranges of activations and scales of weights against searches that try everything on the values themselves."""

import pytest
import torch
from torchao.quantization.pt2e import HistogramObserver

from common.quantization.ranges import (
    ActivationObserver,
    SquaredErrorObserver,
    SquaredErrorPerChannelObserver,
    least_squares_range,
    least_squares_share,
    percentile_range,
)

SETTINGS = {"dtype": torch.int8, "quant_min": -128, "quant_max": 127, "qscheme": torch.per_tensor_affine}


def heavy_tailed(count=20000):
    torch.manual_seed(0)
    return torch.randn(count) ** 3


def test_a_percentile_by_hand():
    histogram = torch.tensor([1.0, 99999.0, 99999.0, 1.0])  # a value in 200 000 at either end is rarer than 1 in 10 000
    assert percentile_range(histogram, (-2.0, 2.0)) == (-1.0, 1.0)
    assert percentile_range(torch.ones(4), (-2.0, 2.0)) == (-2.0, 2.0)


def rounding_error(x, low, high, steps=255):
    step = (high - low) / steps
    return ((x.clamp(low, high) / step).round() * step - x).square().mean().item()  # 0 is a code


def test_the_least_squared_error_is_that_of_a_search_on_the_values():
    x = heavy_tailed()
    ends = (x.min().item(), x.max().item())
    found = least_squares_range(torch.histc(x, 2048, *ends), ends, 255)
    shares = torch.linspace(0, 1, 21)[1:].tolist()
    least = min(rounding_error(x, low * ends[0], high * ends[1]) for low in shares for high in shares)
    assert rounding_error(x, *found) < 1.05 * least
    assert found[0] > ends[0] and found[1] < ends[1]  # it clips
    assert rounding_error(x, *found) < rounding_error(x, *ends)


def test_a_range_of_one_sign_holds_0():
    assert least_squares_range(torch.ones(100), (1.0, 2.0), 255)[0] == 0.0
    assert least_squares_range(torch.ones(100), (-2.0, -1.0), 255)[1] == 0.0


VALUES = {
    "normal": lambda: torch.randn(5000),
    "rectified": lambda: torch.randn(5000).relu(),
    "heavy-tailed": lambda: torch.randn(5000) ** 5,
    "of one outlier": lambda: torch.cat([torch.rand(5000), torch.tensor([1000.0])]),
    "few": lambda: torch.randint(0, 3, (50,)).float(),
    "constant": lambda: torch.full((100,), 2.5),
    "negative": lambda: -torch.rand(3000) - 7,
}


@pytest.mark.parametrize("kind", VALUES)
def test_the_search_by_quantiles_ends_where_torchaos_does(kind):
    for seed in range(10):
        torch.manual_seed(seed)
        ours, theirs = ActivationObserver(**SETTINGS), HistogramObserver(**SETTINGS)
        for _ in range(1 + seed % 3):  # later values widen the histogram
            x = VALUES[kind]()
            ours(x), theirs(x)
        found, wanted = ours._non_linear_param_search(), theirs._non_linear_param_search()
        assert [each.item() for each in found] == [each.item() for each in wanted]


@pytest.mark.parametrize("ranges", ["histogram", "percentile", "mse"])
def test_an_observer_takes_the_range_of_its_method(ranges):
    x = heavy_tailed()
    observer = ActivationObserver(ranges=ranges, **SETTINGS)
    assert observer(x) is x
    scale, _ = observer.calculate_qparams()
    assert 0 < scale < (x.max() - x.min()) / 255
    wanted = {
        "percentile": lambda: percentile_range(observer.histogram, (x.min().item(), x.max().item())),
        "mse": lambda: least_squares_range(observer.histogram, (x.min().item(), x.max().item()), 255),
    }
    if ranges in wanted:
        low, high = wanted[ranges]()
        assert scale.item() == pytest.approx((high - low) / 255, rel=1e-5)


@pytest.mark.parametrize("ranges", ["histogram", "percentile", "mse"])
def test_a_constant_and_values_below_the_least_that_counts(ranges):
    constant = ActivationObserver(ranges=ranges, **SETTINGS)
    constant(torch.zeros(1, 2, 3, 3))
    assert constant.calculate_qparams()[0].isfinite()
    cut = ActivationObserver(ranges=ranges, lower=-3.0, **SETTINGS)
    cut(torch.linspace(-100, 1, 5000))
    assert cut.min_val == -3.0


def test_a_share_of_weights_is_the_best_of_all():
    torch.manual_seed(0)
    weights = torch.randn(3, 200) ** 3
    shares = least_squares_share(weights, 7)
    for row, share in zip(weights, shares, strict=True):

        def error(share, row=row):
            scale = share * row.abs().max() / 7
            return ((row / scale).round().clamp(-7, 7) * scale - row).square().mean().item()

        assert error(share) <= min(error(each) for each in torch.linspace(0.4, 1, 61)) * (1 + 1e-5)
        assert share < 1


def test_observers_of_weights_see_them_once_and_round_better_than_by_the_largest():
    torch.manual_seed(0)
    weights = torch.randn(4, 16, 3, 3) ** 3
    symmetric = {"dtype": torch.int8, "quant_min": -7, "quant_max": 7}
    one = SquaredErrorObserver(qscheme=torch.per_tensor_symmetric, **symmetric)
    each = SquaredErrorPerChannelObserver(ch_axis=0, qscheme=torch.per_channel_symmetric, **symmetric)
    for observer in (one, each):
        observer(weights)
        before = observer.calculate_qparams()[0]
        observer(10 * weights)
        assert torch.equal(observer.calculate_qparams()[0], before)
    assert one.calculate_qparams()[0] < weights.abs().max() / 7
    assert each.calculate_qparams()[0].shape == (4,)
    assert bool((each.calculate_qparams()[0] <= weights.flatten(1).abs().amax(1) / 7).all())
