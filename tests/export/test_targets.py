"""Files for each target: what the quantizer, the passes and the exporter make of one row."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from common.export.conversion import convert_int8
from common.export.onnx_passes import lower_to_17
from common.export.options import ExportOptions
from common.export.qat_export import labels_of, targets_to_write
from common.networks.opening import OpenedNetwork
from common.quantization.pt2e import DEQUANTIZE, QUANTIZE, calibrate, convert, prepare_qat, quantize_after_training
from common.quantization.settings import QuantizationSettings
from common.runtimes.onnx_files import stored_precision
from common.runtimes.quantized_graphs import QuantizedGraph
from common.runtimes.target_check import broken_rules
from common.runtimes.targets import TARGETS
from models.family import find_network

SHAPE = (3, 32, 32)
IMAGES = [torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
TENSORRT = QuantizationSettings(per_channel=True, target="tensorrt")
aten = torch.ops.aten


class Block(nn.Module):
    """A residual sum with squeeze and excitation, a pool, a transposed convolution, and a sum with a skip."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU(inplace=True))
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.SiLU()
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.SiLU(), nn.Conv2d(2, 8, 1), nn.Sigmoid()
        )
        self.project = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.up, self.last = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = self.first(x)
        y = self.depthwise(x)
        y = self.project(y * self.gate(y))
        y += x
        y = nn.functional.max_pool2d(y, 2)
        return self.last(nn.functional.gelu(self.up(y) + x)).relu()


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    name, network = find_network("EgoLanes")
    return OpenedNetwork(name, network, Block().eval(), 1.0, SHAPE)


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    """The file of a target, with its agreement with FP32."""
    folder = tmp_path_factory.mktemp("files")
    made = {}

    def write(target="tensorrt", per_channel=True, reduced_range=False, **options):
        key = (target, per_channel, reduced_range, *options.items())
        if key not in made:
            settings = QuantizationSettings(per_channel, target=target, reduced_range=reduced_range)
            path = folder / f"{len(made)}{TARGETS[target].suffix}"
            (agreement,) = convert_int8(source, path, ExportOptions(1, **options), settings, IMAGES[:3], IMAGES[3:])
            made[key] = path, agreement
        return made[key]

    return write


