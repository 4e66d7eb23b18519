"""Networks of the family to ONNX files: precision, batch axis, calibration images, and what is refused."""

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnx.reference
import onnxruntime as ort
import pytest
import torch
from onnx.checker import ValidationError
from PIL import Image
from torch import nn

from common.export.calibration import folder_images, image_preparer
from common.export.conversion import (
    compare_with_fp32,
    convert_fp32,
    convert_half,
    convert_int8,
)
from common.export.onnx_passes import separate_weights
from common.export.options import NEWEST_OPSET, OLDEST_OPSET, ExportOptions
from common.networks.checkpoints import published_state
from common.networks.opening import OpenedNetwork, network_table, open_network
from common.networks.registry import build_network
from common.quantization.settings import QuantizationSettings
from common.runtimes.onnx_files import read_graph, stored_precision
from models.family import NETWORKS, find_network

SHAPE = (3, 64, 64)


def opened(name, width=1 / 16, shape=SHAPE):
    torch.manual_seed(0)
    name, network = find_network(name)
    return OpenedNetwork(name, network, build_network(name, network, width).eval(), width, shape)


@pytest.fixture(scope="module")
def lanes():
    return opened("EgoLanes")


@pytest.fixture
def tiny(lanes, tiny_network):
    """A network that is quantized in no time, in the place of EgoLanes."""
    return OpenedNetwork(lanes.name, lanes.network, tiny_network, 1.0, SHAPE)


def test_a_fixed_batch_is_written_into_the_file(tiny, tmp_path):
    convert_fp32(tiny, tmp_path / "x.onnx", ExportOptions(threads=1, batch=2))
    (wanted,) = ort.InferenceSession(tmp_path / "x.onnx").get_inputs()
    assert wanted.shape == [2, 3, 64, 64]


@pytest.mark.parametrize("opset", [OLDEST_OPSET, NEWEST_OPSET])
def test_the_oldest_and_the_newest_operator_set_are_written(tiny, tmp_path, opset):
    convert_fp32(tiny, tmp_path / "x.onnx", ExportOptions(threads=1, opset=opset))
    assert version_of(tmp_path / "x.onnx") == opset


def test_a_newer_operator_set_is_still_not_written_whole(tiny, tmp_path):
    """Where this fails, an update of the exporter has moved NEWEST_OPSET."""
    with pytest.raises(ValidationError):
        convert_fp32(tiny, tmp_path / "x.onnx", ExportOptions(threads=1, opset=NEWEST_OPSET + 1))
    assert not (tmp_path / "x.onnx").exists()


POOL, WHOLE = nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1, ceil_mode=True)
LARGER = nn.Upsample(scale_factor=2, mode="bilinear")


@pytest.mark.parametrize(
    ("middle", "flags", "target", "version"),
    [
        ([POOL], {}, "onnxruntime", 18),
        ([POOL, LARGER, nn.ReflectionPad2d(1)], {}, "onnxruntime", 18),
        ([POOL], {"opset": 20}, "onnxruntime", 20),  # as asked for
        ([POOL], {}, "tensorrt", 20),  # which computes either as fast
        ([WHOLE], {}, "onnxruntime", 20),  # whose last windows set 18 counts otherwise
        ([POOL, nn.GELU()], {}, "onnxruntime", 20),  # which set 18 has not
        ([], {}, "onnxruntime", 20),
    ],
)
def test_average_pools_are_written_in_the_form_that_is_computed_in_vectors(
    lanes, tmp_path, middle, flags, target, version
):
    """With convolutions behind an FP32 pool, and as INT8; ONNX's reference says what the file says."""
    torch.manual_seed(0)
    model = nn.Sequential(*middle, nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 3, 1)).eval()
    source = OpenedNetwork(lanes.name, lanes.network, model, 1.0, (3, 12, 12))
    path, image = tmp_path / "x.onnx", torch.randn(1, 3, 12, 12)
    options = ExportOptions(threads=1, **flags)
    if target == "onnxruntime":
        convert_fp32(source, path, options)
        found = onnx.reference.ReferenceEvaluator(str(path)).run(None, {"input": image.numpy()})[0]
        np.testing.assert_allclose(found, model(image).detach(), atol=1e-5)
        assert version_of(path) == version
    settings = QuantizationSettings(fused=False, target=target)
    convert_int8(source, path, options, settings, [image], [torch.randn(1, 3, 12, 12)])
    assert version_of(path) == version


