"""What an ONNX file claims, read before a runtime allocates for it or follows its paths."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from common.data.camera import PLAIN, CameraFormat
from common.networks.metadata import camera_of

LARGEST_TENSOR = 2**28  # numbers; the largest weight of the family has 15 million
IMAGE_RANK = 4  # (batch, channels, height, width)
CHANNELS = 3
LARGEST_RANK = 16
SHAPE_INPUTS = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "Resize": 3}  # operator -> its input that is a shape
GRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)  # of If, Loop and Scan
SHAPES_OF_IMAGES = ("Shape", "Size")
LARGEST_SIDE = 8192  # pixels of an input
DTYPES = {number: name.lower() for name, number in TensorProto.DataType.items()}


def read_graph(path: Path) -> onnx.ModelProto:
    """The file without the data it keeps in others, checked for what it claims.

    Raises:
        FileNotFoundError: no such file, or the data it keeps in another one is not there.
        ValueError: no ONNX file, a tensor of gigantic or false dimensions, or data outside the file's folder.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such ONNX file")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # noqa: BLE001 - protobuf's DecodeError and others without a common base
        raise ValueError(f"{path}: not an ONNX file ({error})") from error
    if not model.HasField("graph") or not model.graph.output:
        raise ValueError(f"{path}: not an ONNX file (no graph in it)")
    for tensor in _tensors(model):
        _check_size(tensor, path)
        if uses_external_data(tensor):
            _data_file(tensor, path)
    _check_made_sizes(model.graph, path)
    return model


def stored_precision(model: onnx.ModelProto) -> str:
    """`int8`, `fp16` or `fp32`, by what the model stores: int8 weights or floats that it rounds to codes, half weights,
    or neither."""
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    types = set(weights.values())
    rounded = any(node.op_type == "QuantizeLinear" and node.input[0] in weights for node in model.graph.node)
    if rounded or types & {TensorProto.INT8, TensorProto.UINT8}:
        return "int8"
    return "fp16" if TensorProto.FLOAT16 in types else "fp32"


def stored_camera(model: onnx.ModelProto, path: Path) -> CameraFormat:
    """The form of its image and of its map of classes; ValueError where its metadata say none that there is."""
    try:
        return camera_of({entry.key: entry.value for entry in model.metadata_props})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def require_image_input(
    model: onnx.ModelProto,
    path: Path,
    wanted_channels: int = CHANNELS,
    count: int = 1,
    camera: CameraFormat = PLAIN,
) -> None:
    """Refuse a network that does not take one batch of float32 images, or `count` of them, of so many channels.

    `camera` is the form of the images that the file claims, which it has to take.

    Raises:
        ValueError: names what the file takes instead.
    """
    inputs = _inputs(model)
    kinds = [each.type.tensor_type for each in inputs]
    shapes = [[axis.dim_value or axis.dim_param or "?" for axis in kind.shape.dim] for kind in kinds]
    types = [DTYPES.get(kind.elem_type, f"type {kind.elem_type}") for kind in kinds]
    found = ", ".join(f"{one.name} {kind} {shape}" for one, kind, shape in zip(inputs, types, shapes, strict=True))
    number = "one input" if count == 1 else f"{count} inputs"
    kind = "uint8" if camera.type == "uint8" else "float"
    axes = ", ".join(map(str, camera.axes(("batch", wanted_channels, "height", "width"))))
    wanted = f"wanted {number} of {kind} ({axes})"
    alike = len(inputs) == count and all(shape[1:] == shapes[0][1:] for shape in shapes)
    if not alike or set(types) != {kind} or len(shapes[0]) != IMAGE_RANK:
        raise ValueError(f"{path}: takes {found or 'no input'}; {wanted}")
    batch, channels, *sides = camera.nchw(shapes[0])
    if isinstance(batch, int) and batch != 1:
        raise ValueError(f"{path}: takes {found}; wanted a batch of 1, or a dynamic one (convert with --batch dynamic)")
    if isinstance(channels, int) and channels != wanted_channels:
        raise ValueError(f"{path}: takes {found}; {wanted}")
    if any(isinstance(side, int) and not 0 < side <= LARGEST_SIDE for side in sides):
        raise ValueError(f"{path}: takes {found}; {wanted}, of at most {LARGEST_SIDE} pixels a side")


