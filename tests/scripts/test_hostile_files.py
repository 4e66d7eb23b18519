"""Checkpoints, exported networks and ONNX files of somebody who means harm, or of another toolkit: never run, never
believed, refused with a ValueError or an OSError that names the file."""

import io
import json
import os
import pickle
import zipfile
from dataclasses import asdict

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from common.export.traced_writer import write_exported
from common.networks.checkpoints import Description, load_network, published_state, read_checkpoint, save_checkpoint
from common.quantization.checkpoints import load_qat
from common.report.text import table
from common.runtimes.candidates import OpenOptions, open_candidates
from common.runtimes.onnx_files import read_graph
from common.runtimes.predictors import OnnxPredictor, require_class_map
from common.runtimes.traced import read_exported
from common.system.archives import is_intact, require_no_code
from common.system.csv_text import csv_text
from models.scene_seg import SceneSegNetwork

CPU = torch.device("cpu")
KEY = "SceneContext.context_layer_0.weight"


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return published_state("SceneSeg", SceneSegNetwork(1 / 32))


def with_tensor(tensor):
    return lambda state: {**state, KEY: tensor}


def spoiled(value):
    def change(state):
        tensor = state[KEY].clone()
        tensor.view(-1)[0] = value
        return {**state, KEY: tensor}

    return change


# name: (what is done to good weights, what the error says)
WEIGHTS = {
    "NaN": (spoiled(float("nan")), f"1 of 412 tensors hold NaN or infinity in float32: {KEY}"),
    "beyond float32": (with_tensor(torch.full((25, 1280), 1e300, dtype=torch.float64)), "infinity in float32"),
    "infinity": (spoiled(float("inf")), "NaN or infinity"),
    "a giant by strides": (with_tensor(torch.zeros(1).expand(10**12, 3)), "times as wide as published"),
    "sparse": (with_tensor(torch.sparse_coo_tensor([[0]], [1.0], (10**12,))), "no state dict"),
    "shapes alone": (with_tensor(torch.zeros(25, 1280, device="meta")), "no state dict"),
    "complex": (with_tensor(torch.zeros(25, 1280, dtype=torch.complex64)), "no state dict"),
    "whole numbers": (with_tensor(torch.zeros(25, 1280, dtype=torch.int64)), "of another type"),
    "a scalar": (with_tensor(torch.zeros(())), "of another shape"),
    "no names": (lambda state: {1: state[KEY]}, "no state dict"),
    "another width": (with_tensor(torch.zeros(50, 1280, 1, 1)), "of another shape"),
    "a list": (lambda state: [state], "no state dict"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_none(case, weights, tmp_path):
    change, message = WEIGHTS[case]
    torch.save(change(weights), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message) as error:
        load_network("SceneSeg", tmp_path / "w.pth")
    assert str(tmp_path / "w.pth") in str(error.value)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn], ids=str)
def test_weights_in_another_precision_are_read(kind, weights, tmp_path):
    rounded = {key: value.to(kind) if value.is_floating_point() else value for key, value in weights.items()}
    torch.save(rounded, tmp_path / "w.pth")
    network, _ = load_network("SceneSeg", tmp_path / "w.pth")
    assert torch.equal(published_state("SceneSeg", network)[KEY], rounded[KEY].float())


GOOD = asdict(Description("SceneSeg", "fp32", 1 / 32, (64, 128), ("a",)))