def version_of(path):
    return {each.domain: each.version for each in read_graph(path).opset_import}[""]


def test_half_stores_and_computes_in_fp16_and_is_fed_fp32(tiny, tmp_path):
    (agreement,) = convert_half(tiny, tmp_path / "half.onnx", ExportOptions(threads=1))
    assert stored_precision(read_graph(tmp_path / "half.onnx")) == "fp16"
    assert 0 < agreement.relative < 2e-2
    session = ort.InferenceSession(tmp_path / "half.onnx")
    assert (session.get_inputs()[0].type, session.get_outputs()[0].type) == ("tensor(float)", "tensor(float)")
    assert next(tiny.model.parameters()).dtype == torch.float32  # the network itself stays as it was


def test_int8_of_any_network_keeps_the_network_and_its_float_model(lanes, tmp_path):
    images = [torch.randn(1, *SHAPE) for _ in range(3)]
    before = lanes.model(images[0])
    path, options = tmp_path / "int8.onnx", ExportOptions(threads=1)
    (agreement,) = convert_int8(lanes, path, options, QuantizationSettings(), images[:2], images[2:])
    assert agreement.sqnr_db > 15
    assert stored_precision(read_graph(path)) == "int8"
    assert torch.equal(lanes.model(images[0]), before)
    fp32, int8 = compare_with_fp32(lanes, path, images[2], options)
    assert float(int8["of FP32"]) < 0.5 < float(fp32["of FP32"])


def test_a_file_that_lost_the_network_is_not_kept(tiny, tmp_path):
    dark, bright = [torch.zeros(1, *SHAPE)], [1e4 * torch.randn(1, *SHAPE)]
    with pytest.raises(ValueError, match="INT8 lost the network"):
        convert_int8(tiny, tmp_path / "int8.onnx", ExportOptions(threads=1), QuantizationSettings(), dark, bright)
    assert not list(tmp_path.iterdir())


def test_metadata_names_what_a_consumer_needs(tiny, tmp_path):
    convert_fp32(tiny, tmp_path / "x.onnx", ExportOptions(threads=1))
    metadata = ort.InferenceSession(tmp_path / "x.onnx").get_modelmeta().custom_metadata_map
    assert metadata["network"] == "EgoLanes"
    assert "ego left lane" in json.loads(metadata["outputs"])["output"]
    assert json.loads(metadata["mean"]) == [0.485, 0.456, 0.406]
    assert not {"classes", "target"} & metadata.keys()


def test_several_outputs_keep_their_names(tmp_path):
    source = opened("AutoSteer", width=1, shape=NETWORKS["AutoSteer"].input_shape)
    agreements = convert_fp32(source, tmp_path / "x.onnx", ExportOptions(threads=1))
    assert len(agreements) == 2
    outputs = ort.InferenceSession(tmp_path / "x.onnx").get_outputs()
    assert [(output.name, output.shape) for output in outputs] == [
        ("previous", ["batch", 61]),
        ("current", ["batch", 61]),
    ]