def stored(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def layers(graph):
    return [node for node in graph.nodes if node.op_type in ("Conv", "ConvTranspose")]


@pytest.mark.parametrize("per_channel", [False, True])
def test_tensorrt_gets_plain_symmetric_pairs(written, per_channel):
    """Counted by hand: 7 layers, 2 sums of two inputs, a product and a pool on 9 tensors; no pair on the output."""
    path, agreement = written(per_channel=per_channel)
    assert agreement.sqnr_db > 20
    model = onnx.load(path)
    assert broken_rules(model, "tensorrt") == []
    assert stored_precision(model) == "int8"  # though weights are stored in float
    graph = QuantizedGraph.of(model.graph)
    assert len(layers(graph)) == 7
    pairs = [node for node in graph.nodes if node.op_type == "QuantizeLinear"]
    of_weights = [pair for pair in pairs if graph.holds_constants(pair)]
    assert len(of_weights) == 7 and all(pair.input[0].endswith("_values") for pair in of_weights)
    sizes = {graph.constant(pair, 1).size for pair in of_weights}
    assert sizes == ({8, 2, 3} if per_channel else {1})
    # image, first, depthwise, mean, its SiLU, gate, product, projection, sum (max pooled), transposed, last's input
    assert len(pairs) - len(of_weights) == 11
    assert {graph.code_type(pair) for pair in pairs} == {TensorProto.INT8}
    last = graph.makers["output"]
    assert last.op_type == "Relu" and graph.maker(last, 0).op_type == "Conv"
    transposed = next(node for node in layers(graph) if node.op_type == "ConvTranspose")
    dequantize = graph.maker(transposed, 1)
    assert graph.axis(dequantize) == 1 or not per_channel
    assert not {node.op_type for node in graph.nodes} & {"Reshape", "Slice"}


def test_weights_are_stored_in_float_and_give_the_codes_of_the_other_form(written):
    """Of the last layer, whose weights have no batch norm."""
    model = onnx.load(written()[0])
    graph = QuantizedGraph.of(model.graph)
    for node in layers(graph):
        quantize = graph.source(graph.maker(node, 1))
        values, scale = graph.constant(quantize, 0), graph.constant(quantize, 1)
        shape = [1] * 4
        shape[graph.axis(quantize)] = -1
        steps = values / scale.reshape(shape)
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
        assert np.abs(steps).max() == pytest.approx(127, abs=0.01)


def test_operator_set_17_of_tensorrt_8(written):
    path, agreement = written(opset=17, batch=2)
    model = onnx.load(path)
    assert {each.version for each in model.opset_import if not each.domain} == {17}
    assert "Erf" in {node.op_type for node in model.graph.node}
    assert agreement.sqnr_db == pytest.approx(written()[1].sqnr_db, abs=0.5)
    assert [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim] == [2, *SHAPE]


def test_half_is_fp16_beside_int8_with_the_same_codes(written):
    """Weights come to the same codes, though their scales are rounded to 11 bits."""
    path, agreement = written(half=True)
    assert agreement.sqnr_db > written()[1].sqnr_db - 1
    model, whole = onnx.load(path), onnx.load(written()[0])
    assert stored_precision(model) == "int8"
    assert not {tensor.data_type for tensor in model.graph.initializer} & {TensorProto.FLOAT, TensorProto.DOUBLE}
    assert [each.type.tensor_type.elem_type for each in (*model.graph.input, *model.graph.output)] == [
        TensorProto.FLOAT
    ] * 2
    halves, floats = stored(model), stored(whole)
    for node in whole.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in floats:
            codes = []
            for values in (floats, halves):
                weights, scale = (values[name].astype(np.float32) for name in node.input[:2])
                axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
                shape = [-1 if place == axis else 1 for place in range(weights.ndim)]
                codes.append(np.rint(weights / scale.reshape(shape)))
            np.testing.assert_array_equal(*codes)


def test_reduced_weights_use_half_of_the_range(written):
    model = onnx.load(written("openvino", reduced_range=True)[0])
    codes = [value for value in stored(model).values() if value.dtype == np.int8 and value.ndim == 4]
    assert len(codes) == 8  # a transposed convolution of 2x2 is two
    ends = [(value.min(), value.max()) for value in codes]
    assert all(low >= -64 and high <= 63 for low, high in ends)
    assert any(low < -60 or high > 60 for low, high in ends)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert entries["target"] == "openvino"


def test_silu_is_a_gate_of_codes_for_onnx_runtime_alone(written):
    """Elsewhere a product in float takes its sigmoid, which a runtime computes with the convolution before."""
    in_float = {}
    for target in ("onnxruntime", "openvino", "tensorrt"):
        nodes = onnx.load(written(target)[0]).graph.node
        sigmoids = {node.output[0] for node in nodes if node.op_type == "Sigmoid"}
        in_float[target] = any(node.op_type == "Mul" and sigmoids & set(node.input) for node in nodes)
    assert in_float == {"onnxruntime": False, "openvino": True, "tensorrt": True}


@pytest.mark.parametrize(("target", "reduced_range"), [("onnxruntime", True), ("tensorrt", False)])
def test_training_rounds_as_the_converted_network_does(source, target, reduced_range):
    """In the codes of the target: symmetric ones have the zero point 0, and weights the range that is asked for."""
    settings = QuantizationSettings(per_channel=True, target=target, reduced_range=reduced_range)
    prepared = prepare_qat(copy.deepcopy(source.model), SHAPE[1:], settings)
    calibrate(prepared, IMAGES)
    int8 = convert(prepared)
    expected, actual = prepared(IMAGES[3]), int8(IMAGES[3])
    assert 10 * torch.log10(expected.square().sum() / (expected - actual).square().sum().clamp(min=1e-20)) > 40
    zero_points = [node.args[2] for node in int8.graph.nodes if node.target == QUANTIZE]
    assert len(zero_points) >= 11
    assert any(zero_points) == (target == "onnxruntime")
    (largest,) = {node.args[5] for node in int8.graph.nodes if "dequantize_per_channel" in str(node.target)}
    assert largest == (63 if reduced_range else 127)


def test_an_output_and_what_takes_it_are_not_rounded_where_they_stay_in_float(source):
    """A part that is kept in float takes floats, and a sum that it shares with the rest is quantized on both sides."""
    settings = QuantizationSettings(True, keep_float=("gate",), target="tensorrt")
    int8 = quantize_after_training(copy.deepcopy(source.model), SHAPE, settings, IMAGES[:2])
    pool = next(node for node in int8.graph.nodes if node.target == aten.adaptive_avg_pool2d.default)
    assert pool.args[0].target != DEQUANTIZE
    sums = [node for node in int8.graph.nodes if node.target == aten.add.Tensor]
    assert len(sums) == 2 and all(each.target == DEQUANTIZE for node in sums for each in node.args)


def test_which_targets_a_checkpoint_is_written_for():
    assert targets_to_write("onnxruntime", None, pte=True) == ("onnxruntime", "executorch")
    assert targets_to_write("executorch", None, pte=True) == ("executorch",)
    assert targets_to_write("onnxruntime", "openvino", pte=False) == ("openvino",)
    assert labels_of(("tensorrt",)) == ["ONNX INT8"] and labels_of(("executorch",)) == ["ExecuTorch INT8"]
    for trained, asked, pte in (
        ("onnxruntime", "tensorrt", False),
        ("tensorrt", "openvino", False),
        ("tensorrt", None, True),
    ):
        with pytest.raises(ValueError, match=f"--{'pte' if pte else 'target'}.*is trained for .*--target"):
            targets_to_write(trained, asked, pte)


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match="target is 'tensorflow', wanted one of onnxruntime, tensorrt"):
        QuantizationSettings(target="tensorflow")


