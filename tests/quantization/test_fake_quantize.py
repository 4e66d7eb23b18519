"""Fake quantization against PyTorch's own kernel."""

import copy

import pytest
import torch
from torch import nn
from torchao.quantization.pt2e import FusedMovingAvgObsFakeQuantize, MovingAveragePerChannelMinMaxObserver

from common.quantization import fake_quantize
from common.quantization.fake_quantize import FakeQuantize
from common.quantization.pt2e import calibrate, prepare_qat
from common.quantization.settings import QuantizationSettings

AFFINE = {"quant_min": -128, "quant_max": 127, "dtype": torch.int8, "qscheme": torch.per_tensor_affine, "eps": 2**-12}
SYMMETRIC = {**AFFINE, "quant_min": -127, "qscheme": torch.per_tensor_symmetric}
BY_CHANNEL = {
    **SYMMETRIC,
    "qscheme": torch.per_channel_symmetric,
    "observer": MovingAveragePerChannelMinMaxObserver,
}
KINDS = {
    "affine": AFFINE,
    "symmetric": SYMMETRIC,
    "by output channel": BY_CHANNEL,
    "by channel of transposed weights": {**BY_CHANNEL, "ch_axis": 1},
}


@pytest.fixture(params=[True, False], ids=["numbers", "as on a GPU"])
def reads_are_free(request, monkeypatch):
    monkeypatch.setattr(fake_quantize, "reads_are_free", lambda device: request.param)


@pytest.mark.usefixtures("reads_are_free")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_gradients_and_ranges_are_those_of_the_kernel(kind, layout):
    """Over steps that widen the range, without an observer at last: the same bits."""
    options = dict(KINDS[kind])
    ours, axis = FakeQuantize(**options), options.pop("ch_axis", 0)
    kernel = FusedMovingAvgObsFakeQuantize(**options)  # which takes channels on the first axis alone
    torch.manual_seed(0)
    for step in range(4):
        x = (step + 1) * torch.randn(3, 8, 16, 16).to(memory_format=layout)
        upstream = torch.randn_like(x)
        results = []
        for module in (ours, kernel):
            module.enable_observer(step < 3)
            leaf = x.clone().requires_grad_()
            y = ours(leaf) if module is ours else kernel(leaf.transpose(0, axis)).transpose(0, axis)
            y.backward(upstream)
            results.append((y, leaf.grad))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])
        state = kernel.state_dict()
        assert state.keys() == ours.state_dict().keys()
        assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())


@pytest.mark.usefixtures("reads_are_free")
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "affine"])
def test_weights_of_one_sign_have_a_symmetric_range(kind, sign):
    """The largest has the code 127 or -127, 0 the code 0; PyTorch's kernel takes such a range as one from 0 on."""
    module = FakeQuantize(**KINDS[kind])
    weights = sign * torch.arange(1.0, 13.0).reshape(3, 4, 1, 1)
    y = module(weights)
    assert not module.zero_point.any()
    largest = weights.abs().amax(
        dim=[axis for axis in range(4) if axis != module.ch_axis] if module.ch_axis >= 0 else None
    )
    torch.testing.assert_close(module.scale, (largest / 126.5).reshape(-1), rtol=1e-2, atol=0)
    torch.testing.assert_close(y, weights, rtol=0, atol=12 / 250)
    assert not module.calculate_qparams()[1].any()


@pytest.mark.usefixtures("reads_are_free")
def test_a_range_without_a_width_is_no_division_by_zero():
    for kind in KINDS:
        module = FakeQuantize(**KINDS[kind])
        assert torch.equal(module(torch.zeros(2, 3, 4, 4)), torch.zeros(2, 3, 4, 4))


def test_switches_follow_a_state_that_is_loaded():
    module, other = FakeQuantize(**AFFINE), FakeQuantize(**AFFINE)
    other(torch.tensor([-1.0, 1.0]))
    other.disable_observer()
    other.disable_fake_quant()
    module.load_state_dict(other.state_dict())
    before = copy.deepcopy(module.state_dict())
    x = torch.tensor([-7.03, 9.11])
    assert torch.equal(module(x), x)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_ranges_that_are_set_from_outside_give_new_scales():
    """As averages over the processes of a run are: per channel, too."""
    for kind in KINDS:
        module = FakeQuantize(**KINDS[kind])
        module(torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0)))
        before = module.scale.clone()
        for bound in (module.activation_post_process.min_val, module.activation_post_process.max_val):
            bound.mul_(2)
        module.compute_scale()
        torch.testing.assert_close(module.scale, 2 * before)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_into_one_graph(kind):
    """No switch of it is read while it is compiled: each would break the graph of the network around it."""
    torch.manual_seed(0)
    x = torch.randn(3, 8, 16, 16)
    module, twin = FakeQuantize(**KINDS[kind]), FakeQuantize(**KINDS[kind])
    for each in (module, twin):
        each(x)  # scales by channel have their size from now on
    assert torch.equal(torch.compile(twin, backend="eager", fullgraph=True)(x), module(x))


@pytest.mark.usefixtures("reads_are_free")
def test_inputs_below_the_lower_end_count_as_it():
    module = FakeQuantize(lower=-3.0, **AFFINE)
    y = module(torch.tensor([-50.0, -3.0, 0.0, 2.0]))
    assert y[0] == y[1]
    assert module.activation_post_process.min_val.item() == -3.0


@pytest.mark.parametrize("kind", ["affine", "symmetric"])
def test_the_conversion_gets_what_training_computed_with(kind):
    """Rounding by the scale and zero point that a conversion takes gives the values of the training."""
    module = FakeQuantize(**KINDS[kind])
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    trained = module(x)
    scale, zero_point = (value.item() for value in module.calculate_qparams())
    codes = ((x / scale).round() + zero_point).clamp(module.quant_min, module.quant_max)
    torch.testing.assert_close((codes - zero_point) * scale, trained, rtol=1e-6, atol=1e-7)


def test_one_range_of_several_tensors_holds_the_widest():
    """A moving average of them in turn would begin with the first and clip the others for hundreds of steps."""
    module = FakeQuantize(quant_min=-128, quant_max=127, dtype=torch.int8, qscheme=torch.per_tensor_affine, eps=2**-12)
    module.of_several = True
    narrow, wide = torch.tensor([-0.1, 0.2]), torch.tensor([-1.0, 8.0])
    observer = module.activation_post_process
    for _ in range(3):
        module(narrow)
        torch.testing.assert_close(module(wide), wide, rtol=0, atol=9 / 255)
        assert (observer.min_val.item(), observer.max_val.item()) == pytest.approx((-1.0, 8.0), rel=1e-5)
    module(narrow)  # and comes back from it as a moving average
    kept = 1 - observer.averaging_constant
    assert observer.max_val.item() == pytest.approx(0.2 + kept * 7.8, rel=1e-5)


def test_a_concatenation_shares_a_range_of_several_and_others_do_not():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 3, 1)

        def forward(self, x):
            return self.last(torch.cat([self.a(x), 50 * self.b(x)], 1))

    torch.manual_seed(0)
    network, images = Joined(), torch.randn(2, 3, 8, 8)
    expected = network(images)
    prepared = prepare_qat(network, (8, 8), QuantizationSettings())
    calibrate(prepared, [images])
    shared = [module for module in prepared.modules() if getattr(module, "of_several", False)]
    assert len(shared) == 1
    error = (prepared(images) - expected).square().sum() / expected.square().sum()
    assert error < 1e-3
