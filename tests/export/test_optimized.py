"""Files of integer operators: what they compute without graph optimisation, what they hold, and what is refused."""

import collections

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from common.export.conversion import convert_int8
from common.export.optimized import use_integer_operators
from common.export.options import ExportOptions
from common.export.same_outputs import SameOutputs
from common.networks.opening import OpenedNetwork
from common.quantization.settings import QuantizationSettings
from common.runtimes import predictors
from common.runtimes.onnx_files import stored_precision
from common.runtimes.optimized import OptimizedNote
from common.runtimes.predictors import OnnxPredictor
from common.runtimes.target_check import broken_rules, optimized_note
from common.runtimes.targets import TARGETS
from models.family import find_network
from tests.conftest import TinyNetwork

SHAPE = (3, 16, 32)
IMAGES = [torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(pairs, optimized) of one network with one scale, and with scales by channel in the reduced range."""
    torch.manual_seed(0)
    name, network = find_network("EgoLanes")
    source = OpenedNetwork(name, network, TinyNetwork().eval(), 1.0, SHAPE)
    folder, made = tmp_path_factory.mktemp("files"), {}
    for reduced in (False, True):
        for optimized in (False, True):
            made[reduced, optimized] = folder / f"{reduced}{optimized}.onnx"
        settings = QuantizationSettings(reduced, reduced_range=reduced)
        convert_int8(source, made[reduced, False], ExportOptions(1), settings, IMAGES[:3], IMAGES[3:])
        made[reduced, True].write_bytes(made[reduced, False].read_bytes())
        use_integer_operators(made[reduced, True])
    return made


def operators(path):
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("reduced", [False, True])
def test_without_graph_optimisation_the_bits_are_those_of_the_pairs_with_it(files, reduced):
    pairs, optimized = (OnnxPredictor(files[reduced, each], 1, optimize=not each) for each in (False, True))
    again = OnnxPredictor(files[reduced, True], 1)
    disabled, found = (each.session.get_session_options().graph_optimization_level for each in (optimized, pairs))
    assert (disabled, found) == (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    for images in (IMAGES[3], torch.cat(IMAGES)):
        assert torch.equal(pairs(images), optimized(images))
        assert torch.equal(pairs(images), again(images))


def test_every_convolution_is_an_integer_operator(files):
    """Three convolutions, a SiLU and a GELU as gates, a sum; pairs at input and output alone."""
    found = operators(files[False, True])
    assert found["QLinearConv"] == 3 and found["QLinearSigmoid"] == 2 and found["QLinearMul"] == 2
    assert found["QLinearAdd"] == 1
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 1)
    assert not found.keys() & {"Conv", "Sigmoid", "Mul", "Add"}
    assert operators(files[False, False])["Conv"] == 3


def test_what_the_file_says_of_itself(files):
    pairs, optimized = (onnx.load(files[True, each]) for each in (False, True))
    said, before = ({entry.key: entry.value for entry in proto.metadata_props} for proto in (optimized, pairs))
    note = OptimizedNote.of(said)
    assert before.items() <= said.items() and OptimizedNote.of(before) is None
    assert note.integer_operators["QLinearConv"] == 3 and "ONNX Runtime 1." in note.by
    assert note.weight_bits == 7
    assert optimized_note(files[False, True]).weight_bits == 8
    assert stored_precision(optimized) == "int8"
    assert {entry.domain for entry in optimized.opset_import} == {"", "com.microsoft"}
    assert not optimized.graph.value_info


def test_weights_stay_signed_whatever_processor_writes(files, tmp_path, monkeypatch):
    """Exact kernels of processors without an int8 dot product would store them unsigned, which is slow elsewhere."""
    monkeypatch.setattr(predictors, "sums_saturate", lambda: True)
    path = tmp_path / "x.onnx"
    path.write_bytes(files[True, False].read_bytes())
    use_integer_operators(path)
    assert path.read_bytes() == files[True, True].read_bytes()
    stored = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    weights = [stored[node.input[3]] for node in onnx.load(path).graph.node if node.op_type == "QLinearConv"]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.INT8}
    said = []
    monkeypatch.setattr(predictors.logger, "warning", lambda text, *_: said.append(text))
    OnnxPredictor(files[True, True], 1)
    assert said == []
    OnnxPredictor(files[False, True], 1)
    assert "optimized without --reduced_range; sums may saturate" in said[0]


@pytest.mark.parametrize(("target", "kept"), [("onnxruntime", True), ("openvino", False), ("tensorrt", False)])
def test_which_targets_take_it(files, target, kept):
    wrong = broken_rules(onnx.load(files[False, True]), target)
    assert (wrong == []) == kept == TARGETS[target].takes_optimized
    assert kept or "QLinear" in wrong[0] or any("com.microsoft" in line for line in wrong)


def test_other_outputs_are_refused(files):
    changed = OnnxPredictor(files[True, True], 1)
    with pytest.raises(ValueError, match="--optimized: the integer operators do not give.*--reduced_range"):
        SameOutputs(OnnxPredictor(files[False, False], 1), changed)(IMAGES[0])


def test_a_file_without_pairs_is_refused(tmp_path):
    helper = onnx.helper
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="--optimized: 0 of 0 convolutions and matrix products became integer"):
        use_integer_operators(tmp_path / "x.onnx")


def test_nothing_of_the_machine_is_in_it(files):
    for word in (str(files[False, True].parent), "/usr", "/home", "site-packages"):
        assert word.encode() not in files[False, True].read_bytes()
    assert np.fromfile(files[False, True], np.uint8).size < 1.2 * files[False, False].stat().st_size
