"""What the toolkit knows by name of PyTorch's prepared graphs, compared with the classes of what PyTorch makes."""

import pytest

from common.networks.checkpoints import observer_keys
from common.quantization.fake_quantize import FakeQuantize
from common.quantization.pt2e import prepare_qat
from common.quantization.settings import QuantizationSettings
from common.quantization.simulation import fake_quantizations
from common.system.distributed import AVERAGED

HW = (32, 64)


@pytest.fixture(params=[False, True], ids=["per tensor", "per channel"])
def prepared(request, tiny_network):
    return prepare_qat(tiny_network, HW, QuantizationSettings(per_channel=request.param))


def test_the_keys_of_observers_are_those_of_fake_quantization(prepared):
    modules = {name: module for name, module in prepared.named_modules() if isinstance(module, FakeQuantize)}
    expected = {f"{name}.{key}" for name, module in modules.items() for key in module.state_dict()}
    assert len(modules) > 5
    assert set(observer_keys(prepared.state_dict())) == expected


def test_the_modules_of_a_prepared_graph_are_fake_quantizations(prepared):
    called = {node.target for node in prepared.graph.nodes if node.op == "call_module"}
    assert called == set(fake_quantizations(prepared)) != set()


def test_processes_average_every_range(prepared):
    ranges = [name for name in observer_keys(prepared.state_dict()) if name.endswith(AVERAGED)]
    modules = [module for module in prepared.modules() if isinstance(module, FakeQuantize)]
    assert len(ranges) == 2 * len(modules)
