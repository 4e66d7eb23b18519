import copy

import pytest
import torch

from common.export.options import ExportOptions
from common.export.writing import write_candidate
from common.quantization.graphs import export_graph
from common.quantization.pt2e import QuantizationSettings, calibrate_network
from common.runtimes.layer_times import kernel_times, module_times
from tests.family import NAME, NETWORK

SHAPE = (3, 32, 64)
IMAGE = torch.randn(1, *SHAPE)


@pytest.fixture
def write(tmp_path):
    def write(graph, precision, named=True):
        path = tmp_path / f"{precision}_{named}.onnx"
        write_candidate(NAME, NETWORK, 1.0, SHAPE, ExportOptions(1), "onnxruntime", graph, path, precision, named)
        return path

    return write


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_layer_has_its_time(tiny_network, write, precision):
    if precision == "fp32":
        graph = export_graph(tiny_network, SHAPE)
    else:
        graph = calibrate_network(copy.deepcopy(tiny_network), SHAPE, QuantizationSettings(), [IMAGE]).finished()
    path = write(graph, precision)
    times = module_times(path, IMAGE, threads=1, runs=3)
    timed = {module.split(".")[0] for module, ms in times.items() if ms > 0}  # batch norm gives its name to both
    assert {"first", "second", "last"} <= timed
    assert times.get("", 0) < 0.5 * sum(times.values())
    kernels = kernel_times(path, IMAGE, threads=1, runs=3)
    assert sum("Conv" in kernel.operator for kernel in kernels) == 3
    assert all(kernel.ms >= 0 for kernel in kernels)


def test_files_do_not_name_modules_unasked(tiny_network, write):
    times = module_times(write(export_graph(tiny_network, SHAPE), "fp32", named=False), IMAGE, threads=1, runs=1)
    assert set(times) == {""}
