"""Files for a camera: the arithmetic around a network, byte by byte, folded and not, and maps of classes."""

import itertools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from common.data.camera import CHANNELS, LAYOUTS, PLAIN, TYPES, CameraFormat
from common.data.transforms import ImageFormat
from common.export import camera as camera_module
from common.export.camera import CameraFile, give_class_maps, require_camera, take_camera_images
from common.export.same_outputs import SameOutputs
from common.networks.metadata import CAMERA, as_metadata, camera_of, of_camera
from common.runtimes.onnx_files import fixed_hw, require_image_input, stored_camera
from common.runtimes.predictors import OnnxPredictor, class_map, require_class_map
from models import Network
from models.family import NETWORKS

HW = (16, 16)
BYTES = np.arange(256, dtype=np.uint8).reshape(HW)
RGB = np.stack([BYTES, BYTES[::-1], BYTES.T], axis=-1)  # every byte in every channel
MEAN, STD = (0.1, 0.456, 0.9), (0.229, 0.31, 0.5)
PLAIN_INPUT = ("nchw", "float32", None)
FORMS = itertools.product(LAYOUTS, TYPES, (None, *CHANNELS))
EVERY_FORM = [CameraFormat(*form) for form in FORMS if form != PLAIN_INPUT]


def model_of(nodes, stored=None, shape=("batch", 3, *HW), outputs=1):
    ports = [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)]
    results = [helper.make_tensor_value_info(f"y{place}", TensorProto.FLOAT, shape) for place in range(outputs)]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in (stored or {}).items()]
    graph = helper.make_graph(nodes, "g", ports, results, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def network_of(order="RGB", **more):
    return Network(build=nn.Identity, input_shape=(3, *HW), mean=MEAN, std=STD, channel_order=order, **more)


def run(proto, *feeds):
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([each.name for each in session.get_inputs()], feeds, strict=True)))


def given(camera, order):
    """RGB as a camera of that form gives it, by hand: (1, ...)."""
    pixels = RGB if (camera.channels or order.lower()) == "rgb" else RGB[..., ::-1]
    if camera.type == "float32":
        places = [0, 1, 2] if (camera.channels or order.lower()) == order.lower() else [2, 1, 0]
        mean, std = (np.array(values, np.float32)[places] for values in (MEAN, STD))
        pixels = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(pixels if camera.layout == "nhwc" else pixels.transpose(2, 0, 1))[None]


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("camera", EVERY_FORM, ids=str)
def test_the_network_sees_the_numbers_of_the_plain_path(camera, order):
    """In every bit, of every byte in every channel; what ImageFormat feeds is what a camera of that form gives."""
    network = network_of(order)
    plain, image = ImageFormat.of(network, HW), ImageFormat.of(network, HW, camera)
    if camera.channels == order.lower() and (camera.layout, camera.type) == PLAIN_INPUT[:2]:
        return  # the plain form by another name, which no file is written in
    proto = model_of([helper.make_node("Identity", ["input"], ["y0"])])
    take_camera_images(proto, image)
    fed = given(camera, order)
    (seen,) = run(proto, fed)
    np.testing.assert_array_equal(seen[0], plain.to_tensor(RGB).numpy())
    np.testing.assert_array_equal(image.to_tensor(RGB).numpy(), fed[0])
    file = CameraFile(network, HW, camera)
    np.testing.assert_array_equal(file.fed(plain.to_tensor(RGB)[None]).numpy(), fed)
    proto.metadata_props.extend(
        onnx.StringStringEntryProto(key=key, value=value)
        for key, value in as_metadata(of_camera(camera, network)).items()
    )
    stored = stored_camera(proto, "x.onnx")
    require_image_input(proto, "x.onnx", 3, 1, stored)
    assert fixed_hw(proto, stored) == HW
    assert ImageFormat.of(network, HW, stored).to_tensor(RGB).equal(image.to_tensor(RGB))


def quantizing(scale, zero_point):
    """One quantize of the image, and the network's own arithmetic behind it."""
    stored = {"s": np.float32(scale), "z": np.uint8(zero_point)}
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y0"]),
    ]
    return model_of(nodes, stored)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_codes_are_those_of_the_plain_path(fold, seed, monkeypatch):
    """With the shorter arithmetic, and with the long one where the short one gives another code."""
    if not fold:
        monkeypatch.setattr(camera_module, "_same_codes", lambda *_: False)
    rng = np.random.default_rng(seed)
    scale, zero_point = float(rng.uniform(0.005, 0.05)), int(rng.integers(60, 180))
    image = ImageFormat(HW, MEAN, STD, "RGB", CameraFormat("nhwc", "uint8"))
    proto = quantizing(scale, zero_point)
    (expected,) = run(quantizing(scale, zero_point), ImageFormat(HW, MEAN, STD).to_tensor(RGB)[None].numpy())
    take_camera_images(proto, image)
    (actual,) = run(proto, RGB[None])
    np.testing.assert_array_equal(actual, expected)
    operators = [node.op_type for node in proto.graph.node]
    assert ("Mul" in operators) != ("Div" in operators)
    assert fold or "Div" in operators


def test_most_quantizations_fold():
    """Of the scales that calibrations find, most have the same codes with one factor and one summand."""
    folded = 0
    for seed in range(10):
        proto = quantizing(np.random.default_rng(seed).uniform(0.01, 0.03), 114)
        take_camera_images(proto, ImageFormat(HW, MEAN, STD, "RGB", CameraFormat(type="uint8")))
        folded += "Div" not in {node.op_type for node in proto.graph.node}
    assert folded >= 5