@pytest.mark.parametrize(
    "change",
    [
        {"width": 1e9},
        {"width": float("nan")},
        {"width": "x"},
        {"width": True},
        {"kind": "int4"},
        {"arguments": {"batch_size": "many"}},
        {"input_hw": (1, 2, 3)},
        {"input_hw": (10**7, 10**7)},
        {"input_hw": None},
        {"network": 5},
        {"kind": None},
        {"classes": 7},
        {"metrics": "x"},
        {"quantization": 3},
        {"a key of tomorrow": 1},
    ],
    ids=str,
)
def test_descriptions_that_cannot_be(change, weights, tmp_path):
    torch.save({"description": GOOD | change, "model_state_dict": weights}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: its description is damaged, or of another version"):
        read_checkpoint(tmp_path / "w.pth")


def test_a_width_that_is_not_that_of_the_weights_is_refused(weights, tmp_path):
    torch.save({"description": GOOD | {"width": 8.0}, "model_state_dict": weights}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: its weights are of width 0.03125, its description says 8"):
        load_network("SceneSeg", tmp_path / "w.pth")


QAT = GOOD | {"kind": "qat"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "Nope"}, "a checkpoint of Nope, not of SceneSeg; name it with -n Nope$"),
        ({"network": "AutoSteer"}, "a checkpoint of AutoSteer, not of SceneSeg; name it with -n AutoSteer$"),
        ({"input_hw": (63, 127)}, "its description is damaged.*multiples of 32"),
        ({"quantization": {"keep_float": 5}}, "its description is damaged.*keep_float is 5"),
        ({"quantization": {"tomorrow": 5}}, "its description is damaged.*tomorrow"),
        ({"width": 0.017}, "its description is damaged.*multiple of 1/32"),
        ({"width": 8}, r"\d+ numbers in it, \d+ in the network of width 8"),
    ],
    ids=str,
)
def test_qat_descriptions_that_cannot_be(change, message, weights, tmp_path):
    torch.save({"description": QAT | change, "model_state_dict": weights}, tmp_path / "q.pth")
    with pytest.raises(ValueError, match=rf"q\.pth: {message}"):
        load_qat(tmp_path / "q.pth", "SceneSeg", torch.device("cpu"))


def test_a_qat_checkpoint_of_a_size_that_its_network_cannot_take_is_damaged(weights, tmp_path):
    torch.save({"description": QAT | {"network": "AutoSteer"}, "model_state_dict": weights}, tmp_path / "q.pth")
    with pytest.raises(ValueError, match=r"q\.pth: its description is damaged.*bound to 80x160"):
        load_qat(tmp_path / "q.pth", "AutoSteer", torch.device("cpu"))


def test_a_checkpoint_of_the_older_format_is_read(weights, tmp_path):
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    network, _ = load_network("SceneSeg", tmp_path / "old.pth")
    assert torch.equal(published_state("SceneSeg", network)[KEY], weights[KEY])


