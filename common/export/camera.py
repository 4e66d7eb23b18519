"""A camera's bytes in and a map of classes out: the arithmetic around a network as nodes of its ONNX file."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from common.data.camera import CameraFormat
from common.data.transforms import ImageFormat, arranged
from common.export.onnx_passes import drop_dead_nodes, replace_nodes
from common.runtimes.predictors import session_options
from common.runtimes.providers import CPU, PROVIDERS
from common.runtimes.quantized_graphs import QUANTIZE, SCALE, ZERO_POINT, QuantizedGraph
from models import Network

IMAGE_RANK = 4
MOST_CLASSES = 256  # that a byte tells apart
BYTES = np.arange(MOST_CLASSES, dtype=np.uint8)


def require_camera(camera: CameraFormat, name: str, network: Network) -> None:
    """Raise ValueError where a network takes no single image of three channels, or gives no map of classes."""
    if camera.changes_input and (len(network.inputs) > 1 or not network.mean or network.input_shape[0] != 3):
        takes = f"{len(network.inputs)} images" if len(network.inputs) > 1 else "no image of three channels"
        raise ValueError(f"--input_layout, --input_type, --channels: {name} takes {takes}; wanted one image")
    if camera.output == "classes" and network.task != "segmentation":
        raise ValueError(f"--output classes: {name} is a network for {network.task}, which gives no map of classes")


@dataclass(frozen=True)
class CameraFile:
    """A network's file in the form of a camera, which is not the plain one."""

    network: Network
    hw: tuple[int, int]  # of the input
    camera: CameraFormat

    @property
    def image(self) -> ImageFormat:
        """How the file takes its image."""
        return ImageFormat.of(self.network, self.hw, self.camera)

    def rewrite(self, proto: onnx.ModelProto) -> None:
        """Give the plain file this form, in place."""
        if self.camera.changes_input:
            take_camera_images(proto, self.image)
        if self.camera.output == "classes":
            give_class_maps(proto, self.network)

    def nearest(self, images: Tensor) -> Tensor:
        """The images nearest to `images`, as the plain file takes them, that this one can be given."""
        return self.image.of_pixels(self.image.to_pixels(images)) if self.camera.type == "uint8" else images

    def fed(self, images: Tensor) -> Tensor:
        """What stands for images of the plain file in this one."""
        if not self.camera.changes_input:
            return images
        planes = self.image.to_pixels(images) if self.camera.type == "uint8" else images
        return arranged(planes, self.camera, self.network.channel_order)

    def same(self, plain: Tensor, actual: Tensor) -> bool:
        """Whether an output is that of the plain file, or its map of classes."""
        if self.camera.output == "classes" and actual.dtype == torch.uint8 and plain.dim() == IMAGE_RANK:
            return np.array_equal(plain.numpy().argmax(1), actual.numpy())
        return torch.equal(plain, actual)


def take_camera_images(proto: onnx.ModelProto, image: ImageFormat) -> None:
    """Let a file of one normalised image (N, 3, H, W) take it as `image.camera` says, in place.

    The float numbers are those that `ImageFormat.of_pixels` computes, in every bit. Where the network rounds them to
    codes at once, a shorter arithmetic takes their place if it gives the same code for each of the 256 bytes.
    """
    camera, (port,) = image.camera, proto.graph.input
    name, axes = port.name, list(port.type.tensor_type.shape.dim)
    for node in proto.graph.node:
        node.input[:] = [f"{name}_planes" if each == name else each for each in node.input]
    steps = _Steps(name)
    if camera.layout == "nhwc":
        steps.add("Transpose", perm=[0, 3, 1, 2])
    if camera.channels and camera.channels != image.channel_order.lower():
        steps.add("Gather", np.array([2, 1, 0]), axis=1)
    folded: list[NodeProto] = []
    if camera.type == "uint8":
        steps.add("Cast", to=TensorProto.FLOAT)
        folded = _fold(proto, steps, image)
        _normalise(steps, image)
    steps.finish(f"{name}_planes")
    proto.graph.initializer.extend(steps.stored)
    replace_nodes(proto, [*steps.nodes, *folded, *proto.graph.node])
    drop_dead_nodes(proto)
    port.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    port.type.tensor_type.elem_type = TensorProto.UINT8 if camera.type == "uint8" else TensorProto.FLOAT
    port.type.tensor_type.shape.dim.extend(camera.axes(axes))


