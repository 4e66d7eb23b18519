import hashlib

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from common.runtimes.candidates import OpenOptions, open_candidates
from common.runtimes.onnx_files import data_files, read_graph
from tests.benchmarked import HW, document_of, measured_models, samples

OPTIONS = OpenOptions(torch.device("cpu"), 1, "SceneSeg")


def convolution(value: float) -> onnx.ModelProto:
    """Three logits, each a sum over a window of 33 x 33 pixels: 39 kB of weights."""
    weight = numpy_helper.from_array(np.full((3, 3, 33, 33), value, np.float32), "w")
    bias = numpy_helper.from_array(np.arange(3, dtype=np.float32), "b")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3, *HW)) for name in ("x", "y")]
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[16] * 4)
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [weight, bias])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def models(tmp_path):
    """The same network as one file and as several; their paths."""
    for name in ("one", "several"):
        (tmp_path / name).mkdir()
    onnx.save(convolution(1.0), tmp_path / "one" / "model.onnx")
    options = dict(save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    onnx.save(convolution(1.0), tmp_path / "several" / "model.onnx", **options)
    return tmp_path / "one" / "model.onnx", tmp_path / "several" / "model.onnx"


def candidate(path):
    return open_candidates([("A", path, ".onnx")], OPTIONS)["A"]


def test_a_model_of_several_files_is_as_large_as_all_of_them(models):
    one, several = models
    assert [file.name for file in candidate(several).files] == ["model.onnx", "b", "w"]
    assert data_files(read_graph(one), one) == []
    assert candidate(several).size_bytes == sum(file.stat().st_size for file in several.parent.iterdir())
    assert abs(candidate(several).size_bytes / candidate(one).size_bytes - 1) < 0.05


def test_it_is_another_model_when_its_weights_are_others(models, tmp_path):
    _, several = models

    found = samples(tmp_path / "data", images=10)

    def result():
        return document_of(measured_models({"A": candidate(several)}, found))["models"]["A"]

    before = result()
    contents = b"".join((several.parent / name).read_bytes() for name in ("model.onnx", "b", "w"))
    assert (before["size_bytes"], before["sha256"]) == (len(contents), hashlib.sha256(contents).hexdigest())
    small = several.read_bytes()
    (several.parent / "w").write_bytes(np.full((3, 3, 33, 33), 2, np.float32).tobytes())
    after = result()
    assert several.read_bytes() == small
    assert after["sha256"] != before["sha256"]
    assert after["size_bytes"] == before["size_bytes"]
