import copy

import pytest
import torch
from torchao.quantization.pt2e import MovingAverageMinMaxObserver

from common.quantization import observing, pt2e
from common.quantization.fake_quantize import FakeQuantize
from common.quantization.observing import images_at_once
from common.quantization.pt2e import calibrate, prepare_qat, set_evaluation_mode
from common.quantization.settings import QuantizationSettings

HW = (32, 64)


def images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *HW, generator=generator) * torch.linspace(1, 3, count).reshape(-1, 1, 1, 1)


@pytest.fixture
def prepared(tiny_network):
    graph = prepare_qat(tiny_network, HW, QuantizationSettings())
    set_evaluation_mode(graph)
    return graph


def ranges(graph):
    names = ("min_val", "max_val", "scale")
    return {name: value for name, value in graph.named_buffers() if name.endswith(names)}


def activations(graph):
    modules = [module for module in graph.modules() if isinstance(module, FakeQuantize)]
    return [module for module in modules if not module.of_weights]


def error(values, low, high):
    """The mean squared error of rounding `values` to the 256 codes between two ends, one of which may be 0."""
    scale = (max(high, 0.0) - min(low, 0.0)) / 255
    zero_point = round(-min(low, 0.0) / scale)
    codes = (values / scale).round().add(zero_point).clamp(0, 255)
    return (values - (codes - zero_point) * scale).square().mean().item()


@pytest.mark.parametrize("tail", [1.0, 12.0])
def test_a_range_is_where_rounding_and_clipping_cost_least(tail):
    """Held against all ranges of a grid; a few values far out count by what they cost, however large they are."""
    values = torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    values[:20] *= tail
    module = FakeQuantize(observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.uint8)
    module.start_histogram()
    for part in values.split(10_000):
        assert torch.equal(module(part), part)  # as they are
    module.take_histogram()
    low, high = (
        value.item() for value in (module.activation_post_process.min_val, module.activation_post_process.max_val)
    )
    ends = [(values.min().item() * i / 40, values.max().item() * j / 40) for i in range(1, 41) for j in range(1, 41)]
    assert error(values, low, high) < 1.1 * min(error(values, *each) for each in ends)
    module.disable_observer()
    torch.testing.assert_close(
        (values - module(values)).square().mean().item(), error(values, low, high), rtol=0.02, atol=0
    )


def test_no_code_is_spent_below_the_least_value_that_counts():
    codes = {"quant_min": 0, "quant_max": 255, "dtype": torch.uint8}
    module = FakeQuantize(lower=-3.0, observer=MovingAverageMinMaxObserver, **codes)
    module.start_histogram()
    values = 8 * torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(values), values)
    module.take_histogram()
    assert module.activation_post_process.min_val.item() == pytest.approx(-3, abs=module.scale.item())


def test_a_symmetric_range_of_activations_is_found_too():
    values = torch.randn(40_000, generator=torch.Generator().manual_seed(0)) + 1
    values[:20] *= 12
    codes = {"quant_min": -128, "quant_max": 127, "dtype": torch.int8, "qscheme": torch.per_tensor_symmetric}
    module = FakeQuantize(observer=MovingAverageMinMaxObserver, **codes)
    module.start_histogram()
    module(values)
    module.take_histogram()
    module.disable_observer()
    assert module.zero_point.item() == 0
    rounded = [
        torch.fake_quantize_per_tensor_affine(values, float(scale), 0, -128, 127)
        for scale in torch.linspace(0.02, 1, 100) * values.abs().max() / 127
    ]
    least = min((values - each).square().mean() for each in rounded)
    assert (values - module(values)).square().mean() < 1.1 * least


def test_a_batch_in_parts_gives_the_ranges_of_the_whole_batch(prepared, monkeypatch):
    whole, parts = copy.deepcopy(prepared), copy.deepcopy(prepared)
    for graph, count in ((whole, 8), (parts, 3)):
        monkeypatch.setattr(pt2e, "images_at_once", lambda graph, images, count=count: count)
        calibrate(graph, [images(8, seed) for seed in (3, 4)])
    expected, actual = ranges(whole), ranges(parts)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0.05, atol=0.02, msg=name)
    moved = [name for name, value in ranges(prepared).items() if not torch.equal(value, actual[name])]
    assert len(moved) > 10


def test_what_a_calibration_leaves_as_it_was(prepared):
    """Weights have the range of their training, and fresh ones take theirs; nothing is observed afterwards."""
    calibrate(prepared, [images(4, 1)])
    assert all(module.has_range() for module in prepared.modules() if isinstance(module, FakeQuantize))
    weights = [
        module for module in prepared.modules() if isinstance(module, FakeQuantize) and module.is_symmetric_quant
    ]
    for module in weights:
        module.activation_post_process.max_val.mul_(2)
    doubled = [module.activation_post_process.max_val.clone() for module in weights]
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    calibrate(prepared, [])
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())
    calibrate(prepared, [3 * images(4, 2)])
    wider = {name: value for name, value in ranges(prepared).items() if name.endswith("max_val")}
    assert sum(value.sum() > 2 * before[name].sum() for name, value in wider.items()) >= len(activations(prepared)) // 2
    prepared(10 * images(4, 3))
    for module, value in zip(weights, doubled, strict=True):
        assert torch.equal(module.activation_post_process.max_val, value)
    assert all(torch.equal(value, wider[name]) for name, value in ranges(prepared).items() if name in wider)
    assert all(module.quantizing and not module.observing for module in activations(prepared))


@pytest.mark.parametrize(("free", "expected"), [(10**12, 8), (10_000, 2), (100, 1)])
def test_as_many_images_at_once_as_there_is_memory_for(prepared, monkeypatch, free, expected):
    monkeypatch.setattr(observing.PeakMemory, "growth", lambda self: 4000)  # bytes of one image
    monkeypatch.setattr(observing, "free_memory", lambda device: free)
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    assert images_at_once(prepared, images(8)) == expected
    changed = [name for name, value in prepared.state_dict().items() if not torch.equal(value, before[name])]
    assert not [name for name in changed if "num_batches" not in name]  # the exported graph counts them anyway


def test_a_calibration_computes_no_more_than_fits(prepared, monkeypatch):
    seen = []
    monkeypatch.setattr(observing.PeakMemory, "growth", lambda self: 4000)
    monkeypatch.setattr(observing, "free_memory", lambda device: 10_000)
    prepared.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    calibrate(prepared, [images(8), images(3)])
    assert seen == [1, 2, 2, 2, 2, 2, 1]  # the first measures
