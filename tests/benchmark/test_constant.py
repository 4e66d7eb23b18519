"""The layer that loses what an output varies by, in a chain of two rounded convolutions."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from common.benchmark.constant import constant_layer

NAMES = ("body.0", "head")


def write_chain(path, steps):
    """Two convolutions of 1x1 that hand an image of positive values on, each rounded to codes of a step of `steps`."""
    nodes, stored, source = [], [], "image"
    for name, step in zip(NAMES, steps, strict=True):
        values = {f"{name}.weight": np.eye(3)[..., None, None], f"{name}.bias": np.zeros(3), f"{name}.step": step}
        stored += [numpy_helper.from_array(np.float32(value), each) for each, value in values.items()]
        stored.append(numpy_helper.from_array(np.uint8(0), f"{name}.zero"))
        pair = [f"{name}.step", f"{name}.zero"]
        nodes += [
            helper.make_node("Conv", [source, f"{name}.weight", f"{name}.bias"], [f"{name}.float"]),
            helper.make_node("Relu", [f"{name}.float"], [f"{name}.relu"]),
            helper.make_node("QuantizeLinear", [f"{name}.relu", *pair], [f"{name}.codes"]),
            helper.make_node("DequantizeLinear", [f"{name}.codes", *pair], [f"{name}.out"]),
        ]
        source = f"{name}.out"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 4, 4]) for name in ("image", source)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return source


@pytest.mark.parametrize(
    ("steps", "layer"),
    [((0.01, 0.01), None), ((1e-5, 1.0), "body.0"), ((0.01, 1e-5), "head"), ((0.01, 100.0), "head")],
    ids=["all vary", "the first clamps", "the last clamps", "the last is too coarse"],
)
def test_the_first_layer_whose_codes_do_not_vary(steps, layer, tmp_path):
    output = write_chain(tmp_path / "a.onnx", steps)
    images = list(torch.rand(4, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.5)
    assert constant_layer(tmp_path / "a.onnx", output, images) == layer


def test_a_float_file_rounds_nothing(tmp_path):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 4, 4]) for name in ("image", "out")]
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["out"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "a.onnx")
    assert constant_layer(tmp_path / "a.onnx", "out", [torch.zeros(1, 3, 4, 4)] * 2) is None
