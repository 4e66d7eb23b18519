"""Biases, zero points and constant channels of ONNX files, so that every ONNX Runtime computes them in int8."""

import collections
import copy
import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from common.export import onnx_writer
from common.export.conversion import convert_fp32, convert_int8
from common.export.onnx_integers import pad_constant_channels, share_no_zero_points, store_integer_biases
from common.export.onnx_passes import store_zero_points
from common.export.options import ExportOptions
from common.networks.opening import OpenedNetwork
from common.quantization.settings import QuantizationSettings
from common.runtimes.predictors import EXACT_INT8
from common.runtimes.quantized_graphs import QuantizedGraph, attribute
from models.blocks import UpsampleStage
from models.family import find_network

SHAPE = (3, 16, 32)
IMAGES = [torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
OLD_VERSIONS = ("1.18.1", "1.20.1")


class Net(nn.Module):
    """A PReLU, two matrix products, factors by channel, an upsampling stage, a transposed convolution of 3 by 3."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.PReLU(8), nn.Conv2d(8, 16, 1), nn.ReLU())
        self.context = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Sigmoid())
        self.stage = UpsampleStage(16, 16, 0, 16, 16)
        self.factor = nn.Parameter(torch.linspace(0.5, 1.5, 16).reshape(-1, 1, 1))
        self.up, self.last = nn.ConvTranspose2d(16, 8, 3, 1, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = self.first(x)
        x = x * self.context(x.mean((2, 3))).reshape(-1, 16, 1, 1)
        x = self.stage(x * self.factor)
        return self.last(self.up(x).relu())


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    name, network = find_network("EgoLanes")
    return OpenedNetwork(name, network, Net().eval(), 1.0, SHAPE)


@pytest.fixture(scope="module", params=[False, True], ids=["by tensor", "by channel"])
def files(source, request, tmp_path_factory):
    """The file as it is written, and what the exporter's graph was before."""
    folder = tmp_path_factory.mktemp("files")
    before = []
    with pytest.MonkeyPatch.context() as patch:
        real = onnx_writer.pad_constant_channels
        patch.setattr(
            onnx_writer, "pad_constant_channels", lambda proto: before.append(copy.deepcopy(proto)) or real(proto)
        )
        settings = QuantizationSettings(request.param)
        convert_int8(source, folder / "new.onnx", ExportOptions(1), settings, IMAGES[:2], IMAGES[2:])
    onnx.save(before[0], folder / "old.onnx")
    return folder / "old.onnx", folder / "new.onnx"


def session(path, exact=False, optimized=None):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.add_session_config_entry(EXACT_INT8, str(int(exact)))
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path, images=IMAGES[2], **options):
    return session(path, **options).run(None, {"input": images.numpy()})[0]


def kinds(path, folder):
    session(path, optimized=folder / "optimized.onnx")
    return collections.Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def merged(path, folder):
    """The file as tools leave it that keep one of several equal tensors."""
    model = onnx.load(path)
    first: dict[bytes, str] = {}
    names = {}
    for tensor in model.graph.initializer:
        content = TensorProto()
        content.CopyFrom(tensor)
        content.name = ""
        names[tensor.name] = first.setdefault(content.SerializeToString(), tensor.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    kept = [tensor for tensor in model.graph.initializer if names[tensor.name] == tensor.name]
    assert len(kept) < len(model.graph.initializer)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, folder / "merged.onnx")
    return folder / "merged.onnx"


def test_outputs_are_equal_in_every_bit(files, tmp_path):
    old, new = files
    for images in (IMAGES[2], torch.cat(IMAGES)):
        np.testing.assert_array_equal(run(old, images), run(new, images))
    found = kinds(new, tmp_path)
    assert (found["QLinearConv"], found["Conv"], found["QGemm"], found["ConvTranspose"]) == (7, 0, 2, 1)
    assert (found["Expand"], found["Shape"], found["Pad"]) == (0, 0, 2)  # of a constant, and of the image


def test_exact_kernels_take_the_file_also_when_equal_tensors_are_merged(files, tmp_path):
    old, new = files
    path = merged(new, tmp_path)
    np.testing.assert_array_equal(run(new, exact=True), run(new))
    np.testing.assert_array_equal(run(path, exact=True), run(new))
    with pytest.raises(Exception, match="Attempt to replace the existing tensor"):  # what the passes are for
        session(merged(old, tmp_path), exact=True)


