"""Where an INT8 ONNX file loses what its output varies by: the layer whose codes are the same for every image."""

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import torch
from onnx import NodeProto
from torch import Tensor

from common.runtimes.predictors import OnnxPredictor
from common.runtimes.quantized_graphs import QUANTIZE, QuantizedGraph

BIAS = re.compile(r"(?:model\.)?(.+?)(?:\.bias|_weight_folded_bias)\w*")  # as the exporter names it
NEARLY_ALL = 0.99  # share of a tensor's places at which its codes do not change from image to image


def constant_layer(path: Path, output: str, images: Sequence[Tensor]) -> str | None:
    """The first layer on the way to `output` whose rounded values are the same for all images, (1, C, H, W) each.

    Returns its module, or the node that it is where the file does not say; None where every layer varies, or none is
    quantized.
    """
    model = onnx.load(path)
    graph = QuantizedGraph.of(model.graph)
    before = _before(output, graph)
    rounded = [node for node in graph.nodes if node.op_type == QUANTIZE and node.output[0] in before]
    if not rounded:
        return None
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in rounded)
    with TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "layers.onnx")
        predict = OnnxPredictor(Path(folder) / "layers.onnx", threads=1)
        by_image = [predict.outputs(each) for each in images]
    for node, codes in zip(rounded, zip(*by_image, strict=True), strict=True):
        same = (torch.stack(codes) == codes[0]).all(0)
        if same.double().mean() >= NEARLY_ALL:
            return _layer(node, graph)
    return None


def _before(output: str, graph: QuantizedGraph) -> set[str]:
    """The names of all tensors that an output is computed from, and its own."""
    found, open_names = set[str](), [output]
    while open_names:
        name = open_names.pop()
        if name not in found and name in graph.makers:
            found.add(name)
            open_names += graph.makers[name].input
    return found


def _layer(rounded: NodeProto, graph: QuantizedGraph) -> str:
    """The module of the operator whose result is rounded, by the name of a bias, or that operator and its output."""
    node = operator = graph.makers[rounded.input[0]]
    while True:
        if owner := next(filter(None, map(BIAS.fullmatch, node.input)), None):
            return owner[1]
        maker = graph.maker(node, 0)
        if maker is None or graph.is_dequantized(node, 0):
            return f"{operator.op_type} {operator.output[0]}"
        node = maker
