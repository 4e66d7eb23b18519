"""Files that break one rule of a runtime each, beside one that keeps them all."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

import convert_pytorch_to_onnx
from common.runtimes.target_check import RULES, broken_rules, check_file, require_rules
from common.runtimes.targets import TARGETS
from tests.command_lines import call, refusal

CHANNELS, HW = 4, (6, 8)


@dataclass
class Network:
    """Two convolutions by channel and a residual sum, as TensorRT wants them; a test changes a part of it.

    x -> pair a -> conv one -> Relu -> pair b -> conv two -> pair c -> sum with pair b -> y, all in float32.
    """

    nodes: dict[str, NodeProto] = field(default_factory=dict)
    stored: dict[str, np.ndarray] = field(default_factory=dict)
    opset: int = 20
    outputs: tuple[str, ...] = ("y",)

    def __post_init__(self):
        self.stored |= {"scale": np.float32(0.1), "zero": np.int8(0)}
        for name in ("one", "two"):
            self.weights(name, axis=0)
        self.add("quantize a", "QuantizeLinear", ["x", "scale", "zero"], "a codes")
        self.add("dequantize a", "DequantizeLinear", ["a codes", "scale", "zero"], "a")
        self.add("conv one", "Conv", ["a", "one", "one bias"], "sums one", pads=[1, 1, 1, 1])
        self.add("relu", "Relu", ["sums one"], "ones")
        self.pair("b", "ones")
        self.add("conv two", "Conv", ["b", "two", "two bias"], "sums two", pads=[1, 1, 1, 1])
        self.pair("c", "sums two")
        self.add("sum", "Add", ["b", "c"], "y")

    def add(self, name, operator, inputs, output, domain="", **attributes):
        self.nodes[name] = helper.make_node(operator, inputs, [output], name=name, domain=domain, **attributes)

    def pair(self, name, source):
        self.add(f"quantize {name}", "QuantizeLinear", [source, "scale", "zero"], f"{name} codes")
        self.add(f"dequantize {name}", "DequantizeLinear", [f"{name} codes", "scale", "zero"], name)

    def weights(self, name, axis):
        self.stored[f"{name} float"] = np.full((CHANNELS, CHANNELS, 3, 3), 0.5, np.float32)
        self.stored[f"{name} scale"] = np.full(CHANNELS, 0.01, np.float32)
        self.stored[f"{name} zero"] = np.zeros(CHANNELS, np.int8)
        self.stored[f"{name} bias"] = np.ones(CHANNELS, np.float32)
        inputs = [f"{name} {each}" for each in ("float", "scale", "zero")]
        self.add(f"quantize {name}", "QuantizeLinear", inputs, f"{name} codes", axis=axis)
        self.add(f"dequantize {name}", "DequantizeLinear", [f"{name} codes", *inputs[1:]], name, axis=axis)

    def proto(self) -> onnx.ModelProto:
        shape = [1, CHANNELS, *HW]
        ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", *self.outputs)]
        stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in self.stored.items()]
        graph = helper.make_graph(list(self.nodes.values()), "g", ports[:1], ports[1:], stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)


def set_input(network, name, place, value):
    network.nodes[name].input[place] = value


def stores(name, value) -> Callable:
    return lambda network: network.stored.update({name: value})


def codes_of_weights(network):
    network.stored["one float"] = np.full((CHANNELS, CHANNELS, 3, 3), 10, np.int8)
    del network.nodes["quantize one"]
    set_input(network, "dequantize one", 0, "one float")


def own_zero_point(value):
    def change(network):
        network.stored["other zero"] = value
        for name in ("quantize a", "dequantize a"):
            set_input(network, name, 2, "other zero")

    return change


def behind(name, operator, source, domain="", **attributes):
    """A node between `source` and what takes it."""

    def change(network):
        takers = [
            (node, place) for node in network.nodes.values() for place, each in enumerate(node.input) if each == source
        ]
        for node, place in takers:
            node.input[place] = name
        nodes, network.nodes = network.nodes, {}
        for key, node in nodes.items():
            network.nodes[key] = node
            if source in node.output:
                network.add(name, operator, [source], name, domain, **attributes)

    return change


def other_scale(network):
    network.stored["other"] = np.float32(0.2)
    set_input(network, "dequantize b", 1, "other")


def computed_scale(network):
    nodes, network.nodes = network.nodes, {}
    network.add("abs", "Abs", ["scale"], "computed")
    network.nodes |= nodes
    set_input(network, "quantize a", 1, "computed")


def two_scales(network):
    network.stored |= {"scales": np.full(CHANNELS, 0.1, np.float32), "zeros": np.zeros(CHANNELS, np.int8)}
    for name in ("quantize a", "dequantize a"):
        set_input(network, name, 1, "scales"), set_input(network, name, 2, "zeros")


def integer_bias(network):
    network.stored |= {"steps": np.ones(CHANNELS, np.int32), "step": np.float32(0.001)}
    nodes, network.nodes = network.nodes, {}
    network.add("bias", "DequantizeLinear", ["steps", "step"], "dequantized bias")
    network.nodes |= nodes
    set_input(network, "conv one", 2, "dequantized bias")


def output_pair(network):
    network.pair("d", "y")
    network.outputs = ("d",)


def pair_before_relu(network):
    network.add("relu", "Relu", ["e"], "ones")
    nodes, network.nodes = network.nodes, {}
    for name, node in nodes.items():
        if name == "relu":
            network.pair("e", "sums one")
        network.nodes[name] = node


def dynamic(network):
    nodes, network.nodes = network.nodes, {}
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["u", "us", "uz"], name="dynamic")
    network.nodes |= {"dynamic": node, **nodes}


def transposed(axis):
    def change(network):
        network.weights("two", axis)
        network.add("conv two", "ConvTranspose", ["b", "two", "two bias"], "sums two", pads=[1, 1, 1, 1])

    return change


def product(axis, columns=HW[1]):
    """A matrix product in the place of the second convolution."""

    def change(network):
        network.weights("two", axis)
        network.stored["two float"] = np.full((HW[1], columns), 0.5, np.float32)
        network.stored["two scale"] = np.full(columns, 0.01, np.float32)
        network.stored["two zero"] = np.zeros(columns, np.int8)
        network.add("conv two", "MatMul", ["b", "two"], "sums two")

    return change


def turned_product(axis):
    """The same with its weights stored as a linear layer has them."""

    def change(network):
        product(axis)(network)
        behind("turned", "Transpose", "two", perm=[1, 0])(network)

    return change


UINT8 = own_zero_point(np.uint8(0))
BREAKS = {
    # name -> (change, node, what is said, targets whose rule it is)
    "zero point": (own_zero_point(np.int8(3)), "quantize a", "zero point 3", ["tensorrt"]),
    "zero point 128": (own_zero_point(np.uint8(128)), "dequantize a", "zero point 128", ["tensorrt"]),
    "unsigned": (UINT8, "dequantize a", "codes of uint8", ["tensorrt"]),
    "codes of 16 bits": (
        own_zero_point(np.int16(0)),
        "quantize a",
        "codes of int16",
        ["tensorrt", "onnxruntime", "openvino"],
    ),
    "zero point of weights": (
        stores("one zero", np.array([0, 0, 5, 0], np.int8)),
        "quantize one",
        "zero point 5",
        ["tensorrt"],
    ),
    "computed scale": (computed_scale, "quantize a", "scale is computed", ["tensorrt", "onnxruntime", "openvino"]),
    "scale of 0": (stores("scale", np.float32(0)), "quantize a", "above 0", ["tensorrt", "onnxruntime", "openvino"]),
    "scales of an activation": (two_scales, "dequantize a", "4 scales of an activation", ["tensorrt", "onnxruntime"]),
    "axis of a convolution": (
        lambda network: network.weights("one", 1),
        "dequantize one",
        "wanted axis 0",
        ["tensorrt"],
    ),
    "axis of a transposed one": (transposed(0), "dequantize two", "wanted axis 1", ["tensorrt"]),
    "axis of a product": (product(0), "dequantize two", "wanted axis 1", ["tensorrt"]),
    "axis of a linear layer": (turned_product(1), "dequantize two", "wanted axis 0", ["tensorrt"]),
    "code -128": (
        stores("one float", np.full((CHANNELS, CHANNELS, 3, 3), -1.29, np.float32)),
        "dequantize one",
        "code -129",
        ["tensorrt"],
    ),
    "stored codes": (codes_of_weights, "dequantize one", "stored codes", ["tensorrt"]),
    "integer bias": (integer_bias, "conv one", "bias behind DequantizeLinear", ["tensorrt"]),
    "float input": (
        lambda network: set_input(network, "conv one", 0, "x"),
        "conv one",
        "second input alone",
        ["tensorrt"],
    ),
    "float weights": (
        lambda network: set_input(network, "conv one", 1, "one float"),
        "conv one",
        "first input alone",
        ["tensorrt"],
    ),
    "float summand": (
        lambda network: set_input(network, "sum", 1, "sums two"),
        "sum",
        "first input alone",
        ["tensorrt"],
    ),
    "pair before ReLU": (pair_before_relu, "dequantize e", "between Conv and Relu", ["tensorrt"]),
    "pair on the output": (output_pair, "dequantize d", "nothing in int8 behind", ["tensorrt"]),
    "move on codes": (behind("turned", "Transpose", "b codes"), "turned", "on codes", ["tensorrt"]),
    "two scales of a pair": (other_scale, "dequantize b", "another scale", ["tensorrt"]),
    "integer operator": (dynamic, "dynamic", "integer arithmetic", ["tensorrt"]),
    "foreign operator": (
        behind("gelu", "FusedGelu", "sums one", domain="com.microsoft"),
        "gelu",
        "com.microsoft",
        ["tensorrt", "openvino"],
    ),
    "old operator set": (lambda network: setattr(network, "opset", 12), None, "operator set 12", ["tensorrt"]),
    "new operator set": (lambda network: setattr(network, "opset", 23), None, "operator set 23", ["tensorrt"]),
    "float bias": (lambda network: None, "conv one", "a bias in float", ["onnxruntime"]),
    "signed": (lambda network: None, "conv one", "its input is int8", ["onnxruntime"]),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_each_rule_finds_the_node_that_breaks_it(broken):
    change, name, said, targets = BREAKS[broken]
    network = Network()
    change(network)
    for target in targets:
        found = broken_rules(network.proto(), target)
        where = f"{network.nodes[name].op_type} {name}: " if name else ""
        assert any(line.startswith(where) and said in line for line in found), found


def test_a_file_that_keeps_all_rules():
    network = Network()
    onnx.checker.check_model(network.proto(), full_check=True)
    assert broken_rules(network.proto(), "tensorrt") == []
    assert broken_rules(network.proto(), "openvino") == []
    require_rules(network.proto(), "tensorrt")


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network.nodes["quantize a"].input.pop(),
        transposed(1),
        product(1),
        product(-1),
        turned_product(0),
        lambda network: (
            [network.nodes.pop(name) for name in list(network.nodes) if "sum" in name or name.endswith(" c")]
            and setattr(network, "outputs", ("sums two",))
        ),
        behind("moved", "Identity", "b"),
        stores("one float", np.full((CHANNELS, CHANNELS, 3, 3), -1.27, np.float32)),
    ],
    ids=[
        "no zero point",
        "transposed",
        "product",
        "product, counted back",
        "linear layer",
        "output in float",
        "a move",
        "code -127",
    ],
)
def test_what_is_no_fault_is_not_told(change):
    network = Network()
    change(network)
    assert broken_rules(network.proto(), "tensorrt") == []


def test_an_unsigned_file_is_onnx_runtimes():
    network = Network()
    for name in ("a", "b", "c"):
        network.stored["unsigned"] = np.uint8(128)
        for kind in ("quantize", "dequantize"):
            set_input(network, f"{kind} {name}", 2, "unsigned")
    integer_bias(network)
    set_input(network, "conv two", 2, "dequantized bias")
    assert broken_rules(network.proto(), "onnxruntime") == []


def test_a_branch_is_looked_into():
    """Its pair takes the scale of the graph around it."""
    inner = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "scale", "inner zero"], ["inner codes"], name="inside")],
        "inner",
        [],
        [helper.make_tensor_value_info("inner codes", TensorProto.INT8, None)],
        [numpy_helper.from_array(np.int8(7), "inner zero")],
    )
    network = Network()
    network.stored["yes"] = np.array(True)
    network.nodes["if"] = helper.make_node("If", ["yes"], ["z"], name="if", then_branch=inner, else_branch=inner)
    assert broken_rules(network.proto(), "tensorrt") == [
        "QuantizeLinear inside: the zero point 7, wanted 0 (symmetric quantization)"
    ]


def test_an_error_names_the_first_of_many():
    network = Network()
    own_zero_point(np.uint8(9))(network)
    with pytest.raises(ValueError, match=r"breaks 4 rules of TensorRT: QuantizeLinear quantize a: .*; \.\.\.$"):
        require_rules(network.proto(), "tensorrt")


def test_the_script_lists_what_breaks_rules(tmp_path, capsys):
    path, network = tmp_path / "a.onnx", Network()
    onnx.save(network.proto(), path)
    call(convert_pytorch_to_onnx, ["--check", path, "--target", "tensorrt"])
    assert "a.onnx: keeps all rules of TensorRT" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_info:
        call(convert_pytorch_to_onnx, ["--target", "onnxruntime", "--check", path])
    told = capsys.readouterr()
    assert exit_info.value.code == 1
    assert told.out.splitlines()[0].startswith("Conv conv one: its input is int8")
    assert "a.onnx: breaks 4 rules of ONNX Runtime" in told.err


def test_what_cannot_be_checked(tmp_path, capsys):
    path = tmp_path / "a.onnx"
    assert "no such ONNX file" in refusal(convert_pytorch_to_onnx, ["--check", path], capsys)
    onnx.save(Network().proto(), path)
    arguments = ["--check", path, "--target", "executorch"]
    assert "takes .pte files" in refusal(convert_pytorch_to_onnx, arguments, capsys)
    for more in (["-n", "SceneSeg"], ["--int8"], ["--opset", "18"]):
        with pytest.raises(SystemExit) as exit_info:
            call(convert_pytorch_to_onnx, ["--check", path, *more])
        assert exit_info.value.code == 2
        assert "not allowed with argument --check" in capsys.readouterr().err


def test_weights_beside_the_file_are_read(tmp_path):
    network, path = Network(), tmp_path / "a.onnx"
    network.stored["one float"] = np.full((CHANNELS, CHANNELS, 3, 3), -2.0, np.float32)
    onnx.save(network.proto(), path, save_as_external_data=True, location="a.data", size_threshold=16)
    assert any("code -200" in line for line in check_file(path, "tensorrt"))


def test_every_target_that_takes_onnx_has_rules():
    assert RULES.keys() == {name for name, row in TARGETS.items() if row.opsets}