def give_class_maps(proto: onnx.ModelProto, network: Network) -> None:
    """Every output that is logits of classes (N, C, H, W) as a map (N, H, W) of uint8, in place.

    Raises:
        ValueError: there is none, or one of more classes than a byte tells apart.
    """
    shapes = [[axis.dim_value for axis in port.type.tensor_type.shape.dim] for port in proto.graph.output]
    kinds = network.kinds_of(shapes)
    ports = [
        port
        for port, shape, kind in zip(proto.graph.output, shapes, kinds, strict=True)
        if kind == "classes" and len(shape) == IMAGE_RANK
    ]
    if not ports:
        raise ValueError("--output classes: no output is a map of several classes; leave the flag out")
    for port in ports:
        batch, classes, height, width = port.type.tensor_type.shape.dim
        if classes.dim_value > MOST_CLASSES:
            raise ValueError(f"--output classes: {port.name} tells {classes.dim_value}, a byte {MOST_CLASSES} classes")
        logits, indices = f"{port.name}_logits", f"{port.name}_indices"
        for node in proto.graph.node:
            for names in (node.input, node.output):
                names[:] = [logits if each == port.name else each for each in names]
        proto.graph.node.append(helper.make_node("ArgMax", [logits], [indices], indices, axis=1, keepdims=0))
        proto.graph.node.append(helper.make_node("Cast", [indices], [port.name], port.name, to=TensorProto.UINT8))
        sides = [batch, height, width]
        port.CopyFrom(helper.make_tensor_value_info(port.name, TensorProto.UINT8, None))
        port.type.tensor_type.shape.dim.extend(sides)


class _Steps:
    """A chain of nodes from a file's input, with what they store."""

    def __init__(self, name: str):
        self.name = self.last = name
        self.nodes: list[NodeProto] = []
        self.stored: list[TensorProto] = []

    def add(self, operator: str, *values: np.ndarray | np.float32, **attributes: Any) -> str:
        """Another node on what the last one made; the name of its result."""
        result = f"{self.name}_step{len(self.nodes)}"
        names = [f"{result}_value{place}" for place in range(len(values))]
        self.stored += [numpy_helper.from_array(np.asarray(each), at) for each, at in zip(values, names, strict=True)]
        self.nodes.append(helper.make_node(operator, [self.last, *names], [result], result, **attributes))
        self.last = result
        return result

    def finish(self, result: str) -> None:
        """Call what the last node made `result`."""
        self.nodes[-1].output[0] = self.last = result

    def branch(self) -> "_Steps":
        """Another chain from here on, whose nodes are its own."""
        branch = _Steps(f"{self.name}_codes")
        branch.last = self.last
        return branch


def _columns(image: ImageFormat) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, float32 (1, 3, 1, 1)."""
    mean, std = (np.array(values, np.float32).reshape(1, -1, 1, 1) for values in (image.mean, image.std))
    return mean, std


def _normalise(steps: _Steps, image: ImageFormat) -> None:
    """Add the arithmetic of `ImageFormat.of_pixels`, in its order."""
    mean, std = _columns(image)
    for operator, value in (("Div", np.float32(255)), ("Sub", mean), ("Div", std)):
        steps.add(operator, value)


def _fold(proto: onnx.ModelProto, steps: _Steps, image: ImageFormat) -> list[NodeProto]:
    """Nodes that give the quantizes of the planes one factor and one summand, where that gives the same codes.

    The quantizes take what these make from then on.
    """
    graph, planes = QuantizedGraph.of(proto.graph), f"{steps.name}_planes"
    takers = [node for node in graph.takers[planes] if node.op_type == QUANTIZE]
    mean, std = _columns(image)
    exact, short = steps.branch(), steps.branch()
    _normalise(exact, image)
    factor = 1 / (255 * std.astype(np.float64))
    short.add("Mul", factor.astype(np.float32))
    short.add("Add", (-mean.astype(np.float64) / std).astype(np.float32))
    if not takers or not all(_same_codes(graph, node, exact, short) for node in takers):
        return []
    for node in takers:
        node.input[0] = short.last
    steps.stored += short.stored
    return short.nodes


def _same_codes(graph: QuantizedGraph, quantize: NodeProto, one: _Steps, other: _Steps) -> bool:
    """Whether a quantize of stored scale and zero point gives the same codes behind two chains, for all bytes."""
    scale, zero_point = (graph.constant(quantize, place) for place in (SCALE, ZERO_POINT))
    if scale is None or zero_point is None:
        return False
    return np.array_equal(_codes(one, scale, zero_point), _codes(other, scale, zero_point))


def _codes(steps: _Steps, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    """What ONNX Runtime computes of all bytes in every channel."""
    source = steps.nodes[0].input[0]
    nodes = [*steps.nodes, helper.make_node(QUANTIZE, [steps.last, "scale", "zero_point"], ["codes"])]
    kind = helper.np_dtype_to_tensor_dtype(zero_point.dtype)
    shape = [1, 3, 1, len(BYTES)]
    stored = [numpy_helper.from_array(scale, "scale"), numpy_helper.from_array(zero_point, "zero_point")]
    ports = [helper.make_tensor_value_info(source, TensorProto.FLOAT, shape)]
    results = [helper.make_tensor_value_info("codes", kind, shape)]
    graph = helper.make_graph(nodes, "codes", ports, results, [*steps.stored, *stored])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = session_options(1, exact_int8=False)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=[PROVIDERS[CPU]])
    pixels = np.broadcast_to(BYTES.astype(np.float32), shape)
    return session.run(None, {source: np.ascontiguousarray(pixels)})[0]
