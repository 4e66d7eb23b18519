"""The integer reference: hand-worked sums, and the same network as the float graph to within its rounding."""

import onnx
import onnxruntime as ort
import pytest
import torch

from common.export.int8_graph import for_target
from common.quantization.graphs import stored
from common.quantization.integer_reference import (
    INTEGER_FORMS,
    addition,
    as_integer_kernels,
    convolution,
    linear,
    mean,
    multiplication,
)
from common.quantization.nodes import input_of
from common.quantization.pt2e import quantize_after_training
from common.quantization.settings import QuantizationSettings
from common.runtimes.targets import ONNX_RUNTIME

HW = (64, 64)


def test_a_convolution_by_hand():
    x = torch.tensor([10, 20], dtype=torch.uint8).reshape(1, 2, 1, 1)  # values 0.5 * (code - 4): 3, 8
    weight = torch.tensor([3, -1], dtype=torch.int8).reshape(1, 2, 1, 1)  # 0.25 * code: 0.75, -0.25
    bias = torch.tensor([0.5])
    # 3 * 0.75 - 8 * 0.25 + 0.5 = 0.75, in steps of 0.1: 7.5, which rounds to the even 8; zero point 100
    y = convolution(x, weight, (0.5, 4), (0.25, 0), (0.1, 100), bias)
    assert y.tolist() == [[[[108]]]]


def test_a_linear_layer_saturates_at_the_ends():
    x = torch.tensor([[255]], dtype=torch.uint8)
    weights = torch.tensor([[127], [-127]], dtype=torch.int8)
    assert linear(x, weights, (1.0, 0), (1.0, 0), (1.0, 128), None).tolist() == [[255, 0]]


def test_one_scale_for_each_output_channel():
    x = torch.tensor([[10]], dtype=torch.uint8)
    weights, scales = torch.tensor([[1], [1]], dtype=torch.int8), torch.tensor([1.0, 2.0])
    assert linear(x, weights, (1.0, 0), (scales, None), (1.0, 0), None).tolist() == [[10, 20]]


def test_a_sum_by_hand():
    a, b = torch.tensor([30], dtype=torch.uint8), torch.tensor([7], dtype=torch.uint8)
    # 0.5 * (30 - 10) + 2 * (7 - 5) = 14, in steps of 4: 3.5; with the zero point 1 it rounds to the even 4
    assert addition(a, b, (0.5, 10), (2.0, 5), (4.0, 1)).tolist() == [4]


def test_a_product_by_hand():
    a, b = torch.tensor([30], dtype=torch.uint8), torch.tensor([8], dtype=torch.uint8)
    # 0.5 * (30 - 10) * 2 * (8 - 5) = 60, in steps of 8: 7.5; with the zero point 1 it rounds to the even 8
    assert multiplication(a, b, (0.5, 10), (2.0, 5), (8.0, 1)).tolist() == [8]


def test_a_mean_by_hand():
    x = torch.tensor([[10, 12], [14, 15]], dtype=torch.uint8).reshape(1, 1, 2, 2)
    # 0.5 * (51 / 4 - 8) = 2.375, in steps of 0.25: 9.5, which rounds to the even 10; zero point 3
    assert mean(x, (0.5, 8), (0.25, 3), [1, 1]).tolist() == [[[[13]]]]


def in_onnx_runtime(operator, codes, settings):
    """What ONNX Runtime makes of dequantize -> operator -> quantize on two lists of codes."""
    helper, kinds = onnx.helper, onnx.TensorProto
    stored, nodes, inputs = [], [], []
    for name, (scale, zero_point) in zip("aby", settings, strict=True):
        stored.append(helper.make_tensor(f"{name}_scale", kinds.FLOAT, [], [scale]))
        stored.append(helper.make_tensor(f"{name}_zero", kinds.UINT8, [], [zero_point]))
    for name in "ab":
        inputs.append(helper.make_tensor_value_info(name, kinds.UINT8, [None]))
        nodes.append(helper.make_node("DequantizeLinear", [name, f"{name}_scale", f"{name}_zero"], [f"{name}_value"]))
    nodes.append(helper.make_node(operator, ["a_value", "b_value"], ["value"]))
    nodes.append(helper.make_node("QuantizeLinear", ["value", "y_scale", "y_zero"], ["y"]))
    outputs = [helper.make_tensor_value_info("y", kinds.UINT8, [None])]
    graph = helper.make_graph(nodes, "pair", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString())
    return torch.from_numpy(session.run(None, dict(zip("ab", (each.numpy() for each in codes), strict=True)))[0])


@pytest.mark.parametrize(("operator", "form"), [("Add", addition), ("Mul", multiplication)])
def test_all_pairs_of_codes_are_those_of_onnx_runtime(operator, form):
    """On the processors tried (AVX2) without exception; a kernel that rounds elsewhere may differ where a half is."""
    codes = torch.arange(256, dtype=torch.uint8)
    a, b = codes.repeat_interleave(256), codes.repeat(256)
    for settings in (
        ((0.060933902859687805, 136), (0.057710882276296616, 125), (0.08718890696763992, 130)),
        ((0.0123, 3), (1 / 254, 0), (0.0101, 20)),
    ):
        differing = (in_onnx_runtime(operator, (a, b), settings) != form(a, b, *settings)).sum()
        assert differing <= 8


def quantized(network, per_channel, images):
    settings = QuantizationSettings(per_channel=per_channel)
    return quantize_after_training(network, (3, *HW), settings, [images])


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_network_computes_the_same_to_within_its_rounding(per_channel, tiny_network):
    images = torch.randn(2, 3, *HW)
    int8 = for_target(quantized(tiny_network, per_channel, images), ONNX_RUNTIME)
    reference = as_integer_kernels(int8)
    targets = [node.target for node in reference.graph.nodes]
    assert (
        sum(targets.count(form) for form in set(INTEGER_FORMS.values())) == 3 + 1 + 2
    )  # convolutions, a sum, activations
    assert not set(INTEGER_FORMS) & set(targets)
    expected, actual = int8(images), reference(images)
    assert (expected - actual).square().mean() < 0.001 * expected.var()


def test_signed_activations_are_refused(tiny_network):
    with pytest.raises(ValueError, match=r"its output is torch\.int8, wanted torch\.uint8"):
        as_integer_kernels(quantized(tiny_network, False, torch.randn(1, 3, *HW)))


@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_with_a_zero_point_are_refused(per_channel, tiny_network):
    int8 = for_target(quantized(tiny_network, per_channel, torch.randn(1, 3, *HW)), ONNX_RUNTIME)
    convolution = next(node for node in int8.graph.nodes if node.target == torch.ops.aten.conv2d.default)
    weight = input_of(convolution, 1)
    if per_channel:
        stored(int8, input_of(weight, 2))[-1] = 1
    else:
        weight.update_arg(2, 1)
    with pytest.raises(ValueError, match="its weights have the zero point"):
        as_integer_kernels(int8)