def fixed_hw(model: onnx.ModelProto, camera: CameraFormat = PLAIN) -> tuple[int, int] | None:
    """The height and width that the file of `require_image_input` fixes, or None where they are dynamic."""
    _, _, height, width = camera.nchw([axis.dim_value for axis in _image_axes(model)])
    return (height, width) if height and width else None


def free_sizes(model: onnx.ModelProto, shape: Sequence[int]) -> dict[str, int]:
    """What the named dynamic sizes of the image input are where an input of this shape is given: {"batch": 1}."""
    return {axis.dim_param: size for axis, size in zip(_image_axes(model), shape, strict=True) if axis.dim_param}


def _image_axes(model: onnx.ModelProto) -> Sequence[onnx.TensorShapeProto.Dimension]:
    return _inputs(model)[0].type.tensor_type.shape.dim


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """What has to be given; old files list their weights among the inputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [each for each in model.graph.input if each.name not in weights]


def shape_nodes(model: onnx.ModelProto) -> set[str]:
    """The names of the nodes that compute shapes: Shape and Size, and what is made of their results and constants.

    They are a few whole numbers, which runtimes keep on the CPU whatever computes the images.
    """
    constants, shapes, names = {"", *(tensor.name for tensor in model.graph.initializer)}, set[str](), set[str]()
    for node in model.graph.node:  # in the order of computation
        if any(attribute.type in GRAPHS for attribute in node.attribute):
            continue  # may take any value of this graph without naming it
        if constants.issuperset(node.input):
            constants.update(node.output)
        elif node.op_type in SHAPES_OF_IMAGES or (constants | shapes).issuperset(node.input):
            shapes.update(node.output)
            names.add(node.name)
    return names - {""}


def data_files(model: onnx.ModelProto, path: Path) -> list[Path]:
    """The files beside `path` in which the model of `read_graph` keeps weights, sorted; none where it has all itself.

    Together with `path` they are the model: its size, and which one it is.
    """
    found = {_data_file(tensor, path) for tensor in _tensors(model) if uses_external_data(tensor)}
    return sorted(found - {path.resolve()})


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """All stored tensors: initializers, those of constants, and those of the graphs and functions within."""
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for attribute in (each for node in nodes for each in node.attribute):
        if attribute.type in (AttributeProto.TENSOR, AttributeProto.TENSORS):
            yield from (attribute.t, *attribute.tensors)
        elif attribute.type in (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS):
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
        elif attribute.type in GRAPHS:
            for graph in (attribute.g, *attribute.graphs):
                yield from _tensors_of_graph(graph)


def _check_size(tensor: TensorProto, path: Path) -> None:
    if any(side < 0 for side in tensor.dims) or math.prod(tensor.dims) > LARGEST_TENSOR:
        claimed = "x".join(map(str, tensor.dims))
        raise ValueError(f"{path}: the tensor {tensor.name:.60} claims {claimed} numbers; is the file damaged?")


def _check_made_sizes(graph: onnx.GraphProto, path: Path) -> None:
    """Nodes that make a tensor of a stored shape: a file of some bytes would fill the memory when it runs."""
    stored = {tensor.name: tensor for tensor in graph.initializer if 0 < math.prod(tensor.dims) <= LARGEST_RANK}
    for node in graph.node:
        position = SHAPE_INPUTS.get(node.op_type, len(node.input))
        tensor = stored.get(node.input[position]) if position < len(node.input) else None
        if tensor is None or uses_external_data(tensor) or tensor.data_type != TensorProto.INT64:
            continue
        shape = numpy_helper.to_array(tensor).ravel().tolist()
        if math.prod(max(side, 1) for side in shape) > LARGEST_TENSOR:
            raise ValueError(f"{path}: the node {node.op_type} makes {shape} numbers; is the file damaged?")


def _data_file(tensor: TensorProto, path: Path) -> Path:
    """The other file that a tensor's data is in, which has to lie in the folder of the ONNX file, links followed.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it lies elsewhere.
    """
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    folder, data = path.parent.resolve(), (path.parent / location.replace("\0", "")).resolve()
    if not location or "\0" in location or not data.is_relative_to(folder):
        raise ValueError(
            f"{path}: keeps weights in {location!r:.200}, outside of its folder; such a file is not opened"
        )
    if not data.is_file():
        raise FileNotFoundError(f"{path}: its weights in {location} are not there; put that file beside it")
    return data