def test_biases_are_codes_in_steps_of_the_sum(files):
    graph = QuantizedGraph.of(onnx.load(files[1]).graph)
    between = [node for node in graph.nodes if graph.computes_on_codes(node)]
    with_bias = [node for node in between if len(node.input) == 3]
    assert (len(between), len(with_bias)) == (9, 7)  # those of the PReLU have none
    for node in with_bias:
        pairs = [graph.maker(node, place) for place in (0, 1, 2)]
        of_input, of_weights, step = (graph.constant(pair, 1) for pair in pairs)
        np.testing.assert_array_equal(step, of_input * of_weights)
        assert graph.stored_type(pairs[2], 0) == TensorProto.INT32
        assert len(pairs[2].input) == 2


def test_which_weights_keep_a_zero_point(files):
    """Of convolutions none, but for one of the two of a PReLU, whose codes are equal. That one, products, and what is
    computed in float by channel have 128, and unsigned codes."""
    graph = QuantizedGraph.of(onnx.load(files[1]).graph)
    by_group = [graph.maker(node, 1) for node in graph.nodes if attribute(node, "group", 1) > 1]
    assert [graph.code_type(pair) for pair in by_group] == [TensorProto.INT8, TensorProto.UINT8]
    for node in graph.nodes:
        pair = graph.maker(node, 1) if node.op_type in ("Conv", "ConvTranspose", "Gemm") else None
        if pair is None:
            continue
        by_channel = graph.constant(pair, 1).ndim
        unsigned = node.op_type == "Gemm" or (node.op_type == "ConvTranspose" and by_channel) or pair is by_group[1]
        assert graph.code_type(pair) == (TensorProto.UINT8 if unsigned else TensorProto.INT8)
        assert len(pair.input) == (3 if unsigned else 2)
        assert not unsigned or (graph.constant(pair, 2) == 128).all()


def test_shapes_can_be_inferred_with_a_dynamic_batch(files, tmp_path):
    quant_pre_process(files[1], tmp_path / "processed.onnx")
    np.testing.assert_allclose(run(tmp_path / "processed.onnx"), run(files[1]), atol=1e-5)


def test_shapes_of_the_float_file_can_be_inferred_too(source, tmp_path):
    path = tmp_path / "fp32.onnx"
    convert_fp32(source, path, ExportOptions(1))
    quant_pre_process(path, tmp_path / "processed.onnx")
    np.testing.assert_allclose(run(tmp_path / "processed.onnx"), run(path), atol=1e-5)


def small(nodes, stored, shape=(1, 4, 4, 4)):
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def one_convolution(bias, step=0.5):
    """Input in steps of 0.5, weights in steps of 0.25."""
    stored = {"s": np.float32(step), "z": np.uint8(3), "ws": np.float32(0.25), "wz": np.int8(0)}
    stored |= {"w": np.ones((4, 4, 1, 1), np.int8), "b": np.asarray(bias, np.float32)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]),
        helper.make_node("Conv", ["d", "wd", "b"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["qc"]),
        helper.make_node("DequantizeLinear", ["qc", "s", "z"], ["y"]),
    ]
    return small(nodes, stored)


def test_the_codes_of_a_bias_by_hand():
    """Steps of 0.125; the last lies between two of them, nearer to the first."""
    proto = one_convolution([0.25, -1.0, 0.0, 0.18])
    assert store_integer_biases(proto) == 1
    onnx.checker.check_model(proto, full_check=True)
    graph = QuantizedGraph.of(proto.graph)
    (convolution,) = [node for node in graph.nodes if node.op_type == "Conv"]
    pair = graph.maker(convolution, 2)
    assert graph.constant(pair, 0).tolist() == [2, -8, 0, 1]
    assert graph.constant(pair, 1) == np.float32(0.125)
    assert store_integer_biases(proto) == 0


def test_a_bias_that_no_int32_holds_stays_in_float():
    proto = one_convolution([1e9, 0, 0, 0])
    assert store_integer_biases(proto) == 0
    assert "b" in {tensor.name for tensor in proto.graph.initializer}