def rewritten(source, target, edit=lambda name, data: data, more=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w", compression) as after:
        for name in before.namelist():
            after.writestr(name, edit(name, before.read(name)))
        for name, data in more:
            after.writestr(name, data)
    return target


def test_an_archive_that_unpacks_to_more_than_itself_is_refused(weights, tmp_path):
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "w.pth")
    bomb = rewritten(tmp_path / "w.pth", tmp_path / "bomb.pth", compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 10**5
    with pytest.raises(ValueError, match=r"bomb\.pth: .* compressed entries"):
        read_checkpoint(bomb)
    assert not is_intact(bomb) and is_intact(tmp_path / "w.pth")


class Attack:
    """Pickled code that leaves a trace when it runs."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def attack(path):
    data = io.BytesIO()
    torch.save(Attack(path), data)
    return data.getvalue()


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_pickled_code_is_refused_with_a_way_for_trusted_files_and_not_run(form, tmp_path):
    path, trace = tmp_path / "w.pth", tmp_path / "executed"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"model": Attack(trace)}))
    else:
        torch.save({"model": Attack(trace)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"never loaded .* weights_only=False.* torch\.save\(model\.state_dict"):
        read_checkpoint(path)
    assert not trace.exists()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "a.pt2"
    write_exported(nn.Conv2d(3, 3, 1), torch.zeros(2, 3, 32, 64), path, {})
    return path


def test_an_exported_network_runs_none_of_what_was_put_into_it(exported, tmp_path):
    read_exported(exported, CPU)
    trace = tmp_path / "executed"

    def replaced(part, by):
        return lambda name, data: by(data) if part in name else data

    code = json.dumps(f"exec('import os; os.mkdir({str(trace)!r})')")[1:-1].encode()
    hostile = {
        "sample": dict(edit=replaced("sample_inputs", lambda data: attack(trace))),
        "expression": dict(edit=replaced("models/", lambda data: data.replace(_size(data), code))),
        "library": dict(more=[("a/data/aotinductor/model/x.so", b"x")]),
        "object": dict(more=[("a/data/constants/opaque_obj_0", pickle.dumps(Attack(trace)))]),
    }  # fmt: skip
    for name, change in hostile.items():
        with pytest.raises(ValueError, match=rf"{name}\.pt2: not a file of torch\.export"):
            read_exported(rewritten(exported, tmp_path / f"{name}.pt2", **change), CPU)
    assert not trace.exists()


def _size(data):
    """The first dynamic size in a graph, as text."""
    start = data.index(b'"expr_str": "') + len(b'"expr_str": "')
    return data[start : data.index(b'"', start)]


def test_no_archive_is_no_exported_network(tmp_path):
    (tmp_path / "a.pt2").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"a\.pt2: not a file of torch\.export"):
        require_no_code(tmp_path / "a.pt2")


IMAGES = ("batch", 3, 32, 64)


def onnx_file(path, shape=IMAGES, kind=TensorProto.FLOAT, weights=(), nodes=None, inputs=(), opset=20, ir=10, out=None):
    nodes = nodes or [helper.make_node("Identity", ["image"], ["y"])]
    first = helper.make_tensor_value_info("image", kind, shape)
    output = helper.make_tensor_value_info("y", out or kind, shape)
    graph = helper.make_graph(nodes, "g", [first, *inputs], [output], list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    path.write_bytes(model.SerializeToString())


def sparse(location):
    values, indices = stored(1, location=location)[0], numpy_helper.from_array(np.array([0]), "i")
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.append(helper.make_attribute("sparse_value", helper.make_sparse_tensor(values, indices, [4])))
    return [node, helper.make_node("Identity", ["image"], ["y"])]


def stored(*dims, data=b"1234", location=None):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims)
    if location is None:
        tensor.raw_data = data
    else:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
    return [tensor]


def cast(kind):
    return [helper.make_node("Cast", ["image"], ["y"], to=kind)]


GIANT = [numpy_helper.from_array(np.array([40000, 40000]), "s")]
GIANT_NODES = [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("Identity", ["image"], ["y"])]
MORE = [helper.make_tensor_value_info("z", TensorProto.FLOAT, (1,))]

# name: (how the file is made, what the error says)
ONNX = {
    "three axes": (dict(shape=(3, 32, 64)), r"takes image float \[3, 32, 64\]; wanted one input of float"),
    "channels last": (dict(shape=("batch", 32, 64, 3)), "wanted one input of float"),
    "six channels": (dict(shape=("batch", 6, 32, 64)), "wanted one input of float"),
    "half numbers": (dict(kind=TensorProto.FLOAT16), "takes image float16"),
    "bytes": (dict(kind=TensorProto.UINT8), "takes image uint8"),
    "a type that is none": (dict(kind=64), "takes image type 64"),
    "two inputs": (dict(inputs=MORE), r"takes image .*, z float \[1\]"),
    "a giant image": (dict(shape=("batch", 3, 10**6, 10**6)), "at most 8192 pixels a side"),
    "a giant weight": (dict(weights=stored(10**6, 10**6)), "w claims 1000000x1000000 numbers"),
    "a weight of negative size": (dict(weights=stored(-1, 4)), "w claims -1x4 numbers"),
    "a giant made when it runs": (dict(weights=GIANT, nodes=GIANT_NODES), "ConstantOfShape makes"),
    "weights at a path above": (dict(weights=stored(4, location="../../secret")), "outside of its folder"),
    "weights at a path from the root": (dict(weights=stored(4, location="/etc/passwd")), "outside of its folder"),
    "weights at a link that leads away": (dict(weights=stored(4, location="link")), "outside of its folder"),
    "weights at a name with a zero byte": (dict(weights=stored(4, location="w\0.bin")), "outside of its folder"),
    "weights of a constant at a path above": (dict(nodes=sparse("../secret")), "outside of its folder"),
    "a batch of four": (dict(shape=(4, 3, 32, 64)), "wanted a batch of 1, or a dynamic one"),
    "text comes out": (dict(nodes=cast(TensorProto.STRING), out=TensorProto.STRING), r"gives y tensor\(string"),
    "bfloat16 comes out": (dict(nodes=cast(TensorProto.BFLOAT16), out=TensorProto.BFLOAT16), "gives y tensor"),
    "weights that are not there": (dict(weights=stored(4, location="absent.bin")), "absent.bin are not there; put"),
    "an operator set of tomorrow": (dict(opset=99), "ONNX Runtime cannot load it"),
    "a format of tomorrow": (dict(ir=99), "ONNX Runtime cannot load it"),
    "an unknown operator": (dict(nodes=[helper.make_node("Evil", ["image"], ["y"])]), "ONNX Runtime cannot load it"),
}


@pytest.mark.parametrize("case", ONNX)
def test_onnx_files_that_are_refused_before_they_are_opened(case, tmp_path):
    how, message = ONNX[case]
    (tmp_path / "link").symlink_to("/etc/hostname")
    onnx_file(tmp_path / "a.onnx", **how)
    with pytest.raises((ValueError, OSError), match=message) as error:
        open_candidates([("A", tmp_path / "a.onnx", ".onnx")], OpenOptions(CPU, 1, "SceneSeg"))
    assert str(tmp_path / "a.onnx") in str(error.value)


def test_what_fails_when_it_runs_or_gives_no_number_names_the_file(tmp_path):
    shape = numpy_helper.from_array(np.array([7, 7]), "s")
    onnx_file(tmp_path / "a.onnx", weights=[shape], nodes=[helper.make_node("Reshape", ["image", "s"], ["y"])], out=1)
    with pytest.raises(ValueError, match=r"a\.onnx: ONNX Runtime fails on images \(1, 3, 32, 64\)"):
        OnnxPredictor(tmp_path / "a.onnx", 1)(torch.zeros(1, 3, 32, 64))
    with pytest.raises(ValueError, match="A: its output holds NaN"):
        require_class_map(torch.full((1, 3, 2, 2), torch.nan), 3, (2, 2), "A")


def test_onnx_files_with_another_input_name_and_with_weights_beside_them_are_taken(tmp_path):
    onnx_file(tmp_path / "a.onnx", weights=stored(4, location="w.bin"))
    (tmp_path / "w.bin").write_bytes(bytes(16))
    candidates = open_candidates([("A", tmp_path / "a.onnx", ".onnx")], OpenOptions(CPU, 1, "SceneSeg"))
    assert candidates["A"].input_hw == (32, 64)
    assert candidates["A"].files == (tmp_path / "a.onnx", (tmp_path / "w.bin").resolve())


@pytest.mark.parametrize(
    "content", [b"", b"text", onnx.ModelProto(ir_version=8).SerializeToString(), b"\x08\x0a\x12\xff"]
)
def test_what_is_no_onnx_file_is_said_to_be_none(content, tmp_path):
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.onnx: not an ONNX file"):
        read_graph(tmp_path / "a.onnx")


def test_names_of_files_are_neither_formulas_nor_tags():
    name = '=HYPERLINK("http://x")|<img src=x onerror=alert(1)>\n.png'
    assert csv_text([{"image": name}]).splitlines()[1].startswith("\"'=HYPERLINK")
    assert "<img" not in table([{"image": name}])


def test_what_was_saved_is_whole(weights, tmp_path):
    save_checkpoint(tmp_path / "w.pth", weights, Description(**GOOD))
    assert is_intact(tmp_path / "w.pth")