def write_images(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for index in range(count):
        path = folder / f"drive{index % 2}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (48, 96, 3), np.uint8))


def test_images_are_either_for_calibration_or_for_judging(lanes, tmp_path):
    write_images(tmp_path, 10)
    images = folder_images(lanes, tmp_path, 5, seed=0, egolanes_checkpoint=None)
    calibration, held_out = images.to_calibrate(), images.to_judge()
    assert (len(calibration), len(held_out), len(images.left)) == (5, 2, 3)
    assert len({*images.calibrating, *images.judging, *images.left}) == 10
    assert all(image.shape == (1, *SHAPE) for image in calibration + held_out)
    assert not any(torch.equal(a, b) for a in calibration for b in held_out)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        folder_images(lanes, tmp_path / "absent", 5, 0, None)


def test_calibration_images_are_upright_and_of_the_bits_that_are_said(tmp_path):
    scene, upright, turned, twelve = NETWORKS["SceneSeg"], *(tmp_path / f"{name}.png" for name in "abc")
    rgb = np.random.default_rng(0).integers(0, 256, (48, 96, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(rgb))).save(turned, exif=exif)
    Image.fromarray(rgb).save(upright)
    cv2.imwrite(str(twelve), rgb[..., ::-1].astype(np.uint16) << 4)
    expected = image_preparer(scene, (32, 64))(upright)
    assert torch.equal(image_preparer(scene, (32, 64))(turned), expected)
    assert torch.equal(image_preparer(scene, (32, 64), 12)(twelve), expected)


def test_auto_steer_is_calibrated_on_what_ego_lanes_sees(lanes, tmp_path):
    write_images(tmp_path, 5)
    source = opened("AutoSteer", width=1, shape=NETWORKS["AutoSteer"].input_shape)
    with pytest.raises(ValueError, match="--egolanes_checkpoint"):
        folder_images(source, tmp_path, 2, 0, None)
    checkpoint = tmp_path / "lanes.pth"
    torch.save(published_state("EgoLanes", lanes.model), checkpoint)
    images = folder_images(source, tmp_path, 2, 0, checkpoint)
    calibration, held_out = images.to_calibrate(), images.to_judge()
    assert [image.shape for image in calibration + held_out] == [(1, 6, 80, 160)] * 3


def test_no_two_dequantize_share_a_weight_or_a_zero_point():
    """Two weights on one zero point, and one weight used twice, as the exporter writes them."""
    helper = onnx.helper
    stored = [helper.make_tensor(f"w{i}", onnx.TensorProto.INT8, [1], [i]) for i in range(2)]
    stored += [helper.make_tensor("s", onnx.TensorProto.FLOAT, [], [1.0])]
    stored += [helper.make_tensor("z", onnx.TensorProto.INT8, [], [0])]
    nodes = [helper.make_node("DequantizeLinear", [f"w{i}", "s", "z"], [f"y{n}"]) for n, i in enumerate((0, 1, 1))]
    outputs = [helper.make_tensor_value_info(f"y{n}", onnx.TensorProto.FLOAT, [1]) for n in range(3)]
    proto = helper.make_model(helper.make_graph(nodes, "g", [], outputs, stored))
    before = onnx.reference.ReferenceEvaluator(proto).run(None, {})
    assert separate_weights(proto) == 3
    onnx.checker.check_model(proto, full_check=True)
    used = [name for node in proto.graph.node for name in (node.input[0], node.input[2])]
    assert len(set(used)) == len(used)
    assert onnx.reference.ReferenceEvaluator(proto).run(None, {}) == before
    assert separate_weights(proto) == 0


def test_a_checkpoint_of_another_network_is_refused(lanes, tmp_path):
    torch.save(published_state("EgoLanes", lanes.model), tmp_path / "lanes.pth")
    with pytest.raises(ValueError, match=r"lanes.pth: not a checkpoint of SceneSeg .*keys missing"):
        open_network("SceneSeg", tmp_path / "lanes.pth", None)
    with pytest.raises(ValueError, match="multiples of 32"):
        open_network("EgoLanes", tmp_path / "lanes.pth", (100, 100))


def test_the_list_has_every_network_with_the_published_sizes():
    listed = network_table()
    published = {"SceneSeg": "48,362,503", "Scene3D": "48,435,717", "DomainSeg": "48,361,349"}
    published |= {"EgoLanes": "51,915,415", "AutoSteer": "5,348,026", "AutoSpeed": "8,006,316"}
    for name, parameters in published.items():
        (line,) = [line for line in listed.splitlines() if f"| {name} " in line]
        assert parameters in line
    assert "366.9" in listed or "367.0" in listed  # GFLOP of SceneSeg
