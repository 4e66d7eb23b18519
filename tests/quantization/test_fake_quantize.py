"""Fake quantization against PyTorch's own kernel."""

import pytest
import torch
from torchao.quantization.pt2e import FusedMovingAvgObsFakeQuantize

from common.quantization.fake_quantize import FakeQuantize, RoundToCodes


def test_by_hand():
    """Scale 0.5, zero point 1, codes -2 to 3: values from -1.5 to 1.0; halves go to the even code."""
    x = torch.tensor([-9.0, -1.5, -0.3, 0.25, 0.75, 0.9, 9.0], requires_grad=True)
    y = RoundToCodes.apply(x, torch.tensor([0.5]), torch.tensor([1]), -2, 3)
    y.sum().backward()
    assert y.tolist() == [-1.5, -1.5, -0.5, 0.0, 1.0, 1.0, 1.0]
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_values_gradients_and_ranges_are_those_of_the_kernel(symmetric, channels_last, on_cpu):
    """Over steps that widen the range, without an observer at last: the same bits, also by the way of other devices."""
    low, scheme = (-127, torch.per_tensor_symmetric) if symmetric else (-128, torch.per_tensor_affine)
    options = {"quant_min": low, "quant_max": 127, "dtype": torch.int8, "qscheme": scheme, "eps": 2**-12}
    ours, kernel = FakeQuantize(**options), FusedMovingAvgObsFakeQuantize(**options)
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for step in range(4):
        x = (step + 1) * torch.randn(2, 8, 16, 16).to(memory_format=layout)
        upstream = torch.randn_like(x)
        results = []
        for module in (ours, kernel):
            module.enable_observer(step < 3)
            leaf = x.clone().requires_grad_()
            y = module(leaf) if on_cpu or module is kernel else module._without_waiting(leaf)
            y.backward(upstream)
            results.append((y, leaf.grad))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])
        state = kernel.state_dict()
        assert state.keys() == ours.state_dict().keys()
        assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())


def test_compiled_into_one_graph():
    """No switch of it is read while it is compiled: each would break the graph of the network around it."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 16, 16)
    options = {"quant_min": -128, "quant_max": 127, "dtype": torch.int8, "qscheme": torch.per_tensor_affine}
    module, twin = FakeQuantize(**options, lower=-1.0), FakeQuantize(**options, lower=-1.0)
    assert torch.equal(torch.compile(twin, backend="eager", fullgraph=True)(x), module(x))


def test_inputs_below_the_lower_end_count_as_it():
    module = FakeQuantize(lower=-3.0, quant_min=-128, quant_max=127, dtype=torch.int8, qscheme=torch.per_tensor_affine)
    for forward in (module, module._without_waiting):
        y = forward(torch.tensor([-50.0, -3.0, 0.0, 2.0]))
        assert y[0] == y[1]
        assert module.activation_post_process.min_val.item() == -3.0


@pytest.mark.parametrize("scheme", [torch.per_tensor_symmetric, torch.per_tensor_affine])
def test_the_conversion_gets_what_training_computed_with(scheme):
    """Rounding by the scale and zero point that a conversion takes gives the values of the training."""
    module = FakeQuantize(quant_min=-127, quant_max=127, dtype=torch.int8, qscheme=scheme, eps=2**-12)
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    trained = module(x)
    scale, zero_point = (value.item() for value in module.calculate_qparams())
    codes = ((x / scale).round() + zero_point).clamp(-127, 127)
    torch.testing.assert_close((codes - zero_point) * scale, trained, rtol=1e-6, atol=1e-7)
