import copy

import pytest
import torch

from common.quantization import observing
from common.quantization.observing import images_at_once, observe
from common.quantization.pt2e import QuantizationSettings, calibrate, prepare_qat, set_evaluation_mode, set_mode

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


@pytest.mark.parametrize("calibrated", [False, True], ids=["fresh", "calibrated"])
@pytest.mark.parametrize("at_once", [1, 3])
def test_a_batch_in_parts_moves_the_ranges_as_the_whole_batch_does(prepared, calibrated, at_once):
    if calibrated:
        calibrate(prepared, [images(4, seed) for seed in (1, 2)])
    whole, parts = copy.deepcopy(prepared), copy.deepcopy(prepared)
    for graph, count in ((whole, 8), (parts, at_once)):
        set_mode(graph, dropout=False, batch_norm=False, observers=True)
        for seed in (3, 4):
            observe(graph, images(8, seed), count)
    expected, actual = ranges(whole), ranges(parts)
    first = next(name for name in expected if name.endswith("max_val"))  # of the images, which nothing has rounded
    assert torch.equal(actual[first], expected[first])
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0.01, atol=0.01, msg=name)
    moved = [name for name, value in ranges(prepared).items() if not torch.equal(value, actual[name])]
    assert len(moved) > 10


def test_parts_are_not_batches_of_their_own(prepared):
    """What would be lost: small batches have small ranges, and the learned ones would shrink to them."""
    calibrate(prepared, [images(8)])
    small, parts = copy.deepcopy(prepared), copy.deepcopy(prepared)
    for graph, batches, count in ((small, images(8, 1).split(1), 1), (parts, [images(8, 1)], 1)):
        set_mode(graph, dropout=False, batch_norm=False, observers=True)
        for batch in batches:
            observe(graph, batch, count)
    sizes = [sum(value.sum() for name, value in ranges(graph).items() if "max" in name) for graph in (small, parts)]
    assert sizes[0] < 0.99 * sizes[1]


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
