"""A network of two images and three numbers through conversion, label-free training and benchmarks."""

import json

import numpy as np
import onnxruntime as ort
import pytest
import torch

import benchmark_onnx_models as benchmark_onnx
import benchmark_qat_model as benchmark_qat
import convert_pytorch_to_onnx as convert
import quantize_model_sceneseg as quantize
from common.data.shots import ShotDataset, ShotFormat, find_shots, split_shots
from common.data.transforms import ImageFormat
from common.networks.checkpoints import load_network
from common.networks.registry import find_network
from tests.command_lines import call, refusal
from tests.own_folder import TWO_IMAGES, own_folder, write_drive

NAME = "two_images:NET"
OUTPUTS = ["distance", "curvature", "flag"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with own_folder(tmp_path_factory.mktemp("own"), "two_images", TWO_IMAGES) as path:
        write_drive(path / "drive" / "monday", 40)
        write_drive(path / "drive" / "tuesday", 40, seed=1)
        yield path


def pairs(folder, count):
    """Inputs of the images that trainings leave aside, (1, 6, H, W)."""
    network = find_network(NAME)[1]
    _, held_out = split_shots(find_shots([folder / "drive"], 2))
    dataset = ShotDataset(held_out, ShotFormat(ImageFormat.of(network), 2))
    return [dataset[index][None] for index in range(count)]


def test_a_file_takes_each_image_by_its_name(folder):
    call(convert, ["-n", NAME, "-p", "weights.pth", "-o", "fp32.onnx"])
    session = ort.InferenceSession("fp32.onnx")
    assert [each.name for each in session.get_inputs()] == ["previous", "current"]
    assert [each.shape for each in session.get_inputs()] == [["batch", 3, 32, 64]] * 2
    assert [each.name for each in session.get_outputs()] == OUTPUTS
    model, _ = load_network(NAME, folder / "weights.pth")
    images = torch.cat(pairs(folder, 3))
    previous, current = images.numpy()[:, :3].copy(), images.numpy()[:, 3:].copy()
    with torch.no_grad():
        expected = [output.numpy() for output in model(images)]
    actual = session.run(None, {"previous": previous, "current": current})
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)
    swapped = session.run(None, {"previous": current, "current": previous})
    assert not np.allclose(swapped[0], actual[0], atol=1e-4)


@pytest.fixture(scope="module")
def trained(folder):
    flags = ["-n", NAME, "-fp32", "weights.pth", "--images", "drive", "--workers", 0, "--batch_size", 8]
    call(quantize, [*flags, "-s", "qat", "-e", 3, "--learning_rate", 1e-5, "--num_calibration_samples", 32])
    checkpoint = ["--qat_checkpoint_path", "qat/qat_model_final_calibrated.pth", "--num_calibration_samples", 32]
    call(benchmark_qat, ["-n", NAME, *checkpoint, "--images", "drive", "--compare_ptq", "weights.pth", "--workers", 0])
    return json.loads((folder / "qat" / "onnx_models" / "results.json").read_text())


def test_no_output_becomes_constant(trained):
    fp32, _, qat = (trained["models"][label]["outputs"] for label in trained["models"])
    for name in OUTPUTS:
        assert qat[name]["deviation"] == pytest.approx(fp32[name]["deviation"], rel=0.3), name
        assert qat[name]["sqnr_db"] > 30, name
    assert qat["flag"]["equal_pixels"] is not None
    assert qat["distance"]["equal_pixels"] is None
    assert not any("nearly constant" in note for note in trained["notes"])


def test_the_int8_file_computes_both_images_in_int8(trained, folder):
    """The second call of the shared backbone is not left in float, and its batch norm is not folded twice."""
    import onnx

    proto = onnx.load("qat/onnx_models/NETNetwork_QAT_INT8_final.onnx")
    by_output = {name: node for node in proto.graph.node for name in node.output}
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 5
    for node in convolutions:
        assert {by_output[name].op_type for name in node.input[:2]} == {"DequantizeLinear"}


def constant_flag():
    """Weights whose flag is far off in all images: INT8 has one number for it."""
    weights = torch.load("weights.pth")
    weights["flag.bias"] += 1000
    torch.save(weights, "far.pth")


def test_an_output_that_int8_cannot_tell_apart_is_named(folder, capsys):
    constant_flag()
    call(convert, ["-n", NAME, "-p", "far.pth", "-o", "far.onnx"])
    flags = ["--int8", "--calibration_data", "drive", "--num_calibration_samples", 16]
    call(convert, ["-n", NAME, "-p", "far.pth", "-o", "far_int8.onnx", *flags])
    models = ["--model", "FP32=far.onnx", "--model", "INT8=far_int8.onnx"]
    call(benchmark_onnx, ["-n", NAME, *models, "--images", "drive", "--warmup_runs", 0, "--workers", 0])
    told = capsys.readouterr().out
    assert "INT8: the output flag is nearly constant: it deviates by 0 over the images, that of FP32 by " in told
    assert "; the first layer with the same codes for all images is flag." in told
    assert "INT8: the output distance is nearly constant" not in told


def test_a_file_of_one_input_is_no_model_of_two(folder, capsys):
    call(convert, ["-n", "SceneSeg", "-p", narrow_weights(), "-o", "scene.onnx", "--input_hw", "32,64"])
    told = refusal(benchmark_onnx, ["-n", NAME, "--fp32_model_path", "scene.onnx", "--images", "drive"], capsys)
    assert "wanted 2 inputs of float (batch, 3, height, width)" in told


def narrow_weights():
    from common.networks.checkpoints import published_state
    from models.scene_seg import SceneSegNetwork

    torch.save(published_state("SceneSeg", SceneSegNetwork(1 / 32).eval()), "scene.pth")
    return "scene.pth"
