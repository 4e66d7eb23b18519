"""The INT8 network in PyTorch as integer kernels compute it: what an exported file is compared with.

`convert_pt2e`'s graph adds up floats. Where such a sum falls on the other side of a half than the exact one, a code
differs by one step, and a deep network grows a single such code into differences all over its output: on an
eighth-width SceneSeg 99.06 % of the pixels of two runtimes agree then, whose arithmetic is both right. With exact sums,
rounded where ONNX Runtime's kernels round, 99.90 % do.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from common.quantization.graphs import WEIGHTED, finish, stored, with_relu
from common.quantization.nodes import input_of, is_output_of, setting_of
from common.quantization.pt2e import DEQUANTIZE, DEQUANTIZE_PER_CHANNEL, QUANTIZE

aten = torch.ops.aten
Settings = tuple[float | Tensor, int]  # scale, or scales of weights by channel, and zero point, which weights have not


def as_integer_kernels(int8: GraphModule) -> GraphModule:
    """A copy of a graph in which every operator of INTEGER_FORMS works on codes.

    Raises:
        ValueError: activations are signed (`use_unsigned_activations` comes first), or weights have a zero point.
    """
    reference = copy.deepcopy(int8)
    for node in list(reference.graph.nodes):
        if node.target == aten.max_pool2d.default:
            node.target = max_pool
        if _has_integer_form(node):
            _require_known_codes(reference, node)
            _compute_in_integers(node)
    finish(reference)
    return reference


def _sources(node: Node) -> list[Node]:
    """One or two tensors; a bias follows them, and what is no tensor."""
    return [source for source in node.args[:2] if isinstance(source, Node)]


def _has_integer_form(node: Node) -> bool:
    return (
        node.target in INTEGER_FORMS
        and not (node.target == aten.adaptive_avg_pool2d.default and list(setting_of(node, 1)) != [1, 1])
        and all(is_output_of(source, DEQUANTIZE, DEQUANTIZE_PER_CHANNEL) for source in _sources(node))
        and [user.target for user in with_relu(node).users] == [QUANTIZE]
    )


def _require_known_codes(graph: GraphModule, node: Node) -> None:
    """The forms below give unsigned codes, and take the code 0 of a weight for 0."""
    (quantized,) = with_relu(node).users
    if quantized.args[5] != torch.uint8:
        raise ValueError(f"{node.name}: its output is {quantized.args[5]}, wanted torch.uint8")
    if node.target in WEIGHTED:
        zero_point = input_of(node, 1).args[2]
        if bool(stored(graph, zero_point).any() if isinstance(zero_point, Node) else zero_point):
            raise ValueError(f"{node.name}: its weights have the zero point {zero_point}, wanted symmetric ones")


def _compute_in_integers(node: Node) -> None:
    last, sources = with_relu(node), _sources(node)
    (quantized,) = last.users
    codes = [input_of(source) for source in sources]
    settings = [source.args[1:3] for source in (*sources, quantized)]
    rest = node.args[len(sources) :]
    with node.graph.inserting_before(quantized):
        integer = node.graph.call_function(INTEGER_FORMS[node.target], (*codes, *settings, *rest))
        if last is not node:  # a ReLU, on codes
            integer = node.graph.call_function(aten.clamp.default, (integer, setting_of(quantized, 2)))
    quantized.replace_all_uses_with(integer)
    for each in dict.fromkeys((quantized, last, node)):  # by name: an addition in place counts as used
        node.graph.erase_node(each)


def max_pool(x: Tensor, *rest: Any) -> Tensor:
    """The largest codes, or values, of each window; PyTorch counts pixels in the type of the codes, up to 255."""
    return aten.max_pool2d.default(x.float(), *rest).to(x.dtype)


def convolution(x: Tensor, weight: Tensor, of_x: Settings, of_weight: Settings, of_y: Settings, *rest: Any) -> Tensor:
    """A convolution of codes, uint8 (N, C, H, W) and int8 weights -> uint8; `rest` as in `torch.conv2d`."""
    return _weighted_sum(aten.conv2d.default, x, weight, of_x, of_weight, of_y, *rest)


def linear(x: Tensor, weight: Tensor, of_x: Settings, of_weight: Settings, of_y: Settings, *rest: Any) -> Tensor:
    """A linear layer of codes, uint8 (N, C) and int8 weights -> uint8; `rest` is the bias."""
    return _weighted_sum(aten.linear.default, x, weight, of_x, of_weight, of_y, *rest)


def _weighted_sum(
    operator: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    of_x: Settings,
    of_weight: Settings,
    of_y: Settings,
    bias: Tensor | None = None,
    *rest: Any,
) -> Tensor:
    step = _float32(of_x[0]) * _float32(of_weight[0])  # of the integer sum; one for each channel, or one
    steps = None if bias is None else (bias / step).round().double()
    total = operator(x.double() - of_x[1], weight.double(), steps, *rest)  # whole numbers, exact in float64
    after = 0 if operator is aten.linear.default else total.dim() - 2  # axes behind that of the channels
    ratio = (step / _float32(of_y[0])).reshape(-1, *[1] * after)
    return _as_codes((total.float() * ratio).round() + of_y[1])


def addition(a: Tensor, b: Tensor, of_a: Settings, of_b: Settings, of_y: Settings) -> Tensor:
    """The sum of two tensors of uint8 codes, rounded once, with the zero point added before.

    The order of the fused multiply-adds is that of ONNX Runtime: no other agrees on all sums of two codes.
    """
    ratio_a, ratio_b = (_float32(scale) / _float32(of_y[0]) for scale in (of_a[0], of_b[0]))
    fixed = of_y[1] - _multiply_add(_float32(of_a[1]), ratio_a, ratio_b * of_b[1])
    return _as_codes(_multiply_add(a, ratio_a, _multiply_add(b, ratio_b, fixed)).round())


def _multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a b + c, rounded to float32 once: the product of 8 and 24 bits is exact in float64."""
    return (a.double() * b.double() + c.double()).float()


def multiplication(a: Tensor, b: Tensor, of_a: Settings, of_b: Settings, of_y: Settings) -> Tensor:
    """The product of two tensors of uint8 codes, rounded once."""
    product = (a.float() - of_a[1]) * (b.float() - of_b[1])  # below 2^16, exact
    ratio = _float32(of_a[0]) * _float32(of_b[0]) / _float32(of_y[0])
    return _as_codes((product * ratio + of_y[1]).round())


def mean(x: Tensor, of_x: Settings, of_y: Settings, output_size: list[int]) -> Tensor:
    """The mean over the image of uint8 codes (N, C, H, W) -> (N, C, 1, 1); `output_size` is [1, 1]."""
    total = (x.double() - of_x[1]).sum(dim=(2, 3), keepdim=True)
    ratio = _float32(of_x[0]) / (_float32(of_y[0]) * (x.shape[2] * x.shape[3]))
    return _as_codes((total.float() * ratio).round() + of_y[1])


def _float32(scale: float | Tensor) -> Tensor:
    return torch.as_tensor(scale, dtype=torch.float32)


def _as_codes(values: Tensor) -> Tensor:
    return values.clamp(0, 255).to(torch.uint8)


INTEGER_FORMS: dict[object, Callable[..., Tensor]] = {
    aten.conv2d.default: convolution,
    aten.linear.default: linear,
    aten.add.Tensor: addition,
    aten.add_.Tensor: addition,
    aten.mul.Tensor: multiplication,
    aten.adaptive_avg_pool2d.default: mean,
}