def test_an_image_that_is_rounded_and_taken_as_it_is_has_both_arithmetics():
    proto = quantizing(0.02, 114)
    proto.graph.node.append(helper.make_node("Identity", ["input"], ["y1"]))
    proto.graph.output.append(helper.make_tensor_value_info("y1", TensorProto.FLOAT, ("batch", 3, *HW)))
    take_camera_images(proto, ImageFormat(HW, MEAN, STD, "RGB", CameraFormat(type="uint8")))
    plain = ImageFormat(HW, MEAN, STD).to_tensor(RGB)[None].numpy()
    codes, floats = run(proto, RGB.transpose(2, 0, 1)[None].copy())
    np.testing.assert_array_equal(floats, plain)
    np.testing.assert_array_equal(codes, run(quantizing(0.02, 114), plain)[0])


def test_a_map_holds_the_first_of_the_largest_logits():
    """Four classes at six places, two of them with two largest."""
    logits = np.array([[1, 5, 0, 2, 2, 0], [1, 5, 9, 3, 1, 0], [0, 6, 9, 3, 1, 0], [1, 0, 1, 1, 9, 1]], np.float32)
    shape = ("batch", 4, 2, 3)
    proto = model_of(
        [helper.make_node("Identity", ["input"], ["y0"]), helper.make_node("Relu", ["y0"], ["y1"])], {}, shape, 2
    )
    give_class_maps(proto, network_of(outputs={"y0": "a", "y1": "b"}, output_kinds={"y1": "values"}))
    ids, values = run(proto, np.stack([logits, logits[::-1]]).reshape(2, 4, 2, 3))
    assert ids.dtype == np.uint8 and values.dtype == np.float32
    assert ids.reshape(2, 6).tolist() == [[0, 2, 1, 1, 3, 3], [0, 1, 1, 1, 0, 0]]
    assert values.shape == (2, 4, 2, 3)
    assert [axis.dim_param or axis.dim_value for axis in proto.graph.output[0].type.tensor_type.shape.dim] == [
        "batch",
        2,
        3,
    ]
    assert class_map(torch.from_numpy(ids)[:1]).tolist() == ids[:1].tolist()


def test_outputs_that_are_no_maps_are_refused():
    proto = model_of([helper.make_node("Identity", ["input"], ["y0"])], {}, ("batch", 1, 2, 3))
    with pytest.raises(ValueError, match="--output classes: no output is a map of several classes"):
        give_class_maps(proto, network_of(outputs={"y0": "a"}))
    proto = model_of([helper.make_node("Identity", ["input"], ["y0"])], {}, ("batch", 257, 2, 3))
    with pytest.raises(ValueError, match="--output classes: y0 tells 257, a byte 256"):
        give_class_maps(proto, network_of(outputs={"y0": "a"}))


@pytest.mark.parametrize(
    ("name", "camera", "said"),
    [
        ("AutoSteer", CameraFormat(type="uint8"), "AutoSteer takes no image of three channels"),
        ("Scene3D", CameraFormat(output="classes"), "Scene3D is a network for .*no map of classes"),
        (None, CameraFormat("nhwc"), "Two takes 2 images; wanted one image"),
    ],
)
def test_networks_without_that_form_are_refused(name, camera, said):
    two = network_of(inputs={"previous": "image", "current": "image"})
    with pytest.raises(ValueError, match=said):
        require_camera(camera, name or "Two", NETWORKS[name] if name else two)
    require_camera(PLAIN, name or "Two", NETWORKS[name] if name else two)


def test_a_file_that_differs_from_the_plain_one_is_not_kept(tmp_path):
    """The mean of another network."""
    camera = CameraFormat("nhwc", "uint8")
    plain, other = (model_of([helper.make_node("Identity", ["input"], ["y0"])]) for _ in range(2))
    take_camera_images(other, ImageFormat(HW, (0.2, 0.2, 0.2), STD, "RGB", camera))
    for name, proto in (("plain", plain), ("other", other)):
        onnx.save(proto, tmp_path / f"{name}.onnx")
    pair = (OnnxPredictor(tmp_path / f"{name}.onnx", 1) for name in ("plain", "other"))
    twins = SameOutputs(*pair, CameraFile(network_of(), HW, camera))
    with pytest.raises(ValueError, match="does not give what the plain file gives of the same pixels"):
        twins(torch.randn(1, 3, *HW, generator=torch.Generator().manual_seed(0)))


def test_metadata_that_are_damaged_or_lie_are_one_line():
    for text in (
        "{",
        "[]",
        '{"layout": "nhwc"}',
        '{"layout": "x", "type": "uint8", "channels": "rgb", "output": "classes"}',
    ):
        with pytest.raises(ValueError, match="metadata are damaged"):
            camera_of({CAMERA: text})
    proto = model_of([helper.make_node("Identity", ["input"], ["y0"])])
    said = as_metadata(of_camera(CameraFormat("nhwc", "uint8"), network_of()))
    proto.metadata_props.extend(onnx.StringStringEntryProto(key=key, value=value) for key, value in said.items())
    with pytest.raises(
        ValueError, match=r"takes input float .*; wanted one input of uint8 \(batch, height, width, 3\)"
    ):
        require_image_input(proto, "x.onnx", 3, 1, stored_camera(proto, "x.onnx"))


def test_ids_of_no_class_are_refused():
    require_class_map(torch.full((1, 2, 2), 2, dtype=torch.uint8), 3, (2, 2), "A")
    with pytest.raises(ValueError, match="A: its map holds the class 3, there are 3"):
        require_class_map(torch.full((1, 2, 2), 3, dtype=torch.uint8), 3, (2, 2), "A")