def test_a_factor_is_stored_as_what_it_is():
    """2 * (5 - 1) = 8, of all channels."""
    stored = {"c": np.full((4, 1, 1), 5, np.int8), "cs": np.float32(2), "cz": np.int8(1)}
    nodes = [
        helper.make_node("DequantizeLinear", ["c", "cs", "cz"], ["f"]),
        helper.make_node("Mul", ["x", "f"], ["y"]),
    ]
    proto = small(nodes, stored)
    share_no_zero_points(proto)
    assert [node.op_type for node in proto.graph.node] == ["Mul"]
    (factor,) = (numpy_helper.to_array(tensor) for tensor in proto.graph.initializer)
    assert (factor == 8).all() and factor.shape == (4, 1, 1)


def test_another_concatenation_is_left_alone():
    nodes = [helper.make_node("Concat", ["x", "x"], ["y"], axis=1)]
    proto = small(nodes, {})
    assert pad_constant_channels(proto) == 0


def test_zero_points_are_stored_as_what_they_are():
    """The exporter leaves a cast where there are 1024 and more."""
    stored = {"w": np.ones((2, 1), np.int8), "s": np.ones(2, np.float32), "z": np.array([0, 7])}
    nodes = [
        helper.make_node("Cast", ["z"], ["zc"], to=TensorProto.INT8),
        helper.make_node("DequantizeLinear", ["w", "s", "zc"], ["y"], axis=0),
    ]
    proto = small(nodes, stored)
    assert store_zero_points(proto) == 1
    assert [node.op_type for node in proto.graph.node] == ["DequantizeLinear"]
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    found = values[proto.graph.node[0].input[2]]
    assert found.tolist() == [0, 7] and found.dtype == np.int8
    assert store_zero_points(proto) == 0


IN_ANOTHER = """
import collections, json, sys
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.enable_profiling, options.profile_file_prefix = True, sys.argv[3]
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
np.save(sys.argv[3] + ".npy", session.run(None, {"input": np.load(sys.argv[2])})[0])
events = json.load(open(session.end_profiling()))
nodes = [event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")]
print(json.dumps(collections.Counter(nodes)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", OLD_VERSIONS)
def test_an_old_version_computes_the_same_in_int8(files, version, tmp_path):
    """Installs it. A file without these passes runs its convolutions in float there."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", f"onnxruntime=={version}", "numpy<2"], check=True)
    np.save(tmp_path / "image.npy", IMAGES[2].numpy())
    found = []
    for path in files:
        arguments = [path, tmp_path / "image.npy", tmp_path / path.stem]
        process = subprocess.run([python, "-c", IN_ANOTHER, *arguments], check=True, capture_output=True, text=True)
        found.append(collections.Counter(json.loads(process.stdout)))
    assert found[0]["Conv"] > 0
    assert (found[1]["Conv"], found[1]["QLinearConv"], found[1]["QGemm"]) == (0, 7, 2)  # two of the PReLU
    np.testing.assert_array_equal(np.load(tmp_path / "new.npy"), run(files[1]))


class Kept(nn.Module):
    """A convolution, a transposed one and a matrix product whose largest weight is of an input that is always 0."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.kept = nn.ModuleList([nn.Conv2d(8, 8, 3, 1, 1), nn.ConvTranspose2d(8, 8, 3, 1, 1), nn.Linear(8, 8)])
        self.last = nn.Conv2d(8, 3, 1)
        with torch.no_grad():
            self.first[0].weight[7], self.first[0].bias[7] = 0, -1
            self.kept[0].weight[:, 7] = 80

    def forward(self, x):
        x = self.kept[1](self.kept[0](self.first(x)).relu())
        return self.last(self.kept[2](x.movedim(1, 3)).movedim(3, 1))


@pytest.mark.parametrize(("kept", "optimized"), [("kept.0", False), ("kept.*", False), ("kept.*", True)])
def test_onnx_runtime_leaves_weights_that_are_kept_in_float_as_they_are(tmp_path, kept, optimized):
    torch.manual_seed(0)
    source = OpenedNetwork(*find_network("EgoLanes"), Kept().eval(), 1.0, SHAPE)
    settings, options = QuantizationSettings(keep_float=(kept,)), ExportOptions(1, optimized=optimized)
    (found,) = convert_int8(source, tmp_path / "net.onnx", options, settings, IMAGES, IMAGES)
    assert found.sqnr_db > 25  # 3 dB where the weights of `kept.0` are rounded
    held = [node for node in onnx.load(tmp_path / "net.onnx").graph.node if node.op_type == "LeakyRelu"]
    assert held and all(node.attribute[0].f == 1 for node in held)
