import copy

import pytest
import torch
from torch.fx import GraphModule

from common.quantization.methods import methods_of
from common.quantization.pt2e import (
    QuantizationSettings,
    calibrate,
    calibrate_network,
    convert,
    float_form,
    prepare_qat,
    with_float_modules,
)
from common.quantization.quantizer import modules_matching
from common.quantization.rounding import as_prepared
from common.quantization.simulation import Simulation, blocks_of, fake_quantizations, inside

SHAPE = (3, 32, 64)
METHODS = [[], ["equalize", "adaround"]]


def images(count, seed=0):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def calibrated(network, methods=(), **settings):
    chosen = methods_of(methods, 5.0)
    return calibrate_network(copy.deepcopy(network), SHAPE, QuantizationSettings(**settings), [images(2)], chosen)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("methods", METHODS, ids=["plain", "changed weights"])
def test_a_converted_graph_is_simulated_in_every_bit(tiny_network, per_channel, methods):
    network = calibrated(tiny_network, methods, per_channel=per_channel)
    int8 = network.finished()
    prepared = as_prepared(network.floats, int8)
    with torch.no_grad():
        assert torch.equal(Simulation(prepared).run(images(1, 1)), int8(images(1, 1)))
        exact = Simulation(prepared, fake_quantizations(prepared)).run(images(1, 1))
        torch.testing.assert_close(exact, tiny_network(images(1, 1)), rtol=1e-4, atol=1e-5)
    assert blocks_of(prepared) == {"first": 1, "second": 1, "last": 1}


def test_what_is_passed_over_is_what_is_not_converted(tiny_network):
    network = calibrated(tiny_network)
    prepared = as_prepared(network.floats, network.finished())
    for modules in (["first"], ["second"], ["first", "second"], ["second", "last"]):
        kept = network.finished(modules)
        with torch.no_grad():
            assert torch.equal(Simulation(prepared, inside(prepared, modules)).run(images(1, 1)), kept(images(1, 1)))
        assert _weights_in_float(kept) == len(modules)
    by_settings = calibrated(tiny_network, keep_float=tuple(modules)).finished()
    with torch.no_grad():
        assert torch.equal(by_settings(images(1, 1)), kept(images(1, 1)))


def _weights_in_float(int8: GraphModule) -> int:
    return sum(
        node.target == torch.ops.aten.conv2d.default and node.args[1].op == "get_attr" for node in int8.graph.nodes
    )


@pytest.mark.parametrize("modules", [["second"], ["first", "last"]], ids="+".join)
def test_a_trained_graph_keeps_modules_in_float_as_its_simulation_says(tiny_network, modules):
    prepared = prepare_qat(copy.deepcopy(tiny_network), SHAPE[1:], QuantizationSettings())
    calibrate(prepared, [images(2)])
    before = len(fake_quantizations(prepared))
    kept = with_float_modules(prepared, modules)
    with torch.no_grad():
        expected = Simulation(prepared, inside(prepared, modules)).run(images(1, 1))
        torch.testing.assert_close(kept(images(1, 1)), expected, rtol=0, atol=0)
        torch.testing.assert_close(convert(kept)(images(1, 1)), expected, rtol=1e-4, atol=0.02)
        exact = Simulation(prepared, fake_quantizations(prepared)).run(images(1, 1))
        torch.testing.assert_close(float_form(prepared)(images(1, 1)), exact, rtol=1e-4, atol=1e-5)
    assert len(fake_quantizations(prepared)) == before
    assert _weights_in_float(convert(kept)) == len(modules)


def test_patterns_are_of_modules_that_there_are(tiny_network):
    prepared = calibrated(tiny_network).prepared
    assert modules_matching(prepared, ["s*", "last"]) == ["second", "second.0", "second.1", "last"]
    with pytest.raises(ValueError, match="--keep_float neck: matches no module; .* are first, last, second"):
        modules_matching(prepared, ["neck"])