def model_of(operator, inputs, constants=(), **attributes):
    helper = onnx.helper
    ends = {"x": (1, 4, 6), "y": "a" if operator == "ReduceMean" else "abc"}
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends.items()]
    node = helper.make_node(operator, inputs, ["y"], **attributes)
    weights = [numpy_helper.from_array(value, name) for name, value in constants]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_what_set_17_says_otherwise_and_what_it_does_not_say():
    """A reduction's axes become an attribute, and the result is the same."""
    x = np.random.default_rng(0).normal(size=(1, 4, 6)).astype(np.float32)
    mean = model_of("ReduceMean", ["x", "axes"], [("axes", np.array([1, 2]))], keepdims=0)
    expected = onnx.reference.ReferenceEvaluator(mean).run(None, {"x": x})
    lower_to_17(mean)
    onnx.checker.check_model(mean, full_check=True)
    assert mean.opset_import[0].version == 17
    assert [tensor.name for tensor in mean.graph.initializer] == []
    np.testing.assert_array_equal(onnx.reference.ReferenceEvaluator(mean).run(None, {"x": x}), expected)
    scales = [("scales", np.array([1, 1, 2], np.float32))]
    resized = model_of("Resize", ["x", "", "scales"], scales, antialias=0, mode="linear")
    lower_to_17(resized)
    onnx.checker.check_model(resized, full_check=True)
    for faulty in (
        model_of("Resize", ["x", "", "scales"], scales, antialias=1, mode="linear"),
        model_of("Pad", ["x", "pads", "", "axes"], [("pads", np.array([1, 1])), ("axes", np.array([2]))]),
        model_of("Mish", ["x"]),
        model_of("ReduceMean", ["x", "x"]),
    ):
        with pytest.raises(ValueError, match="operator set 17; export with --opset 18"):
            lower_to_17(faulty)
