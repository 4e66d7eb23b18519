"""TorchScript and torch.export files in the hands of another program: any device, any batch, no gradients."""

import json

import pytest
import torch
from torch import nn

from common.export.traced_writer import write_exported, write_torchscript
from common.networks.metadata import TORCH_FILE
from common.networks.registry import build_network
from common.runtimes.traced import exported_hw, read_exported, read_torchscript, torchscript_hw
from models.family import NETWORKS

WRITERS = {".pt": write_torchscript, ".pt2": write_exported}
READERS = {".pt": read_torchscript, ".pt2": read_exported}
META = torch.device("meta")  # a device that is not the CPU and is everywhere: shapes without numbers
WIDTHS = {"SceneSeg": 1 / 32, "Scene3D": 1 / 32, "DomainSeg": 1 / 32, "EgoLanes": 1 / 16}


@pytest.fixture(params=sorted(WRITERS))
def suffix(request):
    return request.param


def open_elsewhere(path):
    """As a program without this repository opens it."""
    return torch.jit.load(path) if path.suffix == ".pt" else torch.export.load(path).module()


def test_outputs_need_no_gradients_without_no_grad(tiny_network, suffix, tmp_path):
    path = tmp_path / f"network{suffix}"
    images = torch.rand(3, 3, 32, 64)
    WRITERS[suffix](tiny_network, torch.zeros(2, 3, 32, 64), path, {})
    program = open_elsewhere(path)
    assert not program(images).requires_grad
    assert not any(parameter.requires_grad for parameter in program.parameters())
    torch.testing.assert_close(program(images), tiny_network(images).detach())
    assert all(parameter.requires_grad for parameter in tiny_network.parameters())  # the network stays as it was


def test_a_file_says_its_input_size(tiny_network, suffix, tmp_path):
    path = tmp_path / f"network{suffix}"
    WRITERS[suffix](tiny_network, torch.zeros(2, 3, 32, 64), path, {"input_shape": (3, 32, 64)})
    assert {".pt": torchscript_hw, ".pt2": exported_hw}[suffix](path) == (32, 64)
    extra = {TORCH_FILE: ""}
    torch.jit.load(path, _extra_files=extra) if suffix == ".pt" else torch.export.load(path, extra_files=extra)
    assert json.loads(extra[TORCH_FILE]) == {"input_shape": [3, 32, 64]}


@pytest.mark.parametrize(
    ("name", "suffix"),
    [*((name, ".pt") for name in NETWORKS), *((name, ".pt2") for name in ("SceneSeg", "AutoSteer", "AutoSpeed"))],
)
def test_every_network_runs_on_another_device_than_it_was_traced_on(name, suffix, tmp_path):
    """What a trace binds to the CPU (a tensor that `forward` makes there) is an error on another device."""
    network = NETWORKS[name]
    model = build_network(name, network, WIDTHS.get(name, 1)).eval()
    shape = (network.input_shape[0], 64, 128) if network.size_multiple else network.input_shape
    WRITERS[suffix](model, torch.zeros(2, *shape), tmp_path / f"network{suffix}", {})
    program = READERS[suffix](tmp_path / f"network{suffix}", META)
    with torch.jit.optimized_execution(False):  # its optimiser reads constants, which have no numbers here
        outputs = program(torch.zeros(1, *shape, device=META))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert [output.device for output in outputs] == [META] * len(network.outputs)


class MakesAConstant(nn.Module):
    """What a network must not do: the trace keeps the device of what `forward` makes."""

    def forward(self, x):
        return x + torch.arange(x.shape[-1], device=x.device, dtype=x.dtype)


def test_a_network_that_makes_constants_is_bound_to_a_device_by_torchscript_alone(tmp_path):
    for suffix, write in WRITERS.items():
        write(MakesAConstant(), torch.zeros(2, 3, 4, 8), tmp_path / f"network{suffix}", {})
    assert read_exported(tmp_path / "network.pt2", META)(torch.zeros(1, 3, 4, 8, device=META)).device == META
    traced = read_torchscript(tmp_path / "network.pt", META)
    with pytest.raises(RuntimeError, match="device"), torch.jit.optimized_execution(False):
        traced(torch.zeros(1, 3, 4, 8, device=META))
