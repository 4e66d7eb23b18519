"""Each rewrite of the INT8 graph keeps what it computes, and removes what it says."""

import copy

import pytest
import torch
from torch.fx import Interpreter

from common.export.int8_graph import (
    DEQUANTIZE,
    GATES,
    MOVES,
    QUANTIZE,
    SILU_GATES,
    for_target,
    move_codes,
    passes_of,
    round_biases,
    use_sigmoid_gates,
    use_unsigned_activations,
)
from common.export.padded_channels import pad_channels
from common.export.subpixel import shuffle_rows, use_subpixel_convolutions
from common.quantization.graphs import WEIGHTED
from common.quantization.pt2e import quantize_after_training
from common.quantization.settings import QuantizationSettings
from common.runtimes.targets import ONNX_RUNTIME, TARGETS
from models.ego_lanes import EgoLanesNetwork

HW = (64, 64)
aten = torch.ops.aten


@pytest.fixture(scope="module", params=[EgoLanesNetwork])
def int8(request):
    torch.manual_seed(0)
    network = request.param(1 / 16).eval()
    return quantize_after_training(network, (3, *HW), QuantizationSettings(), [torch.randn(1, 3, *HW)])


class InDouble(Interpreter):
    """A graph whose sums are in float64: in float32 the two forms of one sum may end on either side of a half."""

    def call_function(self, target, args, kwargs):
        if target not in WEIGHTED:
            return super().call_function(target, args, kwargs)
        wide = tuple(each.double() if isinstance(each, torch.Tensor) else each for each in args)
        return super().call_function(target, wide, kwargs).float()


def by_rows(int8):
    return use_subpixel_convolutions(int8, shuffle_rows)


@pytest.mark.parametrize("rewrite", [move_codes, use_unsigned_activations, pad_channels, by_rows])
def test_outputs_are_bit_equal(int8, rewrite):
    images = 2 * torch.randn(2, 3, *HW)
    expected = int8(images)
    rewritten = copy.deepcopy(int8)
    rewrite(rewritten)
    assert torch.equal(expected, rewritten(images))


@pytest.mark.parametrize(("activation", "furthest"), [("silu", 0.0), ("gelu", 0.0204)])
def test_gates_are_the_activation_to_within_a_step_and_the_approximation(activation, furthest):
    """Inputs from -3 to 3 in steps of 1/32, outputs in steps of 1/64."""
    in_codes, out_codes = (1 / 32, -16, -128, 127, torch.int8), (1 / 64, -100, -128, 127, torch.int8)
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    for target, *arguments in (
        (QUANTIZE, *in_codes),
        (DEQUANTIZE, *in_codes),
        (getattr(torch.ops.aten, activation).default,),
        (QUANTIZE, *out_codes),
        (DEQUANTIZE, *out_codes),
    ):
        x = graph.call_function(target, (x, *arguments))
    graph.output(x)
    plain = torch.fx.GraphModule({}, graph)
    gated = copy.deepcopy(plain)
    assert use_sigmoid_gates(gated) == 1
    assert torch.ops.aten.mul.Tensor in {node.target for node in gated.graph.nodes}
    inputs = torch.arange(-96, 97) / 32
    rounding = 1 / 64 + 3 / 510  # of the output, and of the gate at the largest input
    assert (plain(inputs) - gated(inputs)).abs().max() <= furthest + rounding


def test_gates_leave_no_activation_in_float(int8):
    rewritten = copy.deepcopy(int8)
    assert use_sigmoid_gates(rewritten) == 49 + 14
    assert not set(GATES) & {node.target for node in rewritten.graph.nodes}
    products = [node for node in rewritten.graph.nodes if node.target == torch.ops.aten.mul.Tensor]
    assert all(source.target == DEQUANTIZE for product in products for source in product.args)


def test_biases_become_whole_steps_of_the_integer_sum(int8):
    """Of the last layer, by hand; and the outputs move by no more than a few steps of rounding."""
    rewritten = copy.deepcopy(int8)
    assert round_biases(rewritten) >= 90
    *_, last = [node for node in rewritten.graph.nodes if node.target == torch.ops.aten.conv2d.default]
    x, weight, bias = last.args[:3]
    steps = rewritten.get_parameter(bias.target).double() / (x.args[1] * weight.args[1])
    assert ((steps - steps.round()) / steps).abs().max() < 1e-6  # whole, as far as float32 goes
    images = torch.randn(2, 3, *HW)
    *_, output = rewritten.graph.nodes
    scale = output.args[0][0].args[1]
    assert (int8(images) - rewritten(images)).abs().mean() < 2 * scale


def test_moves_work_on_codes(int8):
    int8 = copy.deepcopy(int8)
    by_rows(int8)
    rewritten = copy.deepcopy(int8)
    moved = move_codes(rewritten)
    moves = [node for node in rewritten.graph.nodes if node.target in MOVES]
    on_codes = [node for node in moves if not any(source.target == DEQUANTIZE for source in node.all_input_nodes)]
    assert moved >= 3 * 8  # each stage has a concatenation and seven operators of a shuffle
    assert len(on_codes) >= moved
    pairs = [sum(node.target == QUANTIZE for node in graph.graph.nodes) for graph in (int8, rewritten)]
    assert pairs[0] - pairs[1] == moved


def test_activations_become_unsigned_and_weights_stay_signed(int8):
    rewritten = copy.deepcopy(int8)
    use_unsigned_activations(rewritten)
    for node in rewritten.graph.nodes:
        if node.target in (QUANTIZE, DEQUANTIZE) and node.args[5] in (torch.int8, torch.uint8):
            stored = node.args[0].op == "get_attr"
            assert node.args[3:] == ((-127, 127, torch.int8) if stored else (0, 255, torch.uint8))


def test_xnnpack_gets_signed_codes_and_no_transposed_convolution(int8):
    rewritten = for_target(copy.deepcopy(int8), TARGETS["executorch"])
    assert not any(node.target == aten.conv_transpose2d.input for node in rewritten.graph.nodes)
    assert not any(torch.uint8 in node.args for node in rewritten.graph.nodes)
    gated = copy.deepcopy(int8)
    assert use_sigmoid_gates(gated, SILU_GATES) == 49
    images = torch.randn(1, 3, *HW)
    assert torch.equal(InDouble(gated).run(images), InDouble(rewritten).run(images))


def test_no_pass_leaves_work_for_one_before_it(int8):
    """What holds the order of the passes for ONNX Runtime: once all went by, none finds anything."""
    rewritten = for_target(copy.deepcopy(int8), ONNX_RUNTIME)
    values = {name: value.clone() for name, value in rewritten.state_dict().items()}
    *passes, rounding = passes_of(ONNX_RUNTIME)
    assert [rewrite(rewritten) for rewrite in passes] == [0] * len(passes)
    assert rounding is round_biases and rounding(rewritten) > 0
    assert all(torch.equal(values[name], value) for name, value in rewritten.state_dict().items())
