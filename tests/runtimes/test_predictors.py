"""ONNX files on another provider than the CPU's, which is simulated: it computes on the CPU and says otherwise."""

from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from common.runtimes.candidates import OpenOptions, open_candidates
from common.runtimes.onnx_files import fixed_hw, free_sizes, read_graph, shape_nodes
from common.runtimes.predictors import OnnxPredictor

HW = (32, 64)
IMAGES = torch.rand(1, 3, *HW, generator=torch.Generator().manual_seed(0))
CUDA = "CUDAExecutionProvider"


@pytest.fixture
def path(tmp_path):
    """Logits of a 1x1 convolution, flattened and brought back by shapes that the file computes, as exporters do."""
    stored = {
        "w": np.ones((3, 3, 1, 1), np.float32),
        "first": np.array([0]),
        "rest": np.array([3, -1]),
        "axis": np.array([0]),
    }
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"], name="whole"),
        helper.make_node("Gather", ["shape", "first"], ["batch"], name="batch"),
        helper.make_node("Concat", ["batch", "rest"], ["flat"], name="flat", axis=0),
        helper.make_node("Conv", ["image", "w"], ["sums"], name="sums"),
        helper.make_node("Reshape", ["sums", "flat"], ["columns"], name="columns"),
        helper.make_node("Reshape", ["columns", "shape"], ["logits"], name="logits"),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 3, *HW)) for name in ("image", "logits")]
    weights = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


@pytest.fixture
def cuda(monkeypatch):
    """A CUDA provider that leaves to the CPU the operators in the list that this returns."""
    left, session = [], ort.InferenceSession

    class Simulated:
        def __init__(self, path, options, providers):
            self.session, self.named = session(path, options, providers=["CPUExecutionProvider"]), providers
            self.run = self.session.run
            self.get_inputs, self.get_outputs = self.session.get_inputs, self.session.get_outputs

        def get_providers(self):
            return [*self.named, "CPUExecutionProvider"]

        def get_provider_graph_assignment_info(self):
            nodes = [node for part in self.session.get_provider_graph_assignment_info() for node in part.get_nodes()]
            homes = ["CPUExecutionProvider" if node.op_type in left else CUDA for node in nodes]
            return [
                SimpleNamespace(ep_name=home, get_nodes=lambda node=node: [node])
                for home, node in zip(homes, nodes, strict=True)
            ]

    monkeypatch.setattr(ort, "InferenceSession", Simulated)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    return left


def test_nodes_that_compute_shapes_are_told_from_those_that_compute_images(path):
    assert shape_nodes(read_graph(path)) == {"whole", "batch", "flat"}


def test_shapes_that_are_computed_on_the_cpu_do_not_count(path, cuda):
    cuda += ["Shape", "Gather", "Concat"]
    predict = OnnxPredictor(path, 1, "CUDA")
    assert predict.provider == CUDA
    assert torch.equal(predict(IMAGES), IMAGES.sum(dim=1, keepdim=True).expand(-1, 3, -1, -1))


def test_images_that_are_computed_on_the_cpu_are_refused(path, cuda):
    cuda += ["Shape", "Conv"]
    with pytest.raises(ValueError, match=r"a\.onnx: ONNX Runtime leaves 1 nodes to the CPU .* CUDA .* is Conv sums;"):
        OnnxPredictor(path, 1, "CUDA")


def test_a_benchmark_fixes_what_is_dynamic_so_that_no_shape_is_computed(path, cuda):
    assert free_sizes(read_graph(path), (1, 3, *HW)) == {"batch": 1}
    candidate = open_candidates([("A", path, ".onnx")], OpenOptions(torch.device("cpu"), 1, "SceneSeg"), ["CUDA"])["A"]
    predict = candidate.open(1)
    parts = predict.session.get_provider_graph_assignment_info()
    assert {node.op_type for part in parts for node in part.get_nodes()} == {"Conv", "Reshape"}
    assert torch.equal(predict(IMAGES), OnnxPredictor(path, 1)(IMAGES))


def test_a_branch_may_use_images_without_naming_them(tmp_path):
    inner = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["out"])],
        "inner",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"], name="shape"),
        helper.make_node("Cast", ["shape"], ["condition"], name="condition", to=TensorProto.BOOL),
        helper.make_node("If", ["condition"], ["y"], name="branch", then_branch=inner, else_branch=inner),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3, *HW)) for name in ("image", "y")]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:])), tmp_path / "a.onnx")
    assert shape_nodes(read_graph(tmp_path / "a.onnx")) == {"shape", "condition"}
    assert fixed_hw(read_graph(tmp_path / "a.onnx")) == HW
