"""Where an INT8 ONNX file loses what its output varies by: the layer whose codes are the same for every image."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnx import NodeProto
from torch import Tensor

from common.runtimes.predictors import OnnxPredictor

BIAS = re.compile(r"(?:model\.)?(.+?)(?:\.bias|_weight_folded_bias\w*)")  # as the exporter names it
NEARLY_ALL = 0.99  # share of a tensor's places at which its codes do not change from image to image


def constant_layer(path: Path, output: str, images: Sequence[Tensor]) -> str | None:
    """The first layer on the way to `output` whose rounded values are the same for all images, (1, C, H, W) each.

    Returns its module, or the node that it is where the file does not say; None where every layer varies, or none is
    quantized.
    """
    model = onnx.load(path)
    producers = {name: node for node in model.graph.node for name in node.output}
    before = _before(output, producers)
    rounded = [node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.output[0] in before]
    if not rounded:
        return None
    names = [node.output[0] for node in rounded]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    with TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "layers.onnx")
        predict = OnnxPredictor(Path(folder) / "layers.onnx", threads=1)
        first, *others = (predict.outputs(each) for each in images)
    for name, codes, more in zip(names, first, zip(*others, strict=True), strict=True):
        same = (codes == more[0]) if more else codes == codes
        for each in more[1:]:
            same &= codes == each
        if same.double().mean() >= NEARLY_ALL:
            return _layer(producers[name], producers)
    return None


def _before(output: str, producers: Mapping[str, NodeProto]) -> set[str]:
    """The names of all tensors that an output is computed from, and its own."""
    found, open_names = set[str](), [output]
    while open_names:
        name = open_names.pop()
        if name not in found and name in producers:
            found.add(name)
            open_names += producers[name].input
    return found


def _layer(rounded: NodeProto, producers: Mapping[str, NodeProto]) -> str:
    """The module of the operator whose result is rounded, by the name of a bias, or that operator and its output."""
    node = operator = producers[rounded.input[0]]
    while True:
        for name in node.input:
            if owner := BIAS.fullmatch(name):
                return owner[1]
        if node.input[0] not in producers or producers[node.input[0]].op_type == "DequantizeLinear":
            return f"{operator.op_type} {operator.output[0]}"
        node = producers[node.input[0]]
