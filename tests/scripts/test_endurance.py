"""Long work: memory and open files stay level, whatever is repeated."""

import numpy as np
import onnx
import psutil
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from common.networks.checkpoints import Description, read_checkpoint, save_checkpoint
from common.runtimes.predictors import OnnxPredictor, TorchPredictor
from common.scoring.evaluate import evaluate_datasets
from examples.make_scenes import write_dataset
from tests.family import CLASSES, format_of, found

LEAST, GROWTH = 200, 8e6  # repetitions before the first look; bytes of noise of the allocator


def level(work, count):
    """Do `work` `count` times; memory and open files after it are those of its first part."""
    process = psutil.Process()
    for number in range(count):
        work()
        if number == min(LEAST, count // 4):
            memory, files = process.memory_info().rss, process.num_fds()
    grown = process.memory_info().rss - memory
    print(f"{count} times: {grown / 1e6:+.2f} MB, {process.num_fds() - files:+d} open files")
    assert grown < GROWTH
    assert process.num_fds() <= files
    assert not process.children()


@pytest.fixture
def onnx_path(tmp_path):
    weight = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("b", 3, 32, 64)) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weight])
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


@pytest.mark.slow
def test_inferences_leak_neither_memory_nor_files(onnx_path):
    images = torch.zeros(1, 3, 32, 64)
    onnx_predict = OnnxPredictor(onnx_path, 1)
    torch_predict = TorchPredictor(nn.Conv2d(3, 3, 1), torch.device("cpu"))
    level(lambda: (onnx_predict(images), torch_predict(images)), 10_000)


@pytest.mark.slow
def test_validations_with_workers_leak_nothing_and_leave_no_worker(tmp_path):
    write_dataset(tmp_path, "Town", 20, seed=0, size=(48, 96))
    samples = found(tmp_path, ["Town"], "val")
    predict = TorchPredictor(nn.Conv2d(3, 3, 1), torch.device("cpu"))
    level(lambda: evaluate_datasets(predict, samples, format_of((32, 64)), CLASSES, workers=1), 200)


@pytest.mark.slow
def test_checkpoints_leak_nothing(tmp_path):
    path, description = tmp_path / "w.pth", Description("Tiny", "fp32", 1.0, (32, 64))

    def work():
        save_checkpoint(path, {"a": torch.zeros(1000)}, description)
        read_checkpoint(path)

    level(work, 1000)
