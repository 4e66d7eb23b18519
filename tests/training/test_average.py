import pytest
import torch
from torch import nn

from common.quantization.pt2e import prepare_qat, set_mode
from common.quantization.settings import QuantizationSettings
from common.training.average import WeightAverage


def test_averaged_weights_by_hand():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    average = WeightAverage(layer, decay=0.5)
    for value in (2.0, 3.0):
        nn.init.constant_(layer.weight, value)
        average.update()
    with average.applied():  # decay 1/10, then 2/11: 0.1 * 1 + 0.9 * 2 = 1.9, 2/11 * 1.9 + 9/11 * 3 = 2.8
        torch.testing.assert_close(layer.weight.item(), 2.8)
    assert layer.weight.item() == 3.0


def moved(values):
    """The average of three values, the first that at the start, by hand for a decay of a half."""
    return 2 / 11 * (0.1 * values[0] + 0.9 * values[1]) + 9 / 11 * values[2]


def test_batch_norms_statistics_are_averaged_with_the_weights():
    layer = nn.BatchNorm2d(3)
    average = WeightAverage(layer, decay=0.5)
    seen = [(layer.running_mean.clone(), layer.running_var.clone())]
    for _ in range(2):
        layer(torch.randn(4, 3, 5, 5))
        average.update()
        seen.append((layer.running_mean.clone(), layer.running_var.clone()))
    means, variances = zip(*seen, strict=True)
    with average.applied():
        torch.testing.assert_close(layer.running_mean, moved(means))
        torch.testing.assert_close(layer.running_var, moved(variances))
    assert torch.equal(layer.running_mean, means[-1])
    average.apply_for_good()
    torch.testing.assert_close(layer.running_mean, moved(means))


@pytest.mark.parametrize("per_channel", [False, True])
def test_ranges_of_a_prepared_graph_are_left_alone(per_channel, tiny_network):
    """They are infinite, or without size, before the first image, and moving averages after it."""
    prepared = prepare_qat(tiny_network, (32, 64), QuantizationSettings(per_channel=per_channel))
    average = WeightAverage(prepared, decay=0.5)
    set_mode(prepared, dropout=False, batch_norm=True, observers=True)
    for _ in range(2):
        prepared(torch.randn(2, 3, 32, 64))
        average.update()
    before = {name: buffer.clone() for name, buffer in prepared.named_buffers()}
    average.apply_for_good()
    changed = [name for name, buffer in prepared.named_buffers() if not torch.equal(buffer, before[name])]
    assert sorted(changed) == ["first.1.running_mean", "first.1.running_var"]
    assert len(average.averages) == len(list(prepared.parameters())) + 2


def test_an_average_goes_on_from_what_was_stored():
    layer, other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    first, second = WeightAverage(layer, 0.9), WeightAverage(other, 0.9)
    layer(torch.randn(4, 3, 5, 5))
    first.update()
    other.load_state_dict(layer.state_dict())
    second.load_state_dict(first.state_dict())
    for each, average in ((layer, first), (other, second)):
        nn.init.constant_(each.weight, 3.0)
        average.update()
    for one, same in zip(first.averages, second.averages, strict=True):
        assert torch.equal(one, same)
    with pytest.raises(RuntimeError):
        second.load_state_dict(WeightAverage(nn.Linear(1, 1), 0.9).state_dict())
